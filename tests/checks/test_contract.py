"""Every registered check keeps the contract (contract.py). That the contract catches those that do not: test_planted_faults.py."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compliance_agent.checks import registry
from compliance_agent.checks.spec import Check
from compliance_agent.lab.clinic import healthy_host
from compliance_agent.remedies import actions
from tests.checks import contract
from tests.checks.contract import CANARIES, contaminate
from tests.checks.drifts import DRIFTS, Drift

CHECKS = tuple(registry().values())
ASKED: dict[str, list[contract.Question]] = {}  # by check: what it asks the healthy host, which is the same each time
every_check = pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.id)


@every_check
def test_declares_itself_and_cites_what_it_may(check: Check) -> None:
    contract.declares_itself(check)


@every_check
async def test_declares_what_it_reads(check: Check) -> None:
    await contract.declares_what_it_reads(check, healthy_host)


@every_check
def test_judges_its_cases_as_stated(check: Check) -> None:
    contract.judges_its_cases(check)


@every_check
def test_plans_with_known_actions(check: Check) -> None:
    contract.plans_its_cures(check, actions())


@every_check
async def test_scenes_show_their_cases(check: Check) -> None:
    await contract.scenes_show_their_cases(check, healthy_host)


@every_check
def test_nothing_seen_is_no_pass(check: Check) -> None:
    contract.nothing_known_passes(check)


@every_check
async def test_passes_on_the_healthy_host(check: Check) -> None:
    await contract.healthy_host_passes(check, healthy_host)


@every_check
async def test_no_fault_in_any_answer_passes(check: Check) -> None:
    await contract.no_fault_passes(check, healthy_host)


@every_check
async def test_nothing_to_check_is_refused(check: Check) -> None:
    await contract.nothing_to_check_is_refused(check, healthy_host)


@every_check
@pytest.mark.parametrize("canary", CANARIES)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
async def test_records_nothing_a_host_says(check: Check, canary: str, data: st.DataObject) -> None:
    """Into a random place of a random answer goes a person's data; no record holds it."""
    if check.id not in ASKED:
        ASKED[check.id] = await contract.healthy_host_passes(check, healthy_host)
    question = data.draw(st.sampled_from(ASKED[check.id]), label="question")
    place = data.draw(st.floats(0, 1), label="place")
    whole = data.draw(st.booleans(), label="in place of a word")
    change = contaminate(canary, place, whole_word=whole)
    await contract.leaks_nothing(check, healthy_host, question, change, canary)


@pytest.mark.parametrize("drift", DRIFTS, ids=lambda drift: drift.name.replace(" ", "-"))
async def test_heals_what_drifted(drift: Drift) -> None:
    host = drift.host()
    drift.happen(host)
    await contract.heals(registry()[drift.check], host, drift.reason, actions(), drift.parameters)


@every_check
def test_every_cure_is_shown_on_a_host(check: Check) -> None:
    """A case may claim `heals` only for a reason for which a drift is really healed."""
    parameters = contract.parameters_of
    claimed = {
        check.judge(parameters(check, **case.parameters), case.seen).reason for case in check.cases if case.heals
    }
    shown = {drift.reason for drift in DRIFTS if drift.check == check.id}
    assert claimed <= shown, f"give a healing case of {sorted(claimed - shown)} a scene, or add a drift to drifts.py"


def test_ids_are_unique_and_name_their_files() -> None:
    """registry() refuses anything else; this says that it found the seven and did not stop half-way."""
    expected = {"patching", "av_health", "backup", "logging", "firewall", "encryption", "time_sync"}
    assert expected <= {check.id for check in CHECKS}
