"""The words that the virtual host's table has besides those of the other hosts: a cure that the power cuts off, and an outage.

The fault is made while the cure is held at one place (`lab-hold`, or a program that stands in for one of the host's until the next
boot). Then the power goes. The next boot starts no agent, so the machine can be asked first what was left; then the agent comes up
in audit mode, which lets it end what was cut off and begin nothing, and the machine is asked again.
"""

from __future__ import annotations

from dataclasses import dataclass

from compliance_agent.lab.real.row import Row

CLOCK = "# done by the lab: the clock is right to a second"  # a `truth` that only the lab can tell
POINT = """python3 -c 'import sqlite3, sys
found = sqlite3.connect("file:/var/lib/compliance-agent/agent.db?mode=ro", uri=True).execute(
    "SELECT count(*) FROM heal_point WHERE state = ?", ("open",)).fetchone()
sys.exit(found != (1,))'"""


@dataclass(frozen=True)
class Cut(Row):
    """A fault whose cure is cut off. `result` to `error`, `truth` and `former` are of the record made after the next boot.

    Attributes:
        held: ends with 0 when the cure has come to the place; empty where the host goes down by itself.
        left: ends with 0 when the cut left what it is meant to leave, asked before the agent is back.
        boot: further parameters of the kernel at the next boot.
        dead_boot: the next boot without them does not come up either, which is shown first.
        then: what must come once the agent may heal again.
    """

    held: str = "[ -e /run/lab-held ]"
    left: str = "true"
    boot: tuple[str, ...] = ()
    dead_boot: bool = False
    then: Row | None = None


@dataclass(frozen=True)
class Outage(Row):
    """A fault while records cannot be delivered.

    Attributes:
        through: ends with 0 when, once it is over, everything that was held up came through by itself.
    """

    through: str = "true"


def stand_in(program: str, script: str) -> str:
    """A script that puts `script` in a program's place until the next boot; `$real` is the program itself."""
    name = program.rpartition("/")[2]
    return f"""mkdir -p /dev/shm/lab && cp {program} /dev/shm/lab/{name}
cat >/dev/shm/lab/{name}.sh <<'STAND_IN'
#!/bin/sh
real=/dev/shm/lab/{name}
{script}
STAND_IN
chmod 755 /dev/shm/lab/{name}.sh && mount --bind /dev/shm/lab/{name}.sh {program}
"""
