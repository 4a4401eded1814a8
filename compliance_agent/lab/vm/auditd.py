"""auditd on the virtual host, whose kernel is its own: a daemon or rules that are gone, logs that are open, cures that fail.

What the machine itself says of a cure is a record: a change of /etc/passwd that stands in the log a moment later.
"""

from __future__ import annotations

from compliance_agent.lab.real.row import Of, Row, Scripts, Table, at_once, hidden, kept, refusing, then

RULES = """-D
-b 8192
-w /etc/passwd -p wa -k identity
-w /etc/sudoers -p wa -k identity
-a always,exit -F arch=b64 -S settimeofday -k clock
-a always,exit -F arch=b64 -S chmod,fchmod -F auid>=1000 -k perm_mod
"""
_OF = Of("auditd")
_LOG, _CONFIG, _FILE = "/var/log/audit/audit.log", "/etc/audit/auditd.conf", "/etc/audit/rules.d/clinic.rules"
_LOADED = "augenrules --load"
# It refuses to be stopped by the service manager. The agent may be faster than a wait for its end.
_STOP = "kill $(cat /run/auditd.pid); for turn in $(seq 20); do [ ! -e /run/auditd.pid ] || sleep 0.1; done"
_GONE = "auditctl -W /etc/passwd -p wa -k identity"
# Setting the mode to what it is changes nothing and is recorded all the same.
_RECORDED = (
    f"before=$(grep -c 'key=\"identity\"' {_LOG}); chmod 644 /etc/passwd; sleep 1;"
    f" [ $(grep -c 'key=\"identity\"' {_LOG}) -gt $before ]"
)
_UNRECORDED = "auditctl -l | grep /etc/sudoers && ! auditctl -l | grep /etc/passwd"
# Fails when it has taken effect: the former rules have to be brought back, one by one.
_LOADS_AND_FAILS = refusing("/usr/sbin/auditctl", '[ "$1" = -R ] && /usr/sbin/auditctl.away "$@"')


def _undone(fault: str, reason: str, script: Scripts, code: str, former: str) -> Row:
    """Cured in vain. Each has a step of its own that fails, so none stands in the next one's way as rejected."""
    inject, restore = at_once(script)
    return Row("auditd", fault, inject, "fail", reason, "reverted", code, restore=restore, former=former)


_ROWS: tuple[Row, ...] = (
    Row("auditd", "records", "true", "pass", "as_expected", truth=_RECORDED, standing=True),
    _OF.healed("daemon_stopped", "daemon_down", _STOP, f"systemctl is-active auditd && {_RECORDED}"),
    _OF.healed(
        "daemon_masked", "daemon_down", f"systemctl mask auditd; {_STOP}",
        f"systemctl is-active auditd && ! systemctl is-enabled auditd | grep masked && {_RECORDED}",
    ),
    _OF.healed("recording_off", "recording_off", "auditctl -e 0", _RECORDED),
    _OF.healed("rule_removed", "rules_not_loaded", _GONE, _RECORDED),
    _OF.healed("rules_flushed", "rules_not_loaded", "auditctl -D", _RECORDED),
    _OF.alarm("rule_nowhere", "rules_absent", at_once(then(kept(_FILE, f"sed -i /passwd/d {_FILE}", _LOADED), _GONE))),
    _OF.alarm("rule_not_kept", "rules_not_kept", kept(_FILE, f"sed -i /passwd/d {_FILE}", _LOADED)),
    _OF.alarm("everybody_exempt", "tasks_exempt", ("auditctl -a never,task", "auditctl -d never,task")),
    _OF.alarm("log_open", "logs_open", (f"chmod 644 {_LOG}", f"chmod 600 {_LOG}")),
    _OF.alarm("log_moved_away", "not_written", (f"mv {_LOG} /root", f"mv /root/audit.log {_LOG}")),
    _OF.alarm(
        "drops_silently", "drops_silently",
        kept(_CONFIG, f"sed -i 's/^space_left_action.*/space_left_action = ignore/' {_CONFIG}"),
    ),
    _OF.blind("auditctl_gone", "tool_missing", hidden("/usr/sbin/auditctl")),
    _undone("rules_refused", "rules_not_loaded", then((_GONE, _LOADED), _LOADS_AND_FAILS), "rules_refused", _UNRECORDED),
    _undone(
        "not_switched", "recording_off",
        then(("auditctl -e 0", "auditctl -e 1"), refusing("/usr/sbin/auditctl", '[ "$1" = -e ]')), "not_switched",
        "auditctl -s | grep -x 'enabled 0'",
    ),
    _undone(
        "daemon_will_not_start", "daemon_down",
        then((_STOP, "systemctl reset-failed auditd; systemctl start auditd"), refusing("/usr/sbin/auditd", "true")),
        "unit_start_failed", "! systemctl is-active auditd",
    ),
)  # fmt: skip

TABLE = Table(
    _ROWS,
    entry={
        "mode": "enforce",
        "deadline_s": 20,
        "parameters": {
            "rules": ["/etc/passwd:wa", "/etc/sudoers:wa", "b64:settimeofday", "key:perm_mod"],
            "space_actions": ["syslog", "email", "exec", "single", "halt"],
            "log_actions": ["keep_logs", "syslog"],
            "max_lost": 0,
        },
    },
    interval_s=2,
)
# Locked until the next boot, so they stand last before one: nothing is tried, and the kernel would refuse it.
LOCKED = Table(
    (
        _OF.alarm(
            "rule_gone_and_locked",
            "rules_locked",
            at_once(f"{_GONE}; auditctl -e 2"),
        ),
    ),
    entry=TABLE.entry,
    interval_s=2,
    rests=("fail", "rules_locked"),
)
