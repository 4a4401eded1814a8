"""A clinic host in memory: files, units, sockets, programs and a clock that hang together, behind the Host port.

The state is the truth, and everything else is derived from it: clamd's socket answers while its unit is active, `nft`
prints the rules it was given, `chronyc` measures the very skew that `now()` shows. A program that changes state says so
with `Call.alters`, and the fake refuses it when it was started as a mere look. `faults` takes single things away.

    host = FakeHost(FakeClock())
    host.put("/etc/hostname", b"clinic-1")
    host.install("nft")                                   # programs live in lab/programs/
    host.units_table["chrony.service"] = Unit()
    host.faults.blind("program:nft", "timed_out")
"""

from __future__ import annotations

import hashlib
import random
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, TypeVar

from compliance_agent.core.nftables import LIST
from compliance_agent.errors import CannotTell, StepFailed
from compliance_agent.lab.faults import Faults
from compliance_agent.models import ClockState
from compliance_agent.ports import ENVIRONMENT, UNIT_VERBS, Clock, FileDigest, FileStat, Host, Ran, UnitState

if TYPE_CHECKING:
    from compliance_agent.lab.events import FakeEvents

READ_TIMEOUT_S = 5.0
MOST_LINKS = 40
_SUB_STATES = {"timer": "waiting", "socket": "listening", "path": "waiting", "mount": "mounted", "target": "active"}
NOT_FOUND = UnitState("not-found", "inactive", "dead", "")
PROGRAM_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
State = TypeVar("State")


@dataclass
class Node:
    """One file system object. `target` is a symbolic link's; times are the host's own."""

    kind: str = "file"  # file | directory | symlink | fifo | device
    content: bytes = b""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    modified_at: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    target: str = ""
    source: Callable[[], bytes] | None = None  # computes the content at each look, as the kernel does for /proc


@dataclass
class Unit:
    """One systemd unit. `can_start` is asked on start and restart, for a daemon whose configuration may be bad;
    `started` runs when it comes up, and a False from it is a failure; `reloaded` when it reads its files again. A `oneshot`
    unit is inactive again when its work is done. What it is `triggered_by` comes up with it. `changed_at` is when its state last
    changed, None for at boot. `type` is systemd's; `restarts` how often it has come up again by itself.
    """

    active: bool = True
    enabled: str = "enabled"
    oneshot: bool = False
    masked: bool = False
    failed: bool = False
    can_start: Callable[[], bool] = lambda: True
    started: Callable[[], object] = lambda: None
    reloaded: Callable[[], object] = lambda: None
    triggered_by: tuple[str, ...] = ()
    changed_at: datetime | None = None
    type: str = "simple"
    restarts: int = 0

    def state(self, name: str) -> UnitState:
        """The unit in the manager's words."""
        running = _SUB_STATES.get(name.rpartition(".")[2], "running")
        sub = running if self.active else "failed" if self.failed else "dead"
        active = "active" if self.active else "failed" if self.failed else "inactive"
        load, enabled = ("masked", "masked") if self.masked else ("loaded", self.enabled)
        return UnitState(load, active, sub, enabled, self.triggered_by)


@dataclass(frozen=True)
class Call:
    """One start of a simulated program: what it was given, and the host it runs on."""

    host: FakeHost
    argv: tuple[str, ...]
    stdin: bytes
    env: Mapping[str, str]
    changing: bool

    def alters(self) -> None:
        """Must come before the first change of the host's state.

        Raises:
            RuntimeError: the program was started with `run`, which only looks: a bug in a check.
        """
        if not self.changing:
            raise RuntimeError(f"{self.argv[0]} would change the host, but was started to look")

    @property
    def flags(self) -> set[str]:
        """The arguments that begin with a hyphen."""
        return {word for word in self.argv[1:] if word.startswith("-")}

    @property
    def words(self) -> list[str]:
        """The arguments that do not begin with a hyphen."""
        return [word for word in self.argv[1:] if not word.startswith("-")]


Program = Callable[[Call], Ran]
Socket = Callable[["FakeHost", bytes], bytes]


def said(text: str, exit_status: int = 0, *, err: str = "") -> Ran:
    """What a program printed and how it ended."""
    return Ran(exit_status, text.encode(), err.encode())


@dataclass(eq=False)
class FakeHost:
    """Both halves of the Host port over state in memory.

    Attributes:
        clock: true time; `skew_s` is how far this host's wall clock is ahead of it.
        uid: who is looking; anyone but root meets file permissions.
        installed: names of the programs that are there; `install` takes them from lab/programs.
        units_table: units by name; `aliases` are further names of the same unit.
        sockets: listening sockets by path; a server returns its whole answer or raises `CannotTell`.
        looked, changed: targets of the calls so far, in order, as faults.py writes them.
        tellers: those that tell of this host's changes (lab/events.py); `deaf` has the kinds that cannot be watched, and why.
    """

    clock: Clock
    seed: int = 0
    uid: int = 0
    skew_s: float = 0.0
    files: dict[str, Node] = field(default_factory=lambda: {"/": Node("directory", mode=0o755)})
    units_table: dict[str, Unit] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    installed: dict[str, Program] = field(default_factory=dict)
    sockets: dict[str, Socket] = field(default_factory=dict)
    clock_source: Callable[[], ClockState] | None = None
    has_service_manager: bool = True
    faults: Faults = field(default_factory=Faults)
    looked: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    tellers: list[FakeEvents] = field(default_factory=list)
    deaf: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.boot_id = str(uuid.UUID(int=self.rng.getrandbits(128), version=4))
        self._parts: dict[type, object] = {}

    # -- building and drifting: for lab and tests, not part of the port

    def part(self, kind: type[State]) -> State:
        """This host's state of one subsystem (a class of lab/programs), made on first use."""
        found = self._parts.setdefault(kind, kind())
        assert isinstance(found, kind)  # noqa: S101 - keyed by its own class
        return found

    def put(
        self, path: str, content: bytes | str = b"", *, mode: int = 0o644, uid: int = 0, age_s: float = 0.0
    ) -> None:
        """Have a regular file with this content, last modified `age_s` ago, and its parent directories."""
        data = content.encode() if isinstance(content, str) else content
        self.place(path, Node("file", data, mode, uid, modified_at=self.now() - timedelta(seconds=age_s)))

    def place(self, path: str, node: Node) -> None:
        """Have any kind of object at a path, and its parent directories."""
        for parent in PurePosixPath(path).parents:
            self.files.setdefault(str(parent), Node("directory", mode=0o755, modified_at=self.now()))
        self.files[path] = node

    def append(self, path: str, content: bytes | str) -> None:
        """Add to the end of a file, as a daemon does to its log; makes the file when it is not there."""
        data = content.encode() if isinstance(content, str) else content
        node = self.files.get(path)
        if node is None:
            self.put(path, data, mode=0o640)
        else:
            node.content += data
            node.modified_at = self.now()

    def delete(self, path: str) -> None:
        """Have nothing at this path and below it."""
        for name in [name for name in self.files if name == path or name.startswith(f"{path}/")]:
            del self.files[name]

    def service(self, name: str, *, active: bool = True, enabled: str = "enabled") -> None:
        """Have a unit in this state."""
        self.units_table[name] = Unit(active=active, enabled=enabled)

    def notice(self) -> None:
        """Have everybody who watches this host told of what is not as it was; after changes that were made by hand."""
        for teller in list(self.tellers):
            teller.notice()

    def install(self, *names: str) -> None:
        """Install programs that lab/programs simulates."""
        from compliance_agent.lab.programs import programs

        for name in names:
            self.installed[name] = programs()[name]

    def unit(self, name: str) -> Unit:
        """The unit of this name or alias.

        Raises:
            KeyError: there is none.
        """
        return self.units_table[self.aliases.get(name, name)]

    def is_active(self, name: str) -> bool:
        """Whether a unit exists and is running, whatever it is called."""
        unit = self.units_table.get(self.aliases.get(name, name))
        return unit is not None and unit.active

    def find(self, path: str) -> tuple[str, Node]:
        """Where a path leads, symbolic links followed.

        Raises:
            CannotTell: nowhere, in a circle, or not for this user.
        """
        for _ in range(MOST_LINKS):
            node = self.files.get(path)
            if node is None:
                raise CannotTell("not_found", f"{path}: no such file", errno_name="ENOENT")
            if node.kind != "symlink":
                return path, node
            path = str(PurePosixPath(path).parent / node.target)
        raise CannotTell("io_error", f"{path}: too many links", errno_name="ELOOP")

    def open_file(self, path: str) -> bytes:
        """A regular file's content as this host's own programs get it, links followed.

        Raises:
            CannotTell: as `read`, without any injected fault.
        """
        _, node = self.find(path)
        if node.kind != "file":
            raise CannotTell("io_error", f"{path}: not a regular file", errno_name="EINVAL")
        self._permitted(path, node)
        return node.source() if node.source is not None else node.content

    # -- looking

    def now(self) -> datetime:
        return self.clock.now() + timedelta(seconds=self.skew_s)

    async def read(self, path: str, *, limit_bytes: int = 1_048_576) -> bytes:
        answer = await self._look(f"path:{path}", READ_TIMEOUT_S)
        if answer is None:
            answer = Ran(0, self.open_file(path), b"")
        if len(answer.out) > limit_bytes:
            raise CannotTell("output_too_large", f"{path}: longer than {limit_bytes} bytes")
        return answer.out

    async def stat(self, path: str) -> FileStat:
        await self._look(f"stat:{path}", READ_TIMEOUT_S)
        node = self.files.get(path)
        if node is None:
            raise CannotTell("not_found", f"{path}: no such file", errno_name="ENOENT")
        kind = node.kind if node.kind in {"file", "directory", "symlink"} else "other"
        size = len(node.target if kind == "symlink" else node.content)
        return FileStat(kind, node.mode, node.uid, node.gid, size, node.modified_at)

    async def stats(self, paths: Sequence[str]) -> Mapping[str, FileStat | CannotTell]:
        return await stats_of(self, paths)

    async def whole(self, path: str) -> tuple[FileStat, bytes]:
        return await self.stat(path), await self.read(path)

    async def list(self, path: str) -> tuple[str, ...]:
        await self._look(f"list:{path}", READ_TIMEOUT_S)
        place, node = self.find(path)
        if node.kind != "directory":
            raise CannotTell("not_found", f"{path}: not a directory", errno_name="ENOTDIR")
        self._permitted(path, node)
        prefix = place.rstrip("/") + "/"
        names = (name.removeprefix(prefix) for name in self.files if name.startswith(prefix))
        return tuple(sorted(name for name in names if name and "/" not in name))

    async def digests(
        self, paths: Sequence[str], *, most_bytes: int, total_bytes: int
    ) -> Mapping[str, FileDigest | CannotTell]:
        return await digests_of(self, paths, most_bytes, total_bytes)

    async def run(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float = 10.0,
        stdin: bytes = b"",
        limit_bytes: int = 4_194_304,
        env: Mapping[str, str] | None = None,
    ) -> Ran:
        answer = await self._look(f"program:{_program_name(argv)}", timeout_s)
        call = Call(self, tuple(argv), stdin, _environment(env), changing=False)
        return _within(limit_bytes, answer if answer is not None else self._start(call), argv[0])

    async def ruleset(self) -> Ran:
        return await self.run(LIST)

    async def units(self, names: Sequence[str]) -> Mapping[str, UnitState]:
        self._manager()
        for name in names:
            if await self._look(f"unit:{name}", READ_TIMEOUT_S) is not None:
                raise CannotTell("unparsable", "the service manager's answer makes no sense")
        found = {name: self.units_table.get(self.aliases.get(name, name)) for name in names}
        return {name: unit.state(name) if unit else NOT_FOUND for name, unit in found.items()}

    async def ask(
        self, socket_path: str, request: bytes, *, timeout_s: float = 5.0, limit_bytes: int = 65_536
    ) -> bytes:
        answer = await self._look(f"socket:{socket_path}", timeout_s)
        if answer is not None:
            return _within(limit_bytes, answer, socket_path).out
        serve = self.sockets.get(socket_path)
        if serve is None:
            raise CannotTell("not_found", f"{socket_path}: no such socket", errno_name="ENOENT")
        return _within(limit_bytes, Ran(0, serve(self, request), b""), socket_path).out

    async def sound_tls(
        self, port: int, name: str, *, ca_file: str, oldest: str, timeout_s: float = 10.0
    ) -> bytes | None:
        return None  # its `openssl` answers

    async def clock_state(self) -> ClockState:
        await self._look("clock:", READ_TIMEOUT_S)
        if self.clock_source is not None:
            return self.clock_source()
        return ClockState("none", False, None, None, self.boot_id, int(self.clock.monotonic() * 1e9))

    def events(self) -> FakeEvents:
        from compliance_agent.lab.events import FakeEvents

        return FakeEvents(self)

    async def pause(self, seconds: float) -> None:
        await self.clock.sleep(seconds)

    # -- changing

    async def write(self, path: str, content: bytes, *, mode: int = 0o644) -> None:
        def effect() -> None:
            node = self._own_file(path)
            if str(PurePosixPath(path).parent) not in self.files:
                raise StepFailed(f"{path}: its directory is not there", code="not_found")
            owner = node.uid if node else 0
            self.place(path, Node("file", content, mode, owner, node.gid if node else 0, self.now()))

        self._change(f"path:{path}", effect)

    async def remove(self, path: str) -> None:
        def effect() -> None:
            if self._own_file(path):
                del self.files[path]

        self._change(f"path:{path}", effect)

    async def chmod(self, path: str, mode: int) -> None:
        def effect() -> None:
            node = self.files.get(path)
            if node is None:
                raise StepFailed(f"{path}: no such file", code="not_found")
            if node.kind not in {"file", "directory"}:
                raise StepFailed(f"{path}: not a regular file", code="not_a_regular_file")
            node.mode = mode

        self._change(f"path:{path}", effect)

    async def unit_action(self, verb: str, name: str) -> None:
        if verb not in UNIT_VERBS:
            raise RuntimeError(f"no such verb: {verb}")
        self._manager()
        self._change(f"unit:{name}", lambda: self._unit_effect(verb, name))

    async def change(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float = 60.0,
        stdin: bytes = b"",
        limit_bytes: int = 4_194_304,
        env: Mapping[str, str] | None = None,
    ) -> Ran:
        target = f"program:{_program_name(argv)}"
        call = Call(self, tuple(argv), stdin, _environment(env), changing=True)
        ended: list[Ran] = []
        self._change(target, lambda: ended.append(self._start(call)))
        return _within(limit_bytes, ended[0] if ended else Ran(0, b"", b""), argv[0])

    # -- the fake's own

    async def _look(self, target: str, timeout_s: float) -> Ran | None:
        """Note the call; raise or answer what its fault says, None when there is no fault."""
        self.looked.append(target)
        fault = self.faults.of_look(target)
        if fault is None:
            return None
        if fault.reason is None:
            return Ran(fault.exit_status, fault.answer or b"", b"")
        if fault.reason == "timed_out":
            await self.clock.sleep(timeout_s)
        raise CannotTell(fault.reason, f"{target}: injected", errno_name="EIO" if fault.reason == "io_error" else None)

    def _change(self, target: str, effect: Callable[[], None]) -> None:
        self.changed.append(target)
        try:
            self.faults.around(target, effect)
        finally:
            self.notice()

    def _start(self, call: Call) -> Ran:
        program = self.installed.get(call.argv[0])
        if program is None:
            raise CannotTell("tool_missing", f"{call.argv[0]}: not installed")
        return program(call)

    def _permitted(self, path: str, node: Node) -> None:
        wanted = 0o400 if node.uid == self.uid else 0o004
        if self.uid != 0 and not node.mode & wanted:
            raise CannotTell("not_permitted", f"{path}: no permission", errno_name="EACCES")

    def _own_file(self, path: str) -> Node | None:
        node = self.files.get(path)
        if node is not None and node.kind != "file":
            raise StepFailed(f"{path}: not a regular file", code="not_a_regular_file")
        return node

    def _manager(self) -> None:
        if not self.has_service_manager:
            raise CannotTell("tool_missing", "this host was not booted with systemd")

    def _unit_effect(self, verb: str, name: str) -> None:
        unit = self.units_table.get(self.aliases.get(name, name))
        if unit is None:
            raise StepFailed(f"unit {name} not found", code=f"unit_{verb}_failed", exit_status_of_step=5)
        if unit.masked and verb in {"start", "restart", "reload", "enable"}:
            raise StepFailed(f"unit {name} is masked", code=f"unit_{verb}_failed", exit_status_of_step=1)
        if verb == "reload" and not unit.active:
            raise StepFailed(
                f"unit {name} is not active, cannot reload", code="unit_reload_failed", exit_status_of_step=1
            )
        unit.changed_at = self.now()
        if verb in {"start", "restart"} and not (verb == "start" and unit.active):
            for trigger in unit.triggered_by:
                self.units_table[trigger].active = True
            came_up = unit.can_start() and unit.started() is not False
            unit.active, unit.failed = came_up and not unit.oneshot, not came_up
            if unit.failed:
                raise StepFailed(f"unit {name} failed to start", code=f"unit_{verb}_failed", exit_status_of_step=1)
        elif verb == "stop":
            unit.active = unit.failed = False
        elif verb == "reload" and unit.reloaded() is False:
            unit.active, unit.failed = False, True
        elif verb in {"mask", "unmask"}:
            unit.masked = verb == "mask"
        elif verb in {"enable", "disable"} and unit.enabled in {"enabled", "disabled"}:
            unit.enabled = f"{verb}d"


async def stats_of(host: Host, paths: Sequence[str]) -> Mapping[str, FileStat | CannotTell]:
    """`Host.stats` by the other questions of the same host, so that their faults are its faults."""
    found: dict[str, FileStat | CannotTell] = {}
    late: CannotTell | None = None
    for path in dict.fromkeys(paths):
        try:
            found[path] = late if late is not None else await host.stat(path)
        except CannotTell as error:
            found[path] = error
            late = error if error.reason == "timed_out" else None
    return found


async def digests_of(
    host: Host, paths: Sequence[str], most_bytes: int, total_bytes: int
) -> Mapping[str, FileDigest | CannotTell]:
    """`Host.digests` by the other questions of the same host, so that their faults are its faults."""
    found: dict[str, FileDigest | CannotTell] = {}
    for path in paths:
        try:
            before = await host.stat(path)
            digest = None
            if before.kind == "file":
                if before.size_bytes > min(most_bytes, total_bytes):
                    raise CannotTell("output_too_large", f"{path}: more than may be read")
                total_bytes -= before.size_bytes
                digest = await _digest(host, path, before)
            found[path] = FileDigest(before.kind, before.mode, before.size_bytes, digest)
        except CannotTell as error:
            found[path] = error
    return found


async def _digest(host: Host, path: str, before: FileStat) -> str:
    try:
        raw = await host.read(path, limit_bytes=before.size_bytes)
        if len(raw) == before.size_bytes and await host.stat(path) == before:
            return hashlib.sha256(raw).hexdigest()
    except CannotTell as error:
        if error.reason != "not_found":  # it was there a moment ago
            raise
    raise CannotTell("unparsable", f"{path}: changed while it was read")


def _program_name(argv: Sequence[str]) -> str:
    if not argv or not PROGRAM_NAME.fullmatch(argv[0]) or any("\0" in word for word in argv):
        raise RuntimeError("a program is given by its name, and no argument may hold a NUL")
    return argv[0]


def _environment(env: Mapping[str, str] | None) -> dict[str, str]:
    if undeclared := set(env or {}) - ENVIRONMENT:
        raise RuntimeError(f"undeclared environment variables: {sorted(undeclared)}")
    return dict(env or {})


def _within(limit_bytes: int, answer: Ran, name: str) -> Ran:
    if len(answer.out) + len(answer.err) > limit_bytes:
        raise CannotTell("output_too_large", f"{name}: more than {limit_bytes} bytes")
    return answer
