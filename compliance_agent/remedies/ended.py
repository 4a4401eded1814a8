"""How a cure ended, as text that can be kept until evidence says it, and back."""

from __future__ import annotations

import dataclasses
import json
from datetime import datetime

from compliance_agent.models import ActionTaken, RemediationResult


def encode_result(result: RemediationResult) -> str:
    """A result as JSON. Its facts are what a check declared, so they are plain values."""
    document = dataclasses.asdict(result)
    for action in document["actions"]:
        action["timestamp"] = action["timestamp"].isoformat() if action["timestamp"] is not None else None
    document["not_before"] = None  # only what was never begun has one
    return json.dumps(document, separators=(",", ":"))


def decode_result(text: str) -> RemediationResult:
    """The result again."""
    document = json.loads(text)
    actions = tuple(
        ActionTaken(
            **{**action, "timestamp": datetime.fromisoformat(action["timestamp"]) if action["timestamp"] else None}
        )
        for action in document.pop("actions")
    )
    return RemediationResult(**document, actions=actions)
