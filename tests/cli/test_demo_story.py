"""The demo's story: each event that it listens for is told, in words that hold what the event says."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from compliance_agent.cli.demo import STORY, _story
from compliance_agent.lab.demo import SEEN_EVENTS, Event


@pytest.mark.parametrize(
    ("name", "keys", "word", "text"),
    [
        ("receipts.verified", {"count": 3}, "receipts", "3 verified against the log"),
        ("log.contradicted", {"ours": 41, "theirs": 40}, "CONTRADICTED", "41 and 40 entries"),
        (
            "heal.finished",
            {"check_id": "firewall", "outcome": "success", "bundle_id": "abcdef012345"},
            "healed",
            "abcdef01",
        ),
        ("demo.fault", {"check_id": "firewall", "fault": "firewall_flushed"}, "drifts", "firewall_flushed"),
    ],
)
def test_an_event_is_told(name: str, keys: dict[str, Any], word: str, text: str) -> None:
    told = _story(Event(datetime.now(UTC), "front-01", name, keys))
    assert told is not None
    assert told[0] == word
    assert text in told[2]


def test_only_events_that_the_feed_takes_are_told() -> None:
    assert set(STORY) <= set(SEEN_EVENTS)
    assert _story(Event(datetime.now(UTC), "front-01", "evidence.delivered", {})) is None
