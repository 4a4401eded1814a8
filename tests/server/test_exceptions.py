"""An exception is a person's act that ends: shown on its own, never as met, over a verdict that stays what the host signed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from compliance_agent.errors import Refusal
from compliance_agent.server.records import User
from compliance_agent.server.services.exceptions import Wanted, digest
from tests.server.builder import FakeHost, Server, on_sqlite
from tests.server.test_acts import acts

pytestmark = pytest.mark.anyio
ID = "0" * 32


async def failing(server: Server, label: str = "ws-00", site: str = "clinic-1") -> FakeHost:
    host = await server.enrolled(label, site)
    await server.deliver(host, host.next(result="fail", reason="daemon_down"))
    return host


async def operator(server: Server, role: str = "operator") -> User:
    return await server.services.users.add(f"a-{role}", "correct horse battery", role=role)


def wanted(host: FakeHost, **more: Any) -> Wanted:
    asked = Wanted(host.key_id, "time_sync", "vendor_requires", "watched", "RA-2026-14", 7)
    return replace(asked, **more)


async def record(server: Server, user: User, asked: Wanted, exception_id: str = ID) -> Any:
    reader = await server.services.users.reader(user)
    return await server.services.exceptions().record(user, reader, asked, exception_id)


async def shown(server: Server, host: FakeHost) -> tuple[str, str, dict[str, int], bool]:
    """The verdict as shown, as the host said it, the counts of the site on the first page, and whether something is unmet."""
    services = server.services
    fleet = services.fleet(services.store.for_sites(await services.store.all_sites()))
    [check] = (await fleet.host(host.key_id)).checks
    [site] = [item for item in await fleet.sites() if item.site.site_id == host.site_id]
    [listed] = [item for item in (await fleet.site(host.site_id)).live if item.host.key_id == host.key_id]
    assert listed.checks[0].result == check.result, "every page says the same"
    return check.result, check.verdict.result, site.counts, site.oldest_unmet_at is not None


async def refused(act: Any) -> str:
    with pytest.raises(Refusal) as caught:
        await act
    return caught.value.code


async def test_it_counts_on_its_own_and_the_hosts_word_stays(server: Server) -> None:
    host, user = await failing(server), await operator(server)
    assert (await shown(server, host))[0::3] == ("fail", True)
    await record(server, user, wanted(host))
    result, said, counts, unmet = await shown(server, host)
    assert (result, said, unmet) == ("exception", "fail", False)
    assert (counts["exception"], counts["pass"], counts["fail"]) == (1, 0, 0)


async def test_it_stops_counting_the_moment_it_ends(server: Server) -> None:
    host, user = await failing(server), await operator(server)
    made = await record(server, user, wanted(host))
    assert made.stands(made.created_at) and not made.stands(made.expires_at)
    server.clock.move(7 * 86_400 - 1)
    await server.deliver(host, host.next(result="fail", reason="daemon_down"))  # it is heard still
    assert (await shown(server, host))[0] == "exception"
    server.clock.move(1)
    assert (await shown(server, host))[0] == "fail"


async def test_withdrawn_it_counts_no_more_and_is_withdrawn_once(server: Server) -> None:
    host, user = await failing(server), await operator(server)
    await record(server, user, wanted(host))
    reader = await server.services.users.reader(user)
    ended = await server.services.exceptions().withdraw(user, reader, ID)
    assert ended.withdrawn_by == user.name and (await shown(server, host))[0] == "fail"
    assert await refused(server.services.exceptions().withdraw(user, reader, ID)) == "exception_ended"


async def test_what_could_not_be_told_and_who_is_silent_are_never_covered(server: Server) -> None:
    host, user = await failing(server), await operator(server)
    await record(server, user, wanted(host))
    server.clock.move(86_400)
    assert (await shown(server, host))[0] == "fail", "a silent host"
    await server.deliver(host, host.next(result="unknown", reason="timed_out"))
    assert (await shown(server, host))[0] == "unknown"


async def test_for_the_whole_site_it_covers_its_hosts_and_no_other_sites(server: Server) -> None:
    one, other = await failing(server), await failing(server, "ws-01")
    elsewhere, user = await failing(server, "ws-02", "clinic-2"), await operator(server)
    await record(server, user, wanted(one))
    assert [(await shown(server, host))[0] for host in (other, elsewhere)] == ["fail", "fail"]
    await record(server, user, wanted(one, whole=True), "1" * 32)
    assert [(await shown(server, host))[0] for host in (other, elsewhere)] == ["exception", "fail"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"days": 0}, {"days": 3_650}, {"reason": "because"}, {"measure": ""}, {"reference": "Mrs Smith, born 1950"},
        {"reference": ""}, {"reference": "a\n"}, {"check": "no_such"},
    ],
)  # fmt: skip
@on_sqlite
async def test_nothing_but_listed_words_an_id_and_an_end(server: Server, wrong: dict[str, Any]) -> None:
    """There is no room for what belongs to a patient, and none without an end."""
    host, user = await failing(server), await operator(server)
    assert await refused(record(server, user, wanted(host, **wrong))) == "bad_exception"


@on_sqlite
async def test_who_may(server: Server) -> None:
    host = await failing(server)
    for role in ("viewer", "proposer"):
        assert await refused(record(server, await operator(server, role), wanted(host))) == "not_allowed"
    owner = await operator(server, "owner")
    assert (await record(server, owner, wanted(host))).approver == owner.name
    assert await refused(record(server, owner, wanted(host), "1" * 32)) == "exception_stands"
    assert (await record(server, owner, wanted(host))).exception_id == ID, "the same form again is the same exception"


@on_sqlite
async def test_both_ends_are_acts_in_the_log_of_that_site_alone(server: Server) -> None:
    host, user = await failing(server), await operator(server)
    await server.enrolled("ws-09", "clinic-2")
    made = await record(server, user, wanted(host))
    await server.services.exceptions().withdraw(user, await server.services.users.reader(user), ID)
    found = await acts(server)
    mine = [
        (item["act"], item["actor"], item["subject"]) for item in found["clinic-1"] if item["act"].startswith("exc")
    ]
    assert mine == [(f"exception_{word}", user.person_id, digest(made)) for word in ("recorded", "withdrawn")]
    assert not [item for item in found["clinic-2"] if item["act"].startswith("exc")]


async def two_people(server: Server) -> tuple[FakeHost, User, User]:
    """A site whose exceptions need two, and two who may."""
    host, one, other = await failing(server), await operator(server), await operator(server, "owner")
    reader = await server.services.users.reader(other)
    await server.services.exceptions().set_people(other, reader, host.site_id, 2)
    return host, one, other


async def second(server: Server, user: User) -> Any:
    return await server.services.exceptions().approve(user, await server.services.users.reader(user), ID)


async def test_where_two_are_needed_one_covers_nothing(server: Server) -> None:
    """It waits, and the check fails everywhere, until another person approves it; who recorded it is not another one."""
    host, one, other = await two_people(server)
    made = await record(server, one, wanted(host))
    assert (made.state(server.clock()), (await shown(server, host))[0]) == ("waiting", "fail")
    assert await refused(second(server, one)) == "same_person"
    assert await refused(record(server, other, wanted(host), "1" * 32)) == "exception_stands"
    assert (await shown(server, host))[0] == "fail"
    server.clock.move(60)
    approved = await second(server, other)
    assert (await shown(server, host))[0] == "exception"
    assert (approved.expires_at, approved.seconded_by) == (made.expires_at, other.name), (
        "it ends when it would have ended"
    )
    assert not approved.stands(made.created_at), "it did not stand before"
    assert await refused(second(server, other)) == "exception_not_waiting"
    found = [(act["act"], act["actor"], act["subject"]) for act in (await acts(server))[host.site_id]]
    assert [act for act in found if act[2] == digest(made)] == [
        ("exception_recorded", one.person_id, digest(made)),
        ("exception_approved", other.person_id, digest(approved)),
    ]


async def test_a_rule_that_is_made_less_lets_nothing_through_that_waits(server: Server) -> None:
    host, one, other = await two_people(server)
    await record(server, one, wanted(host))
    desk, reader = server.services.exceptions(), await server.services.users.reader(other)
    await desk.set_people(other, reader, host.site_id, 1)
    assert (await shown(server, host))[0] == "fail"
    ended = await desk.withdraw(other, reader, ID)
    assert (
        ended.state(server.clock()) == "withdrawn" and await refused(second(server, other)) == "exception_not_waiting"
    )
    await record(server, one, wanted(host), "2" * 32)
    assert (await shown(server, host))[0] == "exception"
    rules = [act["actor"] for act in (await acts(server))[host.site_id] if act["act"] == "exception_rule"]
    assert rules == [other.person_id] * 2, "each change is in the log"


@on_sqlite
async def test_the_rule_is_an_owners_and_of_one_site(server: Server) -> None:
    host, one, other = await two_people(server)
    elsewhere = await failing(server, "ws-02", "clinic-2")
    desk, reader = server.services.exceptions(), await server.services.users.reader(one)
    assert await refused(desk.set_people(one, reader, host.site_id, 1)) == "not_allowed"
    assert await refused(desk.set_people(other, reader, "clinic-9", 1)) == "no_such_site"
    assert await refused(desk.set_people(other, reader, host.site_id, 0)) == "bad_exception"
    await record(server, one, wanted(elsewhere))
    assert (await shown(server, elsewhere))[0] == "exception", "the other site asks for one person"


async def test_what_waits_too_long_is_over(server: Server) -> None:
    host, one, other = await two_people(server)
    await record(server, one, wanted(host))
    server.clock.move(7 * 86_400)
    await server.deliver(host, host.next(result="fail", reason="daemon_down"))
    assert await refused(second(server, other)) == "exception_not_waiting" and (await shown(server, host))[0] == "fail"
