"""What a ruleset lets in. The big fixtures were printed by nft 1.0.6; the small ones are written here, one rule each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compliance_agent.core import nftables
from compliance_agent.core.nft_openings import ALL_PORTS, Openings, openings
from compliance_agent.core.nftables import port_mask
from compliance_agent.lab.programs.nft import METAINFO, Ruleset

FIXTURES = Path(__file__).parent.parent / "fixtures" / "checks" / "firewall"
NEW = {"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": "new"}}


def found_in(name: str) -> Openings:
    return openings(nftables.read((FIXTURES / f"{name}.json").read_bytes()))


def port(number: int, protocol: str = "tcp", op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": {"payload": {"protocol": protocol, "field": "dport"}}, "right": number}}


def match(left: dict[str, Any], right: Any, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": left, "right": right}}


def ruleset(*rules: list[Any], policy: str = "drop", family: str = "inet", **chains: list[list[Any]]) -> Any:
    place = {"family": family, "table": "t"}
    items: list[Any] = [METAINFO, {"table": {"family": family, "name": "t"}}]
    base = {"type": "filter", "hook": "input", "prio": 0, "policy": policy}
    items.append({"chain": {**place, "name": "input", **base}})
    items += [{"chain": {**place, "name": name}} for name in chains]
    for name, body in {"input": list(rules), **chains}.items():
        items += [{"rule": {**place, "chain": name, "expr": rule}} for rule in body]
    return items


def let_in(*rules: list[Any], **more: Any) -> Openings:
    return openings(nftables.read(json.dumps({"nftables": ruleset(*rules, **more)}).encode()))


ACCEPT, DROP = {"accept": None}, {"drop": None}


def test_a_handwritten_ruleset_with_sets_jumps_and_maps() -> None:
    found = found_in("handwritten")
    assert found.reachable["tcp"] == port_mask(("22", "80", "443", "6000-6003"))  # the last for one network, over IPv4
    assert found.reachable_both["tcp"] == port_mask(("22", "80", "443"))
    assert found.reachable["udp"] == port_mask(("546", "5353", "500"))
    assert found.reachable_both["udp"] == port_mask(("546", "5353"))
    assert (found.policy, found.replies, found.opaque) == ("drop", True, 0)


def test_verdict_maps_goto_and_negations() -> None:
    found = found_in("maps")
    assert found.reachable["tcp"] == port_mask(("1-22", "24-1024", "8443"))
    assert found.reachable_both["tcp"] == port_mask(("22", "443"))
    assert found.reachable["udp"] == port_mask(("443",))
    assert found.replies


def test_the_generated_ruleset_lets_in_what_it_was_made_for() -> None:
    found = found_in("generated")
    assert found.reachable["tcp"] == found.reachable_both["tcp"] == port_mask(("22", "443", "6000-6010"))
    assert found.reachable["udp"] == found.reachable_both["udp"] == port_mask(("546",))
    assert (found.policy, found.replies) == ("drop", True)


@pytest.mark.parametrize("name", ["empty", "dormant"])
def test_without_rules_everything_comes_in(name: str) -> None:
    found = found_in(name)
    assert (found.policy, found.reachable["tcp"], found.reachable["udp"]) == ("none", ALL_PORTS, ALL_PORTS)


FIELD = {"payload": {"protocol": "tcp", "field": "dport"}}
CASES: dict[str, tuple[list[Any], int]] = {
    "accept for everyone": ([ACCEPT], ALL_PORTS),
    "one port": ([port(22), ACCEPT], 1 << 22),
    "every port but one": ([port(22, op="!="), ACCEPT], ALL_PORTS & ~(1 << 22)),
    "a port of UDP": ([port(22, "udp"), ACCEPT], 0),
    "every UDP port but one": ([port(22, "udp", "!="), ACCEPT], 0),
    "a port of either": ([port(22, "th"), ACCEPT], 1 << 22),
    "an address may be anyone's": (
        [match({"payload": {"protocol": "ip", "field": "saddr"}}, "10.0.0.1"), ACCEPT],
        ALL_PORTS,
    ),
    "an interface may be any": ([match({"meta": {"key": "iifname"}}, "eth0"), ACCEPT], ALL_PORTS),
    "loopback is no network": ([match({"meta": {"key": "iifname"}}, "lo"), ACCEPT], 0),
    "all but loopback": ([match({"meta": {"key": "iifname"}}, "lo", "!="), ACCEPT], ALL_PORTS),
    "loopback or another": ([match({"meta": {"key": "iifname"}}, {"set": ["lo", "eth0"]}), ACCEPT], ALL_PORTS),
    "only what is established": ([match({"ct": {"key": "state"}}, ["established", "related"], "in"), ACCEPT], 0),
    "all but invalid": ([match({"ct": {"key": "state"}}, "invalid", "!="), ACCEPT], ALL_PORTS),
    "a state not understood": ([match({"ct": {"key": "state"}}, {"|": ["established", "x"]}, "in"), ACCEPT], ALL_PORTS),
    "a limit does not close": ([{"limit": {"rate": 1, "per": "day"}}, port(22), ACCEPT], 1 << 22),
    "an unknown statement may accept": ([port(22), {"synproxy": None}], 1 << 22),
    "a queue may accept": ([port(22), {"queue": None}], 1 << 22),
    "an xtables target may accept": ([port(22), {"xt": None}], 1 << 22),
    "a service name is not understood": ([match(FIELD, "ssh"), ACCEPT], ALL_PORTS),
    "a comparison not understood": ([port(22, op="<"), ACCEPT], ALL_PORTS),
    "a set that is not there": ([match(FIELD, "@nowhere"), ACCEPT], ALL_PORTS),
    "a map that is not there": ([{"vmap": {"key": FIELD, "data": "@nowhere"}}], ALL_PORTS),
    "a map for any port": ([{"vmap": {"key": FIELD, "data": {"set": [["*", ACCEPT]]}}}], ALL_PORTS),
    "a chain that is not there": ([port(22), {"jump": {"target": "nowhere"}}], 1 << 22),
    "ICMP is no port": ([match({"payload": {"protocol": "icmp", "field": "type"}}, "echo-request"), ACCEPT], 0),
    "by protocol number": ([match({"meta": {"key": "l4proto"}}, 6), ACCEPT], ALL_PORTS),
    "another protocol": ([match({"meta": {"key": "l4proto"}}, {"set": ["udp", "icmp"]}), ACCEPT], 0),
    "a range of protocols": ([match({"meta": {"key": "l4proto"}}, {"range": [1, 17]}), ACCEPT], ALL_PORTS),
    "a counter alone": ([port(22), {"counter": {"packets": 1, "bytes": 2}}], 0),
    "log, then accept": ([port(22), {"log": {"prefix": "x"}}, ACCEPT], 1 << 22),
    "no statement at all": ([7], ALL_PORTS),
}


@pytest.mark.parametrize("name", CASES)
def test_one_rule_before_a_policy_of_drop(name: str) -> None:
    rule, expected = CASES[name]
    assert let_in(rule).reachable["tcp"] == expected


def test_only_certain_drops_close() -> None:
    saddr = match({"payload": {"protocol": "ip", "field": "saddr"}}, "10.0.0.0", "!=")
    assert let_in([port(23), DROP], policy="accept").reachable["tcp"] == ALL_PORTS & ~(1 << 23)
    assert let_in([saddr, DROP], policy="accept").reachable["tcp"] == ALL_PORTS
    assert let_in([port(23), {"limit": {"rate": 1, "per": "day"}}, DROP], policy="accept").reachable["tcp"] == ALL_PORTS
    # for IPv6 there is no such address to be different from
    assert let_in([saddr, DROP], policy="accept").reachable_both["tcp"] == ALL_PORTS
    assert let_in([port(23, "udp", "!="), DROP], policy="accept").reachable["tcp"] == ALL_PORTS


def test_jumps_return_and_gotos_do_not() -> None:
    to = {"target": "extra"}
    extra = [[port(22), ACCEPT], [port(23), DROP], [port(24), {"return": None}], [port(25), ACCEPT]]
    jumped = let_in([{"jump": to}], [port(24), ACCEPT], [port(23), ACCEPT], extra=extra)
    assert jumped.reachable["tcp"] == port_mask(("22", "24", "25"))
    went = let_in([{"goto": to}], [port(26), ACCEPT], extra=extra)
    assert went.reachable["tcp"] == port_mask(("22", "25"))
    assert let_in([{"goto": to}], policy="accept", extra=extra).reachable["tcp"] == ALL_PORTS & ~(1 << 23)


def test_a_second_table_closes_and_does_not_open() -> None:
    both = [
        *ruleset([port(22), ACCEPT], [port(80), ACCEPT]),
        *ruleset([port(22), ACCEPT], [port(23), ACCEPT], family="ip")[1:],
    ]
    found = openings(nftables.read(json.dumps({"nftables": both}).encode()))
    assert found.reachable_both["tcp"] == 1 << 22
    assert found.reachable["tcp"] == port_mask(("22", "80"))  # 80 over IPv6 alone
    without = openings(nftables.read(json.dumps({"nftables": both}).encode()), without=("ip", "t"))
    assert without.reachable_both["tcp"] == port_mask(("22", "80"))


def test_the_policy_must_hold_for_both_families() -> None:
    assert let_in([ACCEPT]).policy == "drop"
    assert let_in([ACCEPT], family="ip").policy == "accept"
    assert let_in(policy="accept").policy == "accept"


def test_replies_need_every_port_over_both_families() -> None:
    established = match({"ct": {"key": "state"}}, {"set": ["established"]})
    assert let_in([established, ACCEPT]).replies
    assert let_in([established, ACCEPT], family="ip6").replies  # IPv4 meets no chain at all
    assert not let_in([established, {"limit": {"rate": 1, "per": "day"}}, DROP]).replies
    assert not let_in([port(22), ACCEPT]).replies


def test_xtables_conditions_are_counted() -> None:
    assert let_in([port(22), {"xt": None}, ACCEPT], [{"xt": None}, DROP]).opaque == 2


STATEMENTS = st.sampled_from(
    [port(22), port(80), port(22, op="!="), NEW, match({"ct": {"key": "state"}}, "invalid", "in"), {"counter": None}]
)
VERDICTS = st.sampled_from([ACCEPT, DROP, {"return": None}, {"jump": {"target": "extra"}}])
RULES = st.lists(
    st.builds(lambda some, verdict: [*some, verdict], st.lists(STATEMENTS, max_size=3), VERDICTS), max_size=6
)


@settings(max_examples=200, deadline=None)
@given(rules=RULES, extra=RULES, policy=st.sampled_from(["accept", "drop"]), number=st.sampled_from([22, 80, 99]))
def test_agrees_with_a_packet_that_walks_alone(rules: Any, extra: Any, policy: str, number: int) -> None:
    """The plain meaning of the rules, one new TCP packet to one port, against the walk of all ports at once."""
    inner = [rule for rule in extra if "jump" not in rule[-1]]
    found = let_in(*rules, policy=policy, extra=inner)
    assert bool(found.reachable["tcp"] >> number & 1) == ((_walks(rules, inner, number) or policy) == "accept")


def _walks(rules: list[Any], extra: list[Any], number: int) -> str | None:
    """accept, drop, return, or None at the end."""
    for rule in rules:
        if not all(_holds(statement, number) for statement in rule[:-1]):
            continue
        (verdict,) = rule[-1]
        if verdict == "jump":
            inner = _walks(extra, [], number)
            if inner in {"accept", "drop"}:
                return inner
        elif verdict == "return":
            return None
        else:
            return str(verdict)
    return None


def _holds(statement: dict[str, Any], number: int) -> bool:
    if "match" not in statement:
        return True
    value = statement["match"]
    if "ct" in value["left"]:
        return bool(value["right"] == "new")
    return bool((number == value["right"]) == (value["op"] == "=="))


def test_the_simulated_kernel_and_the_generated_text_agree() -> None:
    for tcp, udp in ((("22",), ()), (("1-65535",), ("53",)), (("80", "443"), ("546", "5000-5010"))):
        simulated = Ruleset()
        simulated.load(nftables.generate(tcp, udp))
        found = openings(nftables.read(json.dumps({"nftables": [METAINFO, *simulated.listing()]}).encode()))
        assert (found.reachable["tcp"], found.reachable["udp"]) == (port_mask(tcp), port_mask(udp))
