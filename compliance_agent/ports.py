"""The outside, as Protocols: the host, the clock, the network. The contract is in the comments.

One contract suite (tests/contract/) runs over the real side (adapters/) and the fake one (lab/). Every method that
looks raises `CannotTell` when there is no answer, and nothing else; every method that changes something raises
`StepFailed` or `CannotTell`. No method ever returns a default in place of an answer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import field
from datetime import datetime
from typing import NamedTuple, Protocol

from compliance_agent.dataclass import dataclass
from compliance_agent.errors import CannotTell
from compliance_agent.models import ClockState

# What a caller may add to a program's fixed environment. Names of files and places, and how to ask: a secret stays in
# its file.
ENVIRONMENT = frozenset({"RESTIC_REPOSITORY", "RESTIC_PASSWORD_FILE", "RESTIC_CACHE_DIR", "DEBIAN_FRONTEND"})
EVENT_KINDS = ("path", "unit", "ruleset", "mounts")
UNIT_VERBS = ("start", "stop", "restart", "reload", "enable", "disable", "mask", "unmask")


@dataclass(frozen=True)
class FileStat:
    """What `lstat` says of a path. `kind` is file, directory, symlink or other; times are UTC."""

    kind: str
    mode: int  # permission bits only, 0o7777 at most
    uid: int
    gid: int
    size_bytes: int
    modified_at: datetime


class FileDigest(NamedTuple):
    """A path as `digests` found it. `sha256` is that of a regular file's bytes, None for anything else; `kept` when they were
    not read again, because nothing has touched the file since its digest was taken, at most 15 minutes before.
    """

    kind: str  # as in FileStat
    mode: int
    size_bytes: int
    sha256: str | None
    kept: bool = False


@dataclass(frozen=True)
class Ran:
    """A program that ran to its end. A non-zero exit is an answer, not an error: the caller judges it."""

    exit_status: int
    out: bytes
    err: bytes

    @property
    def text(self) -> str:
        """Standard output as UTF-8, undecodable bytes replaced."""
        return self.out.decode("utf-8", "replace")


@dataclass(frozen=True)
class UnitState:
    """A systemd unit in the manager's own words: `load` (loaded, not-found, masked ...), `active` (active, inactive,
    failed ...), `sub` (running, dead ...), `enabled` (enabled, disabled, static, masked ..., empty when there is no
    unit file). `triggered_by`: sockets, timers and paths that start it.
    """

    load: str
    active: str
    sub: str
    enabled: str
    triggered_by: tuple[str, ...] = ()


@dataclass(frozen=True, order=True)
class Source:
    """Something that a check reads and whose change can be told: of EVENT_KINDS, with the path or the unit's name.

    Where it is told of, `over` says that what changes it is done: a transaction, or a file that its writer has closed.
    """

    kind: str
    name: str = ""
    over: bool = field(default=False, compare=False)


class Clock(Protocol):
    """Time as the agent sees it. Intervals and timeouts come from `monotonic`; wall time is a labelled claim."""

    def now(self) -> datetime:
        """Wall time, aware, UTC."""
        ...

    def monotonic(self) -> float:
        """Seconds that never run back within a boot."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait; a fake clock advances instead."""
        ...


class Host(Protocol):
    """The machine, to be looked at. Nothing here changes it.

    Programs are named, not given as paths: the real side resolves a name in fixed system directories (never `PATH`),
    runs it with a fixed environment (`LC_ALL=C`), no standard input but `stdin`, its own session, an output limit and a
    deadline after which the whole process group is killed and abandoned.
    """

    async def read(self, path: str, *, limit_bytes: int = 1_048_576) -> bytes:
        """The regular file's bytes. A FIFO, device or directory is `io_error`; longer than the limit is
        `output_too_large`.
        """
        ...

    async def stat(self, path: str) -> FileStat:
        """`lstat`; an absent path is `CannotTell("not_found")`."""
        ...

    async def stats(self, paths: Sequence[str]) -> Mapping[str, FileStat | CannotTell]:
        """`stat` of each of these paths, in their order and one after the other; an error of one is its value and spoils no other.

        Only where one does not answer, those after it are `timed_out` too, and all of them while it still hangs: one dead mount
        costs one thread.
        """
        ...

    async def whole(self, path: str) -> tuple[FileStat, bytes]:
        """`stat` and then `read` of the same path, in one question; what either says against it is raised."""
        ...

    async def list(self, path: str) -> tuple[str, ...]:
        """Sorted names in a directory."""
        ...

    async def digests(
        self, paths: Sequence[str], *, most_bytes: int, total_bytes: int
    ) -> Mapping[str, FileDigest | CannotTell]:
        """Each of these paths, in their order, as `lstat` has it, with the digest of a regular file's bytes. No link is followed.

        What there is to say against one of them is its value and spoils no other: besides what `stat` and `read` say,
        `output_too_large` for a file that is longer than `most_bytes` or than what those before it left of `total_bytes`, and
        `unparsable` for one that changed while it was read. A digest that was kept counts like one that was taken.
        """
        ...

    async def run(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float = 10.0,
        stdin: bytes = b"",
        limit_bytes: int = 4_194_304,
        env: Mapping[str, str] | None = None,
    ) -> Ran:
        """Run a program that only looks. Raises `tool_missing`, `timed_out`, `output_too_large`, `not_permitted`.

        `limit_bytes` is for standard output and standard error together. `env` adds variables of ENVIRONMENT only. The answer of at
        most 15 minutes before may be given again where nothing has touched anything that the program reads since.
        """
        ...

    async def ruleset(self) -> Ran:
        """As `run` gives `nft -s -j list ruleset`; the listing of at most 15 minutes before when nothing has changed it since."""
        ...

    async def units(self, names: Sequence[str]) -> Mapping[str, UnitState]:
        """States of these units, all of them, in one question to the service manager. No manager is `tool_missing`."""
        ...

    async def ask(
        self, socket_path: str, request: bytes, *, timeout_s: float = 5.0, limit_bytes: int = 65_536
    ) -> bytes:
        """Send bytes to a local stream socket and return everything answered until the other side closes.

        The writing side stays open meanwhile: clamd takes a half-closed connection for a client that has left.
        """
        ...

    async def sound_tls(
        self, port: int, name: str, *, ca_file: str, oldest: str, timeout_s: float = 10.0
    ) -> bytes | None:
        """The certificate (PEM) that the TLS service at 127.0.0.1:`port` shows for `name`, when all of it is in order: its chain
        leads to an authority of `ca_file`, it is in date and for that name, and the service said itself that it takes no version
        before `oldest` (1.2 or 1.3). None where that is not so, or cannot be told here: `openssl` is asked what it is.

        Raises `timed_out` alone.
        """
        ...

    async def clock_state(self) -> ClockState:
        """The kernel's clock discipline, boot id and monotonic time."""
        ...

    def now(self) -> datetime:
        """The host's own wall clock, UTC (a fake host may be skewed)."""
        ...

    async def pause(self, seconds: float) -> None:
        """Give the host time to get on with its own work; on a fake host its clock advances instead. Never fails."""
        ...


class ChangingHost(Host, Protocol):
    """The machine, to be changed. Only `remedies/` call these; the real side is the root side."""

    async def write(self, path: str, content: bytes, *, mode: int = 0o644) -> None:
        """Replace a file atomically and durably (temp file, fsync, rename, fsync directory); it keeps its owner.

        Whatever is at the path and is not a regular file (a symlink above all) is left alone:
        `StepFailed("not_a_regular_file")`.
        """
        ...

    async def remove(self, path: str) -> None:
        """Remove a regular file durably; an absent one is fine."""
        ...

    async def chmod(self, path: str, mode: int) -> None:
        """Set permission bits of a file or directory that is not a symlink."""
        ...

    async def unit_action(self, verb: str, name: str) -> None:
        """`start stop restart reload enable disable mask unmask` on one unit, waiting until the manager is done."""
        ...

    async def change(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float = 60.0,
        stdin: bytes = b"",
        limit_bytes: int = 4_194_304,
        env: Mapping[str, str] | None = None,
    ) -> Ran:
        """Run a program that changes the host. Same rules as `run`; a non-zero exit is an answer."""
        ...


class Events(Protocol):
    """Tells that something may have changed, never what it is now: whoever is told looks for itself. A host that can tell
    has a method `events` that makes one.

    More may be told than changed; less only where `trouble` says so. Nothing here raises for what the machine does: what cannot
    be watched is trouble, and the poll is there for it.
    """

    async def watch(self, sources: Collection[Source]) -> None:
        """Be told of these from now on, in place of the former; ended in bounded time."""
        ...

    async def told(self) -> frozenset[Source]:
        """Wait for a change; all sources of a kind when it cannot be said which (a full queue, a lost connection)."""
        ...

    def trouble(self) -> Mapping[str, str]:
        """Kinds that are watched in part or not at all, each with the code of the reason."""
        ...

    async def close(self) -> None:
        """Give back what it holds; it may be asked to watch again."""
        ...


@dataclass(frozen=True)
class HttpReply:
    """A whole reply, already within the limits of the transport. Header names are lower-case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Transport(Protocol):
    """One HTTP exchange with the configured server, bounded in time and size; redirects are never followed.

    Raises:
        Unavailable: no connection, cut, or the deadline passed: the request may or may not have arrived.
        BadReply: an answer that breaks HTTP or the limits.
    """

    async def request(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        timeout_s: float = 20.0,
    ) -> HttpReply:
        """Send one request and read its whole answer."""
        ...

    async def close(self) -> None:
        """Close kept connections; the transport can be used again."""
        ...
