"""logging: the forwarder down or hanging, lines lost on the way, a journal that cannot be read."""

from compliance_agent.lab.real.row import Row, Table, failing, stopped, unreadable

_FAILS, _WORKS = failing("rsyslog.service")

TABLE = Table(
    rows=(
        *stopped("logging", "rsyslog.service", "unit_down", "syslog.socket"),
        Row(
            "logging", "forwarder_hangs", "kill -STOP $(systemctl show -p MainPID --value rsyslog)",
            "fail", "canary_lost", "success", truth="logger -t lab back && sleep 1 && grep -q 'lab: back' /var/log/syslog",
        ),
        unreadable("logging", "/usr/bin/journalctl"),
        Row(
            "logging", "canary_lost", "echo '*.* stop' >/etc/rsyslog.d/00-lab.conf && systemctl restart rsyslog",
            "fail", "canary_lost", "reverted", "check_fail",
            restore="rm /etc/rsyslog.d/00-lab.conf; systemctl restart rsyslog", former="systemctl is-active rsyslog",
        ),
        Row(
            "logging", "start_fails", f"{_FAILS}; systemctl stop syslog.socket rsyslog", "fail", "unit_down",
            "reverted", "unit_start_failed", restore=f"{_WORKS}; systemctl start rsyslog",
            former="! systemctl is-active rsyslog syslog.socket",
        ),
    ),
)  # fmt: skip
