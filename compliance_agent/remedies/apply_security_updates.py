"""Install the security updates that wait, and nothing else; services that use them may restart.

Which ones is asked anew here, on the root side, so no name comes from a plan. Files that the host's people changed stay
as they are (`confold`). It is never taken back: a host with fewer security updates is not a state to return to, and when
a run ended half-way the undo says so, instead of claiming that the former state is back.
"""

from __future__ import annotations

from typing import Any

from compliance_agent.core import packages
from compliance_agent.core.tools import answered
from compliance_agent.errors import StepFailed
from compliance_agent.ports import ChangingHost
from compliance_agent.remedies.package_managers import CODES, DNF_CHANGE, LOCK_WAIT_S, busy, manager_of, must
from compliance_agent.remedies.spec import Action, Args

APT_INSTALL = (
    "apt-get",
    "-q",
    "-y",
    "--only-upgrade",
    "--no-remove",
    "-o",
    "Dpkg::Options::=--force-confdef",
    "-o",
    "Dpkg::Options::=--force-confold",
    "-o",
    f"DPkg::Lock::Timeout={LOCK_WAIT_S}",
    "install",
)
# Ends what an earlier run was cut off in; apt refuses to work until that is done.
DPKG_FINISH = ("dpkg", "--force-confdef", "--force-confold", "--configure", "-a")
DNF_UPGRADE = (*DNF_CHANGE, "upgrade", "--security")
DEADLINE_S = 1_800.0


async def _waiting(host: ChangingHost) -> list[str]:
    listed = answered(await host.run(packages.APT_UPGRADABLE, timeout_s=45.0), "apt")
    upgrades = packages.read_apt_upgradable(listed.text)
    return sorted(f"{upgrade.name}={upgrade.version}" for upgrade in upgrades if upgrade.security)


async def _advisories(host: ChangingHost) -> list[str]:
    listed = answered(await host.run(packages.DNF_ADVISORIES, timeout_s=45.0), "dnf")
    return [
        f"{name}={package}" for name, fixed in packages.read_dnf_advisories(listed.text).items() for package in fixed
    ]


async def _half_installed(host: ChangingHost) -> int:
    states = answered(await host.run(packages.DPKG_STATES, timeout_s=15.0), "dpkg-query")
    return packages.read_half_installed(states.text, await host.list(packages.DPKG_INFO))


async def capture(host: ChangingHost, args: Args) -> Any:
    """The updates that wait and the packages not set up, so that the undo can tell whether some were installed."""
    if manager_of(args) == "dnf":
        return {"waiting": await _advisories(host), "unpacked": 0}
    return {"waiting": await _waiting(host), "unpacked": await _half_installed(host)}


async def apply(host: ChangingHost, args: Args) -> None:
    """Set up what an earlier run left unpacked, and install what waits; nothing of either is fine."""
    if manager_of(args) == "dnf":
        await must(host, DNF_UPGRADE, timeout_s=DEADLINE_S - 30, code="install_failed")
        return
    waiting = await _waiting(host)
    if waiting or await _half_installed(host):
        await must(host, DPKG_FINISH, timeout_s=DEADLINE_S / 3, code="configure_failed")
    if waiting:
        await must(host, (*APT_INSTALL, *waiting), timeout_s=DEADLINE_S / 2, code="install_failed")


async def undo(host: ChangingHost, args: Args, captured: Any) -> None:
    """Nothing is taken back. Raises `not_reversible` when updates that waited are now installed, or may be."""
    if manager_of(args) == "dnf":
        unpacked, waiting = 0, await _advisories(host)
    else:
        unpacked, waiting = await _half_installed(host), await _waiting(host)
    if captured["unpacked"] == unpacked and set(captured["waiting"]) <= set(waiting):
        return
    raise StepFailed("installed security updates are not taken back", code="not_reversible")


ACTION = Action(
    id="apply_security_updates",
    title="install the waiting security updates with {manager}",
    arguments={"manager": str},
    capture=capture,
    apply=apply,
    undo=undo,
    codes={
        **CODES,
        "configure_failed": "Packages that were left half installed could not be configured.",
        "install_failed": "The package manager reported failure while it installed.",
        "not_reversible": "Installed security updates are not taken back.",
    },
    deadline_s=DEADLINE_S,
    undo_is_empty="a host never goes back to known holes",
    blocked=busy,
)
