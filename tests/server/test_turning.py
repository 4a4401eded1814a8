"""What changed lately, counted and picked by the database: each case as the agent records it, and random stories against the same
rules written out in Python, on SQLite and on PostgreSQL.
"""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import pytest
from sqlalchemy import Table, false

from compliance_agent.server.records import Changed, Dates
from compliance_agent.server.services.fleet import UNMET
from compliance_agent.server.store import rows, tables, turning
from compliance_agent.server.store.reader import BoundReader
from tests.server.builder import Server

pytestmark = pytest.mark.anyio

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
DAY = NOW - timedelta(hours=24)
LONG_AGO = NOW - timedelta(days=9)


class Told(NamedTuple):
    """A record of one check; `seq` is its place in the chain, `number` its place among all that arrived."""

    key_id: str
    check: str
    kind: str
    result: str | None
    outcome: str | None
    seq: int = 0
    number: int = 0

    @property
    def healed(self) -> bool:
        return self.kind == "remediation" and self.outcome == "success"


class Machine(NamedTuple):
    """A host, and since when each check has not been met that is not."""

    key_id: str
    site_id: str
    enrolled_at: datetime = LONG_AGO
    revoked_at: datetime | None = None
    rotated_to: str | None = None
    unmet: Any = ()


def event(result: str | None, outcome: str | None = None) -> Told:
    return Told("key", "firewall", "remediation" if outcome else "drift", result, outcome)


async def listed(reader: BoundReader, at_most: int = 200) -> list[int]:
    """What of the day is listed; what was counted beside it is what is counted alone."""
    counted, newest = await reader.changes(DAY, at_most)
    assert sorted(counted) == sorted(await reader.changed(DAY))
    return [one.number for one in newest]


async def reader_over(server: Server, hosts: Sequence[Machine], told: Iterable[Told]) -> BoundReader:
    """A reader of these sites over a database that holds just this."""
    at, late = rows.text(LONG_AGO), rows.text(NOW - timedelta(hours=1))
    site = {host.key_id: host.site_id for host in hosts}
    life = {"enrolled_at", "revoked_at", "rotated_to", "key_id", "site_id"}
    some = {"agent_version": "", "baseline_version": "", "baseline_sha256": "", "forks": 0, "public_key": b"key"}
    made: dict[Table, list[dict[str, Any]]] = {
        tables.sites: [{"site_id": name, "client_id": "msp", "created_at": at} for name in sorted(set(site.values()))],
        tables.hosts: [
            {name: getattr(one, name) for name in life}
            | some
            | {"host_id": one.key_id, "enrolled_at": rows.text(one.enrolled_at)}
            | {"revoked_at": rows.text_or_none(one.revoked_at)}
            for one in hosts
        ],
        tables.verdicts: [
            {"key_id": one.key_id, "check": check, "site_id": one.site_id, "result": "fail", "reason": ""}
            | {"since": rows.text(since), "seen_at": late, "bundle_id": "b"}
            for one in hosts
            for check, since in dict(one.unmet).items()
        ],
        tables.bundles: [
            {**one._asdict(), "bundle_id": f"{one.key_id}-{one.seq}", "site_id": site[one.key_id], "epoch": 0}
            | {"sha256": "", "prev": "", "reason": None, "error": None, "created_at": late, "received_at": late}
            | {"body": b"{}", "sig": b""}
            for one in told
        ],
    }

    async def write(statements: Any) -> None:
        for table, values in made.items():
            for one in values:
                await statements.execute(table.insert().values(**one))

    store = server.services.store
    await store.database.transaction(write)  # type: ignore[attr-defined]
    return BoundReader(store.database, set(site.values()))  # type: ignore[attr-defined]


CASES = [
    ("failed and was healed", [event("fail", "success")], NOW, LONG_AGO, (1, 1, 1)),
    ("failed and waits", [event("fail", "deferred")], NOW, LONG_AGO, (1, 0, 0)),
    ("waits for another reason since", [event("fail", "deferred"), event("fail", "alert")], NOW, LONG_AGO, (1, 0, 0)),
    ("has waited for days", [event("fail", "alert")], LONG_AGO, LONG_AGO, (0, 0, 0)),
    ("held back, then healed", [event("fail", "deferred"), event("fail", "success")], NOW, LONG_AGO, (1, 1, 1)),
    ("put right by a person", [event("pass")], NOW, LONG_AGO, (0, 1, 0)),
    ("the first word of a new host", [event("pass")], NOW, NOW, (0, 0, 0)),
    ("a new host that is not well", [event("unknown")], NOW, NOW, (1, 0, 0)),
    ("could not tell, then could", [event("unknown"), event("pass")], NOW, LONG_AGO, (1, 1, 0)),
    ("from doubt to failure is no change", [event("unknown"), event("fail", "alert")], NOW, LONG_AGO, (1, 0, 0)),
    ("a cure that was undone", [event("fail", "reverted")], NOW, LONG_AGO, (1, 0, 0)),
    ("an approved exception", [event("exception")], NOW, LONG_AGO, (0, 1, 0)),
    ("healed twice", [event("fail", "success"), event("fail", "success")], NOW, LONG_AGO, (2, 2, 2)),
]  # fmt: skip


async def test_each_case_as_the_agent_records_it(server: Server) -> None:
    """Each is a site of its own in one database, so that none counts for another."""
    hosts, told = [], list[Told]()
    for at, (_, events, since, enrolled, _) in enumerate(CASES):
        hosts.append(Machine(f"key-{at}", f"case-{at:02}", enrolled, unmet={"firewall": since}))
        told += [one._replace(key_id=f"key-{at}", seq=seq, number=0) for seq, one in enumerate(events, start=1)]
    numbered = [one._replace(number=number) for number, one in enumerate(told, start=1)]
    reader = await reader_over(server, hosts, numbered)
    found = {one.site_id: tuple(one[1:]) for one in await reader.changed(DAY)}
    assert {name: found[f"case-{at:02}"] for at, (name, *_) in enumerate(CASES)} == {
        name: moved for name, *_, moved in CASES
    }
    assert [one.site_id for one in await reader.only("case-08").changed(DAY)] == ["case-08"]
    assert await reader.changed(NOW) == [], "nothing arrived since then"


def moved_of(events: Sequence[Told], host: Machine, check: str) -> tuple[int, int, int]:
    """The rules, written out."""
    worse = better = 0
    if events[0].result in UNMET:
        never = all(one.result in UNMET and one.outcome != "success" for one in events)
        met = not (never and dict(host.unmet).get(check, NOW) < DAY)
    else:
        met = host.enrolled_at >= DAY
    for one in events:
        for now_met in (one.result not in UNMET, True) if one.healed else (one.result not in UNMET,):
            worse += met and not now_met
            better += now_met and not met
            met = now_met
    return worse, better, sum(one.healed for one in events)


def changed_of(hosts: Sequence[Machine], told: Iterable[Told]) -> list[Changed]:
    by_key = {host.key_id: host for host in hosts if host.rotated_to is None}
    totals: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    chains = sorted(told, key=lambda one: (one.key_id, one.check, one.seq))
    for (key_id, check), group in itertools.groupby(chains, lambda one: (one.key_id, one.check)):
        if key_id in by_key:
            counts = moved_of(list(group), by_key[key_id], check)
            site = totals[by_key[key_id].site_id]
            site[:] = [have + more for have, more in zip(site, counts, strict=True)]
    return sorted(Changed(site, *counts) for site, counts in totals.items())


def turns_of(hosts: Sequence[Machine], told: Iterable[Told]) -> list[int]:
    live = {host.key_id: dict(host.unmet) for host in hosts if host.rotated_to is None and host.revoked_at is None}
    found: list[int] = []
    stood: dict[tuple[str, str], str | None] = {}
    for one in sorted((one for one in told if one.key_id in live), key=lambda one: one.seq):
        place, now = (one.key_id, one.check), "pass" if one.healed else one.result
        start = live[one.key_id].get(one.check)
        old = place not in stood and one.kind == "remediation" and start is not None and start < DAY
        if one.healed or not (old or stood.get(place) == now):
            found.append(one.number)
        stood[place] = now
    return sorted(found, reverse=True)


def story(rng: random.Random) -> tuple[list[Machine], list[Told]]:
    """Hosts of two sites, among them a new one, a revoked one and one that gave way; late records fill gaps of their chains."""
    checks = ("backup", "firewall", "patching")
    hosts = []
    for at in range(8):
        unmet = {check: rng.choice((LONG_AGO, DAY, NOW)) for check in checks if rng.random() < 0.6}
        revoked, rotated = NOW if at == 5 else None, "key-1" if at == 6 else None
        hosts.append(Machine(f"key-{at}", f"clinic-{at % 2}", LONG_AGO if at % 3 else NOW, revoked, rotated, unmet))
    told = []
    for host in hosts:
        for seq in rng.sample(range(1, 13), rng.randrange(12)):
            kind = rng.choice(("drift", "remediation"))
            outcome = rng.choice(("success", "deferred", "alert", None)) if kind == "remediation" else None
            result = rng.choice(("pass", "fail", "fail", "unknown", "exception", None))
            told.append(Told(host.key_id, rng.choice(checks), kind, result, outcome, seq))
    rng.shuffle(told)
    return hosts, [one._replace(number=number) for number, one in enumerate(told, start=1)]


async def test_random_stories(server: Server) -> None:
    """Forty of them side by side in one database, each by its own sites."""
    every, hosts, told = [], list[Machine](), list[Told]()
    for seed in range(40):
        some, said = story(random.Random(seed))
        some = [
            one._replace(
                key_id=f"{seed}-{one.key_id}",
                site_id=f"{seed}-{one.site_id}",
                rotated_to=one.rotated_to and f"{seed}-{one.rotated_to}",
            )
            for one in some
        ]
        said = [one._replace(key_id=f"{seed}-{one.key_id}", number=one.number + len(told)) for one in said]
        every.append((some, said))
        hosts, told = hosts + some, told + said
    whole = await reader_over(server, hosts, told)
    assert sorted(await whole.changed(DAY)) == changed_of(hosts, told)
    assert sum(sum(one[1:]) for one in changed_of(hosts, told)) > 500, "stories in which nothing happens show nothing"
    for some, said in every:
        reader = BoundReader(whole._database, {one.site_id for one in some})
        assert sorted(await reader.changed(DAY)) == changed_of(some, said)
        wanted = turns_of(some, said)
        assert await listed(reader) == wanted
        assert await listed(reader, 5) == wanted[:5]


async def test_a_handle_with_dates_sees_what_lived_then(server: Server) -> None:
    """A host that was revoked after the dates lives in them; its record of a day outside is not there."""
    hosts = [Machine("key", "clinic-1", revoked_at=NOW + timedelta(days=3))]
    reader = await reader_over(server, hosts, [event("fail")._replace(seq=1, number=1)])
    assert await listed(reader, 5) == []
    within = BoundReader(reader._database, {"clinic-1"}, Dates(DAY.date(), NOW.date()))
    assert await listed(within, 5) == [1]
    assert await within.changed(DAY) == [Changed("clinic-1", 1, 0, 0)]
    outside = BoundReader(reader._database, {"clinic-1"}, Dates(LONG_AGO.date(), DAY.date()))
    assert await listed(outside, 5) == [] == await outside.changed(DAY)


@pytest.mark.parametrize("planted", ["cured", "said"])
async def test_planted_faults_are_seen(server: Server, monkeypatch: pytest.MonkeyPatch, planted: str) -> None:
    """A cure that counts as a failure; what was said counts for nothing."""
    hosts, told = story(random.Random(1))
    reader = await reader_over(server, hosts, told)
    if planted == "cured":
        monkeypatch.setattr(turning, "_cured", lambda _: false())
        assert sorted(await reader.changed(DAY)) != changed_of(hosts, told)
    else:
        monkeypatch.setattr(turning, "_said", lambda of: of.kind)
        assert await listed(reader) != turns_of(hosts, told)
