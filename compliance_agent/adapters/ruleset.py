"""The firewall's rules, listed by `nft` only when they may have changed.

The kernel counts the transactions that change the ruleset of a network namespace. While that number is what it was before and
after the listing, the same listing is given again, for at most FULL_S. A listing is not kept that shows what changes without a
transaction: sets whose elements are added by packets or expire, and devices by their number, which have names of the moment.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
import time
from collections.abc import Callable

from compliance_agent.ports import Ran

FULL_S = 900.0
ANSWER_S = 0.5
_NETLINK_NETFILTER = 12
_GET, _NEW = (10 << 8) | 16, (10 << 8) | 15  # NFT_MSG_GETGEN and NFT_MSG_NEWGEN of nf_tables
_REQUEST, _ERROR, _GENERATION = 1, 2, 1  # NLM_F_REQUEST, NLMSG_ERROR, NFTA_GEN_ID
_SERIAL = 1  # the same in every question: a socket that left one unanswered is closed
_QUESTION = struct.pack("=IHHII", 20, _GET, _REQUEST, _SERIAL, 0) + bytes(4)
_PASSING = re.compile(rb'"(dynamic|timeout|iif|oif|iifgroup|oifgroup)"')


class KeptRuleset:
    """The last listing of one host. Its methods block for some microseconds.

    Args:
        generation: the number of the last transaction.
        boot_s: seconds since boot, those asleep included.
    """

    def __init__(
        self,
        generation: Callable[[], int] | None = None,
        boot_s: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME),
    ) -> None:
        self._socket: socket.socket | None = None
        self._ask, self._boot_s = generation if generation is not None else self._asked, boot_s
        self._answer, self._generation = b"", 0  # the kernel's last, and the number in it
        self._kept: tuple[int, float, Ran] | None = None

    def generation(self) -> int | None:
        """The number of the last transaction, None where the kernel does not say."""
        try:
            return self._ask()
        except (OSError, ValueError, struct.error):
            self.close()
            return None

    def same(self, generation: int | None) -> Ran | None:
        """The listing that was kept, if it is of this generation and not too old."""
        if self._kept is None or generation is None or self._kept[0] != generation:
            return None
        return self._kept[2] if 0 <= self._boot_s() - self._kept[1] < FULL_S else None

    def keep(self, before: int | None, began_s: float, ran: Ran) -> None:
        """A listing that was begun then, after the question that was answered with `before`."""
        whole = ran.exit_status == 0 and not ran.err and not _PASSING.search(ran.out)
        self._kept = (before, began_s, ran) if before is not None and whole and self.generation() == before else None

    def now_s(self) -> float:
        """The time that `keep` is told of."""
        return self._boot_s()

    def forget(self) -> None:
        """Have the rules listed anew."""
        self._kept = None

    def close(self) -> None:
        """Give back the socket; the next question makes another."""
        self._kept = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):  # it was not made to the end
            self.close()

    def _asked(self) -> int:
        if self._socket is None:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
            # Not `settimeout`, with which each call asks the kernel twice.
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, int(ANSWER_S * 1e6)))
            self._socket.bind((0, 0))
        self._socket.send(_QUESTION)
        answer, (sender, _) = self._socket.recvfrom(4096)
        if sender != 0:
            raise ValueError("not an answer of the kernel")
        if answer != self._answer:
            self._answer, self._generation = b"", generation_of(answer, _SERIAL)
            self._answer = answer
        return self._generation


def generation_of(answer: bytes, serial: int) -> int:
    """The number in the kernel's answer to the question with this serial.

    Raises:
        OSError: it refused.
        ValueError, struct.error: another form.
    """
    length, kind, _, answers, _ = struct.unpack_from("=IHHII", answer)
    if answers != serial or length > len(answer):
        raise ValueError("not the answer to this question")
    if kind == _ERROR:
        number = -struct.unpack_from("=i", answer, 16)[0]
        raise OSError(number, os.strerror(number))
    at = 20
    while kind == _NEW and at + 4 <= length:
        size, name = struct.unpack_from("=HH", answer, at)
        if name & 0x3FFF == _GENERATION and size == 8:
            return int(struct.unpack_from(">I", answer, at + 4)[0])
        at += max(4, (size + 3) & ~3)
    raise ValueError("an answer without a generation")
