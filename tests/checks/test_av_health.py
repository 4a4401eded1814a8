"""av_health beyond its cases: zones, a daemon that is there and silent, and who fetches signatures."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from compliance_agent.checks import registry
from compliance_agent.checks.av_health import Parameters
from compliance_agent.lab.clinic import healthy_host
from compliance_agent.lab.host import Call, FakeHost, said
from compliance_agent.lab.programs import clamav
from compliance_agent.models import DriftResult, Result
from compliance_agent.ports import Ran
from tests.checks.contract import seen_by

CHECK = registry()["av_health"]


async def look(host: FakeHost, **parameters: Any) -> DriftResult:
    return await seen_by(CHECK, host, **parameters)


def aged(hours: float) -> FakeHost:
    host = healthy_host()
    host.part(clamav.Signatures).built_at = host.now() - timedelta(hours=hours)
    return host


@pytest.mark.parametrize(
    ("hours", "result"), [(0, "pass"), (48, "pass"), (48.1, "fail"), (8760, "fail"), (-30, "unknown")]
)
async def test_age_of_the_signatures(hours: float, result: str) -> None:
    assert (await look(aged(hours))).result == result


async def test_the_zone_counts() -> None:
    """On a host in New York the daemon's local time is five hours behind UTC, so its signatures are younger than they look."""

    def date(call: Call) -> Ran:
        return said("-0500\n")

    host = aged(50)
    host.installed["date"] = date
    seen = await look(host)
    assert (seen.result, seen.pre_state["signature_age_h"]) == (Result.PASS, 45)


async def test_a_daemon_that_is_still_loading_is_unknown() -> None:
    host = healthy_host()
    del host.sockets[clamav.SOCKET]
    assert (await look(host)).reason == "not_found"


async def test_a_daemon_that_hangs_is_unknown() -> None:
    host = healthy_host()
    host.faults.blind(f"socket:{clamav.SOCKET}", "timed_out")
    assert (await look(host)).reason == "timed_out"


async def test_a_stopped_daemon_is_not_asked() -> None:
    host = healthy_host()
    host.unit(clamav.UNIT).active = False
    await look(host)
    assert not any(target.startswith("socket:") for target in host.looked)


async def test_without_eicar_no_test_file_is_sent() -> None:
    host = healthy_host()
    host.part(clamav.Signatures).detects = False
    seen = await look(host, eicar=False)
    assert (seen.result, seen.pre_state["probe_found"]) == (Result.PASS, None)


async def test_old_signatures_are_fetched_by_the_updaters_own_unit() -> None:
    """The side that acts as root has no network, so freshclam is never run as a step."""
    seen = await look(aged(200))
    assert seen.plan is not None and not seen.plan.disruptive
    assert [step.action for step in seen.plan.steps] == ["ensure_unit_active", "restart_unit", "await_scanner"]


async def test_without_an_updater_there_is_no_cure_for_age() -> None:
    host = aged(200)
    del host.units_table[clamav.FRESHCLAM]
    assert (await look(host)).plan is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"unit": ""},
        {"freshclam_unit": ""},
        {"socket": "clamd.ctl"},
        {"socket": ""},
        {"max_signature_age_h": 0},
        {"max_signature_age_h": 10**6},
    ],
)
def test_parameters_that_would_check_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Parameters(**wrong)
