"""What an nftables ruleset lets in from the network: a walk through its chains with all ports at once.

It errs to one side. A rule that is not understood may let everything in and never keeps anything out; a condition on the
sender or the interface is taken as met. So a port is never shown closed that some rule might open. A packet comes in only
if every chain at the input hook lets it, so a second table can close but not open. Ports are bits of one number, 65,536
of them, which makes a walk cost microseconds a rule.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from compliance_agent.core.nftables import Chain, Ruleset
from compliance_agent.dataclass import dataclass

ALL_PORTS = (1 << 65_536) - 1
NO_PORTS = 0
_DEEPEST = 32  # more jumps than the kernel allows
_PROTOCOLS = {6: "tcp", 17: "udp", "6": "tcp", "17": "udp"}
_FAMILY_WORDS: dict[str, set[str | int]] = {"ip": {"ipv4", "ip", 2, 2048}, "ip6": {"ipv6", "ip6", 10, 34_525}}
_NO_EFFECT = {"counter", "log", "mangle", "comment", "notrack", "flow", "last", "secmark", "ct helper", "ct timeout"}
_MAY_MATCH = {"limit", "quota", "ct count", "connlimit", "set", "map"}  # they let a rule go on, or not
_OTHER_PROTOCOLS = {"icmp", "icmpv6", "igmp", "sctp", "dccp", "udplite", "esp", "ah", "comp", "gre", "vrrp", "arp"}


@dataclass(frozen=True)
class Traffic:
    """The packets a question is about: one family, one protocol, in one state of connection tracking."""

    family: str  # ip | ip6
    protocol: str  # tcp | udp
    state: str = "new"  # new | established


@dataclass(frozen=True)
class Openings:
    """What the host lets in from the network, one bit for each port.

    Attributes:
        reachable: new connections by protocol, over IPv4 or IPv6.
        reachable_both: by protocol, over IPv4 and IPv6.
        replies: packets of connections that stand are let in, for every port.
        policy: `drop` when each family has an input chain that drops what no rule names, `none` without any chain.
        opaque: statements of the xtables kind, which nft does not show the meaning of.
    """

    reachable: Mapping[str, int]
    reachable_both: Mapping[str, int]
    replies: bool
    policy: str
    opaque: int


def openings(ruleset: Ruleset, *, without: tuple[str, str] | None = None) -> Openings:
    """What gets in, perhaps as if the table `without` were not there."""
    chains = {
        family: [chain for chain in ruleset.input_chains(family) if (chain.family, chain.table) != without]
        for family in ("ip", "ip6")
    }

    def let_in(family: str, protocol: str, state: str = "new") -> int:
        ports = ALL_PORTS
        for chain in chains[family]:
            ports &= _Passage(ruleset, Traffic(family, protocol, state)).base(chain)
        return ports

    both = {name: (let_in("ip", name), let_in("ip6", name)) for name in ("tcp", "udp")}
    replies = [let_in(family, name, "established") for family in chains for name in ("tcp", "udp")]
    return Openings(
        reachable={name: v4 | v6 for name, (v4, v6) in both.items()},
        reachable_both={name: v4 & v6 for name, (v4, v6) in both.items()},
        replies=all(ports == ALL_PORTS for ports in replies),
        policy=_policy(list(chains.values())),
        opaque=sum(_opaque(rule) for chain in ruleset.chains.values() for rule in chain.rules),
    )


def _opaque(rule: Sequence[Any]) -> int:
    return sum(_pair(statement)[0] == "xt" for statement in rule)


def _policy(families: Sequence[Sequence[Chain]]) -> str:
    if not any(families):
        return "none"
    return "drop" if all(any(chain.policy == "drop" for chain in chains) for chains in families) else "accept"


@dataclass
class _Walk:
    """Packets on their way through one chain: ports accepted, and ports that fell off its end."""

    accepted: int = NO_PORTS
    left: int = NO_PORTS


@dataclass(frozen=True)
class _Match:
    """What a rule matches: at most these ports, and whether it does so whatever else is true of the packet."""

    ports: int = ALL_PORTS
    certain: bool = True

    def also(self, other: _Match) -> _Match:
        return _Match(self.ports & other.ports, self.certain and other.certain)


_ALWAYS = _Match()
_NEVER = _Match(NO_PORTS)
_PERHAPS = _Match(certain=False)


@dataclass
class _Passage:
    """One kind of traffic through one ruleset."""

    ruleset: Ruleset
    traffic: Traffic
    depth: int = 0

    def base(self, chain: Chain) -> int:
        """Ports that a base chain lets through."""
        walk = self.chain(chain, ALL_PORTS)
        return walk.accepted | (NO_PORTS if chain.policy == "drop" else walk.left)

    def chain(self, chain: Chain | None, ports: int) -> _Walk:
        """Ports through the rules of one chain, jumps included."""
        if chain is None or self.depth > _DEEPEST:
            return _Walk(accepted=ports, left=ports)
        self.depth += 1
        walk, pending = _Walk(), ports
        for rule in chain.rules:
            if not pending:
                break
            pending = self._rule(chain, rule, pending, walk)
        self.depth -= 1
        walk.left |= pending
        return walk

    def _rule(self, chain: Chain, rule: Sequence[Any], pending: int, walk: _Walk) -> int:
        match = _ALWAYS
        for statement in rule:
            kind, value = _pair(statement)
            if kind == "match":
                match = match.also(self._match(chain, value))
            elif (kind == "xt" and statement is not rule[-1]) or kind in _MAY_MATCH:
                match = match.also(_PERHAPS)
            elif kind == "vmap":
                for key_match, verdict in self._vmap(chain, value):
                    pending = self._verdict(chain, verdict, match.also(key_match), pending, walk)
            elif kind not in _NO_EFFECT:
                return self._verdict(chain, statement, match, pending, walk)
        return pending

    def _verdict(self, chain: Chain, verdict: Any, match: _Match, pending: int, walk: _Walk) -> int:
        """What is still on its way after a verdict on what matched."""
        here = pending & match.ports
        stays = pending & ~match.ports if match.certain else pending
        kind, value = _pair(verdict)
        if kind in {"drop", "reject"}:
            return stays
        if kind == "continue":
            return pending
        if kind == "return":
            walk.left |= here
            return stays
        if kind in {"jump", "goto"}:
            target = value.get("target") if isinstance(value, dict) else None
            inner = self.chain(self.ruleset.chains.get((chain.family, chain.table, str(target))), here)
            walk.accepted |= inner.accepted
            if kind == "goto":
                walk.left |= inner.left
                return stays
            return stays | inner.left
        walk.accepted |= here  # accept, queue, and whatever is not known ...
        return stays if kind == "accept" else pending  # ... which may let it go on as well

    def _match(self, chain: Chain, value: Any) -> _Match:
        if not isinstance(value, dict):
            return _PERHAPS
        found = self._compare(value.get("left"), list(self._values(chain, value.get("right"))))
        if found is None:
            return _NEVER
        if value.get("op") in {"==", "in"}:
            return found
        if value.get("op") == "!=" and found.certain:
            return _Match(ALL_PORTS & ~found.ports)
        return _PERHAPS

    def _compare(self, left: Any, wanted: Sequence[Any]) -> _Match | None:
        """Which ports a comparison of one field with any of these values matches.

        None: this traffic has no such field, so neither `==` nor `!=` is true of it.
        """
        plain = all(isinstance(item, str | int) and item != "*" for item in wanted)
        match left:
            case {"payload": {"protocol": str(protocol), "field": str(name)}}:
                return self._payload(protocol, name, wanted)
            case {"ct": {"key": "state"}} if plain:
                return _ALWAYS if self.traffic.state in wanted else _NEVER
            case {"meta": {"key": "l4proto"}} if plain:
                return self._protocol(wanted)
            case {"meta": {"key": "nfproto" | "protocol"}} if plain:
                return _ALWAYS if _FAMILY_WORDS[self.traffic.family] & set(wanted) else _NEVER
            case {"meta": {"key": "iifname" | "iif"}} if list(wanted) == ["lo"]:
                return _NEVER  # nothing from the network comes in by loopback
        return _PERHAPS

    def _payload(self, protocol: str, name: str, wanted: Sequence[Any]) -> _Match | None:
        if protocol in {"ip", "ip6"}:
            if protocol != self.traffic.family:
                return None
            plain = all(isinstance(item, str | int) and item != "*" for item in wanted)
            return self._protocol(wanted) if plain and name in {"protocol", "nexthdr"} else _PERHAPS
        if protocol in _OTHER_PROTOCOLS or (protocol in {"tcp", "udp"} and protocol != self.traffic.protocol):
            return None
        if protocol not in {"th", "tcp", "udp"} or name != "dport":
            return _PERHAPS
        ports = [_ports(item) for item in wanted]
        known = [item for item in ports if item is not None]
        return _Match(_union(known)) if len(known) == len(ports) else _PERHAPS

    def _protocol(self, wanted: Sequence[Any]) -> _Match:
        return _ALWAYS if self.traffic.protocol in {_PROTOCOLS.get(item, item) for item in wanted} else _NEVER

    def _values(self, chain: Chain, right: Any) -> Iterator[Any]:
        """The values of a right-hand side: one, a list, an anonymous set or a named one."""
        if isinstance(right, dict) and "set" in right:
            right = right["set"]
        if isinstance(right, str) and right.startswith("@"):
            right = self.ruleset.elements.get((chain.family, chain.table, right[1:]), [{"unknown": None}])
        for item in right if isinstance(right, list) else [right]:
            yield item["elem"].get("val") if isinstance(item, dict) and isinstance(item.get("elem"), dict) else item

    def _vmap(self, chain: Chain, value: Any) -> Iterator[tuple[_Match, Any]]:
        """The pairs of a verdict map; one that cannot be read may accept anything."""
        key, data = (value.get("key"), value.get("data")) if isinstance(value, dict) else (None, None)
        for pair in self._values(chain, data):
            if isinstance(pair, list) and len(pair) == 2:
                yield self._compare(key, list(self._values(chain, pair[0]))) or _NEVER, pair[1]
            else:
                yield _PERHAPS, {"accept": None}


def _pair(statement: Any) -> tuple[str, Any]:
    """Kind and value of a statement or verdict; bare words are verdicts, too."""
    if isinstance(statement, dict) and len(statement) == 1:
        (kind, value), *_ = statement.items()
        return str(kind), value
    return (statement, None) if isinstance(statement, str) else ("unknown", None)


def _ports(value: Any) -> int | None:
    """Bits of a port or a range of ports; None for anything else (a service name, a prefix)."""
    match value:
        case bool():
            return None
        case int() if 0 <= value < 65_536:
            return 1 << value
        case {"range": [int(low), int(high)]} if 0 <= low <= high < 65_536:
            return ((1 << (high - low + 1)) - 1) << low
    return None


def _union(masks: Iterable[int]) -> int:
    total = NO_PORTS
    for mask in masks:
        total |= mask
    return total
