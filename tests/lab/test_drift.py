"""Every fault is found by its check for its reason, by no other check, and is cured as it says."""

from __future__ import annotations

import random

import pytest

from compliance_agent.checks import registry
from compliance_agent.checks.spec import Check, Unreadable, judge_seen
from compliance_agent.errors import CannotTell
from compliance_agent.lab.clinic import healthy_host
from compliance_agent.lab.drift import FAULTS, choose
from compliance_agent.lab.host import FakeHost
from compliance_agent.models import Result, Verdict
from compliance_agent.remedies import actions


async def look(host: FakeHost, check: Check) -> tuple[object, object, Verdict]:
    baseline = check.spec.parameters(**check.spec.example)
    seen: object
    try:
        seen = await check.observe(host, baseline)
    except CannotTell as error:
        seen = Unreadable(error.reason, error.errno_name, str(error))
    return baseline, seen, judge_seen(check, baseline, seen)


async def verdicts(host: FakeHost) -> dict[str, Verdict]:
    return {name: (await look(host, check))[2] for name, check in registry().items()}


@pytest.mark.parametrize("seed", range(3))
async def test_the_healthy_host_passes_everything(seed: int) -> None:
    assert {str(verdict.result) for verdict in (await verdicts(healthy_host(seed))).values()} == {"pass"}


async def test_the_same_seed_gives_the_same_host() -> None:
    first, second, other = healthy_host(1), healthy_host(1), healthy_host(2)
    assert first.boot_id == second.boot_id != other.boot_id
    assert {path: node.content for path, node in first.files.items()} == {
        path: node.content for path, node in second.files.items()
    }


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", FAULTS)
async def test_a_fault_is_found_for_its_reason_and_by_its_check_alone(name: str, seed: int) -> None:
    host, fault = healthy_host(seed), FAULTS[name]
    fault.inject(host)
    found = await verdicts(host)
    assert (found[fault.check].result, found[fault.check].reason) == (Result.FAIL, fault.reason)
    assert [check for check, verdict in found.items() if verdict.result is not Result.PASS] == [fault.check]


@pytest.mark.parametrize("name", FAULTS)
async def test_a_fault_is_cured_as_it_says(name: str) -> None:
    host, fault = healthy_host(), FAULTS[name]
    fault.inject(host)
    check = registry()[fault.check]
    baseline, seen, _ = await look(host, check)
    plan = check.plan(baseline, seen)
    assert ("person" if plan is None else "window" if plan.disruptive else "now") == fault.cure
    for step in plan.steps if plan else ():
        await actions()[step.action].apply(host, step.args)
    expected = Result.FAIL if plan is None else Result.PASS
    assert (await look(host, check))[2].result is expected


def test_every_check_has_a_fault() -> None:
    """Here, or as the scene of a failing case in the check's own file."""
    own = {
        check.id for check in registry().values() for case in check.cases if case.scene and case.expect is Result.FAIL
    }
    assert {fault.check for fault in FAULTS.values()} | own == set(registry())


def test_reasons_are_those_that_checks_declare() -> None:
    for fault in FAULTS.values():
        assert fault.reason in registry()[fault.check].spec.reasons


def test_the_same_rng_chooses_the_same_and_spreads_over_checks() -> None:
    assert choose(random.Random(7), 5) == choose(random.Random(7), 5)
    assert len({FAULTS[name].check for name in choose(random.Random(7), 7)}) == 7
    assert sorted(choose(random.Random(7), 99)) == sorted(FAULTS)
    assert all(FAULTS[name].heals for name in choose(random.Random(7), 99, heals=True))
