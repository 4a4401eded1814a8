"""A real server process, hosts enrolled through the real command line, and what stands in both databases.

Every process is ended by its own id, every wait has a deadline, and both databases are only ever read here (`mode=ro`).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compliance_agent.config import AgentConfig
from compliance_agent.server.store.packing import unpacked

COMMAND = (sys.executable, "-m", "compliance_agent")
START_S = 30.0
Place = tuple[int, int, str]  # epoch, seq, SHA-256 of the exact bytes


def environment(**more: str) -> dict[str, str]:
    """This process's environment without anything that steers the product or slows every start of it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MSP_")}
    kept.pop("PYTHONDONTWRITEBYTECODE", None)
    return kept | more


def free_port() -> int:
    """A port on loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(done: Callable[[], bool], seconds: float, what: str, every_s: float = 0.02) -> None:
    """Poll until it is so; a test failure that says `what` otherwise."""
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(every_s)


def command(
    *words: str | Path, timeout_s: float = 60.0, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`compliance-agent WORDS` in a process of its own."""
    return subprocess.run(
        [*COMMAND, *map(str, words)],
        env=dict(env or environment()),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def succeed(*words: str | Path) -> str:
    """What the command prints; a test failure with its complaint when it refuses."""
    done = command(*words)
    assert done.returncode == 0, f"{words[0]}: exit {done.returncode}: {done.stderr.strip()[-400:]}"
    return done.stdout


def end(process: subprocess.Popen[Any], number: int = signal.SIGTERM, seconds: float = 15.0) -> int:
    """Send one signal to one process and wait; kill it when it does not end. Its exit status."""
    if process.poll() is None:
        process.send_signal(number)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(5)
        raise


@dataclass
class Server:
    """A `compliance-agent server` over one data directory, on one port for life; `settings` go into its environment."""

    data_dir: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def database(self) -> Path:
        return self.data_dir / "server.db"

    def start(self, *, ready: bool = True) -> None:
        """Start it; wait until it is ready, or (a log stands still) until it lives."""
        self.data_dir.mkdir(parents=True, exist_ok=True)
        with self.data_dir.with_suffix(".log").open("ab") as output:
            self.process = subprocess.Popen(
                [*COMMAND, "server", "--data-dir", str(self.data_dir), "--port", str(self.port)],
                env=environment(**self.settings), stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip
        page = "readyz" if ready else "healthz"
        until(lambda: self._answers(page), START_S, f"the server's {page}", every_s=0.05)

    def _answers(self, page: str) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"the server ended: {self.data_dir.with_suffix('.log').read_text()[-600:]}"
        try:
            with urllib.request.urlopen(f"{self.url}/{page}", timeout=2) as answer:  # loopback, our own server
                return int(answer.status) == 200
        except OSError:
            return False

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        process, self.process = self.process, None
        return end(process, number)

    def token(self, site: str, path: Path) -> Path:
        succeed("server", "enrol-token", "--site", site, "--data-dir", self.data_dir, "--out", path)
        return path


@contextlib.contextmanager
def serving(data_dir: Path, **settings: str) -> Iterator[Server]:
    """A running server, ended at the end."""
    server = Server(data_dir, settings=settings)
    server.start()
    try:
        yield server
    finally:
        if server.process is not None:
            server.stop()


@dataclass
class EnrolledHost:
    """One host's directory after `compliance-agent enrol`: its configuration, and what its database says."""

    directory: Path
    host_id: str
    key_id: str

    @property
    def config_file(self) -> Path:
        return self.directory / "agent.yaml"

    @property
    def state_dir(self) -> Path:
        return self.directory / "state"

    @property
    def evidence_dir(self) -> Path:
        return self.directory / "evidence"

    @property
    def config(self) -> AgentConfig:
        return AgentConfig.from_file(self.config_file, {})

    def recorded(self) -> list[Place]:
        """What the agent's own database holds, in chain order."""
        return places(self.state_dir / "agent.db", "SELECT epoch, seq, sha256 FROM evidence ORDER BY epoch, seq")

    def states(self) -> dict[str, int]:
        return dict(rows(self.state_dir / "agent.db", "SELECT state, count(*) FROM evidence GROUP BY state"))

    def statistics(self) -> dict[str, int]:
        return dict(rows(self.state_dir / "agent.db", "SELECT name, value FROM statistics"))


def enrolled(server: Server, directory: Path, host_id: str, site: str, **settings: Any) -> EnrolledHost:
    """A host made known to the server as an operator does it, configured from what `enrol` printed."""
    from compliance_agent.cli.common import shipped_baseline

    directory.mkdir(parents=True)
    token = server.token(site, directory / "enrol.token")
    answer = json.loads(
        succeed("enrol", "--server", server.url, "--token-file", token, "--host-id", host_id,
                "--state-dir", directory / "state", "--json")
    )  # fmt: skip
    lines = answer["settings"] | {
        "evidence_dir": str(directory / "evidence"),
        "baseline_path": str(shipped_baseline()),
        "mcp_poll_interval_sec": 1,
        "healing_cooldown_sec": 0,
        "healing_budget_per_hour": 1000,
        "flap_limit": 100,
        "flap_window_sec": 60,
        "maintenance_window_start": "00:00",
        "maintenance_window_end": "00:00",
        **settings,
    }
    text = "".join(f"{name}: {json.dumps(value)}\n" for name, value in lines.items())
    (directory / "agent.yaml").write_text(text, "ascii")
    (directory / "agent.yaml").chmod(0o600)
    return EnrolledHost(directory, host_id, answer["key_id"])


def rows(database: Path, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    """Rows of a database that another process may be writing: a reader of its own, which can change nothing."""
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=10)
    try:
        return connection.execute(query, values).fetchall()
    finally:
        connection.close()


def places(database: Path, query: str, values: Sequence[Any] = ()) -> list[Place]:
    return [(int(epoch), int(seq), str(digest)) for epoch, seq, digest in rows(database, query, values)]


def arrived(server: Server, host: EnrolledHost) -> list[Place]:
    """What the server holds of a host, in the order of arrival."""
    query = "SELECT epoch, seq, sha256 FROM bundles WHERE key_id = ? ORDER BY number"
    return places(server.database, query, (host.key_id,))


def stored(server: Server, host: EnrolledHost) -> list[tuple[bytes, bytes]]:
    """The exact bytes and signatures that the server holds of a host, in chain order."""
    query = "SELECT body, sig FROM bundles WHERE key_id = ? ORDER BY epoch, seq"
    return [
        (unpacked(bytes(body)), bytes(signature)) for body, signature in rows(server.database, query, (host.key_id,))
    ]


def troubles(server: Server) -> dict[str, int]:
    """Forks and gaps that the server ever noted, which there must not be."""
    return {table: rows(server.database, f"SELECT count(*) FROM {table}")[0][0] for table in ("forks", "gaps")}
