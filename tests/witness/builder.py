"""A witness in a directory and a log in memory, the bodies they exchange, and a real process of the witness."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from compliance_agent.adapters.witness_keys import WitnessKeys
from compliance_agent.adapters.witness_store import WitnessStore
from compliance_agent.core.witness import origin_hash
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.fields import to_base64
from compliance_agent.log.merkle import HASH_BYTES, RootHash
from compliance_agent.log.note import Note, VerifierKey
from compliance_agent.log.tiles import FULL, Tile
from compliance_agent.log.tree import TileTree
from compliance_agent.ports import HttpReply
from compliance_agent.witness import Witness
from tests.cli.command import environment
from tests.log.builder import LOG, NOW, ORIGIN, MemoryLog, Signer

NAME = "witness.example/w1"
HASH = origin_hash(ORIGIN)
LOGS = {ORIGIN: [LOG.key]}


@dataclass
class Wall:
    """A clock that stands where it is put."""

    at: int = NOW
    waits: list[float] = field(default_factory=list)

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.at, UTC)

    def monotonic(self) -> float:
        return float(self.at)

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)


def note_of(checkpoint: Checkpoint, *signers: Signer) -> bytes:
    return Note(checkpoint.text, tuple(one.line(checkpoint.text) for one in signers or (LOG,))).encode()


def tree_of(log: MemoryLog, size: int) -> TileTree:
    """The tree at an earlier size, from the tiles of today: a wider tile begins with the narrower one."""

    def read(level: int, index: int, width: int) -> bytes:
        widest = min(FULL, (log.edge.size >> 8 * level) - index * FULL)
        return log.tiles[Tile(level, index, widest)][: width * HASH_BYTES]

    return TileTree(size, read)


def checkpoint_of(log: MemoryLog, size: int) -> Checkpoint:
    tree = tree_of(log, size)
    return Checkpoint(ORIGIN, tree.size, tree.root())


def body_of(old: int, proof: list[bytes], note: bytes) -> bytes:
    return b"".join(line + b"\n" for line in (b"old %d" % old, *(to_base64(one).encode() for one in proof), b"")) + note


def step(log: MemoryLog, old: int, new: int, *signers: Signer) -> bytes:
    """The body of the request that brings a witness from one size of a log to another."""
    proof = tree_of(log, new).consistency(old) if old <= new else []
    return body_of(old, proof, note_of(checkpoint_of(log, new), *signers))


def fork_of(size: int) -> Checkpoint:
    """A tree of another root, which the log signed too."""
    return Checkpoint(ORIGIN, size, RootHash(bytes([size % 256]) * 32))


@dataclass
class Local:
    """A witness without a socket."""

    directory: Path
    clock: Wall = field(default_factory=Wall)
    ml_dsa: bool = False
    logs: dict[str, list[VerifierKey]] = field(default_factory=lambda: dict(LOGS))

    def __post_init__(self) -> None:
        self.keys = WitnessKeys(self.directory, NAME, ml_dsa=self.ml_dsa)
        self.store = WitnessStore(self.directory, self.keys.keys)
        self.witness = Witness(self.logs, self.keys, self.store, self.clock)

    async def add(self, body: bytes) -> HttpReply:
        return await self.witness.answer("POST", "/add-checkpoint", body)

    async def latest(self) -> HttpReply:
        return await self.witness.answer("GET", f"/{HASH}/checkpoint", b"")

    def again(self) -> Local:
        """The same after a restart."""
        self.store.close()
        return Local(self.directory, self.clock, self.ml_dsa, self.logs)


@contextmanager
def local(directory: Path, *, ml_dsa: bool = False) -> Iterator[Local]:
    one = Local(directory, ml_dsa=ml_dsa)
    try:
        yield one
    finally:
        one.store.close()


def policy_file(directory: Path) -> Path:
    path = directory / "policy"
    path.write_text(f"log {LOG.key}\nquorum none\n")
    path.chmod(0o600)
    return path


@dataclass
class Running:
    """A process of the witness, its URL and the keys it printed."""

    process: subprocess.Popen[str]
    url: str
    keys: list[VerifierKey]


@contextmanager
def running(state: Path, policy: Path, *options: str) -> Iterator[Running]:
    words = ["witness", "--name", NAME, "--state-dir", str(state), "--policy", str(policy), "--port", "0", *options]
    with subprocess.Popen(
        [sys.executable, "-m", "compliance_agent", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as process:
        try:
            assert process.stdout is not None and process.stderr is not None
            keys = []
            while not (found := re.fullmatch(r"listening on (https?://\S+)\n", line := process.stdout.readline())):
                assert line, process.stderr.read()
                keys.append(VerifierKey.parse(line.rstrip("\n")))
            yield Running(process, found[1], keys)
        finally:
            if process.poll() is None:
                process.kill()
            process.communicate()
