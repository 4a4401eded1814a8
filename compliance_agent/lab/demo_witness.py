"""The demo's witness: a real process of its own, told of the demo's logs, whose word the demo's server asks for."""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from compliance_agent.adapters.durable import make_directory, write_file
from compliance_agent.errors import Unavailable

NAME = "demo.witness.example/w1"
SERVER = "compliance-server"
START_S = 30.0
STOP_S = 5.0
_LISTENING = re.compile(r"listening on (http://\S+)\n")


class DemoWitness:
    """One witness in a directory.

    Args:
        directory: where its keys and its memory stand.
        command: how a subcommand of ours is started.
    """

    def __init__(self, directory: Path, command: Callable[..., Sequence[str]]) -> None:
        self.directory = directory
        self._command = command
        self._process: asyncio.subprocess.Process | None = None

    @property
    def policy_file(self) -> Path:
        """The lines for the server: this witness, and that its word is a quorum."""
        return self.directory / "witnesses.policy"

    async def start(self, server_keys: Path, sites: Sequence[str]) -> None:
        """Run it for the logs of these sites, whose key the server keeps in `server_keys`.

        Raises:
            Unavailable: it did not come up.
        """
        from compliance_agent.server.log_keys import LogKeys

        make_directory(self.directory)
        keys, options = LogKeys(server_keys), []
        for site in sites:
            policy = self.directory / f"{site}.policy"
            origin = f"{SERVER}/{site}/{datetime.now(UTC).year}"
            write_file(policy, f"log {keys.verifier(origin)}\nquorum none\n".encode(), 0o600)
            options += ["--policy", str(policy)]
        state = self.directory / "state"
        with (self.directory / "witness.log").open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command("witness", "--name", NAME, "--state-dir", str(state), "--port", "0", *options),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
            )
        try:
            async with asyncio.timeout(START_S):
                key, url = await self._announced(self._process)
        except TimeoutError as error:
            raise Unavailable(
                "the demo's witness did not start", hint=f"see {self.directory / 'witness.log'}"
            ) from error
        write_file(self.policy_file, f"witness w1 {key} {url}\nquorum w1\n".encode(), 0o644)

    async def _announced(self, process: asyncio.subprocess.Process) -> tuple[str, str]:
        """Its key, and where it listens, as it prints both."""
        assert process.stdout is not None  # noqa: S101  a pipe was asked for
        key = ""
        while line := (await process.stdout.readline()).decode("utf-8", "replace"):
            if found := _LISTENING.fullmatch(line):
                return key, found[1]
            key = key or line.strip()
        raise Unavailable("the demo's witness ended at once", hint=f"see {self.directory / 'witness.log'}")

    async def stop(self) -> None:
        """End it; it has nothing to drain."""
        if self._process is None or self._process.returncode is not None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_S):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
