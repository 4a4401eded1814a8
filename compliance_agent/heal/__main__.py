"""`python -I -m compliance_agent.heal --user NAME`: takes its socket from the service manager, and ends when nobody asks."""

from __future__ import annotations

import argparse
import ctypes
import os
import pwd
import resource
import socket
import sys
from datetime import UTC, datetime

from compliance_agent.heal.approvals import Approvals
from compliance_agent.heal.machine import Machine
from compliance_agent.heal.service import Service

FIRST_FD = 3  # sd_listen_fds(3)
PR_SET_DUMPABLE = 4
PERMITS, APPROVALS = "/etc/msp/permits.json", "/etc/msp/approvals.json"
FOUND, BOUND = "/var/lib/compliance-agent-heal/found.json", "/var/lib/compliance-agent-heal/bound.json"


def main(argv: list[str]) -> int:
    """Serve; 0 when it was idle, 78 when it was started wrongly."""
    parser = argparse.ArgumentParser(prog="compliance-agent-heal", description="The root side of compliance-agent.")
    parser.add_argument("--user", required=True, help="the agent's user; nobody else but root may ask")
    parser.add_argument("--permits", default=PERMITS, help="what root permits (default: %(default)s)")
    parser.add_argument("--approvals", default=APPROVALS, help="what people approved (default: %(default)s)")
    parser.add_argument("--bound", default=BOUND, help="which cure used which approval (default: %(default)s)")
    parser.add_argument("--found", default=FOUND, help="what stood before a cure (default: %(default)s)")
    parser.add_argument("--idle", type=float, default=10.0, help="seconds without a question until it ends")
    given = parser.parse_args(argv)
    try:
        users = {0, uid_of(given.user)}
        listener = inherited()
    except (KeyError, OSError, ValueError) as error:
        sys.stderr.write(f"heal: cannot start: {error}; expected an existing user, and one socket from the manager\n")
        return 78
    harden()
    with listener:
        machine = Machine()
        approvals = Approvals(machine, given.approvals, given.bound, lambda: datetime.now(UTC))
        Service(machine, given.permits, given.found, approvals).serve(listener, users, given.idle)
    return 0


def uid_of(user: str) -> int:
    """The number of a user, given by name or number.

    Raises:
        KeyError: there is none.
    """
    return int(user) if user.isascii() and user.isdigit() else pwd.getpwnam(user).pw_uid


def inherited() -> socket.socket:
    """The one listening socket that the service manager passed.

    Raises:
        ValueError: it passed none, or several, or to another process.
    """
    if (os.environ.get("LISTEN_PID"), os.environ.get("LISTEN_FDS")) != (str(os.getpid()), "1"):
        raise ValueError("LISTEN_PID and LISTEN_FDS name no socket for this process")
    listener = socket.socket(fileno=FIRST_FD)
    listener.set_inheritable(False)
    if listener.family != socket.AF_UNIX or listener.type != socket.SOCK_STREAM:
        raise ValueError("the socket that was passed is no unix stream socket")
    return listener


def harden() -> None:
    """No core file, and no other process of this user may read its memory: it holds former contents of files."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "PR_SET_DUMPABLE")
    os.umask(0o077)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
