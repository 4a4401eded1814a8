"""What stops a log at one of two servers stops it at both, until somebody lifts it; and lifting mends nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compliance_agent.errors import LogStopped, Refusal
from compliance_agent.server import sequencer as module
from compliance_agent.server.log_stops import lift
from compliance_agent.server.store import Address
from tests.server.builder import FakeHost, Server, serving
from tests.server.test_following import SITE, leaves, replicas, sequenced, shown

pytestmark = pytest.mark.anyio


async def begun(*servers: Server) -> FakeHost:
    """A log that both show."""
    host = await servers[0].enrolled()
    await servers[0].deliver(host, host.next())
    await sequenced(*servers)
    return host


def stops(server: Server) -> dict[str, str]:
    return server.services.board.stopped


def found_by(server: Server, code: str = "log_forked") -> None:
    """As its files, its memory or its witnesses would have it say."""
    server.services.sequencer._still.stop(SITE, LogStopped("found", code=code))


async def told(server: Server, *others: Server) -> None:
    for one in (server, *others):
        await one.services.sequencer.follow()


async def audited(server: Server) -> list[tuple[Any, ...]]:
    rows = await server.by_hand(
        "SELECT actor, action, site_id, subject FROM audit WHERE action LIKE 'log.%' ORDER BY number"
    )
    return [tuple(row) for row in rows]


@pytest.mark.parametrize("code", ["log_restored", "log_forked", "log_damaged"])
async def test_what_a_follower_finds_stops_the_one_that_sequences(
    tmp_path: Path, postgresql: Address, code: str
) -> None:
    async with replicas(tmp_path, postgresql) as (first, second):
        host = await begun(first, second)
        found_by(second, code)
        await told(second, first)
        assert stops(first) == stops(second) == {SITE: code}
        before = await leaves(first)
        await first.deliver(host, host.next())  # evidence is taken all the time
        await sequenced(first, second)
        assert await leaves(first) == before and shown(first) == shown(second) == (3, shown(first)[1])
        ready = await first.client.get("/readyz")
        assert ready.status_code == 503 and code in ready.text
        assert await audited(first) == [("server", "log.stop", SITE, code)]


async def test_it_is_refused_in_the_transaction_itself(tmp_path: Path, postgresql: Address) -> None:
    """The one that sequences has not looked since: no entry gets an index, and no checkpoint is signed."""
    async with replicas(tmp_path, postgresql) as (first, second):
        host = await begun(first, second)
        found_by(second)
        await told(second)
        await first.deliver(host, host.next())
        assert stops(first) == {}
        before = await leaves(first)
        assert await first.services.sequencer.round() == 0
        assert await leaves(first) == before
        assert await first.services.store.for_sites({SITE}).any_pending()


async def test_what_was_committed_before_is_not_signed_after(
    tmp_path: Path, postgresql: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stop comes between the two transactions of a round; once it is lifted the log goes on from there."""
    async with replicas(tmp_path, postgresql) as (first, second):
        host = await begun(first, second)
        size, right = shown(first)[0], first.services.sequencer._publish

        async def later(*given: Any) -> None:
            found_by(second)
            await told(second)
            await right(*given)

        monkeypatch.setattr(first.services.sequencer, "_publish", later)
        await first.deliver(host, host.next())
        await first.services.sequencer.round()
        monkeypatch.undo()
        assert len(await leaves(first)) == size + 1 and shown(first)[0] == size
        await told(first, second)
        assert shown(first)[0] == shown(second)[0] == size
        await lift(first.services.store, first.clock(), SITE, actor="operator")
        await told(first, second)
        await sequenced(first, second)
        assert shown(first)[0] == shown(second)[0] == size + 1 and stops(first) == stops(second) == {}


async def test_a_server_that_starts_later_knows_it(tmp_path: Path, postgresql: Address) -> None:
    async with replicas(tmp_path, postgresql) as (first, second):
        await begun(first, second)
        found_by(second)
        await told(second)
    async with serving(tmp_path / "a", clock=first.clock, database=postgresql.url, duty_lease_s=300) as again:
        assert stops(again) == {SITE: "log_forked"} and not again.services.sequencer.leads(SITE)
        assert shown(again)[0] == 3


async def test_others_show_what_is_signed_and_only_that(tmp_path: Path, postgresql: Address) -> None:
    """The second has not seen the last checkpoint when the first one stops the log: it must not show less than the first."""
    async with replicas(tmp_path, postgresql) as (first, second):
        host = await begun(first, second)
        await first.deliver(host, host.next())
        await first.services.sequencer.round()
        found_by(first)
        await told(first, second)
        assert shown(second) == shown(first) and shown(second)[0] == 4
        assert stops(second) == {SITE: "log_forked"}


async def test_a_person_lets_it_go_on(tmp_path: Path, postgresql: Address) -> None:
    async with replicas(tmp_path, postgresql) as (first, second):
        host = await begun(first, second)
        found_by(second)
        await told(second, first)
        await first.deliver(host, host.next())
        assert await lift(second.services.store, second.clock(), SITE, actor="operator") == "log_forked"
        await told(second, first)
        await sequenced(first, second)
        assert shown(first) == shown(second) and shown(first)[0] == 4
        assert stops(first) == stops(second) == {}
        assert await audited(first) == [
            ("server", "log.stop", SITE, "log_forked"), ("operator", "log.lift", SITE, "log_forked"),
        ]  # fmt: skip
        with pytest.raises(Refusal):
            await lift(second.services.store, second.clock(), SITE, actor="operator")


async def test_who_still_finds_it_stops_it_again(tmp_path: Path, postgresql: Address) -> None:
    """Lifting mends nothing: the follower's own memory is ahead of this database, which was put back."""
    async with replicas(tmp_path, postgresql) as (first, second):
        host = await begun(first, second)
        old = await first.by_hand("SELECT size, root, edge, checkpoint, checkpoint_size FROM log_shards")
        await first.deliver(host, host.next())
        await sequenced(first, second)
        await first.by_hand(
            "UPDATE log_shards SET size = $1, root = $2, edge = $3, checkpoint = $4, checkpoint_size = $5", *old[0]
        )
        for _ in range(2):
            await told(second, first)
            assert stops(first) == stops(second) == {SITE: "log_restored"}
            await lift(first.services.store, first.clock(), SITE, actor="operator")
        await told(second, first)
        assert stops(first) == stops(second) == {SITE: "log_restored"}


async def test_what_is_of_one_process_stops_nobody_else(tmp_path: Path, postgresql: Address) -> None:
    async with replicas(tmp_path, postgresql) as (first, second):
        await begun(first, second)
        found_by(second, "checkpoint_unusable")
        await told(second, first)
        assert (stops(second), stops(first)) == ({SITE: "checkpoint_unusable"}, {})


async def test_planted_one_that_does_not_ask_appends(
    tmp_path: Path, postgresql: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def careless(tx: object, sites: frozenset[str]) -> frozenset[str]:
        return sites

    monkeypatch.setattr(module, "going_on", careless)
    with pytest.raises(AssertionError):
        await test_it_is_refused_in_the_transaction_itself(tmp_path, postgresql)
