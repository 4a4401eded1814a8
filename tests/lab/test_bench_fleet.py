"""The fleet benchmark calls as agents do, counts what it measures, and says what was not answered as agreed."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from compliance_agent.errors import Unavailable
from compliance_agent.lab import bench, bench_fleet
from compliance_agent.lab.bench_fleet import Fleet, percentile
from compliance_agent.lab.bench_log import Client
from compliance_agent.ports import HttpReply

SMALL = Fleet(hosts=12, poll_s=0.5, drifting=0.5, connect_s=0.5, seconds=2.0)


def test_hosts_call_bring_records_and_are_answered(tmp_path: Path) -> None:
    seen = bench_fleet.run(tmp_path / "data", SMALL)
    assert seen.failed == {}
    assert len(seen.checkins_s) >= 12 and len(seen.records_s) >= 1
    assert seen.seconds >= SMALL.seconds and seen.peak_rss_bytes >= seen.rss_bytes > 0


def test_what_is_not_answered_as_agreed_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = Client.post

    async def forgetful(self: Client, path: str, body: bytes, *, hurried: bool = False) -> HttpReply:
        if path == "/api/v1/evidence":
            raise Unavailable("refused", code="planted")
        return await right(self, path, body, hurried=hurried)

    monkeypatch.setattr(Client, "post", forgetful)
    seen = bench_fleet.run(tmp_path / "data", SMALL)
    # The chain goes on and the server has none of it, which the next check-in of the same host shows.
    assert seen.failed.keys() == {"planted", "lost"} and seen.records_s == []


def test_the_table_says_what_was_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = {"HOSTS": "3", "POLL_S": "0.5", "CONNECT_S": "0.2", "SECONDS": "1", "DIR": str(tmp_path)}
    for name, value in asked.items():
        monkeypatch.setenv(f"BENCH_{name}", value)
    ran = CliRunner().invoke(bench.main, ["fleet"], catch_exceptions=False)
    assert "check-ins of 3 hosts, one in 0.5 s" in ran.output and "server RSS" in ran.output


def test_a_percentile_of_one_or_none() -> None:
    assert (percentile([], 99), percentile([0.5], 99), percentile([1.0, 2.0, 3.0], 50)) == (0.0, 0.5, 2.0)
