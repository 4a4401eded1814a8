"""listening_ports: what waits for the network unlisted, over TCP and UDP, whoever it is; a kernel that cannot be asked."""

from compliance_agent.lab.real.row import Of, Row, Scripts, Table, hidden, then

_OF = Of("listening_ports")


_OTHER_LISTS = ("mount -t tmpfs none /proc/1/net", "umount /proc/1/net")


def _waits(address: str, port: int, *, kind: str = "STREAM", family: str = "INET", run_as: str = "") -> Scripts:
    """A program that waits there until it is ended."""
    listen = "s.listen()" if kind == "STREAM" else "0"
    opened = f"s=socket.socket(socket.AF_{family},socket.SOCK_{kind})"
    program = f"import socket,sys,time; {opened}; s.bind((sys.argv[1],{port})); {listen}; time.sleep(600)"
    return (
        f"systemd-run --quiet --unit=lab-waits {run_as} python3 -c '{program}' \"{address}\"",
        "systemctl stop lab-waits",
    )


_ROWS: tuple[Row, ...] = (
    _OF.alarm(
        "web_server", "unexpected_ports",
        ("systemd-run --quiet --unit=lab-waits python3 -m http.server 8000", "systemctl stop lab-waits"),
    ),
    _OF.alarm("one_address", "unexpected_ports", _waits("$(hostname -I | cut -d' ' -f1)", 9000)),
    _OF.alarm("over_ipv6", "unexpected_ports", _waits("::", 8001, family="INET6")),
    _OF.alarm("over_udp", "unexpected_ports", _waits("0.0.0.0", 69, kind="DGRAM")),  # noqa: S104 - that is the fault
    _OF.alarm("listed_for_this_host_alone", "unexpected_ports", _waits("0.0.0.0", 5432)),  # noqa: S104
    _OF.alarm("of_a_person", "people_listen", _waits("0.0.0.0", 8002, run_as="--uid=frontdesk")),  # noqa: S104
    _OF.alarm("owner_not_told", "unexpected_ports", then(hidden("/usr/bin/ss"), _waits("0.0.0.0", 8003))),  # noqa: S104
    _OF.blind("no_list", "not_found", _OTHER_LISTS),
    _OF.blind("list_not_read", "io_error", then(_OTHER_LISTS, "mkfifo /proc/1/net/tcp")),
    _OF.blind("list_not_understood", "unparsable", then(_OTHER_LISTS, "echo no sockets >/proc/1/net/tcp")),
)  # fmt: skip

TABLE = Table(
    _ROWS,
    setup="id frontdesk >/dev/null 2>&1 || useradd -m -s /bin/bash frontdesk",
    entry={
        "mode": "audit",
        "deadline_s": 5,
        "parameters": {"allow_tcp": ["22", "443", "loopback:5432"], "allow_udp": ["68", "546", "loopback:323"]},
    },
    cost_s=30.0,
)
