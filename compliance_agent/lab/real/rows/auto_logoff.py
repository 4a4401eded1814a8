"""auto_logoff: a timeout of shells or sessions that is gone, late, changeable or overruled; programs that cannot be asked."""

from compliance_agent.lab.real.row import Of, Row, Scripts, Table, at_once, hanging, hidden, kept, made, then

_OF = Of("auto_logoff")
_SHELL, _LOGIND = "/etc/profile.d/00-compliance-tmout.sh", "/etc/systemd/logind.conf.d/50-compliance.conf"
_READ = "systemctl kill --kill-whom=main -s HUP systemd-logind"
_NO_LOGIND = ("systemctl mask --now systemd-logind", "systemctl unmask systemd-logind; systemctl start systemd-logind")
_ENDS = "[ \"$(bash -lc 'echo $TMOUT; TMOUT=0' 2>/dev/null)\" = 900 ] && ! bash -lc 'TMOUT=0 && true' 2>/dev/null"
_LAST = "systemd-analyze cat-config systemd/logind.conf | grep '^StopIdleSessionSec' | tail -1"
_SESSIONS = f'[ "$({_LAST})" = StopIdleSessionSec=900 ]'
_NEITHER = f"[ ! -e {_SHELL} ] && [ ! -e {_LOGIND} ]"


def _read_only(directory: str) -> Scripts:
    """A directory that nothing can be written to."""
    return (
        f"mount --bind {directory} {directory}; mount -o remount,bind,ro {directory}",
        f"umount {directory}",
    )


_ROWS: tuple[Row, ...] = (
    _OF.healed("shells_without", "shell_not_ended", f"rm {_SHELL}", _ENDS),
    _OF.healed("shells_late", "shell_not_ended", f"sed -i s/900/36000/g {_SHELL}", _ENDS),
    _OF.healed("shells_changeable", "shell_changeable", f"sed -i /readonly/d {_SHELL}", _ENDS),
    _OF.healed("sessions_without", "session_not_ended", f"rm {_LOGIND}; {_READ}", _SESSIONS),
    _OF.healed("sessions_late", "session_not_ended", f"sed -i s/900/86400/ {_LOGIND}; {_READ}", _SESSIONS),
    _OF.healed("both_gone", "shell_not_ended", at_once(f"rm {_SHELL} {_LOGIND}; {_READ}; sleep 0.2"), f"{_ENDS} && {_SESSIONS}"),
    _OF.blind("no_bash", "tool_missing", hidden("/usr/bin/bash")),
    _OF.blind("profile_hangs", "timed_out", made("/etc/profile.d/z.sh", "sleep 60\\n")),
    _OF.blind("profile_ends_the_shell", "unparsable", kept("/etc/profile", "echo 'exit 0' >/etc/profile")),
    _OF.blind(
        "logind_hangs", "timed_out", ("systemctl kill -s STOP systemd-logind", "systemctl kill -s CONT systemd-logind")
    ),
    _OF.blind("no_logind", "tool_failed", _NO_LOGIND),
    _OF.blind("nor_by_busctl", "tool_missing", then(_NO_LOGIND, hidden("/usr/bin/busctl"))),
    _OF.blind("busctl_hangs", "timed_out", then(_NO_LOGIND, hanging("/usr/bin/busctl"))),
    _OF.blind(
        "desktop_not_asked", "tool_missing",
        ("mkdir -p /usr/share/xsessions; touch /usr/share/xsessions/lab.desktop", "rm -r /usr/share/xsessions"),
    ),
    _OF.undone(
        "earlier_file_wins", "shell_not_ended", made("/etc/profile.d/00-a.sh", "TMOUT=0; readonly TMOUT\\n"), "check_fail",
        f"[ \"$(bash -lc 'echo $TMOUT' 2>/dev/null)\" = 0 ] && grep -q readonly {_SHELL}",
    ),
    _OF.undone(
        "later_file_wins", "session_not_ended",
        made("/etc/systemd/logind.conf.d/99-lab.conf", "[Login]\\nStopIdleSessionSec=infinity\\n", _READ), "check_fail",
        f"grep -q 900 {_LOGIND}",
    ),
    _OF.undone(
        "shell_file_not_written", "shell_not_ended", at_once(then(f"rm {_SHELL}", _read_only("/etc/profile.d"))), "read_only",
        f"[ ! -e {_SHELL} ]",
    ),
    _OF.undone(
        "second_step_fails", "shell_not_ended",
        at_once(then(f"rm {_SHELL} {_LOGIND}; {_READ}; sleep 0.2", _read_only("/etc/systemd/logind.conf.d"))),
        "read_only", _NEITHER,
    ),
    _OF.alarm(  # what is there cannot be brought back, so nothing is written
        "place_is_a_link", "shell_not_ended",
        (f"mv {_SHELL} /root; ln -s /nowhere {_SHELL}", f"rm {_SHELL}; mv /root/00-compliance-tmout.sh {_SHELL}"), "io_error",
    ),
)  # fmt: skip

TABLE = Table(
    _ROWS,
    setup="systemctl start systemd-logind dbus",
    entry={
        "mode": "enforce",
        "deadline_s": 3,
        "parameters": {"max_idle_s": 900, "logind": True, "screen_lock": True},
    },
    cost_s=60.0,
)
