"""A real witness beside a real server: a record's proof and its log's page say who cosigned, and say it when nobody did."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from compliance_agent.server.services.proving import Line, State, Witness
from tests.server.builder import Server
from tests.server.test_cosigning import Way, World, down, settled

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
