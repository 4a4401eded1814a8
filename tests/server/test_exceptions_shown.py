"""Exceptions beside what they are about: on the first page before they end, and in the heat map, where what fails still fails."""

from __future__ import annotations

from typing import Any

import pytest

from compliance_agent.server.services.controls import Cell
from compliance_agent.web import morning
from tests.server.builder import FakeHost, Server, on_sqlite
from tests.server.test_exceptions import ID, failing, operator, record, second, two_people, wanted

pytestmark = [pytest.mark.anyio]
DAY = 86_400


async def lines(server: Server) -> list[tuple[str, str | None, int]]:
    services = server.services
    fleet = services.fleet(services.store.for_sites(await services.store.all_sites()))
    found = morning.exception_lines(await fleet.sites(), services.clock())
    return [(line.state, line.host_id, line.failing) for line in found]


async def heard(server: Server, host: FakeHost, **said: Any) -> None:
    host.now = server.clock()
    reply = await server.deliver(host, host.next(**({"result": "fail", "reason": "daemon_down"} | said)))
    assert reply.status_code == 200, reply.text


async def test_what_ends_soon_is_listed_and_what_ran_out_while_it_fails(server: Server) -> None:
    host, user = await failing(server), await operator(server)
    await record(server, user, wanted(host, days=30))
    assert await lines(server) == [], "it ends in a month"
    server.clock.move(17 * DAY)
    await heard(server, host)
    assert await lines(server) == [("ends", "ws-00", 1)]
    server.clock.move(13 * DAY)
    await heard(server, host)
    assert await lines(server) == [("ended", "ws-00", 1)], "and the check fails, with nothing to cover it"
    await heard(server, host, result="pass", reason="as_expected")
    assert await lines(server) == [], "what is met needs nobody"
    await heard(server, host)
    await record(server, user, wanted(host, days=90), "1" * 32)
    assert await lines(server) == [], "it was made anew"
    server.clock.move(8 * DAY)
    await heard(server, host)
    assert await lines(server) == []


@on_sqlite
async def test_what_waits_for_a_second_person_is_listed_until_one_says_so(server: Server) -> None:
    host, one, other = await two_people(server)
    await record(server, one, wanted(host, days=90))
    assert await lines(server) == [("waiting", "ws-00", 1)]
    await second(server, other)
    assert await lines(server) == []


@on_sqlite
async def test_of_a_whole_site_it_counts_the_hosts_and_withdrawn_it_is_gone(server: Server) -> None:
    host, user = await failing(server), await operator(server)
    await failing(server, "ws-01")
    await failing(server, "ws-09", "clinic-2")
    await record(server, user, wanted(host, whole=True))
    assert await lines(server) == [("ends", None, 2)]
    await server.services.exceptions().withdraw(user, await server.services.users.reader(user), ID)
    assert await lines(server) == []


async def cells(server: Server) -> list[Cell]:
    """Of the last days, the check's own."""
    desk = server.services.controls(server.services.store.for_sites({"clinic-1"}))
    cube = await desk.cube("clinic-1", desk.span(None, None))
    return cube.by_day(("time_sync",), cube.machines)


async def test_in_the_heat_map_it_stands_beside_what_fails(server: Server) -> None:
    """The days before it, and after it ended, have none; on no day does what fails become anything else."""
    host, user = await failing(server), await operator(server)
    await failing(server, "ws-01")
    server.clock.move(DAY)
    for _ in range(2):
        await heard(server, host)
        server.clock.move(DAY)
    await record(server, user, wanted(host, days=7))
    await heard(server, host)
    server.clock.move(DAY)
    await server.services.exceptions().withdraw(user, await server.services.users.reader(user), ID)
    await heard(server, host)
    server.clock.move(DAY)
    await heard(server, host)
    found = await cells(server)
    assert [(cell.counts.get("fail", 0), cell.excepted) for cell in found] == [
        (2, 0),
        (1, 0),
        (1, 0),
        (1, 1),
        (1, 1),
        (1, 0),
    ]
    assert all(cell.worst == "fail" and cell.passed == 0 and "exception" not in cell.counts for cell in found)


@on_sqlite
async def test_what_waits_and_what_is_about_another_check_or_host_is_not_beside_it(server: Server) -> None:
    host, one, _ = await two_people(server)
    other = await failing(server, "ws-01")
    await record(server, one, wanted(host))
    await record(server, one, wanted(other, check="firewall"), "1" * 32)
    assert [cell.excepted for cell in await cells(server)] == [0]


@on_sqlite
async def test_a_section_is_under_one_only_where_all_of_its_checks_that_fail_are(server: Server) -> None:
    host, user = await failing(server), await operator(server)
    await heard(server, host, check="firewall", reason="policy_accepts", pre_state={}, hipaa_controls=[])
    await record(server, user, wanted(host))
    desk = server.services.controls(server.services.store.for_sites({"clinic-1"}))
    cube = await desk.cube("clinic-1", desk.span(None, None))
    found = [
        cube.by_day(checks, cube.machines)[0].excepted
        for checks in (("time_sync",), ("time_sync", "firewall"), ("firewall",))
    ]
    assert found == [1, 0, 0]
