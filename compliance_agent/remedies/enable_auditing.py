"""Switch the kernel's audit subsystem on. Its rules are left as they are."""

from __future__ import annotations

from typing import Any

from compliance_agent.ports import ChangingHost
from compliance_agent.remedies import audit_tools
from compliance_agent.remedies.spec import Action, Args


async def capture(host: ChangingHost, args: Args) -> Any:
    return {"enabled": (await audit_tools.status(host)).enabled}


async def apply(host: ChangingHost, args: Args) -> None:
    if (await audit_tools.status(host)).enabled == 0:
        await audit_tools.must(host, ("auditctl", "-e", "1"), code="not_switched")


async def undo(host: ChangingHost, args: Args, captured: Any) -> None:
    if captured["enabled"] != 0 or (await audit_tools.status(host)).enabled == 0:
        return
    await audit_tools.unlocked(host)
    await audit_tools.must(host, ("auditctl", "-e", "0"), code="not_switched")


ACTION = Action(
    id="enable_auditing",
    title="switch the kernel's audit subsystem on",
    arguments={},
    capture=capture,
    apply=apply,
    undo=undo,
    codes={**audit_tools.CODES, "not_switched": "The kernel's audit subsystem could not be switched."},
)
