"""Builds a packet from a server's data directory: reads the database and the log as it is served, and writes one zip file.

    built = await build(data_dir, "riverside-clinic", date(2026, 11, 1), date(2026, 11, 30), Path("packet.zip"))

It may run beside the server: it only reads, and what is not under the published checkpoint yet is counted and left out. For each
host it takes the stretch of the chain that covers the period, with the record before it and the one after it where there are such,
so that whoever has the log can see that nothing of the period was left out. The only thing made in the data directory is
`keys/packet.pem`, which signs the manifest and the export, where there is none yet.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from compliance_agent import crypto
from compliance_agent.adapters.durable import read_file, replaced_file
from compliance_agent.crypto import Ed25519Signer
from compliance_agent.errors import BadEvidence, ConfigError, NoInput
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.fields import from_base64
from compliance_agent.log.merkle import hash_leaf
from compliance_agent.log.note import Note, VerifierKey
from compliance_agent.log.policy import Policy
from compliance_agent.log.proof import Proof
from compliance_agent.log.tiles import ENTRIES, Tile, decode_entries, written
from compliance_agent.log.tree import Edge, TileTree
from compliance_agent.packet import archive, dsse, ocsf, oscal, table
from compliance_agent.packet.content import (
    PacketHost,
    Record,
    Scope,
    concerns,
    first_moment,
    in_order,
    section,
    stamp,
)
from compliance_agent.packet.manifest import MANIFEST, MANIFEST_SIGNATURE, manifest
from compliance_agent.packet.outside import OLDER, YEAR, Outside, outside
from compliance_agent.packet.readme import NOT_PROVEN, Shown, readme
from compliance_agent.packet.report import Report
from compliance_agent.packet.verify import verify_file
from compliance_agent.server.log_files import LogFiles
from compliance_agent.server.records import Host, Kept, Shard, SiteReader
from compliance_agent.server.store import SqlStore

WITNESSES, AUTHORITY = "witnesses.policy", "tsa-ca.pem"  # under keys/, where the server leaves them
LOOKS, LOOK_S = 25, 0.2  # for a checkpoint that its witnesses have cosigned; a new one is visible before they have
PAGE = 500  # bundles in memory at once while looking for the ones that are wanted
Sleep = Callable[[float], Awaitable[None]]


@dataclass(frozen=True)
class Wanted:
    """What was asked for."""

    site_id: str
    since: date
    until: date
    control: str | None = None
    host: str | None = None
    log_year: int | None = None

    @property
    def year(self) -> int:
        """Of the log: a packet has one."""
        return self.log_year or self.until.year


@dataclass(frozen=True)
class Built:
    """A packet that was written, and what its own verifier says of it."""

    path: Path
    scope: Scope
    records: int
    size_bytes: int
    report: Report


@dataclass(frozen=True)
class _Log:
    """A log under its published checkpoint, as its files show it."""

    shard: Shard
    note: bytes
    key: VerifierKey
    entries: list[bytes]
    files: dict[Tile, bytes]
    policy: bytes = b""  # its key, and the witnesses that the server asks about it
    authority: bytes = b""  # certificates of the time-stamping authority it asks

    @property
    def size(self) -> int:
        return len(self.entries)


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
    """Write the packet of a site and period to `out`, replacing what is there.

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
    if since > until:
        raise ConfigError(f"period: {since} is after {until}", code="bad_period")
    wanted = Wanted(site_id, since, until, section(control) if control else None, host, log_year)
    database = data_dir / "server.db"
    if not database.exists():
        raise NoInput(f"{data_dir}: not the data directory of a server (no server.db)")
    store = await SqlStore.open(database)
    try:
        scope, files = await _gathered(store, data_dir, wanted, sleep)
    finally:
        await store.close()
    whole = _signed(files, Ed25519Signer(data_dir / "keys" / "packet.pem"), scope)
    del files
    with replaced_file(out, 0o644) as put:
        size = archive.write(whole, whole.__getitem__, put)
    del whole
    report = verify_file(out)
    return Built(out, scope, report.found, size, report)


async def _gathered(store: SqlStore, data_dir: Path, wanted: Wanted, sleep: Sleep) -> tuple[Scope, dict[str, bytes]]:
    reader = store.for_sites({wanted.site_id})
    if not await reader.site_rows():
        raise NoInput(f"site {wanted.site_id}: not known to this server")
    log = await _log(reader, data_dir, wanted, sleep)
    keys = {item.key_id: item for item in await reader.hosts(wanted.site_id) if wanted.host in {None, item.host_id}}
    if not keys:
        raise NoInput(f"site {wanted.site_id}: no host {wanted.host or ''}".rstrip())
    survey = await _surveyed(reader, wanted, log, keys)
    hosts = [_host(item) for item in keys.values() if item.key_id in survey.keys]
    scope = Scope(
        **_period(wanted),
        control=wanted.control,
        host=wanted.host,
        origin=log.shard.origin,
        size=log.size,
        signed_at=stamp(log.shard.published_at or log.shard.sequenced_at),
        hosts=tuple(sorted(hosts, key=lambda host: (host.host_id, host.key_id))),
        pending=survey.pending,
        elsewhere={str(year): count for year, count in sorted(survey.elsewhere.items())},
    )
    records = [_record(kept, log) async for kept in _rows(reader, wanted.site_id) if kept.number in survey.numbers]
    files = await asyncio.to_thread(_files, scope, records, log)
    files |= {f"keys/{host.key_id}.pem": crypto.public_pem(keys[host.key_id].public_key).encode() for host in hosts}
    return scope, files


def _host(host: Host) -> PacketHost:
    revoked = stamp(host.revoked_at) if host.revoked_at else None
    return PacketHost(host.host_id, host.key_id, stamp(host.enrolled_at), revoked)


def _is_of(host: Host, wanted: Wanted) -> bool:
    """Whether a host was enrolled at some time of the period."""
    start, end = first_moment(wanted.since.isoformat()), first_moment(wanted.until.isoformat()) + timedelta(days=1)
    return host.enrolled_at < end and (host.revoked_at is None or host.revoked_at >= start)


def _period(wanted: Wanted) -> dict[str, str]:
    return {"site_id": wanted.site_id, "since": wanted.since.isoformat(), "until": wanted.until.isoformat()}


async def _rows(reader: SiteReader, site_id: str) -> AsyncIterator[Kept]:
    after = 0
    while rows := await reader.kept(site_id, after, PAGE):
        for row in rows:
            yield row
        after = rows[-1].number


# --- which records ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Seen:
    """A record of this log while it is decided whether it is wanted."""

    place: tuple[int, int]
    number: int
    day: str
    wanted: bool


@dataclass
class _Survey:
    """What is taken: numbers of arrival, and keys that are of the period; and what of the period is not in this log."""

    numbers: set[int]
    keys: set[str]
    pending: int
    elsewhere: Counter[int]


async def _surveyed(reader: SiteReader, wanted: Wanted, log: _Log, keys: Mapping[str, Host]) -> _Survey:
    chains: dict[str, list[_Seen]] = defaultdict(list)
    survey = _Survey(set(), {key for key, host in keys.items() if _is_of(host, wanted)}, 0, Counter())
    first, last = wanted.since.isoformat(), wanted.until.isoformat()
    async for kept in _rows(reader, wanted.site_id):
        if kept.key_id not in keys:
            continue
        if not kept.body:  # destroyed when its time was over; a log with such records makes no packet
            continue
        document = json.loads(kept.body)
        day = document["timestamp_start"][:10]
        matches = first <= day <= last and concerns(document, wanted.control)
        if kept.year == wanted.year and kept.index is not None and kept.index < log.size:
            chains[kept.key_id].append(_Seen((kept.epoch, kept.seq), kept.number, day, matches))
        elif matches and kept.year not in {None, wanted.year}:
            survey.elsewhere[kept.year or 0] += 1
        else:
            survey.pending += matches
    if not any(seen.wanted for chain in chains.values() for seen in chain):
        raise _nothing(wanted, survey, [seen.day for chain in chains.values() for seen in chain])
    for key, chain in chains.items():
        inside = [seen for seen in chain if seen.wanted]
        survey.keys |= {key} if inside else set()
        if key in survey.keys:
            taken = inside if wanted.control else _stretch(sorted(chain, key=lambda seen: seen.place), first, last)
            survey.numbers |= {seen.number for seen in taken}
    return survey


def _stretch(chain: Sequence[_Seen], first: str, last: str) -> list[_Seen]:
    """The part of a chain that covers the period: it begins before it and ends after it, or where the chain does."""
    inside = [at for at, seen in enumerate(chain) if seen.wanted]
    if not inside:
        inside = [next((at for at, seen in enumerate(chain) if seen.day > last), len(chain) - 1)]
    low, high = inside[0], inside[-1]
    while low > 0 and chain[low].day >= first:
        low -= 1
    while high < len(chain) - 1 and chain[high].day <= last:
        high += 1
    return list(chain[low : high + 1])


def _nothing(wanted: Wanted, survey: _Survey, days: Sequence[str]) -> NoInput:
    what = f"site {wanted.site_id}, {wanted.since} to {wanted.until}"
    if survey.elsewhere:
        years = ", ".join(map(str, sorted(survey.elsewhere)))
        return NoInput(f"{what}: nothing in the log of {wanted.year}", hint=f"it is in the log of {years}: --log-year")
    if survey.pending:
        return NoInput(f"{what}: {survey.pending} record(s), none of them in the log yet", hint="try again in a second")
    there = f"there is evidence from {min(days)} to {max(days)}" if days else "this log holds no evidence"
    return NoInput(f"{what}: no evidence" + (f" for {wanted.control}" if wanted.control else ""), hint=there)


# --- the log ----------------------------------------------------------------------------------------


async def _log(reader: SiteReader, data_dir: Path, wanted: Wanted, sleep: Sleep) -> _Log:
    shards = {shard.year: shard for shard in await reader.shards()}
    served = LogFiles(data_dir / "log")
    note = served.published(wanted.site_id, wanted.year)
    shard = shards.get(wanted.year)
    if shard is None or note is None:
        there = ", ".join(map(str, sorted(shards))) or "none"
        raise NoInput(f"site {wanted.site_id}: no log of {wanted.year} (there is: {there})")
    vkey = read_file(data_dir / "keys" / f"{wanted.site_id}-{wanted.year}.vkey", limit_bytes=4_096)
    key = VerifierKey.parse(vkey.decode("ascii", "replace").strip())
    witnesses, authority = (_left(data_dir / "keys" / name) for name in (WITNESSES, AUTHORITY))
    policy = f"log {key}\n".encode() + (witnesses or b"quorum none\n")
    for _ in range(LOOKS):
        if not _lacks_witnesses(policy, note):
            break
        await sleep(LOOK_S)
        note = served.published(wanted.site_id, wanted.year) or note
        shard = next(one for one in await reader.shards() if one.year == wanted.year)
    log = await asyncio.to_thread(_opened, shard, served, note, key)
    return replace(log, policy=policy, authority=authority)


def _lacks_witnesses(policy: bytes, note: bytes) -> bool:
    """Whether waiting may help; what is wrong with either is for the packet's verifier to name."""
    try:
        return not Policy.parse(policy).verify(note).quorum_met
    except BadEvidence:
        return False


def _left(path: Path) -> bytes:
    """What the server left there, nothing where it asks nobody."""
    return read_file(path, limit_bytes=65_536) if path.exists() else b""


def _opened(shard: Shard, served: LogFiles, note: bytes, key: VerifierKey) -> _Log:
    signed = Note.parse(note)
    signed.verify([key])
    checkpoint = Checkpoint.parse(signed.text)
    gone = served.pruned(shard.site_id, shard.year)
    if gone is not None:
        raise NoInput(
            f"log {shard.origin}: entries below {gone.minimum} were destroyed when their time was over;"
            " a packet needs all entries of its log", code="pruned",
            hint="use a packet that was built before; verify the log itself by its address",
        )  # fmt: skip
    tiles = [tile for tile in written(0, checkpoint.size) if tile.level == ENTRIES]
    entries = [
        entry for tile in tiles for entry in decode_entries(served.read(shard.site_id, shard.year, tile), tile.width)
    ]
    edge, hashes = Edge().grow(map(hash_leaf, entries))
    if checkpoint.origin != shard.origin or edge.root() != checkpoint.root:
        raise BadEvidence(
            f"log {shard.origin}: its entries do not make the tree that its checkpoint signs", code="bad_tile",
            hint="compliance-agent server log",
        )  # fmt: skip
    files = dict(hashes) | {tile: served.read(shard.site_id, shard.year, tile) for tile in tiles}
    return _Log(shard, note, key, entries, files)


def _record(kept: Kept, log: _Log) -> Record:
    if kept.index is None:
        raise RuntimeError("a record without an index was taken")
    return Record(json.loads(kept.body), kept.body, kept.sig, log.entries[kept.index], kept.index)


# --- the files --------------------------------------------------------------------------------------


def _files(scope: Scope, records: Sequence[Record], log: _Log) -> dict[str, bytes]:
    seen = _outside(log)
    files: dict[str, bytes] = {
        "packet.json": scope.encode(),
        "policy": log.policy,
        "keys/log.pem": crypto.public_pem(log.key.public).encode(),
        "README.txt": readme(scope, _shown(scope, records), oscal.VERSION, seen, authority=bool(log.authority)),
        "NOT-PROVEN.txt": NOT_PROVEN,
        "log/checkpoint": log.note,
        "export/assessment-results.json": oscal.assessment_results(scope, records),
        "export/ocsf.jsonl": ocsf.lines(scope, records),
        "export/evidence.csv": table.table(scope, records),
    }
    files |= {f"log/{tile.path}": content for tile, content in log.files.items()}
    files |= {**_older(log), **seen.files}
    files |= {"time/ca.pem": log.authority} if log.authority else {}
    tree = TileTree(log.size, lambda *tile: log.files[Tile(*tile)])
    for record in records:
        if f"{record.directory}/bundle.json" in files:
            raise BadEvidence(f"{record.directory}: two records with this name", code="duplicate")
        files |= {
            f"{record.directory}/bundle.json": record.body,
            f"{record.directory}/bundle.sig": record.signature,
            f"{record.directory}/leaf.json": record.leaf,
            f"{record.directory}/bundle.tlog-proof": Proof(
                record.index, tuple(tree.inclusion(record.index)), log.note
            ).encode(),
        }
    return files


def _shown(scope: Scope, records: Sequence[Record]) -> Shown:
    inside = in_order(records, scope)
    first = inside[0] if inside else min(records, key=lambda record: record.directory)
    return Shown(len(inside), len(records) - len(inside), first)


def _outside(log: _Log) -> Outside:
    """What third parties said of it."""
    found = ((at, json.loads(entry)) for at, entry in enumerate(log.entries) if b'"kind":"time"' in entry)
    return outside(log.policy, log.note, found)


def _older(log: _Log) -> dict[str, bytes]:
    """The checkpoint of the year before, which the first entry binds."""
    first: Mapping[str, Any] = json.loads(log.entries[0])
    previous = first.get("previous")
    if not previous:
        return {}
    return {f"{OLDER}{log.shard.year - 1}{YEAR}": from_base64(previous, "previous", "bad_entry")}


def _signed(files: Mapping[str, bytes], signer: Ed25519Signer, scope: Scope) -> dict[str, bytes]:
    """With the signatures of the server: over the export, and over everything."""
    name = "export/assessment-results.json"
    predicate = {
        "site": scope.site_id,
        "from": scope.since,
        "to": scope.until,
        "log": scope.origin,
        "size": scope.size,
        "tool": "compliance-agent",
    }
    said = dsse.statement(name.rpartition("/")[2], hashlib.sha256(files[name]).hexdigest(), predicate)
    whole = {
        **files,
        "keys/packet.pem": signer.public_pem().encode(),
        "export/assessment-results.dsse.json": dsse.envelope(said, signer.public_bytes, signer.sign),
    }
    listed = manifest(whole)
    return {**whole, MANIFEST: listed, MANIFEST_SIGNATURE: signer.sign(listed)}
