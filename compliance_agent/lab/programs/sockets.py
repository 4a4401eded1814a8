"""Sockets of a clinic host as the kernel lists them in /proc/1/net and as `ss --cgroup` names their units.

A daemon's sockets are there while its unit is active; further ones are put into `Sockets.others`.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field

from compliance_agent.lab.host import Call, FakeHost, Node, said
from compliance_agent.ports import Ran

HEADERS = {
    "tcp": "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode",
    "udp": "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops",
}
WIDTH = {"tcp": 149, "udp": 127}


@dataclass(frozen=True)
class Open:
    """A socket that waits. `unit` is who holds it; an empty one stands for a person's session."""

    proto: str
    address: str
    port: int
    uid: int = 0
    unit: str = ""


DAEMONS = (
    Open("tcp", "0.0.0.0", 22, unit="ssh.service"),  # noqa: S104 - a simulated host's
    Open("tcp", "::", 22, unit="ssh.service"),
    Open("tcp", "0.0.0.0", 443, unit="nginx.service"),  # noqa: S104
    Open("udp", "127.0.0.1", 323, 106, "chrony.service"),
    Open("udp", "::1", 323, 106, "chrony.service"),
    Open("tcp", "127.0.0.1", 3310, 104, "clamav-daemon.service"),
)


@dataclass
class Sockets:
    """Sockets besides those of the daemons."""

    others: list[Open] = field(default_factory=list)


def provide(host: FakeHost) -> None:
    """Have the kernel's lists, and ss."""
    for name in ("tcp", "tcp6", "udp", "udp6"):
        host.place(f"/proc/1/net/{name}", Node(mode=0o444, source=lambda name=name: _listed(host, name)))  # type: ignore[misc]
    host.put("/proc/sys/net/ipv4/ip_local_port_range", "32768\t60999\n")
    host.install("ss")


def waiting(host: FakeHost) -> list[Open]:
    """Every socket that waits."""
    return [each for each in DAEMONS if host.is_active(each.unit)] + host.part(Sockets).others


def _listed(host: FakeHost, name: str) -> bytes:
    proto, version = name[:3], 6 if name.endswith("6") else 4
    lines = [HEADERS[proto].replace("rem_address  ", "remote_address") if version == 6 else HEADERS[proto]]
    mine = [
        each for each in waiting(host) if each.proto == proto and ipaddress.ip_address(each.address).version == version
    ]
    for number, each in enumerate(mine):
        state, nobody = ("0A" if proto == "tcp" else "07"), "0" * len(_hex(each.address))
        line = (
            f"{number:4}: {_hex(each.address)}:{each.port:04X} {nobody}:0000 {state} 00000000:00000000 00:00000000 00000000"
            f" {each.uid:5}        0 {20_000 + number} 1 0000000000000000 100 0 0 10 0"
        )
        lines.append(line.ljust(WIDTH[proto]))
    if name == "tcp":  # a connection that stands, as of every host that is in use
        lines.append(
            "  90: 0A01A8C0:0016 0B01A8C0:D2F0 01 00000000:00000000 02:000A5E3E 00000000     0        0 23400 4 0".ljust(
                149
            )
        )
    return ("\n".join(lines) + "\n").encode("ascii")


def _hex(address: str) -> str:
    packed = ipaddress.ip_address(address).packed
    return "".join(packed[at : at + 4][::-1].hex().upper() for at in range(0, len(packed), 4))


def ss(call: Call) -> Ran:
    """`ss -H -l -n -t -u --cgroup`."""
    lines = []
    for each in waiting(call.host):
        state = "LISTEN" if each.proto == "tcp" else "UNCONN"
        shown = f"[{each.address}]" if ":" in each.address else each.address
        group = f"/system.slice/{each.unit}" if each.unit else f"/user.slice/user-{each.uid}.slice/session-3.scope"
        lines.append(f"{each.proto}   {state} 0      128    {shown}:{each.port}   *:*    cgroup:{group} ")
    return said("".join(f"{line}\n" for line in lines))


PROGRAMS = {"ss": ss}
