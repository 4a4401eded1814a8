"""How a cure ended survives being kept."""

from __future__ import annotations

from datetime import UTC, datetime

from compliance_agent.models import ActionTaken, Outcome, RemediationResult, Result
from compliance_agent.remedies.ended import decode_result, encode_result


def test_a_result_comes_back_whole() -> None:
    at = datetime(2026, 11, 28, 9, 0, 0, 5, tzinfo=UTC)
    facts = {"down": ["cron.service"], "count": 3, "on": None}
    result = RemediationResult(
        check="services", outcome=Outcome.FAILED.value, pre_state=facts, post_state=facts, error="not_restored",
        actions=(ActionTaken("a", at, "failed", 1, 7, 12, "timed_out"), ActionTaken("b", None, "skipped", 2)),
        reason="step_failed", rollback_available=True, rollback_generation=41, post_result=Result.FAIL.value, post_reason="down",
        recovered=True, point_id="p-1",
    )  # fmt: skip
    assert decode_result(encode_result(result)) == result


def test_words_are_kept_as_words() -> None:
    kept = decode_result(encode_result(RemediationResult("x", Outcome.SUCCESS, post_result=Result.PASS)))
    assert (kept.outcome, kept.post_result) == ("success", "pass")
