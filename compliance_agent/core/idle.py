"""What ends an idle session: bash's TMOUT as a login shell has it, logind's StopIdleSessionSec, a desktop's screen lock."""

from __future__ import annotations

import re

from compliance_agent.errors import CannotTell

FOREVER_US = 2**64 - 1
# /etc/profile as a login reads it, but not the files of whoever runs this; PS1 as in a shell with a prompt.
SHELL = ("bash", "--noprofile", "--norc", "-c", "PS1=x; . /etc/profile >/dev/null 2>&1; declare -p TMOUT || echo unset")
_MANAGER = ("org.freedesktop.login1", "/org/freedesktop/login1", "org.freedesktop.login1.Manager")
LOGIND = ("busctl", "--no-pager", "get-property", *_MANAGER, "StopIdleSessionUSec")
IDLE_DELAY = ("dconf", "read", "/org/gnome/desktop/session/idle-delay")
LOCK_ENABLED = ("dconf", "read", "/org/gnome/desktop/screensaver/lock-enabled")
_DECLARED = re.compile(r'declare -([a-zA-Z-]+) TMOUT="(\d{1,9})"\n')


def read_tmout(text: str) -> tuple[int, bool]:
    """Seconds after which a shell ends (0 for never), and whether its user may not change that.

    Raises:
        CannotTell: `unparsable`.
    """
    if text == "unset\n":
        return 0, False
    found = _DECLARED.fullmatch(text)
    if found is None:
        raise CannotTell("unparsable", "bash: expected its word on TMOUT")
    return int(found[2]), "r" in found[1]


def read_usec(text: str) -> int:
    """Seconds from `busctl get-property` of a time span; 0 for one without end.

    Raises:
        CannotTell: `unparsable`.
    """
    found = re.fullmatch(r"t (\d{1,20})\n", text)
    if found is None:
        raise CannotTell("unparsable", "busctl: expected a number of type t")
    micros = int(found[1])
    return 0 if micros >= FOREVER_US else -(-micros // 1_000_000)


def read_delay(text: str) -> int | None:
    """Seconds from `dconf read` of a number; None where nothing is set.

    Raises:
        CannotTell: `unparsable`.
    """
    found = re.fullmatch(r"(?:uint32 )?(\d{1,9})\n|\s*", text)
    if found is None:
        raise CannotTell("unparsable", "dconf: expected a number")
    return int(found[1]) if found[1] else None


def shell_file(seconds: int) -> bytes:
    """A profile file that ends idle shells. It may be read twice by one shell, so it assigns only what differs."""
    lines = (
        "# Written by compliance-agent (auto_logoff). Change the baseline, not this file.",
        f'[ "${{TMOUT-}}" = {seconds} ] || TMOUT={seconds}',
        "readonly TMOUT",
        "export TMOUT",
    )
    return ("\n".join(lines) + "\n").encode("ascii")


def logind_file(seconds: int) -> bytes:
    """A drop-in of logind that ends idle sessions."""
    lines = (
        "# Written by compliance-agent (auto_logoff). Change the baseline, not this file.",
        "[Login]",
        f"StopIdleSessionSec={seconds}",
    )
    return ("\n".join(lines) + "\n").encode("ascii")
