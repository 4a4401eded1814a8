"""A real witness beside a real server: a record's proof and its log's page say who cosigned, and say it when nobody did."""

from __future__ import annotations

import base64
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.note import Note
from compliance_agent.server.records import BundleQuery
from compliance_agent.server.services.checkpoints import Line, State, Witness
from compliance_agent.server.services.proving import Proven
from tests.server.authority import stamping
from tests.server.builder import Server, serving
from tests.server.test_cosigning import Way, World, down, settled
from tests.witness.builder import Wall

pytestmark = pytest.mark.anyio


async def shown(server: Server) -> tuple[Line, tuple[Witness, ...]]:
    """What is said of the witnesses of a record that is delivered now; its page and the log's say the same."""
    host = await server.enrolled()
    bundle = host.next()
    await server.deliver(host, bundle)
    await settled(server)
    reader = server.services.store.for_sites({"clinic-1"})
    proven = await server.services.prover(reader).prove(bundle.document["bundle_id"])
    log = await server.services.logbook(reader).log("clinic-1")
    assert {line.name: line.state for line in proven.lines}["inclusion"] is State.VERIFIED
    line = proven.lines[-1]
    assert line.name == "witnesses"
    assert (line, proven.witnesses) == (log.lines[-1], log.witnesses)
    return line, proven.witnesses


async def test_a_witness_that_cosigned_is_named_with_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, monkeypatch)
    async with world.serving() as server:
        line, witnesses = await shown(server)
    assert (line.state, line.code) == (State.VERIFIED, "quorum_met")
    assert witnesses == (Witness("w1", "cosigned", world.wall.now()),)


async def test_a_witness_that_does_not_answer_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, monkeypatch)
    world.way = Way(down)
    async with world.serving(witness_deadline_ms=50) as server:
        line, witnesses = await shown(server)
    assert (line.state, line.code) == (State.UNTOLD, "unwitnessed")
    assert witnesses == (Witness("w1", "absent"),)


async def test_a_witness_shows_by_when_a_record_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not after: the witness's own second, and one. Nothing shows a beginning to a record that names no head."""
    world = World(tmp_path, monkeypatch)
    async with world.serving() as server:
        host = await server.enrolled()
        bundle = host.next()
        await server.deliver(host, bundle)
        await settled(server)
        reader = server.services.store.for_sites({"clinic-1"})
        proven = await server.services.prover(reader).prove(bundle.document["bundle_id"])
        [witness] = proven.witnesses
    assert proven.interval is not None and witness.at is not None
    assert proven.interval.not_after == witness.at.replace(microsecond=0) + timedelta(seconds=1)
    assert (proven.interval.not_before, proven.interval.width) == (None, None)


async def headed(server: Server, wall: Wall | None = None) -> tuple[Proven, dict[str, Any]]:
    """A record that names a head over the log's first time entry, and that stands before the second; and its `times.json`."""
    host = await server.enrolled()
    await server.deliver(host, host.next())
    await settled(server)
    server.clock.move(301)
    if wall is not None:
        wall.at += 301
    found = Note.parse(server.services.log_files.published("clinic-1", 2026) or b"")
    head = Checkpoint.parse(found.text)
    named = {"origin": head.origin, "size": head.size, "root": head.root.hex(), "witnessed_at": None}
    bundle = host.next(log_head=named)
    await server.deliver(host, bundle)
    await settled(server)
    reader = server.services.store.for_sites({"clinic-1"})
    prover, bundle_id = server.services.prover(reader), str(bundle.document["bundle_id"])
    row = await reader.bundle(bundle_id)
    held = await reader.host(host.key_id)
    assert row is not None and held is not None
    times = await prover.times(held, row[0], row[1])
    assert times is not None
    return await prover.prove(bundle_id), json.loads(times)


async def test_both_ends_are_witnessed_and_the_browser_gets_what_leads_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, monkeypatch)
    async with world.serving() as server:
        proven, times = await headed(server, world.wall)
    assert proven.interval is not None and proven.interval.width is not None
    assert (proven.interval.before.why, proven.interval.after.why) == ("", "")
    assert times["before"]["path"] and b'"kind":"time"' in base64.b64decode(times["before"]["leaf"])
    assert world.witnesses(base64.b64decode(times["after"]["checkpoint"])) == {"w1"}


async def test_time_stamps_bound_a_record_where_there_is_no_witness(tmp_path: Path) -> None:
    """A real authority; and the same log with no authority configured any more: could not tell, and why."""
    with stamping(tmp_path / "tsa") as authority:
        asked: dict[str, Any] = {"tsa_url": authority.url, "tsa_ca_file": authority.ca_file, "tsa_interval_s": 60}
        async with serving(tmp_path / "data", **asked) as server:
            proven, times = await headed(server)
    assert proven.interval is not None and proven.interval.width is not None
    assert (proven.interval.before.stamps, proven.interval.after.stamps) == (1, 1)
    assert (times["why"], len(times["after"]["tokens"])) == ({"after": "", "before": ""}, 1)
    async with serving(tmp_path / "data") as server:
        reader = server.services.store.for_sites({"clinic-1"})
        [newest, *_] = await reader.bundles(BundleQuery(limit=1))
        prover, row, held = (
            server.services.prover(reader),
            await reader.bundle(newest.bundle_id),
            await reader.host(newest.key_id),
        )
        assert row is not None and held is not None
        unknown = json.loads(await prover.times(held, row[0], row[1]) or b"")
        later = (await prover.prove(newest.bundle_id)).interval
    assert unknown["why"] == {"after": "stamps_only", "before": "stamps_only"}
    assert later is not None and (later.width, later.before.unchecked, later.after.unchecked) == (None, 1, 1)
