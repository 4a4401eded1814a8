"""An auditor's dates: records of other days do not exist, for any route and any method of the handle."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Executable

from compliance_agent.server.records import BundleQuery, Dates
from compliance_agent.server.services.exceptions import Wanted
from compliance_agent.server.store import SqlStore
from compliance_agent.server.store.reader import BoundReader
from tests.server.builder import START, ZEROS, FakeHost, Server, Signed, stamp

pytestmark = pytest.mark.anyio
TODAY = START.date()
SPAN = Dates(TODAY, TODAY + timedelta(days=1))
PASSWORD = "correct horse battery"
UNKNOWN = "f" * 64


def made(host: FakeHost, days: float, **changes: Any) -> Signed:
    at = stamp(START + timedelta(days=days))
    return host.next(created_at=at, timestamp_start=at, timestamp_end=at, **changes)


@pytest.fixture
async def chain(server: Server) -> tuple[FakeHost, list[Signed]]:
    """One host's records of four days: before, both days of the span, and after."""
    host = await server.enrolled()
    records = [made(host, days) for days in (-1, 0, 1, 2)]
    await server.deliver(host, *records)
    return host, records


async def auditor(server: Server, dates: Dates = SPAN) -> dict[str, str]:
    """An auditor's token as headers; the session's cookie is set too."""
    users = server.services.users
    await users.add("auditor", PASSWORD, role="auditor", sites=frozenset({"clinic-1"}), dates=dates)
    server.client.cookies.set("session", await users.login("auditor", PASSWORD))
    return {"authorization": f"Bearer {(await users.tokens.create('auditor', timedelta(days=1)))[0]}"}


def id_of(bundle: Signed) -> str:
    return str(bundle.document["bundle_id"])


async def test_records_of_other_days_are_not_listed(server: Server, chain: tuple[FakeHost, list[Signed]]) -> None:
    headers = await auditor(server)
    listed = (await server.client.get("/api/v1/bundles", headers=headers)).json()["items"]
    assert {item["bundle_id"] for item in listed} == {id_of(item) for item in chain[1][1:3]}


async def test_a_record_of_another_day_is_what_an_unknown_id_is(
    server: Server, chain: tuple[FakeHost, list[Signed]]
) -> None:
    host, records = chain
    headers = await auditor(server)
    pages = ("", "?proof=1", "/bundle.json", "/bundle.sig", "/leaf.json", "/bundle.tlog-proof", "/times.json")
    api = ("/api/v1/bundles/{}", f"/api/v1/bundles/{{}}?host={host.key_id}")
    for path in (*api, *(f"/bundles/{{}}{page}" for page in pages)):
        missing = await server.client.get(path.format("0" * 36), headers=headers)
        for bundle, there in zip(records, (False, True, True, False), strict=True):
            found = await server.client.get(path.format(id_of(bundle)), headers=headers)
            assert (found.status_code == 200) is there, path
            if not there:
                assert _plain(found.text, id_of(bundle)) == _plain(missing.text, "0" * 36), path


def _plain(text: str, bundle_id: str) -> str:
    return re.sub(r'"trace_id":"[0-9a-f]+"|value="[\w-]{43}"', "", text).replace(bundle_id, "ID")


async def test_the_chain_goes_on_outside_and_says_no_more(server: Server, chain: tuple[FakeHost, list[Signed]]) -> None:
    """A neighbour outside is a digest: the record verifies all the same, and nothing of the neighbour is told."""
    headers = await auditor(server)
    _, records = chain
    whole = (await server.client.get(f"/api/v1/bundles/{id_of(records[1])}", headers=headers)).json()
    assert whole["valid"] is True
    page = (await server.client.get(f"/bundles/{id_of(records[1])}?proof=1")).text
    assert "outside the dates" in page and id_of(records[2]) in page
    assert id_of(records[0]) not in page
    last = (await server.client.get(f"/bundles/{id_of(records[2])}")).text
    assert id_of(records[3]) not in last


async def test_what_a_host_is_now_is_no_part_of_days_that_are_over(server: Server) -> None:
    host = await server.enrolled()
    await server.deliver(host, made(host, 0), host.heartbeat(time_sync="pass"))
    server.clock.move(40 * 86_400)
    host.now = server.clock()
    await server.deliver(host, host.next(check="firewall", result="fail", reason="x"))
    await server.deliver(host, host.sign(host.document(seq=1, prev=ZEROS)))
    await server.checkin(host)
    headers = await auditor(server)
    [shown] = (await server.client.get("/api/v1/hosts", headers=headers)).json()
    told = {name: shown[name] for name in ("last_seen_at", "heartbeat_at", "head", "pending", "silent", "broken")}
    assert told == {
        "last_seen_at": None,
        "heartbeat_at": None,
        "head": None,
        "pending": None,
        "silent": False,
        "broken": False,
    }
    checks = (await server.client.get(f"/api/v1/hosts/{host.key_id}/checks", headers=headers)).json()
    assert [item for item in checks if item["check"] == "firewall"] == []
    everything = await server.operator("op")
    [shown] = (await server.client.get("/api/v1/hosts", headers=everything)).json()
    assert shown["broken"] is True and shown["head"]["seq"] > 1


async def test_hosts_that_came_later_or_went_before_are_not_there(server: Server) -> None:
    gone = await server.enrolled("gone")
    await server.services.enrolment.revoke("clinic-1", gone.key_id, actor="test")
    server.clock.move(10 * 86_400)
    stays = await server.enrolled("stays")
    server.clock.move(10 * 86_400)
    late = await server.enrolled("late")
    span = Dates(TODAY + timedelta(days=9), TODAY + timedelta(days=12))
    headers = await auditor(server, span)
    listed = (await server.client.get("/api/v1/hosts", headers=headers)).json()
    assert [item["host_id"] for item in listed] == ["stays"]
    for host in (gone, late):
        for path in (f"/api/v1/hosts/{host.key_id}", f"/api/v1/hosts/{host.key_id}/checks", f"/hosts/{host.key_id}"):
            assert (await server.client.get(path, headers=headers)).status_code == 404
    assert (await server.client.get(f"/api/v1/hosts/{stays.key_id}", headers=headers)).status_code == 200


@pytest.mark.parametrize(("days", "told"), [((-9, -1), False), ((1, 9), False), ((-9, 0), True), ((0, 9), True)])
async def test_the_rule_for_exceptions_is_that_of_today(server: Server, days: tuple[int, int], told: bool) -> None:
    """Whose days do not hold this one learns neither what it is nor what waits under it; without days it is there."""
    host = await server.enrolled()
    await server.deliver(host, host.next(check="firewall", result="fail", reason="x"))
    users, desk = server.services.users, server.services.exceptions()
    owner = await users.add("own", PASSWORD, role="owner")
    reader = await users.reader(owner)
    await desk.set_people(owner, reader, "clinic-1", 2)
    wanted = Wanted(host.key_id, "firewall", "vendor_requires", "segregated", "RA-1", 7)
    await desk.record(owner, reader, wanted, "e" * 32)
    today = server.clock().date()
    await auditor(server, Dates(*(today + timedelta(days=day) for day in days)))
    page = (await server.client.get("/sites/clinic-1/exception-rule")).text
    assert ("<strong>two people</strong>" in page) is told and ("1 waits" in page) is told
    assert ("outside the dates of your account" in page) is not told
    assert (await server.client.get("/sites/clinic-1/exception-rule?people=1")).status_code == 403


async def test_the_log_is_whole(server: Server, chain: tuple[FakeHost, list[Signed]]) -> None:
    """It holds digests alone, and proves nothing in pieces."""
    headers = await auditor(server, Dates(date(2020, 1, 1), date(2020, 1, 1)))
    assert (await server.client.get("/log/clinic-1/2026/checkpoint", headers=headers)).status_code == 200
    assert (await server.client.get("/log/clinic-2/2026/checkpoint", headers=headers)).status_code == 404


ARGUMENTS: Mapping[str, Any] = {
    "site_id": "clinic-1", "year": 2026, "start": 0, "stop": 9, "after": 0, "limit": 9, "numbers": [1, 2, 3, 4],
    "order_id": "0" * 32, "since": START - timedelta(days=9), "query": BundleQuery(), "bundle_ids": [], "kinds": ["drift"],
    "days": SPAN, "check": "time_sync", "reason": "daemon_down", "key_ids": [], "stale_before": START, "error": "approval_required",
    "number": 0, "name": "packet.zip", "job_id": "0" * 32,
    "at_most": 9, "wanted": {TODAY: ["k"]},
}  # fmt: skip
WITHOUT_DATES = {
    "site_rows": "names of sites", "shards": "the log is whole", "leaves": "the log is whole", "any_pending": "the log is whole",
    "packet_part": "of a packet that was asked for under the same dates",
    "backlog": "the log is whole", "unlogged": "counts of the log", "first_without_record": "an index of the log",
    "baselines": "days of baselines, for how long records are kept",
    "newest_heads": "the sequencer's and the follower's, which have no dates", "placed": "the same", "cosigned": "the same",
    "log_stops": "the same",
    "holds": "the same", "minimum": "the log is whole", "logged_records": "the prune job's, which has no dates",
}  # fmt: skip


@dataclass
class Noting:
    """The database, and what it was asked."""

    database: Any
    asked: list[str] = field(default_factory=list)

    async def all(self, query: Executable, values: dict[str, Any] | None = None, **bound: Any) -> Any:
        self.asked.append(str(query))
        return await self.database.all(query, values, **bound)


async def undated(server: Server, chain: tuple[FakeHost, list[Signed]]) -> set[str]:
    """Methods of the handle with a statement that dates do not bound."""
    store = server.services.store
    assert isinstance(store, SqlStore)
    [bundle, *_] = await store.for_sites({"clinic-1"}, SPAN).bundles(BundleQuery())
    names = [name for name, _ in inspect.getmembers(BoundReader, inspect.iscoroutinefunction) if name[0] != "_"]
    assert len(names) >= 25
    found, bounded = (
        set(),
        re.compile(
            r"(created_at|seen_at|received_at|enrolled_at|drafted_at|promoted_at|marks\.at|packet_jobs\.last) < "
        ),
    )
    ids = [id_of(chain[1][1])]
    for name in names:
        noting = Noting(store.database)
        method = getattr(BoundReader(noting, {"clinic-1"}, SPAN), name)  # type: ignore[arg-type]
        given = {**ARGUMENTS, "key_id": bundle.key_id, "bundle_id": ids[0], "bundle": bundle, "bundle_ids": ids}
        given["after"] = ("", 0) if name == "kept" else 0
        await method(**{key: given[key] for key in inspect.signature(method).parameters if key in given})
        assert noting.asked, name
        if any(not bounded.search(sql) for sql in noting.asked):
            found.add(name)
    return found


async def test_every_statement_of_a_dated_handle_names_the_dates(
    server: Server, chain: tuple[FakeHost, list[Signed]]
) -> None:
    """A method that is neither bounded nor on the list with a reason fails here, also one that is new."""
    assert await undated(server, chain) == {*WITHOUT_DATES, "neighbours"}, (
        "neighbours leave the dates, as digests alone"
    )


async def test_a_statement_that_forgets_the_dates_is_caught(
    server: Server, chain: tuple[FakeHost, list[Signed]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BoundReader, "_dated", lambda self, column: ())
    assert {"bundle", "bundles", "verdicts", "gaps"} <= await undated(server, chain)
    with pytest.raises(AssertionError):
        await test_a_record_of_another_day_is_what_an_unknown_id_is(server, chain)


async def test_neighbours_outside_are_digests(server: Server, chain: tuple[FakeHost, list[Signed]]) -> None:
    reader = server.services.store.for_sites({"clinic-1"}, SPAN)
    found = await reader.bundle(id_of(chain[1][1]))
    assert found is not None
    before, after = await reader.neighbours(found[0])
    assert before is not None and after is not None
    assert (before.bundle_id, before.check, before.result, before.created_at) == ("", None, None, "")
    assert before.sha256 == chain[1][0].sha256 and after.bundle_id == id_of(chain[1][2])


def test_days_are_whole_and_both_included() -> None:
    one = Dates(date(2026, 3, 1), date(2026, 3, 1))
    first = datetime.fromisoformat("2026-03-01T00:00:00Z")
    assert [one.hold(first + timedelta(microseconds=n)) for n in (-1, 0, 86_400_000_000 - 1, 86_400_000_000)] == [
        False, True, True, False,
    ]  # fmt: skip
    assert not one.hold(None)
