"""Have the kernel load the host's own audit rules from /etc/audit/rules.d; a locked configuration is left alone.

`augenrules --load` makes one file of them, and `auditctl` empties the kernel's list before it loads that. So rules that somebody
loaded by hand go; the undo brings back the whole former list, in its order, and the files.
"""

from __future__ import annotations

from typing import Any

from compliance_agent.core import auditd
from compliance_agent.core.tools import answered
from compliance_agent.errors import CannotTell, StepFailed
from compliance_agent.ports import ChangingHost
from compliance_agent.remedies import audit_tools, kept_file
from compliance_agent.remedies.spec import Action, Args

MADE = ("/etc/audit/audit.rules", "/etc/audit/audit.rules.prev")
MOST_RULES = 1000


async def _rules(host: ChangingHost) -> list[str]:
    return list(auditd.read_rules(answered(await host.run(auditd.RULES), "auditctl").text))


async def capture(host: ChangingHost, args: Args) -> Any:
    rules = await _rules(host)
    if len(rules) > MOST_RULES:
        raise CannotTell("unparsable", f"more than {MOST_RULES} rules; they could not be brought back one by one")
    return {"rules": rules, "files": {path: await kept_file.capture_file(host, path) for path in MADE}}


async def apply(host: ChangingHost, args: Args) -> None:
    await audit_tools.unlocked(host)
    await audit_tools.must(host, ("augenrules", "--load"), code="rules_refused")


async def undo(host: ChangingHost, args: Args, captured: Any) -> None:
    for path in MADE:
        await kept_file.restore_file(host, path, captured["files"][path])
    if await _rules(host) == captured["rules"]:
        return
    await audit_tools.unlocked(host)
    await audit_tools.must(host, ("auditctl", "-D"), code="rules_refused")
    for rule in captured["rules"]:
        await audit_tools.must(host, ("auditctl", *rule.split(" ")), code="rules_refused")
    if await _rules(host) != captured["rules"]:
        raise StepFailed("auditctl: the former rules were loaded, and others found", code="rules_differ")


ACTION = Action(
    id="load_audit_rules",
    title="load the audit rules of /etc/audit/rules.d",
    arguments={},
    capture=capture,
    apply=apply,
    undo=undo,
    codes={
        **audit_tools.CODES,
        **kept_file.CODES,
        "rules_refused": "The kernel refused a rule, or the rules could not be read.",
        "rules_differ": "The former rules could not be brought back as they were.",
    },
    deadline_s=120.0,
)
