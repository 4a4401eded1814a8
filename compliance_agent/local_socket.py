"""Unix sockets between the processes of one host: who is at the other end, and `frames` over one, blocking and bounded in time.

Standard library alone, because the root helper uses it too. Who is at the other end, the kernel says (`SO_PEERCRED`): for a
connection that was accepted it is who connected; for one that was made it is who listens, which under socket activation is the
service manager; for a socket pair it is who made the pair.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import socket
import stat
import struct
import time
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from compliance_agent.dataclass import dataclass
from compliance_agent.errors import BadFrame, ConfigError, NotPermitted, Unavailable
from compliance_agent.frames import MAX_FRAME_BYTES, Message, Reader, Side, Table

_FIRST_FD = 3  # SD_LISTEN_FDS_START
_CREDENTIALS = struct.Struct("iII")


@dataclass(frozen=True)
class Peer:
    """Who is at the other end, as the kernel knows it."""

    pid: int
    uid: int
    gid: int


def peer_of(connection: socket.socket) -> Peer:
    """Who is at the other end.

    Raises:
        NotPermitted: the kernel does not say.
    """
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    except OSError as error:
        raise NotPermitted("socket: the kernel does not say who is at the other end", code="wrong_peer") from error
    return Peer(*_CREDENTIALS.unpack(raw))


def require_peer(connection: socket.socket, uids: Collection[int]) -> Peer:
    """Who is at the other end, when it runs as one of these users.

    Raises:
        NotPermitted: it does not.
    """
    peer = peer_of(connection)
    if peer.uid not in uids:
        raise NotPermitted(
            f"socket: user {peer.uid} is at the other end, expected {' or '.join(map(str, sorted(uids)))}",
            code="wrong_peer",
        )
    return peer


def uid_of(name: str) -> int:
    """The number of a user.

    Raises:
        ConfigError: there is no such user here.
    """
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError as error:
        raise ConfigError(f"user {name}: does not exist on this host", code="no_user") from error


def activated(environ: Mapping[str, str], pid: int) -> dict[str, list[int]]:
    """Descriptors that the service manager handed to this process, by their names (sd_listen_fds); empty when there are none.

    Raises:
        ConfigError: what the variables say cannot be.
    """
    if environ.get("LISTEN_PID") != str(pid):
        return {}
    try:
        count = int(environ.get("LISTEN_FDS", "0"))
    except ValueError as error:
        raise ConfigError("LISTEN_FDS: expected a number") from error
    names = environ["LISTEN_FDNAMES"].split(":") if environ.get("LISTEN_FDNAMES") else []
    found: dict[str, list[int]] = {}
    for place in range(count):
        handle = _FIRST_FD + place
        try:
            os.set_inheritable(handle, False)
        except OSError as error:
            raise ConfigError(f"LISTEN_FDS: descriptor {handle} is not open") from error
        found.setdefault(names[place] if place < len(names) else "unknown", []).append(handle)
    return found


def adopted(handle: int) -> socket.socket:
    """A descriptor that was handed to this process, as a unix stream socket.

    Raises:
        ConfigError: it is none.
    """
    try:
        found = socket.socket(fileno=handle)
    except OSError as error:
        raise ConfigError(f"descriptor {handle}: not a socket") from error
    if (found.family, found.type) != (socket.AF_UNIX, socket.SOCK_STREAM):
        found.detach()
        raise ConfigError(f"descriptor {handle}: not a unix stream socket")
    return found


def listen(path: Path, mode: int = 0o660) -> socket.socket:
    """Listen at a path. A socket that nobody answers any more is replaced; anything else at the path is left alone.

    Raises:
        ConfigError: something else stands there, another process listens, or the directory cannot be used.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _clear(path)
        before = os.umask(0o777 & ~mode)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        listener.listen(16)
    except OSError as error:
        listener.close()
        raise ConfigError(f"socket {path}: cannot listen there: {error.strerror or error}") from error
    except BaseException:
        listener.close()
        raise
    return listener


def _clear(path: Path) -> None:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise ConfigError(f"socket {path}: something else stands there")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise ConfigError(f"socket {path}: another process listens there")


class Wire:
    """One end of a connection, blocking.

    Args:
        connection: a connected stream socket; it is closed with the wire.
        table: what may be said.
        side: which one this end is.
    """

    def __init__(self, connection: socket.socket, table: Table, side: Side) -> None:
        self.connection = connection
        self._table = table
        self._reader = Reader(table, Side.ANSWERS if side is Side.ASKS else Side.ASKS)
        self._whole: list[Message] = []

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        with contextlib.suppress(OSError):
            self.connection.close()

    def greet(self, timeout_s: float) -> None:
        """Say hello, and wait for the other side's.

        Raises:
            BadFrame: it is another protocol or version, or none.
            Unavailable: it did not come in time, or the connection was cut.
        """
        ends = time.monotonic() + timeout_s
        self.send([self._table.hello()], timeout_s)
        while not self._reader.greeted:
            self._more(ends)

    def send(self, frames: Iterable[bytes], timeout_s: float) -> None:
        """Send all of it.

        Raises:
            Unavailable: it was not taken in time, or the connection was cut; the connection is of no use any more.
        """
        ends = time.monotonic() + timeout_s
        for frame in frames:
            left = memoryview(frame)
            while left:
                try:
                    self.connection.settimeout(_left(ends))
                    left = left[self.connection.send(left) :]
                except OSError as error:
                    raise _gone(error) from error

    def receive(self, timeout_s: float) -> Message | None:
        """The next message; None when the other side has ended between two.

        Raises:
            BadFrame: a rule is broken.
            Unavailable: it did not come whole in time, or the connection was cut.
        """
        ends = time.monotonic() + timeout_s
        while not self._whole:
            if not self._more(ends):
                return None
        return self._whole.pop(0)

    def _more(self, ends: float) -> bool:
        try:
            self.connection.settimeout(_left(ends))
            data = self.connection.recv(MAX_FRAME_BYTES)
        except OSError as error:
            raise _gone(error) from error
        if not data:
            self._reader.end()
            if not self._reader.greeted:
                raise BadFrame(f"{self._table.name}: the connection ended before a hello", code="cut")
            return False
        self._whole += self._reader.feed(data)
        return True


def _left(ends: float) -> float:
    left = ends - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _gone(error: OSError) -> Unavailable:
    if isinstance(error, TimeoutError):
        return Unavailable("socket: the other side did not answer in time", code="timed_out")
    return Unavailable("socket: the other side has gone", code="cut")
