"""A packet holds what was asked for, says what it leaves out, and is the same bytes whenever it is built."""

from __future__ import annotations

import asyncio
import hashlib
import json
from datetime import date, timedelta
from pathlib import Path

import pytest

from compliance_agent.errors import BadEvidence, ConfigError, NoInput
from compliance_agent.log.tiles import ENTRIES, Tile, written
from compliance_agent.packet import archive
from compliance_agent.packet.content import Scope
from compliance_agent.packet.verify import records_of, verify_file
from tests.packet.scene import DAY, Made, built, copied, make
from tests.server.builder import START, Hands, serving, unwalled


def test_built_twice_it_is_the_same_bytes(made: Made, tmp_path: Path) -> None:
    again = built(made.data_dir, tmp_path / "again.zip")
    assert again.path.read_bytes() == made.raw
    elsewhere = built(copied(made, tmp_path / "copy").data_dir, tmp_path / "elsewhere.zip")
    assert elsewhere.path.read_bytes() == made.raw


def test_it_verifies_and_holds_what_was_asked_for(made: Made) -> None:
    assert made.built.report.ok, made.built.report.problems
    assert made.built.report.found == made.built.report.verified == made.built.records
    records = records_of(made.files)
    scope = Scope.parse(made.files["packet.json"])
    assert [host.host_id for host in scope.hosts] == ["ws-01", "ws-02", "ws-03"]
    inside = [record for record in records if scope.holds(record.document)]
    assert len(inside) == 8
    assert len(records) == 12  # of each host the record before and the one after, too
    assert (scope.pending, scope.elsewhere) == (0, {})
    assert "other-01" not in str(made.files["packet.json"])


def test_a_failure_on_the_way_leaves_the_packet_that_was_there(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is written a file at a time; what is there is replaced when all of it is on the disk."""
    out = tmp_path / "packet.zip"
    out.write_bytes(b"older")
    with monkeypatch.context() as patched:
        patched.setattr(archive.Entry, "listed", property(lambda _: 1 / 0))
        with pytest.raises(ZeroDivisionError):
            built(made.data_dir, out)
    assert [path.name for path in tmp_path.iterdir()] == ["packet.zip"]
    assert out.read_bytes() == b"older"
    assert built(made.data_dir, out).path.read_bytes() == made.raw == archive.pack(made.files)


def test_nothing_of_it_was_compressed_or_dated(made: Made) -> None:
    assert archive.pack(archive.unpack(made.raw)) == made.raw


def test_the_first_and_the_last_day_show_where_the_chain_ends(made: Made, tmp_path: Path) -> None:
    whole = built(made.data_dir, tmp_path / "whole.zip", DAY - timedelta(days=1), DAY + timedelta(days=1))
    assert (whole.records, whole.report.ok) == (24, True)
    first = built(made.data_dir, tmp_path / "first.zip", DAY - timedelta(days=1), DAY - timedelta(days=1))
    assert (first.records, first.report.ok) == (10, True)


def test_one_host(made: Made, tmp_path: Path) -> None:
    alone = built(made.data_dir, tmp_path / "host.zip", host="ws-02")
    assert alone.report.ok, alone.report.problems
    files = archive.unpack(alone.path.read_bytes())
    assert {path.split("/")[1] for path in files if path.startswith("evidence/")} == {"ws-02"}
    assert len([path for path in files if path.startswith("keys/")]) == 3
    with pytest.raises(NoInput, match="no host nobody"):
        built(made.data_dir, tmp_path / "none.zip", host="nobody")
    with pytest.raises(NoInput, match="no evidence"):
        built(made.data_dir, tmp_path / "none.zip", host="ws-03")


@pytest.mark.parametrize("spelling", ["164.312(b)", "hipaa-164.312.b"])
def test_one_control(made: Made, tmp_path: Path, spelling: str) -> None:
    some = built(made.data_dir, tmp_path / "control.zip", control=spelling)
    assert some.report.ok, some.report.problems
    assert some.scope.control == "164.312(b)"
    assert some.records == 8
    with pytest.raises(NoInput, match=r"no evidence for 164\.312\(d\)"):
        built(made.data_dir, tmp_path / "none.zip", control="164.312(d)")
    assert not (tmp_path / "none.zip").exists()


def test_what_cannot_be_answered_is_refused_by_name(made: Made, tmp_path: Path) -> None:
    out = tmp_path / "packet.zip"
    with pytest.raises(NoInput, match="no evidence") as refused:
        built(made.data_dir, out, date(2026, 1, 1), date(2026, 1, 31))
    assert "from 2026-11-21 to 2026-11-23" in refused.value.hint
    with pytest.raises(NoInput, match=r"no log of 2025 \(there is: 2026\)"):
        built(made.data_dir, out, date(2025, 1, 1), date(2025, 1, 31))
    with pytest.raises(ConfigError, match="is after"):
        built(made.data_dir, out, DAY, DAY - timedelta(days=1))
    with pytest.raises(ConfigError, match="not a section"):
        built(made.data_dir, out, control="164.999")
    with pytest.raises(NoInput, match="not the data directory"):
        built(tmp_path, out)
    with pytest.raises(NoInput, match="not known"):
        from compliance_agent.packet.build import build

        asyncio.run(build(made.data_dir, "clinic-9", DAY, DAY, out))
    assert not out.exists()


def test_a_log_that_does_not_hold_together_is_not_packed(made: Made, tmp_path: Path) -> None:
    broken = copied(made, tmp_path / "server")
    size = Scope.parse(made.files["packet.json"]).size
    path = broken.data_dir / "log/clinic-1/2026" / Tile(ENTRIES, 0, size).path
    content = bytearray(path.read_bytes())
    content[40] ^= 1
    path.write_bytes(content)
    with pytest.raises(BadEvidence, match="do not make the tree"):
        built(broken.data_dir, tmp_path / "packet.zip")


def test_a_log_of_several_tiles(tmp_path: Path) -> None:
    make(tmp_path / "server", more=400)
    result = built(tmp_path / "server", tmp_path / "packet.zip")
    assert result.report.ok, result.report.problems[:3]
    assert result.scope.size > 3 * 256
    files = archive.unpack(result.path.read_bytes())
    log = {path for path in files if path.startswith("log/tile/")}
    assert log == {f"log/{tile.path}" for tile in written(0, result.scope.size)}
    assert archive.pack(files) == result.path.read_bytes()
    assert verify_file(result.path).as_document() == result.report.as_document()


async def test_beside_a_running_server(tmp_path: Path) -> None:
    from compliance_agent.packet.build import build

    async with serving(tmp_path / "server", clock=Hands(START)) as server:
        host = await server.enrolled()
        await server.deliver(host, host.heartbeat(time_sync="pass"))
        result = await build(tmp_path / "server", "clinic-1", DAY, DAY, tmp_path / "packet.zip")
        assert result.report.ok
        assert (await server.deliver(host, host.next())).status_code == 200


async def test_a_fork_is_packed_and_named(tmp_path: Path) -> None:
    """Bad evidence is handed out too: hiding it would be worse."""
    from compliance_agent.packet.build import build

    async with serving(tmp_path / "server", clock=Hands(START)) as server:
        host = await server.enrolled()
        first = host.next()
        await server.deliver(host, first)
        other = host.sign({**first.document, "reason": "as_expected", "severity": "low"})
        assert (await server.deliver(host, other)).json()["code"] == "fork"
        await server.deliver(host, host.next())
    result = await build(tmp_path / "server", "clinic-1", DAY, DAY, tmp_path / "packet.zip")
    assert [problem.code for problem in result.report.problems] == ["fork"]


def test_what_is_not_in_this_log_is_counted(made: Made, tmp_path: Path) -> None:
    """Records that wait, and records that came after New Year, are named in the page that people read first."""
    import sqlite3

    changed = copied(made, tmp_path / "server")
    with sqlite3.connect(changed.data_dir / "server.db") as database:
        unwalled(database)
        find = "select max(number) from log_entries where key_id = (select key_id from hosts where host_id = ?)"
        for host, year in (("ws-01", None), ("ws-02", 2027)):
            (number,) = database.execute(find, (host,)).fetchone()
            index = None if year is None else 5
            database.execute("update log_entries set year = ?, leaf_index = ? where number = ?", (year, index, number))
    database.close()
    after = DAY + timedelta(days=1)
    result = built(changed.data_dir, tmp_path / "packet.zip", after, after)
    assert (result.scope.pending, result.scope.elsewhere) == (1, {"2027": 1})
    readme = archive.unpack(result.path.read_bytes())["README.txt"].decode()
    assert "NOT HERE: 1 record(s) of the period that were not in the log yet." in readme
    assert "in the log of 2027" in readme
    assert not result.report.ok  # the log holds an entry whose record was kept back


def test_the_manifest_is_of_every_other_file(made: Made) -> None:
    lines = [line.split("  ") for line in made.files["MANIFEST.sha256"].decode().splitlines()]
    listed = {path: digest for digest, path in lines}
    assert listed.keys() | {"MANIFEST.sha256", "MANIFEST.sig"} == made.files.keys()
    assert all(hashlib.sha256(made.files[path]).hexdigest() == digest for path, digest in listed.items())


def test_nothing_in_it_but_declared_words(made: Made) -> None:
    """No path of the server, and no time that was not in the data."""
    everything = b"".join(made.files.values())
    assert str(made.data_dir).encode() not in everything
    assert json.loads(made.files["packet.json"])["signed_at"].startswith("2026-11-23")
