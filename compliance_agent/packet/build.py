"""Builds a packet from a server's data directory: reads the database and the log as it is served, and writes one zip file.

    built = await build(data_dir, "riverside-clinic", date(2026, 11, 1), date(2026, 11, 30), Path("packet.zip"))

It may run beside the server: it only reads, and what is not under the published checkpoint yet is counted and left out. For each
host it takes the stretch of the chain that covers the period, with the record before it and the one after it where there are such,
so that whoever has the log can see that nothing of the period was left out. The only thing made in the data directory is
`keys/packet.pem`, which signs the manifest and the export, where there is none yet.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import mmap
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from compliance_agent import crypto
from compliance_agent.adapters.durable import put_at, replaced_handle
from compliance_agent.core.retention import SiteRules
from compliance_agent.crypto import Ed25519Signer
from compliance_agent.entries.act import Act
from compliance_agent.entries.minimum import NAME
from compliance_agent.errors import ConfigError, NoInput
from compliance_agent.evidence.canonical import canonical
from compliance_agent.log.note import VerifierKey
from compliance_agent.packet import oscal, packing
from compliance_agent.packet.choosing import Wanted, choose
from compliance_agent.packet.content import (
    BaselineUse,
    Limits,
    PacketHost,
    Scope,
    checks_of,
    first_moment,
    section,
    stamp,
)
from compliance_agent.packet.opening import Log, Sleep, open_log
from compliance_agent.packet.outside import outside
from compliance_agent.packet.readme import NOT_PROVEN, readme
from compliance_agent.packet.register import Accepted
from compliance_agent.packet.report import Report
from compliance_agent.packet.sample import Sample
from compliance_agent.packet.sampled import FILE
from compliance_agent.packet.source import PAGE, Apart, Source, Told, aside, nobody
from compliance_agent.packet.verify import Spread, verify_file
from compliance_agent.server.log_files import LogFiles
from compliance_agent.server.records import Host, Kept, SiteReader
from compliance_agent.server.records.exceptions import RecordedException
from compliance_agent.server.services.retention import rules_of
from compliance_agent.server.services.sampling import Sampling
from compliance_agent.server.store import SqlStore


@dataclass(frozen=True)
class Places:
    """Where a packet comes from: the log as it is served, and the directory of the server's keys."""

    files: LogFiles
    keys: Path

    @classmethod
    def of(cls, data_dir: Path) -> Places:
        """Of a server whose log is in its data directory."""
        return cls(LogFiles(data_dir / "log"), data_dir / "keys")


@dataclass(frozen=True)
class Built:
    """A packet that was written, and what its own verifier says of it."""

    path: Path
    scope: Scope
    records: int
    size_bytes: int
    report: Report


async def build(
    data_dir: Path,
    site_id: str,
    since: date,
    until: date,
    out: Path,
    *,
    control: str | None = None,
    host: str | None = None,
    log_year: int | None = None,
    sleep: Sleep = asyncio.sleep,
) -> Built:
    """Write the packet of a site and period to `out`, replacing what is there, and verify it.

    Args:
        data_dir: of the server, which may be running.
        site_id: the clinic.
        since, until: first and last day, UTC, by the start of what a record is about.
        out: the zip file.
        control: only what concerns this section of 45 CFR, such as `164.312(b)`.
        host: only the host with this label.
        log_year: of the log the records are in; the year of `until`, unless they arrived after it.
        sleep: waits for the witnesses, a few seconds at most; without them the packet is unwitnessed, and says so.

    Raises:
        ConfigError: the period is empty, or the control is not one.
        NoInput: there is no such data directory, site or host, or nothing of the period is in the log.
        BadEvidence: the log as it is served does not hold together.
        StorageError: the file could not be written.
    """
    wanted = Wanted(site_id, since, until, control, host, log_year)
    return checked(out, *await written(data_dir, wanted, out, sleep=sleep))


async def written(
    data_dir: Path, wanted: Wanted, out: Path, *, sleep: Sleep = asyncio.sleep, teller: Apart | None = None
) -> tuple[Scope, int]:
    """As `build`, and nothing is verified yet; the scope and the length. `teller` as `write` takes it."""
    async with reading(data_dir, wanted.site_id) as reader:
        return await write(reader, Places.of(data_dir), wanted, out, sleep=sleep, teller=teller)


@contextlib.asynccontextmanager
async def reading(data_dir: Path, site_id: str) -> AsyncIterator[SiteReader]:
    """A site in the database of a server; NoInput where there is none."""
    database = data_dir / "server.db"
    if not database.exists():
        raise NoInput(f"{data_dir}: not the data directory of a server (no server.db)")
    store = await SqlStore.open(database)
    try:
        yield store.for_sites({site_id})
    finally:
        await store.close()


def checked(out: Path, scope: Scope, size: int, spread: Spread = map) -> Built:
    """What was written, held to what its own verifier says; `spread` as `verify_file` takes it."""
    report = verify_file(out, spread=spread)
    return Built(out, scope, report.found, size, report)


async def write(
    reader: SiteReader,
    places: Places,
    wanted: Wanted,
    out: Path,
    *,
    sleep: Sleep = asyncio.sleep,
    told: Told = nobody,
    teller: Apart | None = None,
) -> tuple[Scope, int]:
    """Write what this reader sees of a site and period; the scope and the length.

    Args:
        reader: of the site; one with dates gives what is of these days alone.
        places: of the server.
        wanted: what is asked for.
        out: the zip file.
        sleep: as `build`.
        told: hears how far it is.
        teller: tells of the records meanwhile, and sees what `reader` sees; None where that is done here, afterwards.

    Raises:
        AgentError: as `build`.
    """
    if wanted.since > wanted.until:
        raise ConfigError(f"period: {wanted.since} is after {wanted.until}", code="bad_period")
    wanted = replace(wanted, control=section(wanted.control) if wanted.control else None)
    told("reading", 0, 0)
    if not await reader.site_rows():
        raise NoInput(f"site {wanted.site_id}: not known to this server")
    log = await open_log(reader, places.files, places.keys, wanted, sleep)
    drawn: bytes | None = None
    if wanted.drawing is not None:
        sample = await _drawn(reader, places, wanted, log)
        drawn = canonical(sample.as_document())
        shown = (one.shown for one in sample.pulled if one.shown is not None)
        wanted = replace(wanted, only=frozenset((one.key_id, one.bundle_id) for one in shown))
    keys = {item.key_id: item for item in await reader.hosts(wanted.site_id) if wanted.host in {None, item.host_id}}
    if not keys:
        raise NoInput(f"site {wanted.site_id}: no host {wanted.host or ''}".rstrip())
    of = {key for key, host in keys.items() if drawn is not None or _is_of(host, wanted)}
    rows = _rows(reader, wanted.site_id, lambda at: told("reading", min(at, log.size), log.size))
    choice = await choose(rows, wanted, range(log.minimum, log.size), keys, of)
    hosts = [_host(item) for item in keys.values() if item.key_id in choice.keys]
    rules = await rules_of(reader, wanted.site_id)
    labels = {host.host_id for host in hosts}
    scope = Scope(
        **_period(wanted),
        control=wanted.control,
        host=wanted.host,
        origin=log.shard.origin,
        size=log.size,
        signed_at=stamp(log.shard.published_at or log.shard.sequenced_at),
        hosts=tuple(sorted(hosts, key=lambda host: (host.host_id, host.key_id))),
        pending=choice.pending,
        elsewhere={str(year): count for year, count in sorted(choice.elsewhere.items())},
        minimum=log.minimum,
        destroyed=choice.destroyed,
        baselines=tuple(_uses(rules, labels)),
        held=tuple(sorted(label for label in labels if rules.keep(label, None, wanted.until).holds)),
        exceptions=tuple(_accepted(await reader.exceptions(), wanted, log, {host.key_id for host in hosts})),
        sample=hashlib.sha256(drawn).hexdigest() if drawn is not None else None,
        limits=Limits(reader.dates.first.isoformat(), reader.dates.last.isoformat()) if reader.dates else None,
    )
    source = Source(reader, wanted.site_id, log, choice, asyncio.get_running_loop(), told, teller)
    source.begin(scope)
    public = {f"keys/{host.key_id}.pem": crypto.public_pem(keys[host.key_id].public_key).encode() for host in hosts}
    if drawn is not None:
        public[FILE] = drawn
    signer = Ed25519Signer(places.keys / "packet.pem")
    return scope, await asyncio.to_thread(_put, source, scope, public, signer, out)


def _accepted(
    recorded: Iterable[RecordedException], wanted: Wanted, log: Log, keys: Collection[str]
) -> Iterator[Accepted]:
    """What people accepted, as far as the log tells of it at its checkpoint; of a host or section, what is about that alone."""
    noted = {(leaf["subject"], leaf["act"], leaf["at"]) for leaf in log.acts}
    checks = set(checks_of(wanted.control)) if wanted.control else None

    def is_noted(one: Accepted, act: Act, at: str) -> bool:
        """Or of a year before, whose log is not here."""
        return int(at[:4]) < wanted.year or (one.digest(wanted.site_id), act, at) in noted

    for made in recorded:
        about_it = made.key_id is None or wanted.host is None or made.key_id in keys
        one = _exception(made)
        if not about_it or (checks is not None and made.check not in checks):
            continue
        if not is_noted(one, Act.EXCEPTION_RECORDED, one.created):
            continue
        if one.seconded and not is_noted(one, Act.EXCEPTION_APPROVED, one.seconded):
            one = replace(one, seconded=None, seconded_by=None, seconded_by_id=None)
        if one.withdrawn and not is_noted(one, Act.EXCEPTION_WITHDRAWN, one.withdrawn):
            one = replace(one, withdrawn=None)
        yield one


def _exception(made: RecordedException) -> Accepted:
    same = ("exception_id", "key_id", "check", "reason", "measure", "reference", "approver", "approver_id", "people")
    values: dict[str, Any] = {name: getattr(made, name) for name in (*same, "seconded_by", "seconded_by_id")}
    times = {
        "created": made.created_at,
        "expires": made.expires_at,
        "seconded": made.seconded_at,
        "withdrawn": made.withdrawn_at,
    }
    values |= {name: stamp(at) if at is not None else None for name, at in times.items()}
    return Accepted(**values)


@dataclass(frozen=True)
class _OneKey:
    """The key of the log that the packet is about."""

    key: VerifierKey

    def verifier(self, _origin: str) -> VerifierKey:
        """That one; another log's checkpoint does not verify under it."""
        return self.key


async def _drawn(reader: SiteReader, places: Places, wanted: Wanted, log: Log) -> Sample:
    """The sample that was asked for, from what the log held then; from what the packet's log holds, where nobody said when."""
    if wanted.drawing is None:
        raise RuntimeError("not a sample")
    asked = wanted.drawing.asked(wanted.site_id, wanted.control, wanted.since, wanted.until)
    sampling = Sampling(reader, places.files, _OneKey(log.key))
    return await sampling.sample(asked, wanted.drawing.size or log.size)


def _put(source: Source, scope: Scope, keys: Mapping[str, bytes], signer: Ed25519Signer, out: Path) -> int:
    """Write the file; its length."""
    with replaced_handle(out, 0o644) as handle:

        def signed(start: int, end: int) -> bytes:
            with mmap.mmap(handle, end, prot=mmap.PROT_READ) as mapped, memoryview(mapped)[start:end] as part:
                return signer.sign(part)

        parts = _parts(source, scope, keys)
        signing = packing.Signing(signer.public_bytes, signer.sign, signed)
        return packing.write(parts, functools.partial(put_at, handle), functools.partial(aside, out.parent), signing)


def _host(host: Host) -> PacketHost:
    revoked = stamp(host.revoked_at) if host.revoked_at else None
    return PacketHost(host.host_id, host.key_id, stamp(host.enrolled_at), revoked)


def _uses(rules: SiteRules, labels: set[str]) -> Iterator[BaselineUse]:
    for (label, version), day in sorted(rules.last_used.items()):
        if label in labels:
            yield BaselineUse(label, version, day.isoformat(), (label, version) in rules.in_effect)


def _is_of(host: Host, wanted: Wanted) -> bool:
    """Whether a host was enrolled at some time of the period."""
    start, end = first_moment(wanted.since.isoformat()), first_moment(wanted.until.isoformat()) + timedelta(days=1)
    return host.enrolled_at < end and (host.revoked_at is None or host.revoked_at >= start)


def _period(wanted: Wanted) -> dict[str, str]:
    return {"site_id": wanted.site_id, "since": wanted.since.isoformat(), "until": wanted.until.isoformat()}


async def _rows(reader: SiteReader, site_id: str, told: Callable[[int], object]) -> AsyncIterator[Kept]:
    count, rows = 0, await reader.kept(site_id, ("", 0), PAGE)
    while rows:
        following = asyncio.create_task(reader.kept(site_id, (rows[-1].created_at, rows[-1].number), PAGE))
        await asyncio.sleep(0)  # so that it is read while these are looked at
        try:
            for row in rows:
                yield row
            count += len(rows)
            told(count)
            rows = await following
        finally:
            following.cancel()


# --- the files --------------------------------------------------------------------------------------


def _parts(source: Source, scope: Scope, keys: Mapping[str, bytes]) -> packing.Parts:
    log = source.log
    seen = outside(log.policy, log.note, log.times)
    page = readme(scope, source.shown(), oscal.VERSION, seen, authority=bool(log.authority))
    files: dict[str, bytes] = {
        "packet.json": scope.encode(),
        "policy": log.policy,
        "keys/log.pem": crypto.public_pem(log.key.public).encode(),
        "README.txt": page,
        "NOT-PROVEN.txt": NOT_PROVEN,
        "log/checkpoint": log.note,
        **({f"log/{NAME}": log.gone.encode()} if log.gone is not None else {}),
        **keys,
        **{f"log/{tile.path}": content for tile, content in log.hashes.items()},
        **log.older,
        **seen.files,
        **({"time/ca.pem": log.authority} if log.authority else {}),
    }
    plain: dict[str, Callable[[], bytes]] = {name: functools.partial(bytes, content) for name, content in files.items()}
    plain |= {f"log/{tile.path}": functools.partial(log.read, tile) for tile in log.tiles}
    predicate = {
        "site": scope.site_id,
        "from": scope.since,
        "to": scope.until,
        "log": scope.origin,
        "size": scope.size,
        "tool": "compliance-agent",
    }
    directories: Callable[[], Iterable[str]] = lambda: (one.directory for one in source.choice.stored())  # noqa: E731
    return packing.Parts(scope, plain, directories, source.told, source.stored, predicate, source.elsewhere)
