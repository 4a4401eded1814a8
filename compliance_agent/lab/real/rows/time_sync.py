"""time_sync: a host whose source is gone, and one that cannot ask.

The kernel's clock is the machine's, so a host here follows its source and may not set the clock (chronyd -x).
"""

from compliance_agent.lab.real.row import Row, Table, unreadable


def _follow(source: str) -> str:
    """A script that lets the time daemon follow this source and no other."""
    return f"sed -i 's/^server [0-9.]*/server {source}/' /etc/chrony/chrony.conf; systemctl restart chrony"


TABLE = Table(
    setup="systemctl restart chrony",
    passes=False,
    no_cure="the cures set the clock, and a container has none of its own",
    rows=(
        Row(
            "time_sync", "no_source", _follow("10.77.0.9"), "fail", "not_synchronised", "alert", "no_cure",
            restore=_follow("10.77.0.1"),
        ),
        unreadable("time_sync", "/usr/bin/chronyc"),
    ),
)  # fmt: skip
