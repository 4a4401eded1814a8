"""A record's entry of the log is kept in less than half, and comes back byte for byte; every other entry is kept as it is."""

from __future__ import annotations

import contextlib
import json
import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compliance_agent.entries.leaf import bundle_leaf, fork_leaf, key_leaf
from compliance_agent.server.services.fsck import Fsck
from compliance_agent.server.store.packed_entry import NUMBER, packed, unpacked
from tests.server.builder import Server, on_sqlite, unwalled, walled

DIGESTS = st.binary(min_size=32, max_size=32).map(bytes.hex)
COUNTS = st.integers(0, 2**63 - 1)
ENTRY = bundle_leaf("a1" * 32, 3, 17, "0" * 64, "b2" * 32, bytes(range(64)))


@given(DIGESTS, COUNTS, COUNTS, DIGESTS, DIGESTS, st.binary(min_size=64, max_size=64))
def test_a_records_entry_comes_back(key: str, epoch: int, seq: int, prev: str, sha256: str, sig: bytes) -> None:
    entry = bundle_leaf(key, epoch, seq, prev, sha256, sig)
    kept = packed(entry)
    assert unpacked(kept) == entry
    assert kept[:1] == NUMBER and len(kept) <= 200 < len(entry)


@pytest.mark.parametrize(
    "entry",
    [
        key_leaf("enrol", "a1" * 32, bytes(32), "2026-11-01T00:00:00Z"),
        fork_leaf("a1" * 32, 0, 1, "b2" * 32, "c3" * 32, bytes(64)),
        ENTRY + b" ",
        ENTRY.replace(b'"v":1', b'"v":2'),
        ENTRY.replace(b"a1a1", b"A1a1"),
        ENTRY.replace(b'"seq":17', b'"seq":017'),
        ENTRY.replace(b'Pw=="', b'Px=="'),  # the same signature in another spelling
        b"",
        b"{}",
    ],
)
def test_every_other_entry_is_kept_as_it_is(entry: bytes) -> None:
    assert entry != ENTRY
    assert packed(entry) == entry
    assert unpacked(entry) == entry


@given(st.binary(max_size=220))
def test_what_cannot_be_read_is_handed_on(raw: bytes) -> None:
    """Or is an entry that is kept as exactly these bytes: nothing is mended."""
    found = unpacked(NUMBER + raw)
    assert found == NUMBER + raw or packed(found) == NUMBER + raw


@pytest.mark.parametrize("tail", [b"3,017", b"3,", b"3", b"3,17 ", b"3,17\n", b"-3,17", b"3,12345678901234567890"])
def test_a_place_in_another_spelling_is_handed_on(tail: bytes) -> None:
    kept = packed(ENTRY).removesuffix(b"3,17") + tail
    assert unpacked(kept) == kept


async def kept_entries(server: Server) -> list[bytes]:
    return [bytes(row[0]) for row in await server.by_hand("SELECT leaf FROM log_entries ORDER BY number")]


@pytest.mark.anyio
async def test_what_is_handed_out_is_the_entry_itself(server: Server) -> None:
    host = await server.enrolled()
    bundles = [host.next() for _ in range(9)]
    await server.deliver(host, *bundles)
    await server.services.sequencer.round()
    kept = await kept_entries(server)
    assert sum(one[:1] == NUMBER for one in kept) == 9
    year = server.clock().year
    leaves = await server.services.store.for_sites({"clinic-1"}).leaves("clinic-1", year, 0, 99)
    assert {json.loads(leaf)["kind"] for leaf in leaves} == {"shard", "key", "bundle"}
    said = [json.loads(leaf) for leaf in leaves]
    assert [one["seq"] for one in said if one["kind"] == "bundle"] == list(range(1, 10))
    assert [packed(leaf) for leaf in leaves if leaf[:1] == b"{" and b'"bundle"' in leaf] == [
        one for one in kept if one[:1] == NUMBER
    ]


@on_sqlite
@pytest.mark.anyio
@pytest.mark.parametrize("at", [1, 40, 80, 130], ids=["key", "digest", "digest before", "signature"])
async def test_planted_one_bit_of_a_kept_entry_is_named(server: Server, at: int) -> None:
    host = await server.enrolled()
    await server.deliver(host, host.next(), host.next())
    await server.services.sequencer.round()
    with contextlib.closing(sqlite3.connect(server.services.settings.data_dir / "server.db")) as database, database:
        [[kept]] = database.execute("SELECT leaf FROM log_entries WHERE seq = 2").fetchall()
        changed = kept[:at] + bytes([kept[at] ^ 1]) + kept[at + 1 :]
        unwalled(database)
        database.execute("UPDATE log_entries SET leaf = ? WHERE seq = 2", (changed,))
        walled(database)
    services = server.services
    fsck = Fsck(services.store, services.log_files, services.log_keys, services.log_heads)
    assert any([finding.problems async for finding in fsck.run()])


@on_sqlite
@pytest.mark.anyio
async def test_an_entry_of_an_earlier_version_is_read_as_it_stands(server: Server) -> None:
    host = await server.enrolled()
    await server.deliver(host, host.next(), host.next())
    await server.services.sequencer.round()
    with contextlib.closing(sqlite3.connect(server.services.settings.data_dir / "server.db")) as database, database:
        [[kept]] = database.execute("SELECT leaf FROM log_entries WHERE seq = 2").fetchall()
        unwalled(database)
        database.execute("UPDATE log_entries SET leaf = ? WHERE seq = 2", (unpacked(kept),))
        walled(database)
    services = server.services
    fsck = Fsck(services.store, services.log_files, services.log_keys, services.log_heads)
    assert [finding.problems async for finding in fsck.run() if finding.problems] == []
