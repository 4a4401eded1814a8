"""time_sync beyond its cases: both daemons, both witnesses, and the cure for each kind of drift."""

from __future__ import annotations

from typing import Any

import pytest

from compliance_agent.checks import registry
from compliance_agent.checks.time_sync import Parameters
from compliance_agent.lab.clinic import healthy_host
from compliance_agent.lab.host import FakeHost, Unit
from compliance_agent.lab.programs import chrony
from compliance_agent.models import DriftResult, Result
from tests.checks.contract import seen_by

CHECK = registry()["time_sync"]
TIMESYNCD = {"daemon": "timesyncd", "unit": chrony.TIMESYNCD}


async def look(host: FakeHost, **parameters: Any) -> DriftResult:
    return await seen_by(CHECK, host, **parameters)


def timesyncd_host(skew_s: float = 0.0) -> FakeHost:
    """The healthy host, but with systemd-timesyncd in place of chrony."""
    host = healthy_host()
    host.units_table[chrony.UNIT].active = False
    host.units_table[chrony.TIMESYNCD] = Unit()
    host.put(chrony.STAMP, age_s=35.0)
    host.skew_s = skew_s
    return host


async def test_timesyncd_is_measured_as_well() -> None:
    seen = await look(timesyncd_host(), **TIMESYNCD)
    assert seen.result is Result.PASS
    assert seen.pre_state["age_s"] == 35
    assert seen.pre_state["kernel_source"] == "timesyncd"


async def test_timesyncd_offset_is_a_failure_without_a_step() -> None:
    """systemd-timesyncd steps by itself and has no command for it, so there is nothing to plan."""
    host = timesyncd_host()
    host.skew_s = 62.0
    seen = await look(host, **TIMESYNCD)
    assert (seen.reason, seen.plan) == ("offset_too_large", None)


async def test_timesyncd_without_its_stamp_is_unknown() -> None:
    host = timesyncd_host()
    host.delete(chrony.STAMP)
    assert (await look(host, **TIMESYNCD)).reason == "not_found"


@pytest.mark.parametrize("daemon", ["chrony", "timesyncd"])
async def test_no_reachable_source(daemon: str) -> None:
    host = healthy_host() if daemon == "chrony" else timesyncd_host()
    host.part(chrony.TimeSource).reachable = False
    seen = await look(host, **({} if daemon == "chrony" else TIMESYNCD))
    assert (seen.reason, seen.plan) == ("not_synchronised", None)


async def test_a_source_that_went_quiet() -> None:
    host = healthy_host()
    host.part(chrony.TimeSource).updated_s_ago = 14_401.0
    assert (await look(host)).reason == "update_too_old"


async def test_an_imprecise_measurement_is_not_fine() -> None:
    host = healthy_host()
    host.part(chrony.TimeSource).dispersion_s = 0.6
    assert (await look(host)).reason == "bound_too_wide"


async def test_a_step_that_the_daemon_only_believes_in() -> None:
    """chronyd that may not set the clock calls it right after its start (seen on a booted container); its source knows better."""
    host = healthy_host()
    host.skew_s, host.part(chrony.TimeSource).corrects = 30.0, False
    await host.unit_action("restart", chrony.UNIT)
    seen = await look(host)
    assert (seen.result, seen.reason) == (Result.FAIL, "offset_too_large")
    assert abs(seen.pre_state["offset_us"]) < 1000
    assert seen.pre_state["sample_us"] == 30_000_041


async def test_the_kernel_has_its_own_word() -> None:
    host = healthy_host()
    host.clock_source = None  # the kernel says that nobody disciplines its clock
    assert (await look(host)).reason == "witnesses_disagree"


async def test_stepping_is_disruptive_and_starting_is_not() -> None:
    host = healthy_host()
    host.skew_s = 90.0
    stepping = (await look(host)).plan
    assert stepping is not None and (stepping.disruptive, stepping.disturbs) == (True, "steps_clock")
    host.units_table[chrony.UNIT].active = False
    starting = (await look(host)).plan
    assert starting is not None and not starting.disruptive


async def test_a_unit_that_does_not_exist_has_no_cure() -> None:
    seen = await look(healthy_host(), unit="ntpd.service")
    assert (seen.reason, seen.plan) == ("daemon_missing", None)


@pytest.mark.parametrize("bits", [0, 1])
async def test_either_side_of_the_limit(bits: int) -> None:
    """Half a second is the limit; the jitter of the fake source is 41 microseconds."""
    host = healthy_host()
    host.part(chrony.TimeSource).jitter_s = 0.0
    host.part(chrony.TimeSource).dispersion_s = 0.0
    host.skew_s = 0.480 if bits == 0 else 0.501
    assert (await look(host)).result is (Result.PASS if bits == 0 else Result.FAIL)


@pytest.mark.parametrize(
    "wrong",
    [
        {"daemon": "ntpd"},
        {"max_offset_ms": 0},
        {"max_offset_ms": -5},
        {"max_stratum": 16},
        {"max_stratum": 0},
        {"max_age_s": 1},
        {"unit": ""},
    ],
)
def test_parameters_that_would_check_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Parameters(**wrong)
