"""run_backup_unit: the host's own unit, waited for, and not started beside a running one."""

from __future__ import annotations

import pytest

from compliance_agent.checks import registry
from compliance_agent.errors import StepFailed
from compliance_agent.lab.clinic import healthy_host
from compliance_agent.lab.programs import restic
from compliance_agent.models import Result
from compliance_agent.ports import UnitState
from compliance_agent.remedies import actions
from tests.checks import contract

RUN = actions()["run_backup_unit"]
ARGS = {"unit": restic.UNIT}


async def test_a_backup_is_taken_by_the_hosts_unit() -> None:
    host = healthy_host()
    repository = host.part(restic.Repositories).by_place[restic.REPOSITORY]
    before = len(repository.snapshots)
    assert await RUN.capture(host, ARGS) == {}
    await RUN.apply(host, ARGS)
    await RUN.undo(host, ARGS, {})
    assert len(repository.snapshots) == before + 1
    assert host.changed == [f"unit:{restic.UNIT}"]


@pytest.mark.parametrize("trouble", ["full", "locked"])
async def test_a_backup_that_fails_is_loud_and_the_check_says_so(trouble: str) -> None:
    host = healthy_host()
    setattr(host.part(restic.Repositories).by_place[restic.REPOSITORY], trouble, True)
    with pytest.raises(StepFailed):
        await RUN.apply(host, ARGS)
    seen = await contract.seen_by(registry()["backup"], host)
    assert (seen.result, seen.reason) == (Result.FAIL, "last_run_failed")


async def test_a_running_backup_is_in_the_way() -> None:
    host = healthy_host()
    assert RUN.blocked is not None
    assert await RUN.blocked(host, ARGS) is None

    class Busy:
        async def units(self, names: tuple[str, ...]) -> dict[str, UnitState]:
            return dict.fromkeys(names, UnitState("loaded", "activating", "start", "static"))

    assert await RUN.blocked(Busy(), ARGS) == "backup_running"  # type: ignore[arg-type]


async def test_a_unit_that_is_not_there() -> None:
    host = healthy_host()
    with pytest.raises(StepFailed):
        await RUN.apply(host, {"unit": "nothing.service"})
