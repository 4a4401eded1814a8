"""auditd on the virtual host, whose kernel is its own: a daemon or rules that are gone, logs that are open or not there.

What the machine itself says of a cure is a record: a change of /etc/passwd that stands in the log a moment later.
"""

from __future__ import annotations

from compliance_agent.lab.real.row import Of, Row, Table, at_once, hidden, kept, then

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
_UNRECORDED = "! auditctl -l | grep /etc/passwd"

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
