"""The bytes of a record come back exactly as they came, whatever they are, and anybody can unpack them."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import sqlite3
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compliance_agent.server.services.fsck import Fsck
from compliance_agent.server.store import packing
from compliance_agent.server.store.packing import NUMBER, packed, unpacked
from tests.server.builder import FakeHost, Server, on_sqlite, unwalled, walled

TEXT = Path(packing.__file__).with_name("records-1.txt")
RECORDS = sorted((Path(__file__).resolve().parents[1] / "fixtures" / "bundles").glob("*.json"))


def test_the_text_is_what_it_was() -> None:
    """Records were packed with it: with another one they are lost. A better text gets a number of its own."""
    assert (
        hashlib.sha256(TEXT.read_bytes()).hexdigest()
        == "77a554d840886cd9222eabce5515c0fc951cc764591d6a71234aa045518e75d0"
    )


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_a_real_record_is_a_third_of_its_size_at_most(path: Path) -> None:
    raw = path.read_bytes()
    kept = packed(raw)
    assert unpacked(kept) == raw
    assert len(kept) * 3 <= len(raw)


@given(st.binary(max_size=4_000).filter(lambda raw: raw[:1] != NUMBER))
def test_whatever_it_is_comes_back(raw: bytes) -> None:
    assert unpacked(packed(raw)) == raw
    assert len(packed(raw)) <= len(raw)


@given(st.binary(max_size=200))
def test_what_cannot_be_unpacked_is_handed_on(raw: bytes) -> None:
    kept = NUMBER + raw
    assert unpacked(kept) == kept
    assert packed(kept) == kept


def test_a_value_that_says_that_it_is_huge_is_not_unpacked() -> None:
    bomb = NUMBER + packing._packer().compress(b"0" * (packing.MOST_BYTES + 1))
    assert len(bomb) < 2_000
    assert unpacked(bomb) == bomb


def test_several_threads_pack_at_once() -> None:
    hosts = [FakeHost() for _ in range(4)]
    bodies = [[host.next().body for _ in range(100)] for host in hosts]
    with ThreadPoolExecutor(4) as threads:
        kept = list(threads.map(lambda mine: [packed(body) for body in mine], bodies))
    assert [[unpacked(one) for one in mine] for mine in kept] == bodies


@pytest.mark.skipif(shutil.which("zstd") is None, reason="needs the zstd program")
def test_a_program_that_is_not_ours_unpacks_it(tmp_path: Path) -> None:
    raw = RECORDS[0].read_bytes()
    (tmp_path / "record.zst").write_bytes(packed(raw)[1:])
    done = subprocess.run(
        ["zstd", "-d", "-q", "-c", "-D", str(TEXT), str(tmp_path / "record.zst")], capture_output=True, check=True
    )
    assert done.stdout == raw


@pytest.mark.anyio
async def test_records_are_kept_packed_and_handed_out_as_they_came(server: Server) -> None:
    host = await server.enrolled()
    bundles = [host.next() for _ in range(9)]
    await server.deliver(host, *bundles)
    kept = [bytes(row[0]) for row in await server.by_hand("SELECT body FROM bundles ORDER BY seq")]
    assert all(body[:1] == NUMBER and len(body) * 3 < len(one.body) for body, one in zip(kept, bundles, strict=True))
    reader = server.services.store.for_sites({"clinic-1"})
    for one in bundles:
        found = await reader.bundle(one.document["bundle_id"])
        assert found is not None and (found[1], found[2]) == (one.body, one.sig)


@on_sqlite
@pytest.mark.anyio
@pytest.mark.parametrize("damage", [b"\x01", b"\x01 no frame", b""], ids=["cut", "no frame", "gone"])
async def test_planted_damage_of_what_is_packed_is_named(server: Server, damage: bytes) -> None:
    host = await server.enrolled()
    await server.deliver(host, host.next(), host.next())
    with contextlib.closing(sqlite3.connect(server.services.settings.data_dir / "server.db")) as database, database:
        unwalled(database)
        database.execute("UPDATE bundles SET body = ? WHERE seq = 2", (damage,))
        walled(database)
    services = server.services
    fsck = Fsck(services.store, services.log_files, services.log_keys, services.log_heads)
    findings = [finding async for finding in fsck.run()]
    assert any(finding.problems for finding in findings)
