"""The evidence of a host of the lab, verified offline with the log's keys: signatures, chain, receipts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compliance_agent.evidence.logged import read_log_keys
from compliance_agent.evidence.verify import load_keys, verify_paths

LAST_WORDS = 2  # of an agent that is stopped may wait on its disk for its next start


def proven(
    name: str, evidence: Path, public: Sequence[Path], log_keys: Sequence[str], lost: Sequence[str] = ()
) -> dict[str, Any]:
    """What came of it; `public` are the keys that signed, `lost` are records that were seen before and are not there."""
    report = verify_paths([evidence], load_keys(public), log_keys=read_log_keys(log_keys))
    receipted = sum(chain.receipted for chain in report.chains)
    problems = [*(f"{problem.code} {problem.where}" for problem in report.problems), *(f"lost {path}" for path in lost)]
    ok = report.ok and not problems and report.found > 0 and receipted >= report.found - LAST_WORDS
    return {"host": name, "bundles": report.found, "receipts": receipted, "problems": problems[:20], "ok": ok}
