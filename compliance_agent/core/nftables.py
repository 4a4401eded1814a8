"""Firewall rules as values: `nft -s -j list ruleset` read, its digest, and the table a baseline asks for.

`canonical` drops what changes without the meaning changing (handles, counters, comments, the order of sets and tables), so
that a digest of it only moves when the rules do. What the rules let in is worked out in nft_openings.py.

The ruleset for a baseline is one table of our own, replaced as a whole; other programs' tables are not touched.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from compliance_agent.core.tools import json_answer, unparsable
from compliance_agent.dataclass import dataclass

LIST = ("nft", "-s", "-j", "list", "ruleset")
TABLE = ("inet", "compliance")
_PORT = re.compile(r"([1-9][0-9]{0,4})(?:-([1-9][0-9]{0,4}))?")
_VOLATILE = {"handle", "comment", "packets", "bytes", "used", "expires", "index", "position"}
_STATELESS_KINDS = ("table", "chain", "set", "map", "rule", "flowtable", "ct helper", "ct timeout", "ct expectation")
_HARMLESS_FLAGS = {"owner", "persist"}  # the third is `dormant`; nft 1.0.6 prints the table's name in its place
_FAMILIES = {"ip": ("ip",), "ip6": ("ip6",), "inet": ("ip", "ip6")}


@dataclass(frozen=True)
class Chain:
    """A chain with its rules; base chains have a hook and a policy."""

    family: str
    table: str
    name: str
    hook: str | None
    policy: str
    rules: tuple[Sequence[Any], ...]


@dataclass(frozen=True)
class Ruleset:
    """A listing, read. `elements` are those of named sets and maps, by (family, table, name)."""

    tables: tuple[tuple[str, str], ...]
    chains: Mapping[tuple[str, str, str], Chain]
    elements: Mapping[tuple[str, str, str], Sequence[Any]]
    canonical: str
    dormant: frozenset[tuple[str, str]] = frozenset()

    @property
    def sha256(self) -> str:
        """Digest of the meaning."""
        return hashlib.sha256(self.canonical.encode()).hexdigest()

    def input_chains(self, family: str) -> tuple[Chain, ...]:
        """The base chains that every packet of this family to this host passes; a dormant table has none."""
        return tuple(
            chain
            for chain in self.chains.values()
            if chain.hook == "input"
            and family in _FAMILIES.get(chain.family, ())
            and (chain.family, chain.table) not in self.dormant
        )


def read(raw: bytes) -> Ruleset:
    """A ruleset from `nft -s -j list ruleset`.

    Raises:
        CannotTell: `unparsable`.
    """
    document = json_answer(raw, "nft")
    items = document.get("nftables") if isinstance(document, dict) else None
    if not isinstance(items, list) or not items or not isinstance(items[0], dict) or "metainfo" not in items[0]:
        raise unparsable("nft", "a ruleset that begins with metainfo")
    objects = [_object(item) for item in items[1:]]
    try:
        return Ruleset(
            tables=tuple((value["family"], value["name"]) for kind, value in objects if kind == "table"),
            chains={(chain.family, chain.table, chain.name): chain for chain in _chains(objects)},
            elements={
                (value["family"], value["table"], value["name"]): value.get("elem", [])
                for kind, value in objects
                if kind in {"set", "map"}
            },
            canonical=canonical(objects),
            dormant=frozenset(
                (value["family"], value["name"])
                for kind, value in objects
                if kind == "table" and _flags(value) - _HARMLESS_FLAGS
            ),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise unparsable("nft", "objects with family, table and name") from error


def _object(item: Any) -> tuple[str, dict[str, Any]]:
    if isinstance(item, dict) and len(item) == 1:
        (kind, value), *_ = item.items()
        if isinstance(value, dict):
            return kind, value
    raise unparsable("nft", "objects of one key")


def _chains(objects: Sequence[tuple[str, dict[str, Any]]]) -> Iterator[Chain]:
    rules: dict[tuple[str, str, str], list[Sequence[Any]]] = {}
    for kind, value in objects:
        if kind == "rule":
            if not isinstance(value["expr"], list):
                raise unparsable("nft", "a list of statements in each rule")
            rules.setdefault((value["family"], value["table"], value["chain"]), []).append(value["expr"])
    for kind, value in objects:
        if kind == "chain":
            place = (value["family"], value["table"], value["name"])
            yield Chain(*place, value.get("hook"), value.get("policy", "accept"), tuple(rules.get(place, ())))


def canonical(objects: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """The meaning of the objects as one text. Rules keep their order within a chain; all else is sorted.

    Elements that programs add and that expire by themselves (`dynamic` and `timeout` sets) are state, not policy.
    """
    fixed: list[str] = []
    rules: dict[str, list[str]] = {}
    for kind, value in objects:
        if kind == "rule":
            place = json.dumps([value["family"], value["table"], value["chain"]])
            rules.setdefault(place, []).append(_text(value["expr"]))
        elif kind in _STATELESS_KINDS:
            passing = {"dynamic", "timeout"} & _flags(value)
            fixed.append(_text({kind: {key: item for key, item in value.items() if not (passing and key == "elem")}}))
    return "\n".join([*sorted(fixed), *(f"{place} {' ; '.join(rules[place])}" for place in sorted(rules))])


def _flags(value: Mapping[str, Any]) -> set[str]:
    flags = value.get("flags", [])
    return set([flags] if isinstance(flags, str) else flags)


def _text(value: Any) -> str:
    return json.dumps(_stable(value), sort_keys=True, separators=(",", ":"))


def _stable(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: _stable(item, name) for name, item in value.items() if name not in _VOLATILE}
    if isinstance(value, list):
        items = [_stable(item) for item in value if not (isinstance(item, dict) and set(item) == {"counter"})]
        return sorted(items, key=_text) if key in {"set", "elem", "flags", "devices"} else items
    return value


def port_mask(ports: Iterable[str]) -> int:
    """Bits of ports written as `22` or `6000-6010`.

    Raises:
        ValueError: anything else.
    """
    mask = 0
    for text in ports:
        found = _PORT.fullmatch(text)
        low, high = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
        if not 1 <= low <= high <= 65_535:
            raise ValueError(f"port: expected 1 to 65535 or a range such as 6000-6010, found {text[:20]!r}")
        mask |= ((1 << (high - low + 1)) - 1) << low
    return mask


def generate(allow_tcp: Sequence[str], allow_udp: Sequence[str]) -> str:
    """The text that puts the baseline's table in place of whatever stands under its name, as one transaction.

    Raises:
        ValueError: a port is not one.
    """
    port_mask((*allow_tcp, *allow_udp))
    family, name = TABLE
    rules = [
        "type filter hook input priority filter; policy drop;",
        "ct state established,related accept",
        "ct state invalid drop",
        'iifname "lo" accept',
        "icmp type { destination-unreachable, echo-request, time-exceeded, parameter-problem } accept",
        "icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem, echo-request,"
        " mld-listener-query, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert } accept",
        *(f"tcp dport {{ {', '.join(sorted(allow_tcp, key=_first))} }} accept" for _ in allow_tcp[:1]),
        *(f"udp dport {{ {', '.join(sorted(allow_udp, key=_first))} }} accept" for _ in allow_udp[:1]),
    ]
    body = "\n".join(f"\t\t{rule}" for rule in rules)
    return f"{replacing()}table {family} {name} {{\n\tchain input {{\n{body}\n\t}}\n}}\n"


def creating(text: str) -> str:
    """The same as what `generate` gave, for where our table is not there; nft refuses it whole where it is.

    Taking a table away makes nft's socket wait for the kernel's grace period, some 20 ms, also where none was there before.
    """
    family, name = TABLE
    return f"create table {family} {name}\n{text.removeprefix(replacing())}"


def replacing() -> str:
    """The two lines that take our table away, whether it is there or not; the first one makes it, so the second works."""
    family, name = TABLE
    return f"add table {family} {name}\ndelete table {family} {name}\n"


def _first(port: str) -> int:
    return int(port.partition("-")[0])
