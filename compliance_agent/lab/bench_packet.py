"""A packet of the records that `bench_records` made: as a server writes one, a record at a time."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import mmap
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

from compliance_agent import crypto
from compliance_agent.adapters.durable import put_at, replaced_handle
from compliance_agent.lab import bench_records
from compliance_agent.lab.bench_log import SITE
from compliance_agent.lab.bench_records import HOSTS, PER_DAY, Bundle, Log
from compliance_agent.packet import oscal, packing
from compliance_agent.packet.content import PacketHost, Record, Scope
from compliance_agent.packet.outside import outside
from compliance_agent.packet.readme import NOT_PROVEN, Shown, readme

SIGNER = 98


def make_packet(directory: Path, records: int) -> Path:
    """The packet of so many records; one that is there is kept."""
    out = directory / f"packet-{records}.zip"
    if out.exists():
        return out
    bench_records.make(directory, records)
    log = bench_records.log(directory)
    with replaced_handle(out, 0o644) as handle:

        def signed(start: int, end: int) -> bytes:
            with mmap.mmap(handle, end, prot=mmap.PROT_READ) as mapped, memoryview(mapped)[start:end] as part:
                return bytes(bench_records.key(SIGNER).sign(part))

        signing = packing.Signing(bench_records.public_key(SIGNER), bench_records.key(SIGNER).sign, signed)
        packing.write(_parts(directory, log), functools.partial(put_at, handle), _aside(directory), signing)
    return out


def _aside(directory: Path) -> Callable[[], BinaryIO]:
    return lambda: cast(BinaryIO, tempfile.TemporaryFile(dir=directory))


def _parts(directory: Path, log: Log) -> packing.Parts:
    hosts = sorted((bench_records.label(number), bench_records.public_key(number)) for number in range(HOSTS))
    scope = Scope(
        SITE, "2026-01-01", "2026-12-31", None, None, log.key.name, log.size, "2026-12-31T00:00:00.000000Z",
        tuple(PacketHost(label, crypto.key_id(public), "2026-01-01T00:00:00.000000Z", None) for label, public in hosts),
        0, {},
    )  # fmt: skip
    policy = f"log {log.key}\nquorum none\n".encode()
    example = next(_told(directory, log))
    page = readme(scope, Shown(log.size - 1, 0, example), oscal.VERSION, outside(policy, log.note, []), authority=False)
    files = {
        "packet.json": scope.encode(), "policy": policy, "log/checkpoint": log.note, "NOT-PROVEN.txt": NOT_PROVEN,
        "keys/log.pem": crypto.public_pem(log.key.public).encode(), "README.txt": page,
        **{f"keys/{crypto.key_id(public)}.pem": crypto.public_pem(public).encode() for _, public in hosts},
        **{f"log/{tile.path}": content for tile, content in log.hashes.items()},
    }  # fmt: skip
    plain: dict[str, Callable[[], bytes]] = {name: functools.partial(bytes, content) for name, content in files.items()}
    entries = bench_records.entry_bundles(directory, log.size)  # their paths are in the order of their indexes
    for tile in bench_records.entry_tiles(log.size):
        plain[f"log/{tile.path}"] = lambda: next(entries)[1]
    return packing.Parts(
        scope,
        plain,
        lambda: (
            f"evidence/{bundle.directory}" for n in range(HOSTS) for bundle in bench_records.of_host(directory, n)
        ),
        lambda: _told(directory, log),
        lambda: _stored(directory, log),
        {"tool": "compliance-agent"},
    )


def _told(directory: Path, log: Log) -> Iterator[Record]:
    for host in range(HOSTS):
        for at, bundle in enumerate(bench_records.of_host(directory, host)):
            yield _record(bundle, at * HOSTS + host + 1)


def _stored(directory: Path, log: Log) -> Iterator[packing.Stored]:
    tree = log.tree
    for host in range(HOSTS):
        numbered = enumerate(bench_records.of_host(directory, host))
        while day := list(itertools.islice(numbered, PER_DAY)):
            for at, bundle in sorted(day, key=lambda one: one[1].directory):
                _, receipt = log.receipt(tree, host, at)
                digest = hashlib.sha256(bundle.body).hexdigest()
                above = f"evidence/{bundle.directory}"
                yield packing.Stored(above, bundle.body, digest, bundle.signature, bundle.leaf, receipt)


def _record(bundle: Bundle, index: int) -> Record:
    return Record(json.loads(bundle.body), bundle.body, bundle.signature, bundle.leaf, index)
