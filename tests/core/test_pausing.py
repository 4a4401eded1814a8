"""A pause ends by itself, whatever the wall clock is set to; who may ask for one is said by user and group alone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from compliance_agent.core.access import Asker, Owner, may
from compliance_agent.core.gates import Moment
from compliance_agent.core.pausing import Pause

NOON = datetime(2026, 11, 28, 12, tzinfo=UTC)
PAUSE = Pause("maintenance", 0, Moment(NOON, 100.0, "boot"), 3_600)


@pytest.mark.parametrize(
    ("wall_s", "monotonic_s", "boot", "left_s"),
    [
        (0, 100.0, "boot", 3_600.0),
        (-86_400, 2_000.0, "boot", 1_700.0),  # the wall was set back; the boot's own time counts
        (86_400, 200.0, "boot", 3_500.0),  # and forward
        (0, 3_700.0, "boot", 0.0),
        (1_800, 50.0, "next", 1_800.0),  # across a restart of the host the wall counts
        (-86_400, 3_600.0, "next", 0.0),  # or how long it has been up, where that is longer
    ],
)
def test_it_ends_by_itself(wall_s: float, monotonic_s: float, boot: str, left_s: float) -> None:
    now = Moment(NOON + timedelta(seconds=wall_s), monotonic_s, boot)
    assert PAUSE.left_s(now) == left_s


@pytest.mark.parametrize(
    ("uid", "gids", "reads", "changes"),
    [
        (0, (), True, True),
        (990, (5,), True, True),  # the agent's own user
        (1_000, (1_000, 991), True, False),  # a member of its group
        (1_000, (1_000,), False, False),
        (991, (1_000,), False, False),  # a user whose number is the group's
    ],
)
def test_who_may(uid: int, gids: tuple[int, ...], reads: bool, changes: bool) -> None:
    owner = Owner(990, 991)
    assert (may(Asker(uid, gids), owner, changes=False), may(Asker(uid, gids), owner, changes=True)) == (reads, changes)
