"""What the kernel tells on a descriptor of its own: transactions of nf_tables over netlink, and changes of the mount table.

Neither says more than that something changed. A netlink queue that was full counts as a change: the ruleset is read whole anyway.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import errno
import os
import select
import socket
import sys
from collections.abc import Callable, Collection
from typing import Any

from compliance_agent.core.waking import Breath

MOUNTINFO = "/proc/self/mountinfo"
_NETLINK_NETFILTER = 12
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_GROUP_NFTABLES = 7  # NFNLGRP_NFTABLES; joining it takes CAP_NET_ADMIN
_NEW_GENERATION = (10 << 8) | 15  # NFT_MSG_NEWGEN, the last message of every transaction
_PIECE_BYTES = 65_536
_MOST_PIECES = 64


class _Descriptor(abc.ABC):
    """A teller with one descriptor that becomes readable.

    Args:
        told: called with None when there was a change, and with what then is over (`ports.Source`).
    """

    _over: Collection[str] = ()

    def __init__(self, told: Callable[..., None]) -> None:
        self.trouble: str | None = None
        self._tell = told
        self._open: Any = None
        self._breath = Breath()
        self._rest: asyncio.TimerHandle | None = None

    @abc.abstractmethod
    def _opened(self) -> Any:
        """Something with `fileno` and `close`."""

    @abc.abstractmethod
    def _changed(self) -> bool:
        """Take what waits; whether there was a change in it."""

    async def watch(self, names: Collection[str]) -> None:
        if not names:
            await self.close()
        elif self._open is None:
            try:
                self._open = self._opened()
            except OSError as error:
                self.trouble = "not_permitted" if error.errno in {errno.EPERM, errno.EACCES} else "not_supported"
                return
            self.trouble = None
            self._listen()

    async def close(self) -> None:
        if self._rest is not None:
            self._rest.cancel()
            self._rest = None
        if self._open is not None:
            asyncio.get_running_loop().remove_reader(self._open.fileno())
            self._open.close()
            self._open = None

    def _listen(self) -> None:
        self._rest = None
        if self._open is not None:
            asyncio.get_running_loop().add_reader(self._open.fileno(), self._readable)

    def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        if self._changed():
            self._tell(None, self._over)
        rest = self._breath.after(loop.time())
        if rest and self._open is not None:
            loop.remove_reader(self._open.fileno())
            self._rest = loop.call_later(rest, self._listen)


class Ruleset(_Descriptor):
    """Tells that a transaction has changed the ruleset of this network namespace."""

    _over = ("",)  # the kernel tells when it is done

    def _opened(self) -> socket.socket:
        opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
        try:
            opened.setblocking(False)
            opened.bind((0, 0))
            opened.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _GROUP_NFTABLES)
        except OSError:
            opened.close()
            raise
        return opened

    def _changed(self) -> bool:
        changed = False
        for _ in range(_MOST_PIECES):
            try:
                piece, _ = self._open.recvfrom(_PIECE_BYTES)
            except BlockingIOError:
                break
            except OSError as error:  # ENOBUFS: some were lost
                return True if error.errno == errno.ENOBUFS else self._broken()
            changed = changed or _NEW_GENERATION in kinds(piece)
        return changed

    def _broken(self) -> bool:
        self.trouble = "io_error"
        asyncio.get_running_loop().remove_reader(self._open.fileno())
        with contextlib.suppress(OSError):
            self._open.close()
        self._open = None
        return True


class MountTable(_Descriptor):
    """Tells that a file system was mounted or unmounted where this process sees it."""

    def _opened(self) -> _Polled:
        return _Polled()

    def _changed(self) -> bool:
        self._open.clear()
        return True


class _Polled:
    """The mount table is always readable and tells its changes as urgent; a descriptor that is readable just then stands for it."""

    def __init__(self) -> None:
        self._table = os.open(MOUNTINFO, os.O_RDONLY | os.O_CLOEXEC)
        self._epoll = select.epoll()
        self._epoll.register(self._table, select.EPOLLPRI | select.EPOLLERR)

    def fileno(self) -> int:
        return self._epoll.fileno()

    def clear(self) -> None:
        self._epoll.poll(0)

    def close(self) -> None:
        self._epoll.close()
        os.close(self._table)


def kinds(piece: bytes) -> set[int]:
    """The types of the netlink messages in one piece; a length that makes no sense ends it."""
    found, at = set[int](), 0
    while at + 16 <= len(piece):
        length = int.from_bytes(piece[at : at + 4], sys.byteorder)
        found.add(int.from_bytes(piece[at + 4 : at + 6], sys.byteorder))
        if length < 16:
            break
        at += (length + 3) & ~3
    return found
