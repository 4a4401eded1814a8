"""Files and programs of this machine, as root may touch them.

A path is walked from `/` name by name, no symbolic link followed, and every directory on the way must be one in which nobody but
root (or this user) can swap names. What is found at its end is opened by the descriptor of its directory, and must be a regular
file that has no other name. Programs come from fixed directories, with a fixed environment, in a session of their own that is
killed as a whole at the deadline; what they print goes to memory files, so that no grandchild can hold a pipe open.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import stat
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compliance_agent.heal.protocol import MOST_BYTES
from compliance_agent.heal.trouble import Failed, Unclear

DIRECTORIES = ("/usr/sbin", "/usr/bin", "/sbin", "/bin", "/run/current-system/sw/bin")
ENVIRONMENT = {"LC_ALL": "C", "LANG": "C", "TZ": "UTC", "DEBIAN_FRONTEND": "noninteractive", "HOME": "/root"}
BOOTED = "/run/systemd/system"  # sd_booted(3)
DIRECTORY_MODE = 0o755  # of one that is made
MOST_PRINTED = 4_194_304
GENTLE_S, KILL_WAIT_S = 2.0, 1.0
# What writes all over the host does so in a unit of its own, which the service manager starts, and ends when this process cannot:
# the root side's own walls stand, and a package manager has those that it can work behind. One at a time, by its name.
APART = "compliance-agent-act"
WALLS = (
    *("NoNewPrivileges=yes", "LockPersonality=yes", "ProtectHome=read-only", "ProtectKernelModules=yes"),
    *("ProtectControlGroups=yes", "RestrictRealtime=yes", "RestrictNamespaces=yes", "SystemCallArchitectures=native"),
    *("RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK", "LimitCORE=0"),
    *("TasksMax=256", "TimeoutStopSec=10"),
)
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True)
class Ran:
    """A program that ran to its end."""

    exit: int
    out: bytes
    err: bytes

    @property
    def text(self) -> str:
        """Standard output as UTF-8, undecodable bytes replaced."""
        return self.out.decode("utf-8", "replace")


class Machine:
    """This machine.

    Args:
        directories: where programs are looked up, first match wins.
        booted: the directory whose presence says that systemd is the init.
        apart: name of the unit in which a program runs apart; two programs of one name never run at once.
    """

    def __init__(self, directories: Sequence[str] = DIRECTORIES, booted: str = BOOTED, apart: str = APART) -> None:
        self._directories = tuple(directories)
        self._owners = {0, os.geteuid()}
        self._booted, self._apart = booted, apart

    @property
    def has_manager(self) -> bool:
        """Whether systemd is the init."""
        return Path(self._booted).is_dir()

    def owns(self, info: os.stat_result) -> bool:
        """Whether it belongs to root, or to the user that this process is."""
        return info.st_uid in self._owners

    # Files

    def read(self, path: str, limit: int = MOST_BYTES) -> tuple[bytes, os.stat_result] | None:
        """A regular file's bytes and what the file system says of it; None where there is nothing.

        Raises:
            Failed: it is something else, has another name too, is too long, or stands where others may swap names.
        """
        try:
            with self._parent(path) as (directory, name):
                if self._regular(directory, name) is None:
                    return None
                handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
                with os.fdopen(handle, "rb") as file:
                    info = os.fstat(handle)
                    if not stat.S_ISREG(info.st_mode) or info.st_size > limit:
                        raise Failed("not_a_regular_file")
                    content = file.read(limit + 1)
                    if len(content) > limit:
                        raise Failed("not_a_regular_file")
                    return content, info
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Failed.from_os_error(error) from error

    def write(self, path: str, content: bytes, mode: int, owner: tuple[int, int] | None = None) -> None:
        """Replace a file atomically and durably; it keeps its owner unless another is given."""
        with self._changing(path) as (directory, name):
            info = self._regular(directory, name)
            owner = owner or ((info.st_uid, info.st_gid) if info is not None else (os.geteuid(), os.getegid()))
            temporary = f".{name[:200]}.{os.getpid()}-{time.monotonic_ns()}.tmp"
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            try:
                with os.fdopen(os.open(temporary, flags, 0o600, dir_fd=directory), "wb") as file:
                    if owner != (os.geteuid(), os.getegid()):
                        os.fchown(file.fileno(), *owner)
                    os.fchmod(file.fileno(), mode)
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary, dir_fd=directory)
                raise

    def remove(self, path: str) -> None:
        """Remove a regular file durably; an absent one is fine."""
        with self._changing(path) as (directory, name):
            if self._regular(directory, name) is not None:
                os.unlink(name, dir_fd=directory)

    def chmod(self, path: str, mode: int) -> None:
        """Set the permission bits of a regular file that has one name."""
        with self._changing(path) as (directory, name):
            handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
            try:
                self._one_name(os.fstat(handle))
                os.fchmod(handle, mode)
                os.fsync(handle)
            finally:
                os.close(handle)

    def make_directory(self, path: str) -> None:
        """Make one directory, 0755; False where something is there."""
        with self._changing(path) as (directory, name):
            os.mkdir(name, DIRECTORY_MODE, dir_fd=directory)
            os.chmod(name, DIRECTORY_MODE, dir_fd=directory)  # whatever the umask is

    def remove_directory(self, path: str) -> None:
        """Remove one empty directory."""
        with self._changing(path) as (directory, name):
            os.rmdir(name, dir_fd=directory)

    def stat(self, path: str) -> os.stat_result | None:
        """What `lstat` says of the path; None for nothing."""
        try:
            with self._parent(path) as (directory, name):
                return os.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Failed.from_os_error(error) from error

    @contextlib.contextmanager
    def _changing(self, path: str) -> Iterator[tuple[int, str]]:
        try:
            with self._parent(path) as (directory, name):
                yield directory, name
                handle = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
                try:
                    os.fsync(handle)
                finally:
                    os.close(handle)
        except OSError as error:
            raise Failed.from_os_error(error) from error

    @contextlib.contextmanager
    def _parent(self, path: str) -> Iterator[tuple[int, str]]:
        """The descriptor of the directory a path's last name stands in, if nobody else can swap names on the way."""
        *names, last = path.split("/")[1:]
        directory = os.open("/", _DIRECTORY)
        try:
            self._trusted(os.fstat(directory), last=not names)
            for number, name in enumerate(names, start=1):
                try:
                    below = os.open(name, _DIRECTORY, dir_fd=directory)
                except NotADirectoryError as error:
                    raise Failed("unsafe_directory") from error
                os.close(directory)
                directory = below
                self._trusted(os.fstat(directory), last=number == len(names))
            yield directory, last
        finally:
            os.close(directory)

    def _trusted(self, info: os.stat_result, *, last: bool) -> None:
        others = info.st_mode & 0o002 or (info.st_mode & 0o020 and info.st_gid not in {0, os.getegid()})
        sticky = info.st_mode & stat.S_ISVTX and not last
        if info.st_uid not in self._owners or (others and not sticky):
            raise Failed("unsafe_directory")

    def _regular(self, directory: int, name: str) -> os.stat_result | None:
        try:
            info = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return self._one_name(info)

    @staticmethod
    def _one_name(info: os.stat_result) -> os.stat_result:
        if not stat.S_ISREG(info.st_mode) or info.st_nlink != 1:
            raise Failed("not_a_regular_file")
        return info

    # Programs

    def run(self, argv: Sequence[str], *, timeout_s: float = 15.0, stdin: bytes = b"") -> Ran:
        """Run a program to its end; a non-zero exit is an answer.

        Raises:
            Unclear: `tool_missing`, `not_permitted`, `timed_out`, `output_too_large`, or `io_error`.
        """
        path = self._find(argv[0])
        with _memory() as given, _memory() as out, _memory() as err:
            given.write(stdin)
            given.seek(0)
            try:
                popen = subprocess.Popen(
                    list(argv), executable=path, env={"PATH": ":".join(self._directories), **ENVIRONMENT}, cwd="/",
                    stdin=given, stdout=out, stderr=err, start_new_session=True, umask=0o022,
                )  # fmt: skip
            except OSError as error:
                raise Unclear("tool_missing" if isinstance(error, FileNotFoundError) else "io_error") from error
            reason = _wait(popen, (out, err), time.monotonic() + timeout_s)
            if reason:
                _group(popen, signal.SIGTERM)
                _wait(popen, (), time.monotonic() + GENTLE_S)
            _group(popen, signal.SIGKILL)
            if reason:
                _wait(popen, (), time.monotonic() + KILL_WAIT_S)  # then it is left behind: the kernel holds it
                popen.poll()
                raise Unclear(reason)
            status = popen.wait()
            return Ran(status if status >= 0 else 128 - status, _whole(out), _whole(err))

    def run_apart(self, argv: Sequence[str], *, timeout_s: float, stdin: bytes = b"", walls: Sequence[str] = ()) -> Ran:
        """Run a program in a unit of its own, with more walls if given; where there is no service manager, as `run` does.

        Raises:
            Unclear: as `run`; it was ended.
        """
        path = self._find(argv[0])
        if not self.has_manager:
            return self.run(argv, timeout_s=timeout_s, stdin=stdin)
        how = [f"--property={wall}" for wall in (*WALLS, *walls, f"RuntimeMaxSec={timeout_s:.0f}")]
        how += [f"--setenv={name}={value}" for name, value in ENVIRONMENT.items()]
        command = ("systemd-run", "--collect", "--wait", "--pipe", "--quiet", f"--unit={self._apart}", *how, "--", path)
        try:
            return self.run((*command, *argv[1:]), timeout_s=timeout_s, stdin=stdin)
        except Unclear:
            with contextlib.suppress(Unclear):
                self.run(("systemctl", "--quiet", "stop", "--", f"{self._apart}.service"))
            raise

    def _find(self, name: str) -> str:
        for directory in self._directories:
            path = f"{directory}/{name}"
            try:
                info = Path(path).stat()
            except (FileNotFoundError, NotADirectoryError):
                continue
            for seen in (info, Path(directory).stat()):
                by_group = seen.st_mode & 0o020 and seen.st_gid != 0
                if seen.st_uid not in self._owners or by_group or seen.st_mode & 0o002:
                    raise Unclear("not_permitted")
            return path
        raise Unclear("tool_missing")


def _memory() -> Any:
    return os.fdopen(os.memfd_create("heal"), "w+b", buffering=0)


def _whole(file: Any) -> bytes:
    return os.pread(file.fileno(), MOST_PRINTED, 0)


def _group(popen: subprocess.Popen[bytes], number: int) -> None:
    if popen.returncode is None:  # until it is reaped its number cannot be another group's
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(popen.pid, number)


def _wait(popen: subprocess.Popen[bytes], printed: Sequence[Any], until: float) -> str:
    """Wait for its end without reaping it; why it is not to be waited for any longer, empty when it ended."""
    handle = os.pidfd_open(popen.pid)
    try:
        while not select.select([handle], [], [], min(0.05, max(0.0, until - time.monotonic())))[0]:
            if any(os.fstat(file.fileno()).st_size > MOST_PRINTED for file in printed):
                return "output_too_large"
            if time.monotonic() >= until:
                return "timed_out"
    finally:
        os.close(handle)
    return ""
