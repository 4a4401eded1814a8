"""How fast a million records verify, and in how much memory: real files on a real disk, the command as a person runs it.

Records are of several hosts, a receipt beside each, and are made in a fraction of the time by signing in several processes.
`bench_packet` makes a packet of them.
"""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from compliance_agent import crypto
from compliance_agent.adapters.workers import in_order
from compliance_agent.entries.leaf import bundle_leaf, shard_leaf
from compliance_agent.evidence.canonical import canonical
from compliance_agent.lab.bench_log import SITE, ZEROS, _document
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.merkle import hash_leaf
from compliance_agent.log.note import KeyType, Note, VerifierKey
from compliance_agent.log.proof import Proof
from compliance_agent.log.tiles import Tile
from compliance_agent.log.tree import Edge, TileTree

START = datetime(2026, 1, 1, tzinfo=UTC)
PER_DAY = 500  # of each host, so that no directory is very long
HOSTS = 8


@dataclass(frozen=True)
class Ran:
    """What a command took: seconds, and the most memory that it and its children had at one moment."""

    status: int
    seconds: float
    peak_rss_bytes: int
    peak_pss_bytes: int
    said: str


def make(directory: Path, records: int) -> Path:
    """An evidence directory of so many records, with the log's key and the hosts' beside it; one that is there is kept."""
    done = directory / f"done-{records}"
    if done.exists():
        return directory / "evidence"
    (directory / "keys").mkdir(parents=True)
    each = records // HOSTS
    log_key = _key(99)
    for number, host in enumerate(in_order(lambda n: _make_host(directory, n, each), range(HOSTS), count=2)):
        (directory / "keys" / f"ws-{number:02}.pub.pem").write_text(crypto.public_pem(host))
    vkey = VerifierKey(f"bench/{SITE}/2026", KeyType.ED25519, log_key.public_key().public_bytes_raw())
    _receipts(directory, each, log_key, vkey)
    (directory / "keys" / "log.vkey").write_text(f"{vkey}\n")
    done.touch()
    return directory / "evidence"


def _key(number: int) -> Any:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(f"bench {number}".encode()).digest())


def _make_host(directory: Path, number: int, count: int) -> bytes:
    key, rng, prev = _key(number), random.Random(number), ZEROS
    public: bytes = key.public_key().public_bytes_raw()
    key_id, host = crypto.key_id(public), f"ws-{number:02}"
    leaves = directory / f"leaves-{number}"
    with leaves.open("w", encoding="ascii") as listed:
        for at in range(count):
            now = START + timedelta(days=at // PER_DAY, seconds=at % PER_DAY * 60)
            bundle_id = str(uuid.UUID(int=rng.getrandbits(128), version=4))
            document = _document(host, key_id, now) | {
                "epoch": 0, "seq": at + 1, "prev": prev, "bundle_id": bundle_id, "pre_state": {"offset_us": at % 900},
            }  # fmt: skip
            document["clock"] |= {"monotonic_ns": at * 10**9, "boot_id": "0b1e7c9a-3c5d-4e6f-8a9b-0c1d2e3f4a5b"}
            body = canonical(document)
            signature, digest = key.sign(body), hashlib.sha256(body).hexdigest()
            place = directory / "evidence" / host / now.strftime("%Y/%m/%d") / bundle_id
            place.mkdir(parents=True)
            (place / "bundle.json").write_bytes(body)
            (place / "bundle.sig").write_bytes(signature)
            leaf = bundle_leaf(key_id, 0, at + 1, prev, digest, signature)
            (place / "leaf.json").write_bytes(leaf)
            listed.write(f"{place}\t{leaf.decode('ascii')}\n")
            prev = digest
    return public


def _receipts(directory: Path, each: int, log_key: Any, vkey: VerifierKey) -> None:
    """One log over all of them, hosts taking turns; one checkpoint at its end."""
    edge, grown = Edge().grow([hash_leaf(shard_leaf(vkey.name, None, "2026-01-01T00:00:00Z"))])
    tiles = dict(grown)
    files = [(directory / f"leaves-{number}").open(encoding="ascii") for number in range(HOSTS)]
    for _ in range(0, each, 1_000):
        turn = [
            line.rstrip("\n").partition("\t")[2] for _ in range(1_000) for file in files if (line := file.readline())
        ]
        edge, grown = edge.grow(hash_leaf(leaf.encode()) for leaf in turn)
        tiles |= dict(grown)
    text = Checkpoint(vkey.name, edge.size, edge.root()).text
    note = Note(text, (vkey.sign(text, log_key.sign),)).encode()
    (directory / "checkpoint").write_bytes(note)
    tree = TileTree(edge.size, lambda *tile: tiles[Tile(*tile)])
    for number, file in enumerate(files):
        file.seek(0)
        for at, line in enumerate(file):
            index = at * HOSTS + number + 1  # after the entry that begins the log
            path = Path(line.partition("\t")[0]) / "bundle.tlog-proof"
            path.write_bytes(Proof(index, tuple(tree.inclusion(index)), note).encode())
        file.close()


def run(*words: str) -> Ran:
    """The command, watched."""
    command = [sys.executable, "-m", "compliance_agent", *words]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    peaks, stop = [0, 0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.1):
            for at, name in enumerate(("Rss", "Pss")):
                peaks[at] = max(peaks[at], sum(_memory(pid, name) for pid in _family(process.pid)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    said, _ = process.communicate()
    seconds = time.perf_counter() - started
    stop.set()
    watcher.join()
    return Ran(process.returncode, seconds, peaks[0], peaks[1], said)


def _family(pid: int) -> Iterator[int]:
    yield pid
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()
    except OSError:
        return
    for child in children:
        yield from _family(int(child))


def _memory(pid: int, name: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1_024 for line in lines if line.startswith(f"{name}:")), 0)


def checks_per_s(seconds: float = 3.0) -> float:
    """Strict signature checks of a record's size a second, on all cores at once: the limit of this run."""

    def one(_: int) -> float:
        key = _key(7)
        message = canonical(_document("ws-00", crypto.key_id(key.public_key().public_bytes_raw()), START))
        public, signature = key.public_key().public_bytes_raw(), key.sign(message)
        count, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            for _ in range(100):
                crypto.verify(public, signature, message)
            count += 100
        return count / (time.perf_counter() - started)

    return sum(in_order(one, range(2), count=2))
