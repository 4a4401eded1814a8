"""patching: updates that wait, are held up by a lock or break while they are installed; lists that are old or expired; no apt."""

from compliance_agent.lab.real.row import PUBLISH, Of, Row, Table, hidden

_OF = Of("patching")
_STAMP = "/var/lib/apt/periodic/compliance-agent-update-stamp"
_HOLD_LOCK = (
    'setsid python3 -c \'import fcntl,time; f=open("/var/lib/dpkg/lock-frontend","w");'
    " fcntl.lockf(f,fcntl.LOCK_EX); time.sleep(600)' >/dev/null 2>&1 & echo $! >/run/lab-lock; sleep 1"
)
_FORGET = "find /var/lib/apt/lists -type f -delete"  # apt keeps the list it has when the new one is older
_ASK = "apt-get -q update"
_INSTALLED = "dpkg-query -W -f '${{Version}}' lab-widget | grep -qx {}"


def _offered(version: str, afterwards: str = "true") -> str:
    """The lab's repository has another version, and the host knows of it."""
    return f"{PUBLISH}{version}\n{_ASK}; {afterwards}"


# The agent sees the update only once the lock is held.
_OFFERED_AND_LOCKED = f"""{PUBLISH}1.1
systemctl kill -s STOP compliance-agent
{_ASK}; {_HOLD_LOCK}
systemctl kill -s CONT compliance-agent"""

_EXPIRED = f"""{PUBLISH}1.2 expiring
mkdir -p /run/lab-lists/partial; apt-get -q -o Dir::State::lists=/run/lab-lists update; sleep 12
rm -r /run/lab-lists/partial; rm -f /run/lab-lists/lock; cp -p /run/lab-lists/* /var/lib/apt/lists/; rm -r /run/lab-lists"""

TABLE = Table(
    setup=f"""
    {_ASK}
    touch -d now {_STAMP}
    apt-get -q -y install lab-widget""",
    interval_s=4,
    rows=(
        _OF.healed(
            "lists_old", "lists_stale", f"{PUBLISH}1.0 old\n{_FORGET}; {_ASK}; touch -d '-5 days' {_STAMP}",
            f"[ -n \"$(find {_STAMP} -mmin -2)\" ]", wait_s=90,
        ),
        Row(
            "patching", "package_lock_held", _OFFERED_AND_LOCKED, "fail", "security_pending", "deferred",
            "package_manager_busy", restore="kill $(cat /run/lab-lock)",
        ),
        _OF.healed("security_update", "security_pending", _offered("1.2"), _INSTALLED.format("1.2"), wait_s=90),
        _OF.blind("unreadable", "tool_missing", hidden("/usr/bin/apt")),
        # Lists that were good when they were fetched. The mirror has nothing newer, so the refresh is refused by apt. They come
        # to their place when they are expired for apt too, which counts in whole seconds.
        _OF.undone(
            "lists_expired", "lists_stale", (_EXPIRED, _offered("1.2")), "refresh_failed", _INSTALLED.format("1.2"), wait_s=90,
        ),
        Row(
            "patching", "install_fails", _offered("1.3 broken"), "fail", "security_pending", "failed", "not_reversible",
            restore=_offered("1.4", "apt-get -q -y install lab-widget"), wait_s=90,
            former="dpkg-query -W -f '${db:Status-Status}' lab-widget | grep -qx half-configured",
        ),
    ),
    cost_s=110.0,
)  # fmt: skip
