"""av_health: scanner or updater down, signatures old, a scanner that runs and finds nothing, one that does not answer."""

from compliance_agent.lab.real.row import Of, Row, Table, failing, stopped, then

_OF = Of("av_health")
_ASK = (
    "python3 -c 'import socket,struct; s=socket.socket(socket.AF_UNIX);"
    ' s.connect("/run/clamav/clamd.ctl"); {}; print(s.recv(200))\''
)
_SAYS = _ASK.format('s.send(b"zVERSION\\0")')
# The test file is put together on the host, so that no file of ours is it.
_TEST_FILE = 'b"X5O!P%@AP[4" + bytes([92]) + b"PZX54(P^)7CC)7}" + b"$EIC" + b"AR-STANDARD-ANTIVIRUS-TEST-FILE!$H+H*"'
_SCANS = _ASK.format(f's.send(b"zINSTREAM\\0" + struct.pack(">I", 68) + {_TEST_FILE} + bytes(4))')
_SCANNER = "$(systemctl show -p MainPID --value clamav-daemon)"
_FAILS, _WORKS = failing("clamav-daemon.service")
# The scanner has other signatures than its files: in two acts, between which the agent must not look.
_AGENT = "$(systemctl show -p MainPID --value compliance-agent)"
_BLIND = (
    f"kill -STOP {_AGENT}; lab-signatures 0 other; for n in $(seq 50); do {_SCANS} | grep -q FOUND || break; sleep 0.1; done; "
    f"lab-signatures 0 eicar keep; kill -CONT {_AGENT}"
)

_ZONE = "ln -sfn /usr/share/zoneinfo/{} /etc/localtime; systemctl restart clamav-daemon"

_NEW = "lab-signatures 0; systemctl start clamav-daemon"
_DROP_IN = "/run/systemd/system/clamav-daemon.service.d"
# Three seconds until it reads its database, as long ones take. It is up by then.
_SLOW_START = (
    f"mkdir -p {_DROP_IN}; printf '[Service]\\nExecStart=\\nExecStart=/bin/sh -c \"sleep 3; exec clamd --foreground=true\"\\n'"
    f" >{_DROP_IN}/z.conf; systemctl daemon-reload",
    f"rm {_DROP_IN}/z.conf; systemctl daemon-reload; systemctl restart clamav-daemon",
)

TABLE = Table(
    cost_s=360.0,
    setup="systemctl restart clamav-freshclam clamav-daemon",
    interval_s=2,
    rows=(
        *stopped("av_health", "clamav-daemon.service", "daemon_down"),
        Row(
            "av_health", "updater_stopped", "systemctl stop clamav-freshclam", "fail", "updater_down", "success",
            truth="systemctl is-active clamav-freshclam",
        ),
        Row(
            "av_health", "signatures_old", "lab-signatures 5", "fail", "signatures_old", "success",
            truth=f"{_SAYS} | grep -q \"$(date -u '+%b %e')\"",
        ),
        # The scanner prints its signatures' time as the host's clock on the wall has it: here it is fourteen hours ahead.
        Row(
            "av_health", "signatures_old_in_another_zone",
            f"{_ZONE.format('Pacific/Kiritimati')}; lab-signatures 2", "fail", "signatures_old", "success",
            truth=f"{_SAYS} | grep -q \"$(TZ=Pacific/Kiritimati date '+%b %e')\"", restore=_ZONE.format("Etc/UTC"),
        ),
        Row(
            "av_health", "blind", _BLIND, "fail", "probe_missed", "success",
            truth=f"{_SCANS} | grep -q FOUND",
        ),
        Row("av_health", "unreadable", f"kill -STOP {_SCANNER}", "unknown", "timed_out", restore=f"kill -CONT {_SCANNER}"),
        # A database that is none: the scanner comes up, reads it and ends; only an update brings another.
        _OF.undone(
            "signatures_corrupt", "daemon_down",
            then(_SLOW_START, ("systemctl stop clamav-daemon; echo damaged >/var/lib/clamav/daily.cud", _NEW)),
            "scanner_ended", "! systemctl is-active clamav-daemon",
        ),
        # The updater runs and brings nothing; it is given four minutes.
        _OF.undone(
            "updates_bring_nothing", "signatures_old",
            (
                "lab-signatures 5; mv /usr/local/sbin/lab-signatures /root/; ln -s /bin/true /usr/local/sbin/lab-signatures",
                "mv /root/lab-signatures /usr/local/sbin/; lab-signatures 0",
            ),
            "scanner_not_ready", "systemctl is-active clamav-daemon clamav-freshclam", wait_s=330,
        ),
        Row(
            "av_health", "start_fails", f"{_FAILS}; systemctl stop clamav-daemon", "fail", "daemon_down",
            "reverted", "unit_not_active", restore=f"{_WORKS}; systemctl start clamav-daemon",
            former="! systemctl is-active clamav-daemon",
        ),
    ),
)  # fmt: skip
