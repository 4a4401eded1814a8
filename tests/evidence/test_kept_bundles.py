"""Bundles that were recorded once verify for good: evidence outlives the program that wrote it.

A change that makes one of these fail changes what `compliance-agent/bundle/v1` means. Before the first release they may be recorded
anew (`make demo ARGS="--check --keep DIR"`, one of each kind and the host's public key); after it the schema needs a new version.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from compliance_agent.errors import BadEvidence
from compliance_agent.evidence.verify import check_bytes, load_keys

KEPT = Path(__file__).resolve().parent.parent / "fixtures" / "bundles"
KINDS = sorted(path.stem for path in KEPT.glob("*.json"))


def test_there_is_one_of_each_usual_kind() -> None:
    assert set(KINDS) >= {"drift", "heartbeat", "remediation"}


@pytest.mark.parametrize("kind", KINDS)
def test_an_old_bundle_still_verifies(kind: str) -> None:
    body, signature = (KEPT / f"{kind}.json").read_bytes(), (KEPT / f"{kind}.sig").read_bytes()
    assert check_bytes(body, signature, load_keys([KEPT / "riverside-01.pub.pem"]))["kind"] == kind


@pytest.mark.parametrize("kind", KINDS)
def test_one_changed_byte_does_not(kind: str) -> None:
    body, signature = (KEPT / f"{kind}.json").read_bytes(), (KEPT / f"{kind}.sig").read_bytes()
    with pytest.raises(BadEvidence):
        check_bytes(
            body.replace(b"riverside-01", b"riverside-02"), signature, load_keys([KEPT / "riverside-01.pub.pem"])
        )
