"""The baselines that are shipped load, look at everything, and the healthy clinic host passes the one for it."""

from __future__ import annotations

import typing
from pathlib import Path

import pytest

import compliance_agent
from compliance_agent.baseline import load
from compliance_agent.checks import registry
from compliance_agent.config import AgentConfig
from compliance_agent.drift import DriftDetector
from compliance_agent.lab.clinic import healthy_host
from compliance_agent.models import Mode, Result

SEVEN = {"patching", "av_health", "backup", "logging", "firewall", "encryption", "time_sync"}
SHIPPED = sorted((Path(compliance_agent.__file__).parent / "baselines").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_loads_and_enforces_what_has_a_cure(path: Path) -> None:
    """A check with a cure is enforced; one without (encryption) has nothing to enforce, so audit says the truth."""
    baseline = load(path)
    assert baseline.mode is Mode.ENFORCE
    for name in baseline.entries:
        curable = any(case.heals for case in registry()[name].cases)
        assert (baseline.mode_of(name) is Mode.ENFORCE) == curable, name


async def test_the_healthy_clinic_host_passes_the_whole_linux_baseline() -> None:
    """A new check joins the shipped baseline by a change of its own: it changes what every clinic is held against."""
    baseline = load(next(path for path in SHIPPED if path.stem == "clinic-linux"))
    assert set(baseline.entries) >= SEVEN
    host = healthy_host()
    unused = typing.cast(AgentConfig, None)  # only says where the baseline stands
    results = await DriftDetector(unused, host=host, baseline=baseline, clock=host.clock).check_all()
    assert {result.check: result.result for result in results} == dict.fromkeys(baseline.entries, Result.PASS)
    assert not host.changed
