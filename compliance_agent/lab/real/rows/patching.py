"""patching: security updates that wait, are held up by a lock, or break while they are installed; a package manager gone."""

from compliance_agent.lab.real.row import PUBLISH, Row, Table, unreadable

_HOLD_LOCK = (
    'setsid python3 -c \'import fcntl,time; f=open("/var/lib/dpkg/lock-frontend","w");'
    " fcntl.lockf(f,fcntl.LOCK_EX); time.sleep(600)' >/dev/null 2>&1 & echo $! >/run/lab-lock; sleep 1"
)

TABLE = Table(
    setup="""
    apt-get -q update
    touch -d now /var/lib/apt/periodic/compliance-agent-update-stamp
    apt-get -q -y install lab-widget""",
    interval_s=4,
    rows=(
        Row(
            "patching", "package_lock_held", f"{PUBLISH}1.1\napt-get -q update; {_HOLD_LOCK}",
            "fail", "security_pending", "deferred", "package_manager_busy", restore="kill $(cat /run/lab-lock)",
        ),
        Row(
            "patching", "security_update", f"{PUBLISH}1.2\napt-get -q update", "fail", "security_pending", "success",
            truth="dpkg-query -W -f '${Version}' lab-widget | grep -qx 1.2", wait_s=90,
        ),
        unreadable("patching", "/usr/bin/apt"),
        Row(
            "patching", "install_fails", f"{PUBLISH}1.3 broken\napt-get -q update", "fail", "security_pending", "failed",
            "not_reversible", restore=f"{PUBLISH}1.4\napt-get -q update; apt-get -q -y install lab-widget", wait_s=90,
        ),
    ),
)  # fmt: skip
