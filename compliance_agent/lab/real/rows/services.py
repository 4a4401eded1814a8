"""services: required ones down or not coming back, forbidden ones there, units that cannot be started or masked."""

from compliance_agent.lab.real.row import Of, Row, Scripts, Table, at_once, failing, hanging, stopped, then

_OF = Of("services")
_TELNET = "[Socket]\\nListenStream=23\\nAccept=yes\\n[Install]\\nWantedBy=sockets.target\\n"
_SERVICE = "[Service]\\nExecStart=/usr/bin/sleep 1\\n"
_AWAY = '[ "$(systemctl is-enabled telnet.socket)" = masked ] && [ -z "$(ss -Hltn \'sport = 23\')" ]'


def _telnet(script: str, place: str = "/usr/lib/systemd/system") -> Scripts:
    """A forbidden socket, installed, and then more."""
    return (
        f"printf '{_TELNET}' >{place}/telnet.socket; printf '{_SERVICE}' >{place}/telnet@.service\n"
        f"systemctl daemon-reload; {script}",
        # The file first: a unit that is unmasked and enabled for a moment would be found again.
        f"systemctl stop telnet.socket; rm -f /etc/systemd/system/sockets.target.wants/telnet.socket {place}/telnet*\n"
        "systemctl daemon-reload; systemctl unmask telnet.socket",
    )


_SOCKETS = ("/run/systemd/private", "/run/dbus/system_bus_socket")
_MUTE = "import socket, time; s = socket.socket(socket.AF_UNIX); s.bind('/run/lab-mute'); s.listen(99); time.sleep(600)"


def _anew(script: str) -> str:
    """Something is done to the ways to the manager, and the connection that the agent had is gone: starting itself anew, the
    manager ends it. The agent is stopped meanwhile, and goes on by a signal, not by the manager.
    """
    stop = "agent=$(systemctl show -p MainPID --value compliance-agent); kill -STOP $agent"
    return f"{stop}\nsystemctl daemon-reexec; {script}; kill -CONT $agent"


def _unheard(*ways: str) -> Scripts:
    """These ways to the manager are gone."""
    away = "; ".join(f"mv {way} {way}.away" for way in ways)
    back = "; ".join(f"mv {way}.away {way}" for way in reversed(ways))
    return _anew(away), back


def _mute(way: str) -> Scripts:
    """In its place is somebody who takes every question and answers none."""
    listen = f'python3 -c "{_MUTE}" >/dev/null 2>&1 & echo $! >/run/lab-mute.pid'
    wait = "while [ ! -S /run/lab-mute ]; do sleep 0.1; done"
    return (
        f"{listen}\n{wait}\n{_anew(f'mount --bind /run/lab-mute {way}')}",
        f"umount {way}; kill $(cat /run/lab-mute.pid); rm /run/lab-mute /run/lab-mute.pid",
    )


_ROWS: tuple[Row, ...] = (
    *stopped("services", "cron.service", "service_down"),
    _OF.healed(
        "not_coming_back", "service_not_enabled", "systemctl disable cron", "systemctl is-enabled cron && systemctl is-active cron"
    ),
    _OF.healed("forbidden_runs", "forbidden_running", _telnet("systemctl start telnet.socket"), _AWAY),
    _OF.healed("forbidden_may_start", "forbidden_enabled", _telnet("systemctl enable telnet.socket"), _AWAY),
    _OF.healed(
        "several_at_once", "forbidden_running",
        at_once(then("systemctl stop cron; systemctl disable cron", _telnet("systemctl enable --now telnet.socket"))),
        f"{_AWAY} && systemctl is-active cron && systemctl is-enabled cron",
    ),
    _OF.alarm(
        "unit_gone", "service_missing",
        at_once(  # its old script too, of which systemd would make a unit
            ("systemctl stop cron; mv /lib/systemd/system/cron.service /root; mv /etc/init.d/cron /root; systemctl daemon-reload",
             "mv /root/cron.service /lib/systemd/system; mv /root/cron /etc/init.d; systemctl daemon-reload; systemctl start cron")
        ),
    ),
    _OF.blind("manager_hangs", "timed_out", _mute(_SOCKETS[0])),
    _OF.blind("manager_not_asked", "tool_failed", _unheard(*_SOCKETS)),
    _OF.blind("nor_by_systemctl", "tool_missing", _unheard(*_SOCKETS, "/usr/bin/systemctl")),
    _OF.blind("systemctl_hangs", "timed_out", then(_unheard(*_SOCKETS), hanging("/usr/bin/systemctl"))),
    _OF.healed(
        "own_socket_gone", "service_down", then(_unheard(_SOCKETS[0]), "systemctl stop cron"), "systemctl is-active cron"
    ),
    _OF.undone(
        "start_fails", "service_down", at_once(then(("systemctl stop cron", "systemctl start cron"), failing("cron.service"))),
        "unit_not_active", "! systemctl is-active cron",
    ),
    _OF.undone(  # its own file stands where the mask would have to
        "mask_refused", "forbidden_running",
        at_once(
            then(
                ("systemctl disable cron", "systemctl enable cron"),
                _telnet("systemctl start telnet.socket", "/etc/systemd/system"),
            )
        ),
        "unit_mask_failed", "systemctl is-active telnet.socket && systemctl is-active cron && ! systemctl is-enabled cron",
    ),
)  # fmt: skip

TABLE = Table(
    _ROWS,
    setup="systemctl start cron",
    entry={
        "mode": "enforce",
        "deadline_s": 3,
        "parameters": {
            "active": ["cron.service", "dbus.service"],
            "forbidden": [
                "telnet.socket",
                "rsh.socket",
                "rlogin.socket",
                "tftp.socket",
                "vsftpd.service",
                "rpcbind.socket",
            ],
        },
    },
    cost_s=50.0,
)
