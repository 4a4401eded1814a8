"""auditd: in a container the audit subsystem is another host's, so it can only be seen that nothing is claimed about it."""

from compliance_agent.lab.real.row import Of, Row, Table, hanging, hidden

_OF = Of("auditd")
_ROWS: tuple[Row, ...] = (
    _OF.blind("no_auditctl", "tool_missing", hidden("/usr/sbin/auditctl")),
    _OF.blind("auditctl_hangs", "timed_out", hanging("/usr/sbin/auditctl")),
)

TABLE = Table(
    _ROWS,
    entry={
        "mode": "enforce",
        "deadline_s": 3,
        "parameters": {"rules": ["/etc/passwd:wa", "/etc/sudoers:wa", "b64:settimeofday", "key:perm_mod"]},
    },
    rests=("unknown", "tool_failed"),
    no_cure="the audit subsystem belongs to the machine's kernel, and a container may neither ask nor change it",
    cost_s=20.0,
)
