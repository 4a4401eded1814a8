"""The kernel's lists of sockets: who waits for connections or datagrams, at which port, and from where it can be reached.

The lists are read of process 1 (/proc/1/net), because the agent itself may live in a network namespace of its own, where
nothing listens.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Sequence

from compliance_agent.dataclass import dataclass
from compliance_agent.errors import CannotTell

FILES = tuple(f"/proc/1/net/{name}" for name in ("tcp", "tcp6", "udp", "udp6"))
PORT_RANGE = "/proc/sys/net/ipv4/ip_local_port_range"
OWNERS = ("ss", "-H", "-l", "-n", "-t", "-u", "--cgroup")
ANY, LOOPBACK = "any", "loopback"
LISTEN, UNCONNECTED = "0A", "07"

_HEADER = re.compile(r"\s*sl\s+local_address\s+(rem_address|remote_address)\s+st\s.*")
_SOCKET = re.compile(
    r"\s*\d+: ([0-9A-F]{8}|[0-9A-F]{32}):([0-9A-F]{4}) ([0-9A-F]{8}|[0-9A-F]{32}):([0-9A-F]{4}) ([0-9A-F]{2})"
    r" [0-9A-F]+:[0-9A-F]+ [0-9A-F]+:[0-9A-F]+ [0-9A-F]+\s+(\d+)\s+\d+\s+\d+ .*"
)
_ALLOWED = re.compile(r"(?:(any|loopback):)?(\d{1,5})(?:-(\d{1,5}))?")
_UNIT = re.compile(r"cgroup:(?:/[^/\s]+)*/([A-Za-z0-9@:._-]+\.(?:service|socket|scope))(?:/\S*)?$")


@dataclass(frozen=True)
class Listener:
    """A socket that waits. `loopback`: only this host reaches it."""

    proto: str  # tcp | udp
    port: int
    loopback: bool
    uid: int


def read_sockets(text: str, proto: str) -> tuple[Listener, ...]:
    """The sockets of one list that wait: listening ones of TCP, unconnected ones of UDP.

    Raises:
        CannotTell: `unparsable`.
    """
    lines = text.split("\n")
    if len(lines) < 2 or lines[-1] or not _HEADER.fullmatch(lines[0]):
        raise CannotTell("unparsable", f"/proc/net: expected the kernel's list of {proto} sockets")
    return tuple(_waiting(lines[1:-1], proto))


def _waiting(lines: Sequence[str], proto: str) -> Iterator[Listener]:
    wanted = LISTEN if proto == "tcp" else UNCONNECTED
    for line in lines:
        found = _SOCKET.fullmatch(line)
        if found is None:
            raise CannotTell("unparsable", f"/proc/net: a line of {proto} sockets is not understood")
        address, port, _, remote_port, state, uid = found.groups()
        if state == wanted and int(port, 16) and not int(remote_port, 16):
            yield Listener(proto, int(port, 16), _is_loopback(address), int(uid))


def _is_loopback(address: str) -> bool:
    """The kernel writes each 32-bit word in the byte order of a little-endian machine, which all that we support are."""
    raw = b"".join(bytes.fromhex(address[at : at + 8])[::-1] for at in range(0, len(address), 8))
    found = ipaddress.ip_address(raw)
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        return found.ipv4_mapped.is_loopback
    return found.is_loopback


def read_range(text: str) -> range:
    """The ports that the kernel hands out by itself.

    Raises:
        CannotTell: `unparsable`.
    """
    found = re.fullmatch(r"(\d{1,5})\s+(\d{1,5})\n", text)
    if found is None or not int(found[1]) <= int(found[2]) <= 65_535:
        raise CannotTell("unparsable", "ip_local_port_range: expected two ports")
    return range(int(found[1]), int(found[2]) + 1)


@dataclass(frozen=True)
class Allowed:
    """One entry of the baseline: ports, and from where they may be reached."""

    ports: range
    loopback_only: bool

    def covers(self, listener: Listener) -> bool:
        """Whether the listener is what the entry allows; one for loopback does not allow the network."""
        return listener.port in self.ports and (listener.loopback or not self.loopback_only)


def read_allowed(entries: Sequence[str], name: str) -> tuple[Allowed, ...]:
    """Entries such as `22`, `any:443`, `loopback:5432`, `6000-6010`.

    Raises:
        ValueError: names the parameter.
    """
    found = []
    for entry in entries:
        match = _ALLOWED.fullmatch(entry)
        low, high = (int(match[2]), int(match[3] or match[2])) if match else (0, 0)
        if match is None or not 1 <= low <= high <= 65_535:
            raise ValueError(f"{name}: expected ports such as 22, loopback:5432 or 6000-6010, found {entry!r}")
        found.append(Allowed(range(low, high + 1), match[1] == LOOPBACK))
    return tuple(found)


def read_owners(text: str) -> dict[tuple[str, int], str]:
    """Which unit each waiting socket belongs to, by protocol and port, from `ss --cgroup`; lines without a unit are left out."""
    found = {}
    for line in text.splitlines():
        fields, unit = line.split(), _UNIT.search(line.rstrip())
        if len(fields) > 5 and fields[0] in {"tcp", "udp"} and unit is not None:
            port = fields[4].rpartition(":")[2]
            if port.isascii() and port.isdigit():
                found[fields[0], int(port)] = unit[1]
    return found
