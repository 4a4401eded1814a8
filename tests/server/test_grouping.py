"""Who comes while a transaction is written goes into the next one with all who wait; nobody is left without an answer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from compliance_agent.errors import Refusal, StorageError
from compliance_agent.server.records import Head, Host
from compliance_agent.server.services import grouping
from compliance_agent.server.services.checkin import Checkin, Said
from compliance_agent.server.services.grouping import Grouped
from tests.server.builder import START, ZEROS, Server
from tests.server.test_plans import statements

pytestmark = pytest.mark.anyio


def host(name: str) -> Host:
    return Host(name, "clinic-1", "msp", name, b"", START)


class Desk:
    """Writes names; what is named `bad` cannot be written, and `away` is a database that is away."""

    def __init__(self, hangs_at: int = 0, **options: Any) -> None:
        self.hangs_at = hangs_at
        self.groups: list[list[str]] = []
        self.may_write = asyncio.Event()
        self.may_write.set()
        self.grouped: Grouped[str, str] = Grouped(self.write, **({"most": 8, "most_cost": 100} | options))

    async def write(self, names: Sequence[str]) -> Sequence[str]:
        self.groups.append(list(names))
        await (asyncio.Event() if len(self.groups) == self.hangs_at else self.may_write).wait()
        if "away" in names:
            raise StorageError("away", code="database_away")
        if "bad" in names:
            raise StorageError("bad")
        return [name.upper() for name in names]

    def ask(self, *names: str, cost: int = 1) -> list[asyncio.Task[str]]:
        return [asyncio.create_task(self.grouped.written(host(name), cost, name)) for name in names]


async def test_who_waits_goes_together() -> None:
    desk = Desk()
    desk.may_write.clear()
    first = desk.ask("a")
    while not desk.groups:
        await asyncio.sleep(0)
    others = desk.ask(*"bcdefghijk")
    await asyncio.sleep(0)
    desk.may_write.set()
    assert await asyncio.gather(*first, *others) == list("ABCDEFGHIJK")
    assert desk.groups == [["a"], list("bcdefghi"), ["j", "k"]]
    assert [len(group) for group in desk.groups] != [1] * 11


async def came(desk: Desk, names: str) -> list[str]:
    """One in each turn of the loop."""
    asked = []
    for name in names:
        asked += desk.ask(name)
        await asyncio.sleep(0)
    return await asyncio.gather(*asked)


async def test_who_is_on_the_way_goes_too() -> None:
    desk = Desk()
    assert await came(desk, "abcde") == list("ABCDE")
    assert desk.groups == [list("abcde")]


async def test_who_is_there_does_not_wait_long_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouping, "GATHER_S", 0.0)
    desk = Desk()
    assert await came(desk, "abcde") == list("ABCDE")
    assert len(desk.groups) > 1


async def test_a_group_is_bounded_by_what_it_costs() -> None:
    desk = Desk(linger_s=0.001)
    await asyncio.gather(*desk.ask("a", "b", "c", cost=50))
    assert [len(group) for group in desk.groups] == [2, 1]


async def test_one_that_cannot_be_written_does_not_take_the_others_with_it() -> None:
    desk = Desk(linger_s=0.001)
    found = await asyncio.gather(*desk.ask("a", "bad", "c"), return_exceptions=True)
    assert (found[0], found[2]) == ("A", "C") and isinstance(found[1], StorageError)
    assert desk.groups == [["a", "bad", "c"], ["a"], ["bad"], ["c"]]


async def test_a_database_that_is_away_is_not_tried_for_each() -> None:
    desk = Desk(linger_s=0.001)
    found = await asyncio.gather(*desk.ask("a", "away", "c"), return_exceptions=True)
    assert all(isinstance(one, StorageError) for one in found) and len(desk.groups) == 1


@pytest.mark.parametrize(("names", "hangs_at"), [("abc", 1), (("bad", "b", "c"), 3)])
async def test_whoever_waits_is_told_when_the_writer_is_stopped(names: Sequence[str], hangs_at: int) -> None:
    """Also in the midst of trying one by one."""
    desk = Desk(most=2, linger_s=0.001, hangs_at=hangs_at)
    asked = desk.ask(*names)
    while len(desk.groups) < hangs_at:
        await asyncio.sleep(0.001)
    assert desk.grouped._writer is not None
    desk.grouped._writer.cancel()
    found = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 5)
    stopped = [isinstance(one, asyncio.CancelledError) for one in found]
    assert stopped == [hangs_at == 1, True, True]
    await desk.grouped.drain()


async def test_who_gave_up_does_not_stop_the_others() -> None:
    desk = Desk(linger_s=0.001)
    asked = desk.ask("a", "b", "c")
    await asyncio.sleep(0)
    asked[1].cancel()
    found = await asyncio.gather(*asked, return_exceptions=True)
    assert (found[0], found[2]) == ("A", "C")


def said(key_id: str) -> Said:
    return Said(key_id, Head(0, 0, ZEROS), 0, "0.1.0", "2026.11.1", ZEROS)


async def test_check_ins_of_many_hosts_are_one_transaction(server: Server) -> None:
    """Each is answered for itself: the one that is revoked alone is refused."""
    hosts = [await server.enrolled(f"ws-{number}", f"clinic-{number % 2 + 1}") for number in range(6)]
    services = server.services
    callers = [await services.access.caller(one.headers["authorization"]) for one in hosts]
    await services.enrolment.revoke("clinic-1", hosts[2].key_id, actor="test")
    await server.deliver(hosts[1], bundle := hosts[1].next())
    desk = Checkin(services.store, server.clock, linger_s=0.01)
    with statements(server) as found:
        calls = (desk.check_in(caller, said(caller.key_id)) for caller in callers)
        answers = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(answers[2], Refusal) and answers[2].code == "host_revoked"
    told = [one for one in answers if not isinstance(one, BaseException)]
    assert len(told) == desk.total == 5
    assert [one.known.digest if one.known else None for one in told] == [None, bundle.sha256, None, None, None]
    assert sum(statement.startswith("UPDATE hosts") for statement, _ in found) == 1
    seen = await services.store.for_sites({"clinic-1", "clinic-2"}).hosts()
    assert {one.key_id for one in seen if one.last_seen_at} == {one.key_id for one in hosts if one is not hosts[2]}


async def test_the_figures_count_each_host_once(server: Server) -> None:
    """As rows are counted, so hosts were read one by one before."""
    hosts = [await server.enrolled(f"ws-{number}", f"clinic-{number % 2 + 1}") for number in range(5)]
    await server.checkin(hosts[0])
    await server.services.enrolment.revoke("clinic-2", hosts[1].key_id, actor="test")
    server.clock.move(3_600)
    await server.deliver(hosts[2], hosts[2].next())
    await server.deliver(hosts[2], hosts[2].sign(hosts[2].document(seq=1, prev=ZEROS)))
    silence, now = server.services.silence, server.clock()
    groups = await server.services.store.host_groups(silence.since(now))
    counted = {"revoked": 0, "silent": 0, "live": 0, "forked": 0, "contested": 0}
    for one in groups:
        counted["revoked" if one.revoked else "silent" if one.silent else "live"] += one.count
        counted["forked"] += one.forked
        counted["contested"] += one.contested
    rows = await server.services.store.for_sites({"clinic-1", "clinic-2"}).hosts()
    assert counted == {
        "revoked": 1,
        "silent": sum(silence.silent(one, now) for one in rows),
        "live": sum(not silence.silent(one, now) and one.revoked_at is None for one in rows),
        "forked": 1,
        "contested": 1,
    }
    assert counted["silent"] == 3 and counted["live"] == 1


async def test_what_waits_to_be_noted_is_noted_at_the_end(server: Server) -> None:
    enrolled = await server.enrolled()
    caller = await server.services.access.caller(enrolled.headers["authorization"])
    desk = Checkin(server.services.store, server.clock, linger_s=0.05)
    asked = asyncio.create_task(desk.check_in(caller, said(caller.key_id)))
    await asyncio.sleep(0)
    await desk.drain()
    assert desk._writes._writer is not None and desk._writes._writer.done()
    await asyncio.wait_for(asked, 1)
