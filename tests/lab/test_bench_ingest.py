"""The ingest benchmark counts only what the server has acknowledged, and stops at what it did not take."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from compliance_agent.errors import Unavailable
from compliance_agent.lab import bench_ingest
from compliance_agent.lab.bench_log import Host


def test_every_bundle_is_acknowledged_and_paid_for(tmp_path: Path) -> None:
    ran = bench_ingest.ingest(tmp_path / "data", hosts=2, requests=2, size=3)
    assert (ran.bundles, len(ran.latencies_s)) == (12, 4)
    assert ran.raw_bytes > 12 * 900 and ran.disk_bytes > 0
    assert ran.per_s == pytest.approx(12 / ran.seconds) and ran.p99_s <= ran.seconds


def test_a_bundle_that_was_not_taken_stops_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = Host.prepare

    def forked(self: Host, batches: int, rng: random.Random, size: int) -> None:
        right(self, batches, rng, size)
        self.batches[1] = self.batches[0]  # known already: acknowledged, and not the bundles of this request
        self.batches[0] = self.batches[-1]

    monkeypatch.setattr(Host, "prepare", forked)
    with pytest.raises(Unavailable):
        bench_ingest.ingest(tmp_path / "data", hosts=1, requests=3, size=2)
