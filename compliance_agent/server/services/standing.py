"""What stands for each check of a host, as its bundles say one after the other. Pure.

A drift bundle says what was seen, a remediation bundle what was seen after the cure, a heartbeat what stands for every check;
a check that the heartbeat no longer names is no longer looked at. `since` moves only when the result changes.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from datetime import datetime
from typing import Any

from compliance_agent.server.records import CheckVerdict, Host


def said(document: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(check, result, reason) for each verdict that a bundle's document states, one after the other.

    A cure states two: what was seen before it and what after. Without the first, a check that failed and was healed within one
    bundle would seem to have passed all along.
    """
    if document["kind"] == "heartbeat":
        for check, state in document["states"].items():
            yield check, state["result"], state["reason"]
        return
    check = document["check"]
    if check is None:
        return
    if document["result"] is not None:
        yield check, document["result"], document["reason"] or ""
    if document["post_result"] is not None:
        yield check, document["post_result"], document["post_reason"] or document["reason"] or ""


def apply(
    standing: MutableMapping[str, CheckVerdict], host: Host, document: dict[str, Any], received_at: datetime
) -> None:
    """Bring a host's verdicts (by check) up to date with one more bundle of its chain."""
    # A host clock that runs ahead must not make a verdict look fresher than its arrival.
    at = min(datetime.fromisoformat(document["timestamp_end"]), received_at)
    named = set()
    for check, result, reason in said(document):
        named.add(check)
        before = standing.get(check)
        same = before is not None and before.result == result
        since, bundle_id = (before.since, before.bundle_id) if before and same else (at, document["bundle_id"])
        standing[check] = CheckVerdict(host.key_id, host.site_id, check, result, reason, since, at, bundle_id)
    if document["kind"] == "heartbeat":
        for check in standing.keys() - named:
            del standing[check]
