"""Nothing waits for connections from the network but what the baseline lists.

The firewall may hide such a service today and let it through tomorrow; this looks at the sockets themselves. A socket that
only this host can reach is counted and not judged. UDP sockets at ports that the kernel hands out by itself are mostly answers
that a program waits for, so they are counted apart.
"""

from __future__ import annotations

from dataclasses import field, replace

from compliance_agent.checks.spec import UNREADABLE, Case, CheckSpec, Citation, Proposal, failed, passed, unknown
from compliance_agent.core import sockets
from compliance_agent.core.sockets import Listener
from compliance_agent.dataclass import dataclass
from compliance_agent.errors import CannotTell
from compliance_agent.facts import Int, Many, Name, fact
from compliance_agent.models import Plan, Result, Severity, Verdict
from compliance_agent.ports import Host

MOST_BYTES = 16_777_216
MOST_PORTS = 64
COUNT = Int(0, 1_000_000)
PORTS = Many(Int(1, 65_535), MOST_PORTS)
KNOWN_UNITS = (
    "avahi-daemon.service",
    "cups.service",
    "docker.service",
    "exim4.service",
    "mariadb.service",
    "nfs-server.service",
    "nginx.service",
    "postfix.service",
    "postgresql.service",
    "rpcbind.service",
    "smbd.service",
    "ssh.service",
    "vsftpd.service",
)


@dataclass(frozen=True)
class Parameters:
    allow_tcp: tuple[str, ...] = field(
        metadata={"doc": "TCP ports that may wait for the network: 22, 6000-6010; loopback:5432 for this host alone."}
    )
    allow_udp: tuple[str, ...] = field(metadata={"doc": "UDP ports likewise."})
    known_units: tuple[str, ...] = field(
        default=KNOWN_UNITS, metadata={"doc": "Units that may be named as holding an unexpected port."}
    )

    def __post_init__(self) -> None:
        for name in ("allow_tcp", "allow_udp", "known_units"):
            if not getattr(self, name):
                raise ValueError(f"{name}: is empty; write the ports that you expect")
        sockets.read_allowed(self.allow_tcp, "allow_tcp")
        sockets.read_allowed(self.allow_udp, "allow_udp")


@dataclass(frozen=True)
class Observation:
    tcp: int | None = fact(COUNT, "TCP ports that wait for the network.")
    udp: int | None = fact(COUNT, "UDP ports that wait for the network.")
    loopback_only: int | None = fact(COUNT, "Ports that only this host can reach.")
    udp_handed_out: int | None = fact(COUNT, "Unlisted UDP ports that the kernel handed out; not judged.")
    unexpected: int | None = fact(COUNT, "Ports that wait for the network and are not listed.")
    unexpected_tcp: tuple[int, ...] | None = fact(PORTS, "The first of these, TCP.")
    unexpected_udp: tuple[int, ...] | None = fact(PORTS, "The first of these, UDP.")
    of_root: int | None = fact(COUNT, "Unlisted ports of root's programs.")
    of_daemons: int | None = fact(COUNT, "Unlisted ports of system accounts.")
    of_people: int | None = fact(COUNT, "Unlisted ports of people's programs.")
    units: tuple[str, ...] | None = fact(
        Many(Name("known_units")), "Known units that hold unlisted ports; one of a socket unit has none."
    )


CHECK = CheckSpec(
    id="listening_ports",
    title="Only listed ports wait for the network",
    severity=Severity.HIGH,
    rationale="A program that waits for the network unseen is how records are read from outside, or copied out.",
    citations=(
        Citation(
            "164.308(a)(1)(ii)(B)",
            rationale="Comparing what waits for the network with a list finds services that nobody meant to run.",
            does_not_prove="That what waits at a listed port is the service that was meant, or is safe.",
            primary=True,
        ),
        Citation(
            "164.312(a)(1)",
            rationale="Programs reachable from the network are those that were granted access to the host's data.",
            does_not_prove="Who may use them once they are reached.",
        ),
        Citation(
            "164.312(e)(1)",
            rationale="Ports of protocols that send in the clear are not on the list.",
            does_not_prove="That protocols on listed ports protect what they carry; see transmission.",
        ),
    ),
    parameters=Parameters,
    observation=Observation,
    example={"allow_tcp": ("22", "443"), "allow_udp": ("68", "546")},
    reasons={
        "people_listen": "A program of a person's account waits for the network at a port that is not listed.",
        "unexpected_ports": "Ports wait for the network that are not listed.",
    },
    for_people=("people_listen", "unexpected_ports"),
    needs=("/proc/1/net", "ss (only to name a unit that holds an unlisted port)"),
    untold={"path:/proc/*": "the kernel tells nobody of sockets that begin to listen"},
    optional={
        "path:/proc/1/net/*6 not_found": "a kernel without IPv6 has no such list",
    },
    interval_s=60,
)


async def observe(host: Host, baseline: Parameters) -> Observation:
    found = {listener for path in sockets.FILES for listener in await _listeners(host, path)}
    handed_out = sockets.read_range((await host.read(sockets.PORT_RANGE)).decode("ascii", "replace"))
    allowed = {
        "tcp": sockets.read_allowed(baseline.allow_tcp, "allow_tcp"),
        "udp": sockets.read_allowed(baseline.allow_udp, "allow_udp"),
    }
    reachable = {listener for listener in found if not listener.loopback}
    unlisted = {
        listener for listener in reachable if not any(entry.covers(listener) for entry in allowed[listener.proto])
    }
    waiting = {listener for listener in unlisted if listener.proto == "udp" and listener.port in handed_out}
    unexpected = unlisted - waiting
    seen = Observation(
        tcp=len(_ports(reachable, "tcp")),
        udp=len(_ports(reachable, "udp")),
        loopback_only=len({(each.proto, each.port) for each in found - reachable}),
        udp_handed_out=len(_ports(waiting, "udp")),
        unexpected=len(_ports(unexpected, "tcp")) + len(_ports(unexpected, "udp")),
        unexpected_tcp=_ports(unexpected, "tcp")[:MOST_PORTS],
        unexpected_udp=_ports(unexpected, "udp")[:MOST_PORTS],
        of_root=sum(each.uid == 0 for each in unexpected),
        of_daemons=sum(0 < each.uid < 1000 or each.uid >= 60_000 for each in unexpected),
        of_people=sum(1000 <= each.uid < 60_000 for each in unexpected),
    )
    return replace(seen, units=await _units(host, baseline, unexpected)) if unexpected else seen


async def propose(host: Host) -> Proposal:
    """The ports that wait for the network now; UDP ports that the kernel hands out are nobody's choice."""
    found = {listener for path in sockets.FILES for listener in await _listeners(host, path) if not listener.loopback}
    handed_out = sockets.read_range((await host.read(sockets.PORT_RANGE)).decode("ascii", "replace"))
    tcp, udp = _ports(found, "tcp"), [port for port in _ports(found, "udp") if port not in handed_out]
    return {name: tuple(map(str, ports)) for name, ports in (("allow_tcp", tcp), ("allow_udp", udp)) if ports}


async def _listeners(host: Host, path: str) -> tuple[Listener, ...]:
    try:
        raw = await host.read(path, limit_bytes=MOST_BYTES)
    except CannotTell as error:
        if error.reason == "not_found" and path.endswith("6"):
            return ()
        raise
    return sockets.read_sockets(raw.decode("ascii", "replace"), "tcp" if "/tcp" in path else "udp")


def _ports(listeners: set[Listener], proto: str) -> tuple[int, ...]:
    return tuple(sorted({listener.port for listener in listeners if listener.proto == proto}))


async def _units(host: Host, baseline: Parameters, unexpected: set[Listener]) -> tuple[str, ...] | None:
    """Which of the baseline's units hold the ports; None where `ss` cannot say, since the finding stands without it."""
    try:
        ran = await host.run(sockets.OWNERS)
    except CannotTell:
        return None
    if ran.exit_status != 0:
        return None
    owners = sockets.read_owners(ran.text)
    held = {owners.get((listener.proto, listener.port)) for listener in unexpected}
    return tuple(unit for unit in baseline.known_units if unit in held)


def judge(baseline: Parameters, seen: Observation) -> Verdict:
    if seen.unexpected is None or seen.of_people is None or seen.tcp is None or seen.udp is None:
        return unknown("unparsable", "what waits for the network could not be told")
    if seen.unexpected:
        reason = "people_listen" if seen.of_people else "unexpected_ports"
        return failed(reason, f"expected only listed ports to wait, found {_named(seen)}")
    return passed(f"{seen.tcp} TCP and {seen.udp} UDP ports wait for the network, all judged ones are listed")


def _named(seen: Observation) -> str:
    ports = [f"tcp {port}" for port in seen.unexpected_tcp or ()] + [
        f"udp {port}" for port in seen.unexpected_udp or ()
    ]
    more = f" and {len(ports) - 8} more" if len(ports) > 8 else ""
    held = f", held by {', '.join(seen.units)}" if seen.units else ""
    people = f"; {seen.of_people} of a person's program" if seen.of_people else ""
    return f"{', '.join(ports[:8])}{more}{held}{people}"


def plan(baseline: Parameters, seen: Observation) -> Plan | None:
    """None: what waits there may be needed; a unit that must not run belongs into `services`."""
    return None


GOOD = Observation(1, 0, 2, 0, 0, (), (), 0, 0, 0)
CASES = (
    Case("as listed", GOOD, Result.PASS, "as_expected"),
    Case(
        "file transfer waits",
        replace(GOOD, unexpected=1, unexpected_tcp=(21,), of_root=1, units=("vsftpd.service",)),
        Result.FAIL,
        "unexpected_ports",
    ),
    Case(
        "a person shares files",
        replace(GOOD, unexpected=1, unexpected_tcp=(8000,), of_people=1, units=()),
        Result.FAIL,
        "people_listen",
    ),
    Case("who holds it is not known", replace(GOOD, unexpected=1, unexpected_udp=(69,), of_root=1), Result.FAIL),
    Case("answers are waited for", replace(GOOD, udp_handed_out=3), Result.PASS),
    Case("owners not read", replace(GOOD, of_people=None), Result.UNKNOWN),
    Case("nothing was seen", Observation(), Result.UNKNOWN),
    Case("could not look", UNREADABLE, Result.UNKNOWN, "tool_failed"),
)
