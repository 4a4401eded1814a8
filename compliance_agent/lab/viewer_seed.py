"""A fleet as large as a provider has, for measuring the viewer: made once, and kept for the next run.

Every record is a real one: facts of the checks' own cases, in the form that the schema asks for, chained, signed by its host. Each
takes its place as evidence does (`Placing`), so that rows, verdicts and entries are what the server itself would have written; only
the signature, which was made a moment before, is not verified once more. Hosts speak in turn, so the records of one lie apart as
they do in a server that has run for a month. Random only by number.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import os
import random
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy.schema import CreateTable

from compliance_agent.entries.leaf import key_leaf
from compliance_agent.evidence.allowlist import Circumstances, Place, build
from compliance_agent.lab.seeding import (
    AGENT,
    BASELINE,
    BOOT_ID,
    Event,
    MovingClock,
    SeededHost,
    enrol,
    happened,
    heartbeat,
    known,
    look,
)
from compliance_agent.models import ClockState, Result
from compliance_agent.server.app import create_app
from compliance_agent.server.opening import opened, utc_now
from compliance_agent.server.records import NO_DIGEST, Host, NewLeaf, Store, Transaction
from compliance_agent.server.services.placing import Checked, Placing, Submission
from compliance_agent.server.settings import ServerSettings
from compliance_agent.server.store import migration, tables

END = datetime(2026, 11, 28, 12, tzinfo=UTC)
DAYS = 30
AT_ONCE = 6_000  # records in a transaction, about
SILENT_ONE_IN = 40  # hosts, which say nothing in the last hours
SILENT = timedelta(hours=7)
FORM = 2  # of what is made here: another number makes it anew


@dataclass(frozen=True)
class Size:
    """How much of it.

    Attributes:
        cycle: records of a host after which its story begins anew, at least 17; five of them are no heartbeats.
    """

    sites: int = 50
    hosts: int = 1_000
    bundles: int = 1_000_000
    cycle: int = 18


@dataclass
class Speaker:
    """One host and the place in its story."""

    host: SeededHost
    row: Host
    number: int
    rng: random.Random
    said: int = 0
    drifted: str = ""  # the check that waits to be put right


def kept(size: Size) -> Path:
    """Where a server with so much evidence is kept: another schema, registry or size is another place."""
    digest = hashlib.sha256(f"{FORM} {migration.HEAD} {sorted(known())}".encode())
    for table in tables.metadata.sorted_tables:
        digest.update(str(CreateTable(table)).encode())
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    name = f"viewer-{size.sites}-{size.hosts}-{size.bundles}-{size.cycle}-{digest.hexdigest()[:12]}"
    return Path(cache) / "compliance-agent" / name


async def made(directory: Path, size: Size) -> None:
    """A data directory of a server with so much evidence; one that is whole already stays as it is."""
    done = directory / "made.json"
    if done.exists():
        return
    shutil.rmtree(directory, ignore_errors=True)
    clock = MovingClock(END - timedelta(days=DAYS))
    async with opened(settings(directory), clock=clock, log_clock=utc_now) as services:
        speakers = await _enrolled(services.store, size, clock.now)
        for moment, some in _turns(speakers, size):
            clock.now = moment
            await services.store.write(functools.partial(_placed, now=moment, some=some))
    await _sequenced(directory)
    done.write_text(json.dumps({"key_ids": [speaker.host.key_id for speaker in speakers]}), "ascii")


async def _sequenced(directory: Path) -> None:
    """Let a whole server run until every entry has its index."""
    app = create_app(settings(directory), clock=MovingClock(END), log_clock=utc_now)
    async with app.router.lifespan_context(app):
        store = app.state.services.store
        everything = store.for_sites(await store.all_sites())
        while await everything.any_pending():  # noqa: ASYNC110  the sequencer tells nobody
            await asyncio.sleep(0.05)


async def _placed(tx: Transaction, now: datetime, some: list[Submission]) -> None:
    await Placing(tx, now).run(some)


def settings(directory: Path) -> ServerSettings:
    """Of the server over it; a session lasts as long as the measurement."""
    return ServerSettings(data_dir=directory.resolve(), session_idle_s=86_400)


async def _enrolled(store: Store, size: Size, now: datetime) -> list[Speaker]:
    hosts = [
        SeededHost(f"clinic-{number % size.sites:02}", f"ws-{number // size.sites:03}", _key(number))
        for number in range(size.hosts)
    ]
    await enrol(store, hosts, now)

    async def entries(tx: Transaction) -> None:
        at = now.strftime("%Y-%m-%dT%H:%M:%SZ")
        leaves = [NewLeaf(one.site_id, key_leaf("enrol", one.key_id, one.public_key, at), one.key_id) for one in hosts]
        await tx.add_leaves(leaves, now)

    await store.write(entries)
    return [Speaker(host, host.row, number, random.Random(number)) for number, host in enumerate(hosts)]


def _key(number: int) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(f"viewer {number}".encode()).digest())


def _turns(speakers: list[Speaker], size: Size) -> Iterator[tuple[datetime, list[Submission]]]:
    """What arrives together, and when: each host says one thing after the other has."""
    rounds = size.bundles // size.hosts
    every, most = timedelta(days=DAYS) / rounds, max(1, AT_ONCE // size.hosts)
    for start in range(0, rounds, most):
        stop = min(start + most, rounds)
        some = [
            Submission(speaker.row, (_next(speaker, moment, every, size.cycle),), None)
            for at in range(start, stop)
            for speaker in speakers
            if (moment := END - (rounds - at) * every) <= END - _silence(speaker)
        ]
        yield END - (rounds - stop) * every, some


def _silence(speaker: Speaker) -> timedelta:
    return SILENT if speaker.number % SILENT_ONE_IN == SILENT_ONE_IN - 1 else timedelta()


def _next(speaker: Speaker, moment: datetime, every: timedelta, cycle: int) -> Checked:
    """The next record of a host, made at some time of its turn."""
    host, rng = speaker.host, speaker.rng
    at = moment + every * rng.random() * 0.9
    stamp = at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    document = _said(speaker, cycle) | {
        "bundle_id": str(uuid.UUID(int=rng.getrandbits(128), version=4)),
        "created_at": stamp,
        "host": {"id": host.host_id, "key_id": host.key_id},
        "prev": host.digest,
        "seq": host.seq + 1,
        "site_id": host.site_id,
        "timestamp_end": stamp,
        "timestamp_start": stamp,
    }
    document["clock"] = {**document["clock"], "monotonic_ns": int(at.timestamp()) * 1_000}
    body = orjson.dumps(document, option=orjson.OPT_SORT_KEYS)  # canonical: ASCII texts and whole numbers
    host.seq, host.digest = host.seq + 1, hashlib.sha256(body).hexdigest()
    speaker.said += 1
    return Checked(document, host.digest, body, host.key.sign(body))


def _said(speaker: Speaker, cycle: int) -> dict[str, Any]:
    """Mostly heartbeats; a cure, a drift that waits for its window and ends, a look that could not tell and can again."""
    verdicts, checks = speaker.host.verdicts, sorted(known())
    turn = (speaker.said + 5 * speaker.number) % cycle
    check = checks[(speaker.said // cycle + 7 * speaker.number) % len(checks)]
    if turn == 3:
        verdicts[check] = _passing(check)
        return _document(check, Result.FAIL, "success", "healed")
    if turn == 8:
        verdicts[check], speaker.drifted = _seen(check, Result.FAIL), check
        return _document(check, Result.FAIL, "deferred", "outside_window")
    if turn == 14 and any(case.expect is Result.UNKNOWN for case in known()[check].cases):
        verdicts[check], speaker.drifted = _seen(check, Result.UNKNOWN), check
        return _document(check, Result.UNKNOWN)
    if turn in (12, 16) and speaker.drifted:
        check, speaker.drifted = speaker.drifted, ""
        verdicts[check] = _passing(check)
        return _document(check, Result.PASS)
    for check in checks:
        verdicts.setdefault(check, _passing(check))
    states = {check: {"result": result, "reason": reason} for check, (result, reason) in verdicts.items()}
    return _document() | {"states": states}


def _passing(check: str) -> tuple[str, str]:
    return _seen(check, Result.PASS)


def _seen(check: str, result: Result) -> tuple[str, str]:
    found = look(check, result)
    return found.result, found.reason


@functools.cache
def _document(
    check: str = "", result: Result = Result.PASS, outcome: str | None = None, ending: str = ""
) -> dict[str, Any]:
    """A record of this kind as its schema has it; who says it, when and where in a chain is filled in by `_next`."""
    nobody = SeededHost("clinic", "nobody", _key(0))
    bundle = happened(nobody, Event(timedelta(), "", check, result, outcome, ending), END) if check else None
    clock = ClockState("chrony", True, 120, 3, BOOT_ID, 0)
    seen = Circumstances(nobody.key_id, END, clock, AGENT, BASELINE)
    return build(bundle or heartbeat(nobody, END), Place(0, 1, NO_DIGEST), seen)[0]
