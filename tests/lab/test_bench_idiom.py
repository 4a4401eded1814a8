"""The idiom that ingest is measured against does what it is credited with: it checks, it keeps, and only then it answers."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from compliance_agent.errors import Unavailable
from compliance_agent.lab import bench_idiom
from compliance_agent.lab.bench_log import Host
from compliance_agent.transport.protocol import evidence_request


def test_every_bundle_is_kept_and_paid_for(tmp_path: Path) -> None:
    ran = bench_idiom.idiom(tmp_path / "data", hosts=2, requests=2, size=3)
    assert (ran.bundles, len(ran.latencies_s)) == (12, 4)
    assert ran.server_cpu_s >= 0 and ran.disk_bytes > 0
    with closing(sqlite3.connect(tmp_path / "data" / "idiom.db")) as database:
        assert database.execute("SELECT count(*) FROM bundles").fetchone() == (12,)


def test_a_bundle_that_was_changed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = Host.prepare

    def changed(self: Host, *args: object) -> None:
        right(self, *args)  # type: ignore[arg-type]
        sent = self.batches[0][1][0].sent
        self.batches[0] = (
            evidence_request([sent.__class__(sent.bundle_id, 0, 1, sent.body + b" ", sent.signature)]),
            [],
        )

    monkeypatch.setattr(Host, "prepare", changed)
    with pytest.raises(Unavailable):
        bench_idiom.idiom(tmp_path / "data", hosts=1, requests=1, size=1)


def test_a_stranger_is_refused(tmp_path: Path) -> None:
    (tmp_path / bench_idiom.HOSTS).write_text(json.dumps({}), "ascii")
    with TestClient(bench_idiom.app(tmp_path)) as client:
        asked = client.post("/api/v1/evidence", content=evidence_request([]), headers={"authorization": "Bearer x"})
    assert asked.status_code == 401
