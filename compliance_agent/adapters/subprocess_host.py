"""The real machine behind the Host port.

Looking and changing are in one class, because they share deadlines and what was left behind; who may change is decided
by the type that is handed out (`Host` or `ChangingHost`) and by the user it runs as. Files are read and written on
threads of their own (offload.py), programs run through execute.py, units through systemd.py.

Writing trusts a directory only if nobody else can swap names in it: every directory on the way belongs to root or to
this user, and others may write to none of them, unless it is sticky and not the last one.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from compliance_agent.adapters import durable
from compliance_agent.adapters.batch import BATCH_S, Batch, not_looked_at
from compliance_agent.adapters.clock import read_clock_state
from compliance_agent.adapters.execute import DIRECTORIES, Programs, find_program
from compliance_agent.adapters.file_digests import DigestBatch, FileDigests
from compliance_agent.adapters.file_looks import names_in, read, stat_of
from compliance_agent.adapters.kept_answers import KeptAnswers, Print
from compliance_agent.adapters.nft_library import NftLibrary
from compliance_agent.adapters.offload import Offload
from compliance_agent.adapters.program_reads import may_be_kept
from compliance_agent.adapters.ruleset import KeptRuleset
from compliance_agent.adapters.systemd import BOOTED, Systemd
from compliance_agent.adapters.tls_client import sound_certificate
from compliance_agent.core.nftables import LIST
from compliance_agent.errors import CannotTell, StepFailed, StorageError, StorageFull
from compliance_agent.models import ClockState
from compliance_agent.ports import FileDigest, FileStat, Ran, UnitState

if TYPE_CHECKING:
    from compliance_agent.adapters.events import MachineEvents

FILE_TIMEOUT_S = 5.0
WHOLE_BYTES = 1_048_576
LIBRARY_S = 2.0  # nft's library may take so long before the program is asked
LISTING_BYTES = 4_194_304
GENTLE_S = 2.0  # a program that changes the host may tidy up before it is killed
_FILE_CODES = {
    errno.ENOENT: "not_found",
    errno.ENOTDIR: "not_found",
    errno.EACCES: "not_permitted",
    errno.EPERM: "not_permitted",
    errno.EROFS: "read_only",
    errno.ELOOP: "not_a_regular_file",
    errno.ENOSPC: "storage_full",
    errno.EDQUOT: "storage_full",
}
Value = TypeVar("Value")


class RealHost:
    """This machine.

    Args:
        directories: where programs are looked up, first match wins.
        file_timeout_s: deadline of one look at, or change of, a file.
        booted: the directory whose presence says that systemd is the init.
        digests, ruleset, answers: take and keep digests of files, the firewall's rules and programs' answers; its own when not
            given.
        nft: lists the firewall's rules without a program; the program does it when not given, and where this cannot.
    """

    def __init__(
        self,
        *,
        directories: Sequence[str] = DIRECTORIES,
        file_timeout_s: float = FILE_TIMEOUT_S,
        booted: Path = BOOTED,
        digests: FileDigests | None = None,
        ruleset: KeptRuleset | None = None,
        answers: KeptAnswers | None = None,
        nft: NftLibrary | None = None,
    ) -> None:
        self._directories = tuple(directories)
        self._offload = Offload()
        self._programs = Programs(self._offload, directories)
        self._systemd = Systemd(self._programs, booted, self._offload)
        self._digests = digests if digests is not None else FileDigests()
        self._ruleset = ruleset if ruleset is not None else KeptRuleset()
        self._answers = answers if answers is not None else KeptAnswers()
        self._nft = nft
        self._file_timeout_s = file_timeout_s
        self._sound: tuple[str, ...] = ()  # paths that were all found to be absolute, each once, the last time

    @property
    def left_behind(self) -> int:
        """Processes and threads that hang in the kernel beyond their deadline."""
        return sum(self._programs.left_behind.values()) + self._offload.abandoned

    # -- looking

    def now(self) -> datetime:
        return datetime.now(UTC)

    def events(self) -> MachineEvents:
        from compliance_agent.adapters.events import MachineEvents

        return MachineEvents()

    async def pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def read(self, path: str, *, limit_bytes: int = WHOLE_BYTES) -> bytes:
        return await self._file(path, lambda: read(path, limit_bytes))

    async def stat(self, path: str) -> FileStat:
        return await self._file(path, lambda: stat_of(path))

    async def stats(self, paths: Sequence[str]) -> Mapping[str, FileStat | CannotTell]:
        found, rest = self._distinct(paths)
        late: CannotTell | None = next((error for error in found.values() if error.reason == "timed_out"), None)
        while rest and late is None:
            late = await self._batch(Batch(rest, stat_of), found)
            rest = [path for path in rest if path not in found]
        found.update(dict.fromkeys(rest, late))
        return {path: found[path] for path in paths}

    async def whole(self, path: str) -> tuple[FileStat, bytes]:
        return await self._file(path, lambda: (stat_of(path), read(path, WHOLE_BYTES)))

    async def list(self, path: str) -> tuple[str, ...]:
        return await self._file(path, lambda: names_in(path))

    async def digests(
        self, paths: Sequence[str], *, most_bytes: int, total_bytes: int
    ) -> Mapping[str, FileDigest | CannotTell]:
        found, rest = self._distinct(paths)
        while rest:
            batch = DigestBatch(self._digests, rest, most_bytes, total_bytes)
            await self._batch(batch, found)
            total_bytes = batch.left
            rest = [path for path in rest if path not in found]
        return {path: found[path] for path in paths}

    def _distinct(self, paths: Sequence[str]) -> tuple[dict[str, Any], Sequence[str]]:
        """Values of those that are not to be looked at; the others, each once."""
        hanging, found, rest = self._offload.hanging, dict[str, Any](), list[str]()
        asked = tuple(paths)
        if asked == self._sound and not hanging:  # the same hundreds at each look
            return found, asked
        for path in dict.fromkeys(asked):
            if not path.startswith("/") or "\0" in path:
                found[path] = CannotTell("not_found", "not an absolute path", errno_name="ENOENT")
            elif hanging and f"path:{path}" in hanging:
                found[path] = CannotTell("timed_out", f"{path}: an earlier call has not come back yet")
            else:
                rest.append(path)
        if len(rest) == len(asked):
            self._sound = asked
        return found, rest

    async def _batch(self, batch: Batch[Any], found: dict[str, Any]) -> CannotTell | None:
        """Have its values in `found`; that of the one under way when it gave no answer, which is returned too."""
        try:
            await self._offload.call(batch.hangs_at, self._file_timeout_s + BATCH_S, batch.work)
            found.update(batch.found)
        except CannotTell as error:
            found.update({**batch.stop(), batch.stuck: error})
            return error
        return None

    def read_anew(self) -> None:
        """Keep no digest, no listing and no answer: the next look reads every byte and every rule, and runs every program."""
        self._digests.forget()
        self._ruleset.forget()
        self._answers.forget()

    async def ruleset(self) -> Ran:
        generation = self._ruleset.generation()
        kept = self._ruleset.same(generation)
        if kept is not None:
            return kept
        began_s = self._ruleset.now_s()
        # The library leaves the process where it can have no socket, so it is not asked where we had none.
        listed = await self._listed_by_library() if generation is not None else None
        ran = listed if listed is not None else await self.run(LIST)
        self._ruleset.keep(generation, began_s, ran)
        return ran

    async def _listed_by_library(self) -> Ran | None:
        library = self._nft
        if library is None:
            return None

        def work() -> Ran | None:
            # A library that was loaded outlives its package, and where the program is gone no rule can be put back.
            find_program(LIST[0], self._directories)
            return library.list_ruleset(LISTING_BYTES)

        try:
            return await self._offload.call("library:nft", LIBRARY_S, work, after=library.tidy)
        except CannotTell:  # it hangs, or the program says itself why it cannot be asked
            return None

    async def run(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float = 10.0,
        stdin: bytes = b"",
        limit_bytes: int = 4_194_304,
        env: Mapping[str, str] | None = None,
    ) -> Ran:
        if not stdin and not env and argv and argv[0] in {"busctl", "systemctl"}:
            printed = await self._systemd.printed(argv, timeout_s)
            if printed is not None:
                return printed
        if stdin or env or not may_be_kept(argv):
            return await self._programs.run(argv, timeout_s=timeout_s, stdin=stdin, limit_bytes=limit_bytes, env=env)
        print_ = await self._printed(argv, timeout_s)
        kept = self._answers.same(argv, print_)
        if kept is not None and len(kept.out) + len(kept.err) <= limit_bytes:
            return kept
        began_s = self._answers.now_s()
        ran = await self._programs.run(argv, timeout_s=timeout_s, limit_bytes=limit_bytes)
        if print_ is not None:
            after = await self._printed(argv, timeout_s, again=True)
            self._answers.keep(argv, print_, after, began_s, ran)
        return ran

    async def _printed(self, argv: Sequence[str], timeout_s: float, *, again: bool = False) -> Print | None:
        """The print of what this program reads; None where its answer cannot be kept, or the files do not answer in time."""

        def work() -> Print | None:
            return self._answers.print(argv, find_program(argv[0], self._directories), again=again)

        try:
            return await self._offload.call(f"read by:{argv[0]}", min(timeout_s, self._file_timeout_s), work)
        except CannotTell:  # whatever it is, the program itself says it
            return None

    async def units(self, names: Sequence[str]) -> Mapping[str, UnitState]:
        return await self._systemd.units(names)

    async def ask(
        self, socket_path: str, request: bytes, *, timeout_s: float = 5.0, limit_bytes: int = 65_536
    ) -> bytes:
        try:
            async with asyncio.timeout(timeout_s):
                return await _ask(socket_path, request, limit_bytes)
        except TimeoutError as error:
            raise CannotTell("timed_out", f"{socket_path}: no answer within {timeout_s} s") from error
        except (OSError, ValueError) as error:
            known = error if isinstance(error, OSError) else OSError(errno.ENOENT, "a NUL in a path")
            raise CannotTell.from_os_error(known, f"{socket_path}: cannot be asked") from error

    async def sound_tls(
        self, port: int, name: str, *, ca_file: str, oldest: str, timeout_s: float = 10.0
    ) -> bytes | None:
        what = f"path:{ca_file}"  # what it can hang at beyond its own deadline
        return await self._offload.call(
            what, timeout_s + 1, lambda: sound_certificate(port, name, ca_file, oldest, timeout_s)
        )

    async def clock_state(self) -> ClockState:
        return read_clock_state()  # memory of the kernel and of /run; a thread costs ten times what it does

    # -- changing

    async def write(self, path: str, content: bytes, *, mode: int = 0o644) -> None:
        await self._file(path, lambda: _write(path, content, mode))

    async def remove(self, path: str) -> None:
        await self._file(path, lambda: _remove(path))

    async def chmod(self, path: str, mode: int) -> None:
        await self._file(path, lambda: _chmod(path, mode))

    async def unit_action(self, verb: str, name: str) -> None:
        await self._systemd.act(verb, name)

    async def change(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float = 60.0,
        stdin: bytes = b"",
        limit_bytes: int = 4_194_304,
        env: Mapping[str, str] | None = None,
    ) -> Ran:
        return await self._programs.run(
            argv, timeout_s=timeout_s, stdin=stdin, limit_bytes=limit_bytes, env=env, gentle_s=GENTLE_S
        )

    async def _file(self, path: str, work: Callable[[], Value]) -> Value:
        if not path.startswith("/") or "\0" in path:
            raise CannotTell("not_found", "not an absolute path", errno_name="ENOENT")
        try:
            return await self._offload.call(f"path:{path}", self._file_timeout_s, work)
        except OSError as error:
            raise not_looked_at(path, error) from error


async def _ask(socket_path: str, request: bytes, limit_bytes: int) -> bytes:
    reader, writer = await asyncio.open_unix_connection(socket_path)
    try:
        writer.write(request)
        await writer.drain()
        answer = b""
        while piece := await reader.read(65_536):
            answer += piece
            if len(answer) > limit_bytes:
                raise CannotTell("output_too_large", f"{socket_path}: more than {limit_bytes} bytes")
        return answer
    finally:
        writer.transport.abort()


@contextmanager
def _as_step_failed(act: str) -> Iterator[None]:
    try:
        yield
    except StorageError as error:
        cause = error.__cause__
        number = cause.errno if isinstance(cause, OSError) else None
        code = "storage_full" if isinstance(error, StorageFull) else _FILE_CODES.get(number or 0, "io_error")
        raise StepFailed(act, code=code) from error
    except OSError as error:
        raise StepFailed(act, code=_FILE_CODES.get(error.errno or 0, "io_error")) from error


def _safe_directory(path: str) -> Path:
    """The real directory a file stands in, if nobody else can swap names on the way to it."""
    directory = Path(path).parent.resolve(strict=True)
    for place in (directory, *directory.parents):
        info = os.lstat(place)
        others = info.st_mode & 0o002 or (info.st_mode & 0o020 and info.st_gid not in {0, os.getegid()})
        sticky = info.st_mode & stat.S_ISVTX and place != directory
        if info.st_uid not in {0, os.geteuid()} or (others and not sticky):
            raise StepFailed(f"{path}: others may write to {place}", code="unsafe_directory")
    return directory


def _present(path: Path) -> os.stat_result | None:
    """What is at the path itself, None for nothing.

    Raises:
        StepFailed: something other than a regular file.
    """
    try:
        info = os.lstat(path)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(info.st_mode):
        raise StepFailed(f"{path}: not a regular file", code="not_a_regular_file")
    return info


def _write(path: str, content: bytes, mode: int) -> None:
    with _as_step_failed(f"writing {path}"):
        place = _safe_directory(path) / Path(path).name
        info = _present(place)
        durable.write_file(place, content, mode, owner=(info.st_uid, info.st_gid) if info else None)


def _remove(path: str) -> None:
    with _as_step_failed(f"removing {path}"):
        try:
            place = _safe_directory(path) / Path(path).name
        except FileNotFoundError:
            return
        if _present(place) is not None:
            place.unlink()
            durable.fsync_directory(place.parent)


def _chmod(path: str, mode: int) -> None:
    with _as_step_failed(f"setting the mode of {path}"):
        place = _safe_directory(path) / Path(path).name
        if not stat.S_ISDIR(os.lstat(place).st_mode):
            _present(place)
        handle = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            os.fchmod(handle, mode)
            os.fsync(handle)
        finally:
            os.close(handle)
