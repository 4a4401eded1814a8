"""Ask the package sources what is new. All of them must answer: a refresh that half succeeded would look like a fresh one.

The stamp is written after that, since apt keeps the maker's date on its files and other tools' stamps do not say whether
every source answered.
"""

from __future__ import annotations

from typing import Any

from compliance_agent.core.packages import APT_STAMP
from compliance_agent.ports import ChangingHost
from compliance_agent.remedies.package_managers import CODES, DNF_CHANGE, LOCK_WAIT_S, busy, manager_of, must
from compliance_agent.remedies.spec import Action, Args

COMMANDS = {
    "apt": ("apt-get", "-q", "-o", "APT::Update::Error-Mode=any", "-o", f"DPkg::Lock::Timeout={LOCK_WAIT_S}", "update"),
    "dnf": (*DNF_CHANGE, "makecache", "--refresh"),
}


async def capture(host: ChangingHost, args: Args) -> Any:
    """Nothing: what the sources said before is of no use to anyone."""
    manager_of(args)
    return {}


async def apply(host: ChangingHost, args: Args) -> None:
    """Refresh, then note that it succeeded as a whole."""
    manager = manager_of(args)
    await must(host, COMMANDS[manager], timeout_s=280.0, code="refresh_failed")
    if manager == "apt":
        await host.write(APT_STAMP, b"")


async def undo(host: ChangingHost, args: Args, captured: Any) -> None:
    """Nothing to take back."""


ACTION = Action(
    id="refresh_package_lists",
    title="ask the sources of {manager} for their current package lists",
    arguments={"manager": str},
    capture=capture,
    apply=apply,
    undo=undo,
    codes={
        **CODES,
        "refresh_failed": "The package lists could not be fetched.",
    },
    deadline_s=300.0,
    undo_is_empty="newer knowledge of what exists changes nothing that is installed",
    blocked=busy,
)
