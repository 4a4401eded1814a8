"""The bench of a large site's packet builds one that verifies, and says what it took."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from compliance_agent.errors import Unavailable
from compliance_agent.lab import bench, bench_site
from compliance_agent.lab.viewer_seed import Size

SMALL = Size(sites=1, hosts=3, bundles=3 * 40, cycle=20)


def test_a_packet_is_built_and_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_site, "MONTH", SMALL)
    monkeypatch.setattr(bench_site.built, "__defaults__", (SMALL,))
    monkeypatch.setenv("BENCH_DIR", str(tmp_path))
    ran = CliRunner().invoke(bench.main, ["packet", "--json"], catch_exceptions=False)
    figures = {one["name"]: one for one in json.loads(ran.output)["packet"]}
    assert figures["120 records, built and verified"]["holds"] is True
    assert figures["packet"]["value"] > 0.1
    assert figures["  report"]["value"] > 0.01


def test_a_build_that_names_something_is_no_figure(tmp_path: Path) -> None:
    bench_site.built(tmp_path, SMALL)
    (tmp_path / "server" / "server.db").write_bytes(b"no database")
    with pytest.raises(Unavailable, match="packet build ends in"):
        bench_site.built(tmp_path, SMALL)
