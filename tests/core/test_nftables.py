"""Reading rulesets, their digest and the text of ours. The fixtures were printed by nft 1.0.6."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compliance_agent.core import nftables
from compliance_agent.errors import CannotTell
from compliance_agent.lab.faults import GARBAGE
from compliance_agent.lab.programs.nft import METAINFO, Ruleset

FIXTURES = Path(__file__).parent.parent / "fixtures" / "checks" / "firewall"


def listing(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((FIXTURES / f"{name}.json").read_bytes())
    return document


def digest(document: dict[str, Any]) -> str:
    return nftables.read(json.dumps(document).encode()).sha256


def rules(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [item["rule"] for item in document["nftables"] if "rule" in item]


def test_counters_and_handles_do_not_move_the_digest() -> None:
    """The same rules loaded a second time, after some traffic."""
    before, after = listing("handwritten"), listing("handwritten_later")
    assert before != after
    assert digest(before) == digest(after)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_nothing_volatile_moves_the_digest(seed: int) -> None:
    rng, document = random.Random(seed), listing("handwritten")
    head, *objects = copy.deepcopy(document["nftables"])
    for item in objects:
        (value,) = item.values()
        value["handle"] = rng.randrange(10_000)
        for statement in value.get("expr", []):
            if "counter" in statement:
                statement["counter"] = {"packets": rng.randrange(99), "bytes": rng.randrange(99)}
        if "elem" in value:
            rng.shuffle(value["elem"])
    fixed = [item for item in objects if "rule" not in item]
    rng.shuffle(fixed)
    shuffled = {"nftables": [head, *fixed, *(item for item in objects if "rule" in item)]}
    assert digest(shuffled) == digest(document)


def test_every_change_of_meaning_moves_the_digest() -> None:
    document = listing("handwritten")
    seen = {digest(document)}
    for number, rule in enumerate(rules(document)):
        for change in (_other_verdict, _other_port, _moved_first):
            changed = copy.deepcopy(document)
            if change(changed, rules(changed)[number]):
                seen.add(digest(changed))
        gone = copy.deepcopy(document)
        gone["nftables"] = [item for item in gone["nftables"] if item.get("rule", {}).get("handle") != rule["handle"]]
        seen.add(digest(gone))
    policy = copy.deepcopy(document)
    next(item["chain"] for item in policy["nftables"] if item.get("chain", {}).get("policy") == "drop")["policy"] = (
        "accept"
    )
    seen.add(digest(policy))
    assert len(seen) > 25


def _other_verdict(document: dict[str, Any], rule: dict[str, Any]) -> bool:
    if "accept" in rule["expr"][-1]:
        rule["expr"][-1] = {"drop": None}
        return True
    return False


def _other_port(document: dict[str, Any], rule: dict[str, Any]) -> bool:
    for statement in rule["expr"]:
        if statement.get("match", {}).get("right") == 22:
            statement["match"]["right"] = 23
            return True
    return False


def _moved_first(document: dict[str, Any], rule: dict[str, Any]) -> bool:
    first = next(item for item in document["nftables"] if item.get("rule", {}).get("chain") == rule["chain"])
    if first["rule"] is rule:
        return False
    document["nftables"].remove({"rule": rule})
    document["nftables"].insert(document["nftables"].index(first), {"rule": rule})
    return True


def test_elements_that_come_and_go_are_not_policy() -> None:
    document = listing("handwritten")
    banned = next(item["set"] for item in document["nftables"] if item.get("set", {}).get("name") == "banned")
    before = digest(document)
    banned["elem"] = [{"elem": {"val": "192.0.2.7", "timeout": 3600, "expires": 1234}}]
    assert digest(document) == before
    lan = next(item["set"] for item in document["nftables"] if item.get("set", {}).get("name") == "lan")
    lan["elem"].append({"prefix": {"addr": "192.168.11.0", "len": 24}})
    assert digest(document) != before


def test_a_dormant_table_stands_at_no_hook() -> None:
    """nft 1.0.6 prints the table's own name where the flag should be."""
    ruleset = nftables.read((FIXTURES / "dormant.json").read_bytes())
    assert ruleset.tables == (("inet", "sleeping"),)
    assert ruleset.input_chains("ip") == ()


def test_an_empty_ruleset_is_an_answer() -> None:
    assert nftables.read((FIXTURES / "empty.json").read_bytes()).tables == ()


@pytest.mark.parametrize(
    "raw",
    [
        *GARBAGE,
        b'{"nftables": []}',
        b'{"nftables": [{"table": {"family": "inet", "name": "x"}}]}',
        b'{"nftables": [{"metainfo": {}}, {"chain": {"family": "inet"}}]}',
        b'{"nftables": [{"metainfo": {}}, 7]}',
        b'{"nftables": [{"metainfo": {}}, {"rule": {"family": "ip", "table": "a", "chain": "b", "expr": "accept"}}]}',
        b'{"nftables": [{"metainfo": {}}, {"table": {"family": "ip", "name": "a", "flags": 7}}]}',
    ],
)
def test_anything_else_is_refused(raw: bytes) -> None:
    with pytest.raises(CannotTell, match="nft"):
        nftables.read(raw)


@pytest.mark.parametrize(
    "ports", [("0",), ("65536",), ("22-",), ("-1",), ("443-80",), ("ssh",), ("22; drop",), ("٢٢",), ("022",)]
)
def test_ports_that_are_none_are_refused(ports: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="port"):
        nftables.generate(ports, ())


def test_port_bits() -> None:
    assert nftables.port_mask(("1", "3-4")) == 0b11010
    assert nftables.port_mask(("1-65535",)).bit_count() == 65_535


def test_the_generated_text_loads_as_the_real_nft_shows_it() -> None:
    """The fixture is what nft 1.0.6 lists after loading the same text."""
    simulated = Ruleset()
    simulated.load(nftables.generate(("443", "22", "6000-6010"), ("546",)))
    listed = json.dumps({"nftables": [METAINFO, *simulated.listing()]}).encode()
    real = nftables.read((FIXTURES / "generated.json").read_bytes())
    # a single port in braces becomes a plain value in the kernel; the simulation keeps the set
    assert nftables.read(listed).canonical.replace('{"set":[546]}', "546") == real.canonical.replace(
        '{"set":[546]}', "546"
    )
