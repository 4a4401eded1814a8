"""Every cure of the product goes through the root side: permitted by the baseline, and taken back from what was found."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest

from compliance_agent import permits
from compliance_agent.adapters.heal_host import HealHost, row_of
from compliance_agent.baseline import Baseline, Entry, load, names_of
from compliance_agent.checks import registry
from compliance_agent.cli.common import shipped_baseline
from compliance_agent.errors import StepFailed
from compliance_agent.heal import approvals
from compliance_agent.heal.permits import parse
from compliance_agent.lab.host import FakeHost
from compliance_agent.models import Mode
from compliance_agent.remedies import actions
from compliance_agent.remedies.plan import target_of
from tests.checks import contract
from tests.checks.drifts import DRIFTS, Drift
from tests.heal.clinic import FakeMachine, asks, service_on
from tests.heal.scene import APPROVALS, BASELINE, BOUND, CURE, NOW


def baseline_of(check_id: str, mode: Mode = Mode.ENFORCE, **changes: Any) -> Baseline:
    check = registry()[check_id]
    parameters = contract.parameters_of(check, **changes)
    entry = Entry(check, mode, 60, 10, parameters, names_of(parameters))
    return Baseline("1", BASELINE, Mode.ENFORCE, {check_id: entry})


def lasting(host: FakeHost) -> list[Any]:
    """Files and units; what programs keep for themselves is first made when they are asked."""
    found = contract.fingerprint(host, settled=False)
    return [found["files"], found["units"]]


@pytest.mark.parametrize("drift", DRIFTS, ids=lambda drift: drift.name.replace(" ", "-"))
async def test_a_cure_and_its_undo_go_through_the_root_side(drift: Drift) -> None:
    """The whole contract of a cure, with permissions of this one check and nothing else."""
    host = drift.host()
    drift.happen(host)
    machine = FakeMachine(host, permits.written(baseline_of(drift.check, **drift.parameters)))
    hands = HealHost(host, asks(service_on(machine)), CURE, BASELINE)
    await contract.heals(registry()[drift.check], host, drift.reason, actions(), drift.parameters, hands)


NOTHING_NEW = {"package lists five days old", "package lists expired"}  # then nothing is installed


@pytest.mark.parametrize("drift", DRIFTS, ids=lambda drift: drift.name.replace(" ", "-"))
async def test_what_users_notice_is_what_root_waits_for(drift: Drift) -> None:
    """A plan that says it disturbs is refused where nobody approved, and goes with an approval of its check and target; another
    one waits for nobody.
    """
    check, host = registry()[drift.check], drift.host()
    drift.happen(host)
    plan = (await contract.seen_by(check, host, **drift.parameters)).plan
    assert plan is not None
    noticed = plan.disruptive and drift.name not in NOTHING_NEW
    for given in ([], [_approval(drift.check, target_of(plan))]):
        host = drift.host()
        drift.happen(host)
        machine = FakeMachine(host, permits.written(baseline_of(drift.check, **drift.parameters)))
        machine.own[APPROVALS] = (json.dumps({"schema": approvals.SCHEMA, "given": given}).encode(), 0o644)
        hands = HealHost(host, asks(service_on(machine)), CURE, BASELINE)
        if noticed and not given:
            with pytest.raises(StepFailed) as caught:
                await contract.heals(check, host, drift.reason, actions(), drift.parameters, hands)
            assert caught.value.code == "not_approved"
        else:
            await contract.heals(check, host, drift.reason, actions(), drift.parameters, hands)
        assert (BOUND in machine.own) == (noticed and bool(given))


def _approval(check: str, target: str) -> dict[str, Any]:
    until = approvals.text(NOW + timedelta(hours=1))
    return {
        "check": check, "target": target, "number": 7, "since": approvals.text(NOW), "until": until, "baseline": BASELINE,
    }  # fmt: skip


@pytest.mark.parametrize(
    "drift", [DRIFTS[0], *{drift.check: drift for drift in DRIFTS}.values()], ids=lambda drift: drift.check
)
async def test_a_check_that_is_only_looked_at_permits_nothing(drift: Drift) -> None:
    """Planted fault, in a way: the same cure under the permissions of an audit is refused and changes nothing."""
    host = drift.host()
    drift.happen(host)
    machine = FakeMachine(host, permits.written(baseline_of(drift.check, Mode.AUDIT, **drift.parameters)))
    hands = HealHost(host, asks(service_on(machine)), CURE, BASELINE)
    before = lasting(host)
    with pytest.raises((StepFailed, AssertionError)) as caught:
        await contract.heals(registry()[drift.check], host, drift.reason, actions(), drift.parameters, hands)
    assert isinstance(caught.value, StepFailed)
    assert caught.value.code == "heal_refused"
    assert lasting(host) == before


def test_the_shipped_baseline_makes_permissions_that_the_root_side_reads() -> None:
    """The same bytes each time; every unit that a cure starts is in them."""
    baseline = load(shipped_baseline(), trusted=False)
    raw = permits.written(baseline)
    found = parse(raw)
    assert (found.baseline, raw) == (baseline.sha256, permits.written(baseline))
    assert found.units["auditd.service"] == "needed"
    assert "/etc/ssh/sshd_config.d/00-compliance.conf" in found.files


def test_every_check_makes_permissions_that_the_root_side_reads() -> None:
    for check_id in registry():
        parse(permits.written(baseline_of(check_id)))


@pytest.mark.parametrize(
    "argv",
    [
        ("sh", "-c", "id"),
        ("nft", "-f", "/tmp/x"),
        ("apt-get", "install", "evil"),
        ("usermod", "-u", "0", "--", "x"),
        ("chage", "-d", "x", "--", "x"),
        ("auditctl",),
        ("mkdir", "-m", "0777", "--", "/etc/x"),
        ("restic", "check"),
    ],
)
def test_a_command_that_no_row_has_is_refused_before_it_is_asked_for(argv: tuple[str, ...]) -> None:
    with pytest.raises(StepFailed) as caught:
        row_of(argv)
    assert caught.value.code == "heal_refused"
