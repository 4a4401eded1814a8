"""`python -I -m compliance_agent.pair`: a root side and its agent, where no service manager could start one for the other.

    socket pair -> the agent, started as a user of its own -> each of its questions answered as behind heal's socket -> its end

What `compliance-agent run --give-up-root` becomes (`privileges: single`; docs/heal.md). The table, the frames, what root
permitted and what people approved are those of `heal`; the agent has the network and the look, and of root's rights what reading
takes. What ends one of the two ends the other: the pair is made once, and who breaks a rule of it cannot go on. Standard library
alone.
"""

from __future__ import annotations

import argparse
import os
import pwd
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from compliance_agent.frames import HANDLE
from compliance_agent.heal import __main__ as heal
from compliance_agent.heal.approvals import Approvals
from compliance_agent.heal.machine import ENVIRONMENT, Machine
from compliance_agent.heal.service import Desk, Service, say

CAPABILITIES = {"dac_read_search": 2, "net_admin": 12}  # to read any file and the ruleset, as the shipped unit of `run`
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
LEAVE_S, KILL_S = 5.0, 30.0  # for an agent that has let go of the pair to be gone; for one that was told to end
SETPRIV = "/usr/bin/setpriv"


def main(argv: list[str]) -> int:
    """Serve until the agent ends: its exit status, 128 and the signal that ended it, or 78 when this was started wrongly."""
    parser = argparse.ArgumentParser(
        prog="compliance-agent-pair", description="The agent without root, and its root side."
    )
    parser.add_argument("--user", required=True, help="the agent's user")
    parser.add_argument("--permits", default=heal.PERMITS, help="what root permits (default: %(default)s)")
    parser.add_argument("--approvals", default=heal.APPROVALS, help="what people approved (default: %(default)s)")
    parser.add_argument("--bound", default=heal.BOUND, help="which cure used which approval (default: %(default)s)")
    parser.add_argument("--found", default=heal.FOUND, help="what stood before a cure (default: %(default)s)")
    parser.add_argument("agent", nargs="+", help="the agent's command, after --")
    given = parser.parse_args(argv)
    try:
        if os.geteuid() != 0:
            raise OSError("this user is not root, so there is nothing to give up")
        command = (*as_user(given.user), *given.agent)
        machine = Machine()
        approvals = Approvals(machine, given.approvals, given.bound, lambda: datetime.now(UTC))
        heal.harden()
        return serve(command, Service(machine, given.permits, given.found, approvals))
    except (KeyError, OSError) as error:
        sys.stderr.write(f"pair: cannot start: {error}; expected root, an existing user and {SETPRIV}\n")
        return 78


def as_user(name: str) -> tuple[str, ...]:
    """What starts a program as this user, with no more of root's rights than reading takes, and none to be had back.

    Raises:
        KeyError: there is no such user.
    """
    user = pwd.getpwuid(heal.uid_of(name))
    status = Path("/proc/self/status").read_text("ascii", "replace")
    bounds = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapBnd:"))
    kept = ",".join(f"+{name}" for name, number in CAPABILITIES.items() if bounds >> number & 1)
    these = ",".join(filter(None, ("-all", kept)))
    return (
        SETPRIV, f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--init-groups", "--no-new-privs", "--pdeathsig=TERM",
        f"--inh-caps={these}", f"--ambient-caps={these}", f"--bounding-set={these}",
    )  # fmt: skip


def serve(agent: Sequence[str], desk: Desk) -> int:
    """Start the agent, answer it until it ends, and say how it ended.

    Raises:
        OSError: it could not be started.
    """
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            handle = theirs.fileno()
            told = {**os.environ, HANDLE: str(handle)}
            started = subprocess.Popen(agent, env=told, pass_fds=(handle,), stdin=subprocess.DEVNULL)
        for number in PASSED_ON:
            signal.signal(number, lambda which, _frame: started.send_signal(which))
        os.environ.clear()  # what the agent was told is not for programs of the root side
        os.environ.update(ENVIRONMENT)
        desk.talk(ours, None)
    return _ended(started)


def _ended(agent: subprocess.Popen[bytes]) -> int:
    """An agent without its pair ends by itself, or is told to: it broke a rule of the pair."""
    try:
        status = agent.wait(LEAVE_S)
    except subprocess.TimeoutExpired:
        say("pair.agent_told_to_end")
        agent.terminate()
        try:
            status = agent.wait(KILL_S)
        except subprocess.TimeoutExpired:
            agent.kill()
            status = agent.wait()
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
