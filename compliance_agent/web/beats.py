"""What a history picture takes from a host's heartbeats: where it starts from, and when the host was heard."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from compliance_agent.server.records import Bundle
from compliance_agent.server.services.fleet import Fleet, document_of
from compliance_agent.web import present, timeline


def heard(newest: Sequence[Bundle], beats: Sequence[Bundle]) -> list[datetime]:
    """When the host said anything, from the oldest heartbeat at hand on: before that no gap can be told."""
    oldest = present.made_at(beats[-1]) if beats else None
    return [at for at in map(present.made_at, newest) if oldest is not None and at >= oldest]


async def base_of(fleet: Fleet, beats: Sequence[Bundle], start: datetime) -> timeline.Base | None:
    """The heartbeat that the history picture starts from: the last one before its left edge, else the oldest at hand."""
    beat = beat_of(beats, start)
    return base_from(beat, await fleet.body(beat)) if beat is not None else None


def beat_of(beats: Sequence[Bundle], start: datetime) -> Bundle | None:
    """That heartbeat."""
    return next((beat for beat in beats if present.made_at(beat) <= start), beats[-1]) if beats else None


def base_from(beat: Bundle, body: bytes | None) -> timeline.Base | None:
    """What it says, from its bytes; None where these were destroyed."""
    if not body:
        return None
    states = present.state_rows(document_of(body).get("states"))
    return timeline.Base(present.made_at(beat), {state.check: state.result for state in states})
