"""A log of which the first entries were destroyed: its packet holds what is kept, says what is gone, and excuses nothing else."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

from compliance_agent.core.retention import RULE
from compliance_agent.entries.minimum import NAME, Pruned
from compliance_agent.errors import NoInput
from compliance_agent.packet import archive
from compliance_agent.packet.build import Built, build
from compliance_agent.packet.content import Scope
from compliance_agent.packet.verify import verify_file
from tests.cli.command import run as command
from tests.packet.scene import SITE, Files, Made
from tests.packet.test_readme import blocks, missing_tool, run, unpacked
from tests.server.builder import serving
from tests.server.test_pruning import FIRST_PART, LONG_AFTER, NEXT_DAY, naming, pruned
from tests.server.test_sequencer import settled

NOVEMBER, DECEMBER = date(2026, 11, 22), date(2026, 12, 12)
ENTRIES, RETENTION = "log/tile/entries/000", f"log/{NAME}"
NOW = datetime(2026, 12, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 records of November of which one is of ws-02, then 20 of December under version 2. Both hosts are revoked."""
    directory: Path = tmp_path_factory.mktemp("old") / "data"

    async def fill() -> None:
        async with serving(directory) as server:
            host, other = await server.enrolled(), await server.enrolled("ws-02")
            for stretch in ((host, 100), (host, 100), (other, 1), (host, 99)):
                await server.deliver(stretch[0], *(naming(stretch[0], "1") for _ in range(stretch[1])))
            await settled(server)
            server.clock.move(20 * 86_400)
            host.now = server.clock()
            await server.deliver(host, *(naming(host, "2") for _ in range(20)))
            for item in (host, other):
                await server.services.enrolment.revoke(SITE, item.key_id, actor="operator")
            await settled(server)

    asyncio.run(fill())
    return directory


def packed(data: Path, out: Path, since: date = DECEMBER, until: date = DECEMBER, **asked: Any) -> Built:
    return asyncio.run(build(data, SITE, since, until, out, **asked))


@pytest.fixture(scope="module")
def half(old: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The packet of December when the records of November are gone: 303 entries, of which 256 are in no file any more."""
    directory = tmp_path_factory.mktemp("half")
    shutil.copytree(old, directory / "server")
    asyncio.run(pruned(directory / "server", NEXT_DAY))
    built = packed(directory / "server", directory / "packet.zip")
    return Made(directory / "server", built.path.read_bytes(), built)


def test_what_is_kept_verifies(half: Made, tmp_path: Path) -> None:
    report = half.built.report
    assert (report.problems, report.found, report.verified) == ([], 20, 20)
    assert (half.built.scope.minimum, half.built.scope.destroyed) == (FIRST_PART + 3, 0)
    assert ENTRIES not in half.files
    assert "log/tile/0/000" in half.files
    assert half.files[RETENTION] == (half.data_dir / "log" / SITE / "2026" / NAME).read_bytes()
    page = half.files["README.txt"].decode()
    assert "log/retention.json: the records of the log's entries below 303 were destroyed." in page
    assert "NOT HERE" not in page
    again = packed(half.data_dir, tmp_path / "again.zip")
    assert again.path.read_bytes() == half.raw
    assert verify_file(again.path, now=NEXT_DAY).ok


def test_every_command_of_its_page_works(half: Made, tmp_path: Path) -> None:
    directory = unpacked(half.files, tmp_path)
    assert len(blocks(half.files)) == 9
    for block in blocks(half.files):
        if not missing_tool(block):
            done = run(block, directory)
            assert done.returncode == 0, (block, done.stdout, done.stderr)


def test_a_period_of_which_a_part_is_gone_says_how_much(half: Made, tmp_path: Path) -> None:
    made = packed(half.data_dir, tmp_path / "packet.zip", NOVEMBER, DECEMBER)
    assert (made.report.problems, made.records, made.scope.destroyed) == ([], 20, FIRST_PART)
    page = archive.unpack(made.path.read_bytes())["README.txt"].decode()
    assert "NOT HERE: 300 record(s) of the period, destroyed when their time was over." in page
    alone = packed(half.data_dir, tmp_path / "packet.zip", NOVEMBER, DECEMBER, host="ws-01")
    assert (alone.report.problems, alone.scope.destroyed) == ([], FIRST_PART - 1)


def test_a_period_that_is_gone_is_refused_with_the_days_that_are_not(half: Made, tmp_path: Path) -> None:
    with pytest.raises(NoInput, match=r"2026-11-22 to 2026-11-30: 300 record\(s\), destroyed") as caught:
        packed(half.data_dir, tmp_path / "packet.zip", NOVEMBER, date(2026, 11, 30))
    assert caught.value.code == "pruned"
    assert "there is evidence from 2026-12-12 to 2026-12-12" in str(caught.value.hint)
    assert not (tmp_path / "packet.zip").exists()


def test_all_of_it_gone(old: Path, tmp_path: Path) -> None:
    shutil.copytree(old, tmp_path / "server")
    asyncio.run(pruned(tmp_path / "server", LONG_AFTER))
    with pytest.raises(NoInput, match="destroyed") as caught:
        packed(tmp_path / "server", tmp_path / "packet.zip", NOVEMBER, DECEMBER)
    assert "this log holds no evidence" in str(caught.value.hint)


def test_a_minimum_in_the_middle_of_a_file(old: Path, tmp_path: Path) -> None:
    """Entry 203 must be kept, so its file stays, with the first entry in it; the 200 records before it are gone."""
    shutil.copytree(old, tmp_path / "server")
    with closing(sqlite3.connect(tmp_path / "server" / "server.db")) as database, database:
        database.execute("UPDATE hosts SET revoked_at = NULL WHERE host_id = 'ws-02'")
    asyncio.run(pruned(tmp_path / "server", LONG_AFTER))
    made = packed(tmp_path / "server", tmp_path / "packet.zip", NOVEMBER, NOVEMBER)
    assert (made.report.problems, made.scope.minimum, made.scope.destroyed) == ([], 203, 200)
    assert ENTRIES in archive.unpack(made.path.read_bytes())


@pytest.mark.parametrize("put_back", [True, False])
def test_records_that_go_at_this_moment_are_not_taken_for_a_hole(old: Path, tmp_path: Path, put_back: bool) -> None:
    """The database is ahead of what the log says, as between two steps of a prune."""
    data = tmp_path / "server"
    shutil.copytree(old, data)
    log, before = data / "log" / SITE / "2026", tmp_path / "log"
    shutil.copytree(log, before)
    asyncio.run(pruned(data, NEXT_DAY))
    if put_back:
        shutil.rmtree(log)
        shutil.copytree(before, log)
        with pytest.raises(NoInput, match="being destroyed at this moment") as caught:
            packed(data, tmp_path / "packet.zip")
        assert caught.value.code == "pruned"
    else:
        assert packed(data, tmp_path / "packet.zip").report.ok


# --- faults ---------------------------------------------------------------------------------------------

Fault = Callable[[Files], Files]


def without(*endings: str) -> Fault:
    return lambda files: {path: content for path, content in files.items() if not path.endswith(endings)}


def a_record_less(files: Files) -> Files:
    record = sorted(path.rpartition("/")[0] for path in files if path.endswith("/bundle.json"))[3]
    return {path: content for path, content in files.items() if not path.startswith(f"{record}/")}


def said(**changes: Any) -> Fault:
    return lambda files: {**files, RETENTION: json.dumps({**json.loads(files[RETENTION]), **changes}).encode()}


def scoped(**changes: Any) -> Fault:
    return lambda files: {**files, "packet.json": replace(Scope.parse(files["packet.json"]), **changes).encode()}


FAULTS: dict[str, tuple[Fault, str, str]] = {
    "a record less": (a_record_less, "missing_record", "ws-01"),
    "no statement": (without(NAME), "missing_file", ENTRIES),
    "a statement of a smaller minimum": (said(minimum_index=200), "missing_file", ENTRIES),
    "a statement of a larger minimum": (said(minimum_index=310), "bad_scope", "packet.json"),
    "a larger minimum in both": (
        lambda files: scoped(minimum=310)(said(minimum_index=310)(files)), "bad_retention", RETENTION,
    ),
    "beyond the tree": (said(minimum_index=999), "bad_retention", RETENTION),
    "too early": (said(pruned_at="2032-01-01T00:00:00Z"), "bad_retention", RETENTION),
    "a day to come": (said(pruned_at="2033-01-01T00:00:00Z"), "bad_retention", RETENTION),
    "of another log": (said(origin="compliance-server/clinic-2/2026"), "bad_retention", RETENTION),
    "another hash of what is gone": (
        lambda files: {**files, "log/tile/0/000": bytes(32) + files["log/tile/0/000"][32:]}, "bad_tile", "log/tile/entries/000",
    ),
    "no hashes of what is gone": (without("tile/0/000"), "bad_tile", "log/tile/0/000"),
    "another minimum in the scope": (scoped(minimum=256), "bad_scope", "packet.json"),
    "a number of destroyed records": (scoped(destroyed=7), "wrong_export", "README.txt"),
    "what is gone, made up": (lambda files: {**files, ENTRIES: b"\0\1x"}, "extra_file", ENTRIES),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_named(half: Made, tmp_path: Path, name: str) -> None:
    fault, code, where = FAULTS[name]
    (tmp_path / "packet.zip").write_bytes(archive.pack(half.signed_again(fault(half.files))))
    report = verify_file(tmp_path / "packet.zip", now=NEXT_DAY)
    assert (code, where) in [(problem.code, problem.where) for problem in report.problems]


def test_a_whole_log_cannot_be_called_pruned(old: Path, tmp_path: Path) -> None:
    """Who made the packet leaves out entries and records, and says that they were old enough: on a day that is to come."""
    made = packed(old, tmp_path / "packet.zip", NOVEMBER, DECEMBER)
    files = archive.unpack(made.path.read_bytes())
    records = {path.rpartition("/")[0] for path in files if path.endswith("/bundle.json") and "/2026/11/" in path}
    kept = {
        path: content for path, content in files.items() if path.rpartition("/")[0] not in records and path != ENTRIES
    }
    origin = made.scope.origin
    kept[RETENTION] = Pruned(origin, 303, NEXT_DAY).encode()
    kept = scoped(minimum=303)(kept)
    signed = Made(old, made.path.read_bytes(), made).signed_again(kept)
    (tmp_path / "packet.zip").write_bytes(archive.pack(signed))
    report = verify_file(tmp_path / "packet.zip", now=NOW)
    found = [(problem.code, problem.where) for problem in report.problems]
    assert ("bad_retention", RETENTION) in found
    assert ("missing_file", ENTRIES) in found
    believed = verify_file(tmp_path / "packet.zip")  # without a clock nothing is wrong but exports of other records
    assert {problem.code for problem in believed.problems} == {"wrong_export"}


def test_the_commands(half: Made, tmp_path: Path) -> None:
    out = tmp_path / "packet.zip"
    asked = (
        "packet",
        "build",
        "--data-dir",
        half.data_dir,
        "--site",
        SITE,
        "--from",
        "2026-11-01",
        "--out",
        out,
        "--to",
    )
    done = command(*asked, "2026-12-12", "--json")
    assert (done.status, json.loads(done.out)["destroyed"]) == (0, FIRST_PART), done.err
    told = command(*asked, "2026-12-12")
    assert "not in it, destroyed: 300" in told.err
    refused = command(*asked, "2026-11-30")
    assert refused.status == 66
    assert "2026-12-12" in refused.err
    early = command("packet", "verify", str(out), "--json")  # by a clock of today the log was never pruned
    codes = {problem["code"] for problem in json.loads(early.out)["problems"]}
    assert (early.status, "bad_retention" in codes) == (65, True)


def test_the_statement_names_its_rule(half: Made) -> None:
    assert json.loads(half.files[RETENTION])["policy"] == RULE
