"""time_sync: a daemon that is down, cannot be asked, or follows no source or a wrong one.

The kernel's clock is the machine's, so a host here follows its source and may not set the clock (chronyd -x). That is why no host
passes (whether the kernel's clock is disciplined cannot be asked) and why every cure is taken back. It is also how a daemon looks
that only believes in the steps it made.
"""

from compliance_agent.lab.real.network import SERVER, SKEWED
from compliance_agent.lab.real.row import Row, Table, unreadable


def _follow(source: str) -> str:
    """A script that lets the time daemon follow this source and no other."""
    return f"sed -i 's/^server [0-9.]*/server {source}/' /etc/chrony/chrony.conf; systemctl restart chrony"


_FOLLOWING = "chronyc -n waitsync 60 0 0 0.5"
_BACK = f"{_follow(SERVER)}; {_FOLLOWING}"
_BY_ITS_SOURCE = "chronyc -n -c sources | grep -q '^^,[*].*,-30[.]'"

TABLE = Table(
    setup=f"systemctl restart chrony; {_FOLLOWING}",
    rests=("unknown", "unparsable"),
    no_cure="the cures set the clock, and a container has none of its own",
    rows=(
        # It is started, and the check cannot confirm it: nobody disciplines the kernel's clock.
        Row(
            "time_sync", "unit_stopped", "systemctl stop chrony", "fail", "daemon_down", "reverted", "check_unknown",
            former="! systemctl is-active chrony", restore=f"systemctl start chrony; {_FOLLOWING}",
        ),
        Row("time_sync", "no_source", _follow("10.77.0.9"), "fail", "not_synchronised", "alert", "no_cure", restore=_BACK),
        unreadable("time_sync", "/usr/bin/chronyc"),
        # By `tracking` this clock is right: the daemon reckons with a step that the kernel refused.
        Row(
            "time_sync", "skewed", _follow(SKEWED), "fail", "offset_too_large", "reverted", "step_refused",
            restore=_BACK, former=_BY_ITS_SOURCE,
        ),
        # Slewing 30 s takes hours. The cure above is not tried again.
        Row(
            "time_sync", "skewed_and_slewing", f"sed -i 's/^makestep/#makestep/' /etc/chrony/chrony.conf; {_follow(SKEWED)}",
            "fail", "offset_too_large", "rejected", "rejected_target",
            restore=f"sed -i 's/^#makestep/makestep/' /etc/chrony/chrony.conf; {_BACK}",
        ),
    ),
)  # fmt: skip
