"""firewall: rulesets of a fake host, and of the real nft, as the check sees them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compliance_agent.checks import firewall, registry
from compliance_agent.lab.clinic import healthy_host
from compliance_agent.lab.host import FakeHost
from compliance_agent.lab.programs.nft import Ruleset
from compliance_agent.models import DriftResult, Result
from compliance_agent.ports import Ran
from tests.checks import contract

FIXTURES = Path(__file__).parent.parent / "fixtures" / "checks" / "firewall"


async def look(host: FakeHost, **parameters: Any) -> DriftResult:
    return await contract.seen_by(registry()["firewall"], host, **parameters)


def host_with(name: str) -> FakeHost:
    """A host whose nft prints what the real one printed."""
    host = healthy_host()
    host.installed["nft"] = lambda call: Ran(0, (FIXTURES / f"{name}.json").read_bytes(), b"")
    return host


def loaded(text: str) -> FakeHost:
    host = healthy_host()
    host.part(Ruleset).load(text)
    return host


async def test_a_handwritten_ruleset_may_pass() -> None:
    allowed = {"allow_tcp": ("22", "80", "443", "6000-6003"), "allow_udp": ("500", "546", "5353")}
    seen = await look(host_with("handwritten"), **allowed)
    assert seen.reason == "ports_missing", "6000 to 6003 are open over IPv4 alone, 500 over IPv6"
    assert seen.pre_state["missing"] == 5
    assert seen.plan is None, "the product's table could not open what another one closes"
    seen = await look(host_with("handwritten"), allow_tcp=("22", "80", "443"), allow_udp=("546", "5353"))
    assert (seen.reason, seen.pre_state["unexpected_tcp"], seen.pre_state["unexpected_udp"]) == (
        "unexpected_ports",
        4,
        1,
    )


@pytest.mark.parametrize("name", ["empty", "dormant"])
async def test_no_rules_are_no_firewall(name: str) -> None:
    seen = await look(host_with(name))
    assert (seen.result, seen.reason) == (Result.FAIL, "no_firewall")
    assert seen.plan is not None and not seen.plan.disruptive


async def test_a_pinned_ruleset() -> None:
    digest = (await look(host_with("handwritten"))).pre_state["ruleset_sha256"]
    pinned: dict[str, Any] = {"allow_tcp": (), "allow_udp": (), "expected_sha256": digest}
    assert (await look(host_with("handwritten_later"), **pinned)).result is Result.PASS
    changed = await look(host_with("maps"), **{**pinned})
    assert (changed.result, changed.plan) == (Result.FAIL, None)
    assert (await look(host_with("empty"), **pinned)).reason == "no_firewall"


async def test_a_pin_does_not_excuse_open_ports() -> None:
    host = loaded("add rule inet compliance input tcp dport 23 accept")
    digest = (await look(host)).pre_state["ruleset_sha256"]
    assert (await look(host, expected_sha256=digest)).reason == "unexpected_ports"


async def test_another_programs_table_can_close_but_not_open() -> None:
    open_table = "table ip early { chain input { type filter hook input priority raw; policy accept\n tcp dport 4444 accept\n}\n}"
    assert (await look(loaded(open_table))).result is Result.PASS
    closed = await look(loaded(open_table.replace("accept\n}", "drop\n}").replace("4444", "22")))
    assert (closed.reason, closed.plan) == ("ports_missing", None)


async def test_rules_of_the_xtables_kind_are_not_guessed_at() -> None:
    host = healthy_host()
    for rule in host.part(Ruleset).select("rule")[-1:]:
        rule["expr"] = [{"xt": None}, {"accept": None}]
    seen = await look(host)
    assert (seen.result, seen.reason) == (Result.UNKNOWN, "rules_not_understood")


async def test_only_root_may_look() -> None:
    host = healthy_host()
    host.uid = 998
    seen = await look(host)
    assert (seen.result, seen.reason) == (Result.UNKNOWN, "not_permitted")


async def test_a_look_does_not_move_the_digest() -> None:
    host = healthy_host()
    first, second = await look(host), await look(host)
    assert first.pre_state == second.pre_state


@pytest.mark.parametrize(
    "wrong",
    [{}, {"allow_tcp": ("ssh",)}, {"allow_udp": ("0",)}, {"expected_sha256": "abc"}, {"expected_sha256": ""}],
)
def test_parameters_that_compare_with_nothing(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"port|expected_sha256"):
        firewall.Parameters(**wrong)
