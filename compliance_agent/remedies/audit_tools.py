"""What the actions on the kernel's audit subsystem share."""

from __future__ import annotations

from collections.abc import Sequence

from compliance_agent.core import auditd
from compliance_agent.core.tools import answered
from compliance_agent.errors import CannotTell, StepFailed
from compliance_agent.ports import ChangingHost

CODES = {"audit_locked": "The audit configuration is locked: only a restart of the host can change it."}


async def status(host: ChangingHost) -> auditd.Status:
    """What the kernel says of its audit subsystem.

    Raises:
        CannotTell: it could not be asked.
    """
    return auditd.read_status(answered(await host.run(auditd.STATUS), "auditctl").text)


async def unlocked(host: ChangingHost) -> None:
    """Raises `StepFailed` (`audit_locked`) when the kernel would refuse every change."""
    if (await status(host)).enabled == 2:
        raise StepFailed("auditctl: enabled is 2, expected 0 or 1; restart the host", code="audit_locked")


async def must(host: ChangingHost, argv: Sequence[str], *, code: str) -> None:
    """Run a program that changes the subsystem.

    Raises:
        StepFailed: it could not be run, or reported failure.
    """
    try:
        ran = await host.change(argv)
    except CannotTell as error:
        raise StepFailed(f"{argv[0]}: {error.reason}", code=error.reason) from error
    if ran.exit_status != 0:
        raise StepFailed(f"{argv[0]}: exit status {ran.exit_status}", code=code, exit_status_of_step=ran.exit_status)
