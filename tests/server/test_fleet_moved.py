"""What counts as a change for the worse, for the better, and as healed: each case as the agent records it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from compliance_agent.server.records import CheckVerdict, Event, Host
from compliance_agent.server.services.fleet import CheckStanding, HostStanding, Moved, _moved

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
DAY = NOW - timedelta(hours=24)
LONG_AGO = NOW - timedelta(days=9)


def standing(since: datetime, enrolled: datetime = LONG_AGO) -> HostStanding:
    verdict = CheckVerdict("key", "clinic-1", "firewall", "fail", "", since, NOW, "bundle")
    host = Host("key", "clinic-1", "client", "host", b"", enrolled)
    return HostStanding(host, False, (CheckStanding(verdict, "fail", ""),))


def event(result: str, outcome: str | None = None) -> Event:
    return Event("clinic-1", "key", "firewall", "remediation" if outcome else "drift", result, outcome)


@pytest.mark.parametrize(
    ("name", "events", "since", "enrolled", "moved"),
    [
        ("failed and was healed", [event("fail", "success")], NOW, LONG_AGO, Moved(1, 1, 1)),
        ("failed and waits", [event("fail", "deferred")], NOW, LONG_AGO, Moved(worse=1)),
        (
            "waits for another reason since",
            [event("fail", "deferred"), event("fail", "alert")],
            NOW,
            LONG_AGO,
            Moved(worse=1),
        ),
        ("has waited for days", [event("fail", "alert")], LONG_AGO, LONG_AGO, Moved()),
        (
            "held back, then healed",
            [event("fail", "deferred"), event("fail", "success")],
            NOW,
            LONG_AGO,
            Moved(1, 1, 1),
        ),
        ("put right by a person", [event("pass")], NOW, LONG_AGO, Moved(better=1)),
        ("the first word of a new host", [event("pass")], NOW, NOW, Moved()),
        ("a new host that is not well", [event("unknown")], NOW, NOW, Moved(worse=1)),
        ("could not tell, then could", [event("unknown"), event("pass")], NOW, LONG_AGO, Moved(1, 1)),
        (
            "from doubt to failure is no change",
            [event("unknown"), event("fail", "alert")],
            NOW,
            LONG_AGO,
            Moved(worse=1),
        ),
        ("a cure that was undone", [event("fail", "reverted")], NOW, LONG_AGO, Moved(worse=1)),
        ("an approved exception", [event("exception")], NOW, LONG_AGO, Moved(better=1)),
        ("healed twice", [event("fail", "success"), event("fail", "success")], NOW, LONG_AGO, Moved(2, 2, 2)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_moved(name: str, events: list[Event], since: datetime, enrolled: datetime, moved: Moved) -> None:
    assert _moved(events, standing(since, enrolled), "firewall", DAY) == moved
