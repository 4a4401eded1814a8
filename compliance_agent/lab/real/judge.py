"""Judges one row (pure): what the agent recorded, and what the machine itself says, against what must come of the fault."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from compliance_agent.lab.real.row import Row

Bundle = Mapping[str, Any]


@dataclass(frozen=True)
class Observed:
    """What came of one fault.

    Attributes:
        injected_at: when it was there (UTC).
        bundles: what the agent recorded of this check since the fault was begun, in order.
        truth: the machine's own word that the fault is gone, asked when the expected record was there.
        former: the machine's own word that it is as the fault left it.
    """

    injected_at: datetime
    bundles: Sequence[Bundle]
    truth: bool | None = None
    former: bool | None = None


@dataclass(frozen=True)
class Judged:
    """A line of the table. `differences` is empty when all is as it must be."""

    row: Row
    verdict: str = ""
    cure: str = ""
    detect_s: float | None = None
    heal_s: float | None = None
    bundle_id: str = ""
    false_healed: bool = False
    blind_pass: bool = False
    differences: tuple[str, ...] = field(default=())

    def but(self, difference: str) -> Judged:
        """The same line, and this differs too."""
        return replace(self, differences=(*self.differences, difference))


def expected(row: Row, bundle: Bundle) -> bool:
    """Whether this is the record that the row asks for. A pass may be that of the look after a cure."""
    if row.result == "pass":
        return rest(bundle)[0] == "pass"
    return (bundle["result"], bundle["reason"], bundle["outcome"]) == (row.result, row.reason, row.outcome) and (
        row.outcome in {None, "success"} or row.error in {bundle["error"], None}
    )


def rest(bundle: Bundle) -> tuple[str, str]:
    """Verdict and reason that this record leaves a check with."""
    return (
        ("pass", "as_expected") if bundle["post_result"] == "pass" else (str(bundle["result"]), str(bundle["reason"]))
    )


def judge(row: Row, seen: Observed) -> Judged:
    """The line of the table for this row."""
    found = next((bundle for bundle in seen.bundles if expected(row, bundle)), None)
    said = found or (seen.bundles[-1] if seen.bundles else None)
    healed = any(bundle["outcome"] == "success" for bundle in seen.bundles)
    false_healed = healed and not row.standing and (seen.truth is False or row.outcome != "success")
    blind = row.result == "unknown" and any(
        "pass" in (bundle["result"], bundle["post_result"])
        for bundle in seen.bundles
        if _seconds(seen, bundle, "timestamp_start") >= 0  # a look that was under way saw the host as it was
    )
    differences = []
    if found is None:
        differences.append(f"expected {_words(row.result, row.reason, row.outcome, row.error)}, found {_said(said)}")
    if false_healed:
        differences.append("said healed, and the machine says otherwise")
    if blind:
        differences.append("passed where the probe could not look")
    if found is not None and row.outcome == "success":
        if found["post_result"] != "pass":
            differences.append(f"healed without a pass of the check: {found['post_result']}")
        if seen.truth is not True:
            differences.append("healed, and the machine did not confirm it")
    if found is not None and row.outcome in {"reverted", "failed"} and seen.former is not True:
        differences.append("the cure failed, and the host is not in its former state")
    return Judged(
        row,
        verdict=_words(said["result"], said["reason"]) if said else "",
        cure=_words(said["outcome"], said["error"]) if said else "",
        detect_s=max(_seconds(seen, said, "timestamp_start"), 0.0) if said and not row.standing else None,
        heal_s=_seconds(seen, found, "timestamp_end") if found is not None and row.outcome == "success" else None,
        bundle_id=str(said["bundle_id"]) if said else "",
        false_healed=false_healed,
        blind_pass=blind,
        differences=tuple(dict.fromkeys(differences)),
    )


def _words(*words: object) -> str:
    return " ".join(str(word) for word in words if word)


def _said(bundle: Bundle | None) -> str:
    return "nothing" if bundle is None else _words(*(bundle[key] for key in ("result", "reason", "outcome", "error")))


def _seconds(seen: Observed, bundle: Bundle, key: str) -> float:
    moment = datetime.fromisoformat(str(bundle[key]).replace("Z", "+00:00"))
    return round((moment - seen.injected_at).total_seconds(), 2)
