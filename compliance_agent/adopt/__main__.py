"""`python -I -m compliance_agent.adopt --user NAME`: takes its socket from the service manager, and ends when nobody asks."""

from __future__ import annotations

import argparse
import sys

from compliance_agent.adopt.service import Adopting
from compliance_agent.heal.__main__ import APPROVALS, PERMITS, harden, inherited, uid_of
from compliance_agent.heal.machine import Machine

TRUST, STATE = "/etc/msp/adopt.json", "/var/lib/compliance-agent-adopt/state.json"
APART = "compliance-agent-permit"


def main(argv: list[str]) -> int:
    """Serve; 0 when it was idle, 78 when it was started wrongly."""
    parser = argparse.ArgumentParser(
        prog="compliance-agent-adopt", description="Takes baselines that people ordered, and approvals."
    )
    parser.add_argument("--user", required=True, help="the agent's user; nobody else but root may ask")
    parser.add_argument("--trust", default=TRUST, help="whose orders and baselines count (default: %(default)s)")
    parser.add_argument("--permits", default=PERMITS, help="what heal may do (default: %(default)s)")
    parser.add_argument("--approvals", default=APPROVALS, help="what people approved (default: %(default)s)")
    parser.add_argument("--state", default=STATE, help="what is remembered (default: %(default)s)")
    parser.add_argument("--idle", type=float, default=10.0, help="seconds without a question until it ends")
    given = parser.parse_args(argv)
    try:
        users, listener = {0, uid_of(given.user)}, inherited()
    except (KeyError, OSError, ValueError) as error:
        sys.stderr.write(f"adopt: cannot start: {error}; expected an existing user, and one socket from the manager\n")
        return 78
    harden()
    with listener:
        machine = Machine(apart=APART)
        Adopting(machine, given.trust, given.permits, given.state, given.approvals).serve(listener, users, given.idle)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
