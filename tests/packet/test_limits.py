"""A packet for an account with dates: whole as far as the account sees, and open at its ends, which it says itself."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from compliance_agent.cli.packet import command
from compliance_agent.errors import BadEvidence
from compliance_agent.packet import archive
from compliance_agent.packet.build import Built, Places, checked, write
from compliance_agent.packet.choosing import Wanted
from compliance_agent.packet.content import Limits, Scope
from compliance_agent.packet.report import OpenEnd
from compliance_agent.packet.verify import verify_file, verify_files
from compliance_agent.server.records import Dates
from compliance_agent.server.store import SqlStore
from tests.packet.scene import DAY, SITE, Made
from tests.packet.test_verify import codes, without_record

BEFORE, AFTER = (
    "what precedes its first record here is of the period",
    "what follows its last record here may be of the period",
)
ENDS = [OpenEnd(host, end) for host in ("ws-01", "ws-02") for end in (BEFORE, AFTER)]


@pytest.fixture(scope="module")
def limited(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The same day of the same server, for an account that sees no other."""
    out: Path = tmp_path_factory.mktemp("limited") / "packet.zip"
    result = for_account(made.data_dir, out, Dates(DAY, DAY))
    return Made(made.data_dir, out.read_bytes(), result)


def for_account(data_dir: Path, out: Path, dates: Dates, day: date = DAY) -> Built:
    async def wrote() -> tuple[Scope, int]:
        store = await SqlStore.open(data_dir / "server.db")
        try:
            return await write(store.for_sites({SITE}, dates), Places.of(data_dir), Wanted(SITE, day, day), out)
        finally:
            await store.close()

    return checked(out, *asyncio.run(wrote()))


def test_it_verifies_and_names_the_ends_that_it_leaves_open(limited: Made) -> None:
    report = verify_files(limited.files)
    assert (report.problems, report.open_ends, report.exit_status) == ([], ENDS, 0)
    assert report.scope is not None and report.scope.limits == Limits(DAY.isoformat(), DAY.isoformat())
    assert report.found == 8, "four records of each of the two hosts that said something on that day"


def test_days_in_which_a_host_began_leave_no_end_open_there(made: Made, tmp_path: Path) -> None:
    """The first record of a chain has none before it, by the log; what the account may not see is no problem of the packet."""
    first = DAY - timedelta(days=1)
    report = for_account(made.data_dir, tmp_path / "packet.zip", Dates(first, first), first).report
    assert report.problems == [] and report.open_ends == [OpenEnd("ws-01", AFTER), OpenEnd("ws-02", AFTER)]


def test_what_is_missing_between_two_records_is_missing_there_too(limited: Made) -> None:
    reports = [verify_files(without_record(limited, at)) for at in range(8)]
    assert sum("missing_record" in codes(report) for report in reports) == 4, (
        "of each host's four, the two in the middle"
    )
    assert all(report.exit_status == 65 for report in reports), "its exports tell of the other four"


def test_nothing_but_its_limits_excuses_it(limited: Made, made: Made) -> None:
    """The planted fault: the same files, by a packet that says nothing of limits."""
    scope = Scope.parse(limited.files["packet.json"])
    without = limited.signed_again({**limited.files, "packet.json": replace(scope, limits=None).encode()})
    found = [(one.where, one.detail) for one in verify_files(without).problems if one.code == "missing_record"]
    assert found == [(end.host_id, end.detail) for end in ENDS]
    assert b"limits" not in made.files["packet.json"] and verify_files(made.files).open_ends == []


@pytest.mark.parametrize(
    "limits",
    [
        Limits(DAY.isoformat(), (DAY - timedelta(days=1)).isoformat()),
        Limits((DAY + timedelta(days=1)).isoformat(), (DAY + timedelta(days=2)).isoformat()),
        Limits("2026-11-1", "2026-12-01"),
        Limits("", ""),
    ],
)
def test_limits_that_do_not_hold_the_period_are_refused(limited: Made, limits: Limits) -> None:
    scope = Scope.parse(limited.files["packet.json"])
    with pytest.raises(BadEvidence) as caught:
        Scope.parse(replace(scope, limits=limits).encode())
    assert caught.value.code == "bad_scope"


def test_the_command_and_the_read_me_say_so(limited: Made, tmp_path: Path) -> None:
    path = tmp_path / "packet.zip"
    path.write_bytes(limited.raw)
    shown = CliRunner().invoke(command, ["verify", str(path)])
    days = f"an account that sees {DAY} to {DAY} alone"
    assert shown.exit_code == 0 and f"limited: built for {days}; 4 end(s) left open" in shown.output
    assert f"open: ws-02: {AFTER}" in shown.output
    document = json.loads(CliRunner().invoke(command, ["verify", str(path), "--json"]).output)
    assert document["ok"] and document["limits"] == {"first": DAY.isoformat(), "last": DAY.isoformat()}
    assert len(document["open_ends"]) == 4 and document["open_ends"][0] == {"where": "ws-01", "detail": BEFORE}
    assert days in archive.unpack(limited.raw)["README.txt"].decode()
    assert verify_file(path).ok
