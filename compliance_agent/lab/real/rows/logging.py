"""logging: the forwarder down or hanging, lines lost on the way, a full disk where they go to, a journal that cannot be read."""

from compliance_agent.lab.real.row import Of, Row, Table, failing, made, stopped, then, unreadable

_OF = Of("logging")
_HANGS = (
    "kill -STOP $(systemctl show -p MainPID --value rsyslog)",
    "systemctl reset-failed rsyslog; systemctl restart rsyslog",
)
_FAILS, _WORKS = failing("rsyslog.service")
# Its socket would start it five times over before it gives up, and the record could meet it on its way up.
_ONCE = "printf '[Unit]\\nStartLimitBurst=1\\n' >/run/systemd/system/rsyslog.service.d/y.conf; systemctl daemon-reload"
_ARRIVES = "logger -t lab back && sleep 1 && grep -q 'lab: back' /var/log/syslog"
# A file system of 16 KiB with nothing free takes the place of the syslog file.
_FULL = (
    "mkdir /run/full; mount -t tmpfs -o size=16k tmpfs /run/full; touch /run/full/syslog; chmod 666 /run/full/syslog\n"
    "dd if=/dev/zero of=/run/full/rest bs=4k count=9; mount --bind /run/full/syslog /var/log/syslog; systemctl restart rsyslog",
    "systemctl stop rsyslog; umount -l /var/log/syslog /run/full; rmdir /run/full; systemctl restart rsyslog",
)

TABLE = Table(
    rows=(
        *stopped("logging", "rsyslog.service", "unit_down", "syslog.socket"),
        _OF.healed("forwarder_hangs", "canary_lost", _HANGS[0], _ARRIVES),
        unreadable("logging", "/usr/bin/journalctl"),
        _OF.undone(
            "destination_full", "canary_lost", _FULL, "check_fail",
            "systemctl is-active rsyslog && ! dd if=/dev/zero of=/run/full/more bs=4k count=1",
        ),
        _OF.undone(
            "lines_dropped", "canary_lost", made("/etc/rsyslog.d/00-lab.conf", "*.* stop\\n", "systemctl restart rsyslog"),
            "check_fail", "systemctl is-active rsyslog",
        ),
        _OF.undone(
            "start_fails", "unit_down",
            then((_FAILS, _WORKS), ("systemctl stop syslog.socket rsyslog", "systemctl start rsyslog")),
            "unit_start_failed", "! systemctl is-active rsyslog syslog.socket",
        ),
        # What hung is gone after a restart that failed: it cannot be put back, and the record has to say that.
        Row(
            "logging", "restart_fails", f"{_FAILS}\n{_ONCE}\n{_HANGS[0]}",
            "fail", "canary_lost", "failed", "not_restored", former="! systemctl is-active rsyslog",
            restore=f"{_WORKS}\n{_HANGS[1]}",
        ),
    ),
    cost_s=100.0,
)  # fmt: skip
