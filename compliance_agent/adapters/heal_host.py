"""A host that is changed by the root side: this process looks, and asks `heal` for each change as a row of its table.

Programs that change the host are named by their whole command in `remedies/`; the root side takes no command, so each is taken
apart into the row that has it and its typed arguments, and whatever is no row is refused here already. What root refuses is a
failed step, with the reason in the log.
"""

from __future__ import annotations

import asyncio
import functools
import os
import socket
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import structlog

from compliance_agent.errors import AgentError, BadFrame, CannotTell, NotPermitted, StepFailed, Unavailable
from compliance_agent.frames import Asking, Message, Side, Table
from compliance_agent.heal import rows
from compliance_agent.heal.protocol import TABLE
from compliance_agent.heal.service import GRACE_S
from compliance_agent.local_socket import Wire, adopted, require_peer
from compliance_agent.models import ClockState
from compliance_agent.ports import FileDigest, FileStat, Host, Ran, UnitState

START_S = 15.0  # for the service manager to start the root side
QUEUE_S = 60.0  # for what it still does for a question that nobody waits for any more
Ask = Callable[[str, Mapping[str, Any], bytes], Awaitable[Message]]

log = structlog.get_logger()
_FIXED: dict[tuple[str, ...], tuple[str, dict[str, Any]]] = {
    rows.LOGIND: ("logind", {}),
    rows.FINISH: ("finish", {}),
    ("chronyc", "-n", "makestep"): ("clock", {}),
    ("nft", "-c", "-f", "-"): ("ruleset", {"how": "check"}),
    ("nft", "-f", "-"): ("ruleset", {"how": "load"}),
    **{argv: ("refresh", {"manager": manager}) for manager, argv in rows.REFRESH.items()},
    rows.UPGRADE["dnf"]: ("upgrade", {"manager": "dnf", "packages": []}),
    **{argv: ("audit", {"verb": verb}) for verb, argv in rows.AUDIT.items()},
}


def _of_row(kind: str) -> float:
    return rows.ROWS[kind].deadline_s + GRACE_S


class Root:
    """A root side behind its socket; a connection for each question.

    Args:
        path: of the socket.
        table: what may be asked there.
        within_s: how long a kind of question may take.
    """

    def __init__(self, path: Path, table: Table = TABLE, within_s: Callable[[str], float] = _of_row) -> None:
        self._path, self._table, self._within_s = path, table, within_s

    async def ask(self, kind: str, fields: Mapping[str, Any], blob: bytes) -> Message:
        """The answer to one question.

        Raises:
            StepFailed: `heal_unreachable` (or as the table is called); what was asked may have been done.
            BadFrame: it is no question of the table.
        """
        frames = Asking(self._table).ask(kind, fields, blob).frames
        return await asyncio.to_thread(self.exchange, kind, frames)

    def exchange(self, kind: str, frames: Sequence[bytes]) -> Message:
        """As `ask`, for one who may wait; `frames` are those of the question."""
        name = self._table.name
        try:
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(START_S)
            with Wire(connection, self._table, Side.ASKS) as wire:
                connection.connect(str(self._path))
                require_peer(connection, {0, os.geteuid()})
                wire.greet(START_S + QUEUE_S)
                wire.send(frames, START_S)
                answer = wire.receive(self._within_s(kind))
        except (OSError, BadFrame, NotPermitted, Unavailable) as error:
            code = error.code if isinstance(error, AgentError) else type(error).__name__
            raise StepFailed(f"{name} at {self._path}: no answer ({code})", code=f"{name}_unreachable") from error
        if answer is None:
            raise StepFailed(f"{name} at {self._path}: it ended without an answer", code=f"{name}_unreachable")
        return answer


class Held:
    """A root side at the other end of a socket pair that this process was started with (pair.py); one connection for its life.

    Args:
        connection: this end.
        within_s: how long a kind of question may take.
    """

    def __init__(self, connection: socket.socket, within_s: Callable[[str], float] = _of_row) -> None:
        self._wire, self._asking, self._within_s = Wire(connection, TABLE, Side.ASKS), Asking(TABLE), within_s
        self._one = threading.Lock()
        self._greeted = self._ended = False

    async def ask(self, kind: str, fields: Mapping[str, Any], blob: bytes) -> Message:
        """The answer to one question.

        Raises:
            StepFailed: `heal_unreachable`; what was asked may have been done, and no more can be asked.
            BadFrame: it is no question of the table.
        """
        return await asyncio.to_thread(self._exchange, kind, fields, blob)

    def _exchange(self, kind: str, fields: Mapping[str, Any], blob: bytes) -> Message:
        with self._one:
            frames = self._asking.ask(kind, fields, blob).frames
            try:
                if self._ended:
                    raise Unavailable("the pair has ended", code="cut")
                if not self._greeted:
                    self._wire.greet(START_S)
                    self._greeted = True
                self._wire.send(frames, START_S)
                answer = self._wire.receive(self._within_s(kind))
                if answer is None:
                    raise Unavailable("the root side has ended", code="cut")
                self._asking.take(answer)
            except (BadFrame, Unavailable) as error:
                self._ended = True
                self._wire.close()
                raise StepFailed(f"heal at its pair: no answer ({error.code})", code="heal_unreachable") from error
            return answer


@functools.cache
def held(handle: str) -> Held:
    """The root side that this process was started with; its descriptor is no other program's.

    Raises:
        ConfigError: the descriptor is no socket.
        NotPermitted: it is not root's.
    """
    connection = adopted(int(handle) if handle.isdecimal() else -1)
    connection.set_inheritable(False)
    require_peer(connection, {0})
    return Held(connection)


class HealHost:
    """One cure's host.

    Args:
        host: looks.
        ask: asks the root side.
        cure: the rollback point's id; within one, the root side takes back what it found itself.
        baseline: digest of the baseline that was decided by.
    """

    def __init__(self, host: Host, ask: Ask, cure: str, baseline: str) -> None:
        self._host, self._ask = host, ask
        self._common = {"cure": cure, "baseline": baseline}

    # -- looking

    async def read(self, path: str, *, limit_bytes: int = 1_048_576) -> bytes:
        return await self._host.read(path, limit_bytes=limit_bytes)

    async def stat(self, path: str) -> FileStat:
        return await self._host.stat(path)

    async def stats(self, paths: Sequence[str]) -> Mapping[str, FileStat | CannotTell]:
        return await self._host.stats(paths)

    async def whole(self, path: str) -> tuple[FileStat, bytes]:
        return await self._host.whole(path)

    async def list(self, path: str) -> tuple[str, ...]:
        return await self._host.list(path)

    async def digests(self, paths: Sequence[str], **limits: int) -> Mapping[str, FileDigest | CannotTell]:
        return await self._host.digests(paths, **limits)

    async def run(self, argv: Sequence[str], **how: Any) -> Ran:
        return await self._host.run(argv, **how)

    async def ruleset(self) -> Ran:
        return await self._host.ruleset()

    async def units(self, names: Sequence[str]) -> Mapping[str, UnitState]:
        return await self._host.units(names)

    async def ask(self, socket_path: str, request: bytes, **how: Any) -> bytes:
        return await self._host.ask(socket_path, request, **how)

    async def sound_tls(self, port: int, name: str, **how: Any) -> bytes | None:
        return await self._host.sound_tls(port, name, **how)

    async def clock_state(self) -> ClockState:
        return await self._host.clock_state()

    def now(self) -> datetime:
        return self._host.now()

    async def pause(self, seconds: float) -> None:
        await self._host.pause(seconds)

    # -- changing

    async def write(self, path: str, content: bytes, *, mode: int = 0o644) -> None:
        await self._do("write", {"path": path, "mode": mode}, content)

    async def remove(self, path: str) -> None:
        await self._do("remove", {"path": path})

    async def chmod(self, path: str, mode: int) -> None:
        await self._do("chmod", {"path": path, "mode": mode})

    async def unit_action(self, verb: str, name: str) -> None:
        await self._do("unit", {"verb": verb, "unit": name})

    async def change(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float = 60.0,
        stdin: bytes = b"",
        limit_bytes: int = 4_194_304,
        env: Mapping[str, str] | None = None,
    ) -> Ran:
        """As the port says, but that the row's deadline counts, and that only the end of standard error comes back."""
        kind, fields = row_of(tuple(argv))
        answer = await self._do(kind, fields, stdin)
        return Ran(answer.fields["exit"], b"", answer.blob)

    async def _do(self, kind: str, fields: Mapping[str, Any], blob: bytes = b"") -> Message:
        try:
            answer = await self._ask(kind, {**self._common, **fields}, blob)
        except BadFrame as error:
            log.error("heal.refused", row=kind, code=error.code)
            raise StepFailed(f"heal: {kind}: not a question of its table", code="heal_refused") from error
        said = answer.fields
        if answer.kind == "refused":
            log.error("heal.refused", row=kind, code=said["code"])
            code = "not_approved" if said["code"].startswith("approval_") else "heal_refused"
            raise StepFailed(f"heal: {kind}: refused ({said['code']})", code=code)
        if answer.kind == "failed":
            raise StepFailed(f"heal: {kind}: {said['code']}", code=said["code"], exit_status_of_step=said["exit"])
        if answer.kind == "unclear":
            raise CannotTell(said["reason"], f"heal: {kind}: {said['reason']}")
        return answer


def row_of(argv: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
    """The row that runs this command, and its arguments.

    Raises:
        StepFailed: `heal_refused`: no row does.
    """
    if argv in _FIXED:
        return _FIXED[argv]
    upgrade, transient = rows.UPGRADE["apt"], rows.TRANSIENT
    if argv[: len(upgrade)] == upgrade:
        return "upgrade", {"manager": "apt", "packages": list(argv[len(upgrade) :])}
    if argv[: len(transient)] == transient and len(argv) == len(transient) + 2:
        return "activate", {"system": argv[-2].removesuffix("/bin/switch-to-configuration"), "how": argv[-1]}
    match argv:
        case ("mkdir", "-m", "0755", "--", path):
            return "mkdir", {"path": path}
        case ("rmdir", "--", path):
            return "rmdir", {"path": path}
        case ("usermod", "-L", "--", name):
            return "account", {"verb": "lock", "name": name}
        case ("usermod", "-p", "", "--", name):
            return "account", {"verb": "unlock", "name": name}
        case ("chage", "-d", day, "--", name) if day.removeprefix("-").isdecimal():
            return "account_day", {"name": name, "day": int(day)}
        case ("nix-env", "-p", rows.PROFILE, "--switch-generation", generation) if generation.isdecimal():
            return "system", {"generation": int(generation)}
        case ("auditctl", *words) if words:
            return "audit_rule", {"rule": " ".join(words)}
    raise StepFailed(f"{argv[0]}: no row of the root side runs this", code="heal_refused")
