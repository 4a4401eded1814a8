"""The service manager's notification socket (sd_notify(3)), as much of it as a service needs.

Each `tell` is one datagram of `NAME=value` lines. Without `NOTIFY_SOCKET` nothing is sent. A manager that cannot be reached is
said once and never stops the agent: that is the watchdog's business.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping

import structlog

LONGEST_LINE = 200
WITHIN_S = 1.0

log = structlog.get_logger()


class Notify:
    """One service and its manager.

    Args:
        environ: where the manager says its address and its watchdog; this process's own when not given.
    """

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        environ = os.environ if environ is None else environ
        self._address = environ.get("NOTIFY_SOCKET", "")
        self._unheard = False
        self.watchdog_s = _watchdog_s(environ)

    @property
    def listens(self) -> bool:
        """Whether there is a manager to speak to."""
        return self._address[:1] in {"/", "@"} and len(self._address) > 1

    def tell(self, **values: str) -> None:
        """Send these, in this order, in one datagram."""
        if not self.listens:
            return
        text = "\n".join(f"{name}={_line(value)}" for name, value in values.items())
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.settimeout(WITHIN_S)
                sender.connect(address)
                sender.send(text.encode("utf-8"))
        except OSError as error:
            if not self._unheard:
                log.warning("notify.failed", code=type(error).__name__)
            self._unheard = True
        else:
            self._unheard = False

    def reloading(self) -> None:
        """The files are read again; `READY=1` ends it."""
        monotonic_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1_000
        self.tell(RELOADING="1", MONOTONIC_USEC=str(monotonic_us), STATUS="reading the files again")


def _line(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)[:LONGEST_LINE]


def _watchdog_s(environ: Mapping[str, str]) -> float | None:
    """Seconds after which the manager ends a service that was not heard of; None when it does not, or not this process."""
    given = environ.get("WATCHDOG_USEC", "")
    whose = environ.get("WATCHDOG_PID", str(os.getpid()))
    if not (given.isascii() and given.isdigit()) or whose != str(os.getpid()):
        return None
    return int(given) / 1_000_000 or None
