"""`kill -9` of the server at random moments of ingest: nothing it acknowledged is lost or doubled, and each log is whole.

Hosts send their chains as fast as they are answered and send again what was not acknowledged, as agents do. SERVER_KILLS=1000 is
the full run. Afterwards everything acknowledged stands in the database once and in the log once, and the root computed anew from
the entries is the one in the signed checkpoint. A server that answers before it commits is caught by the same judgement.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import http.client
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from compliance_agent import crypto
from compliance_agent.errors import AgentError, ServerRefused
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.note import Note
from compliance_agent.ports import HttpReply
from compliance_agent.server.opening import opened
from compliance_agent.server.services import enrol
from compliance_agent.server.settings import ServerSettings
from compliance_agent.server.store.packed_entry import unpacked
from compliance_agent.transport import protocol
from compliance_agent.transport.protocol import Sent
from tests.real.stage import command, environment, free_port, rows
from tests.real.test_kill9 import Lines
from tests.server.builder import FakeHost

pytestmark = [pytest.mark.real, pytest.mark.slow]
KILLS = int(os.environ.get("SERVER_KILLS", "40"))
HOSTS = 4
MOMENTS_S = (0.0, 0.12)
START_S = 30.0
ROOT = Path(__file__).parents[2]
Place = tuple[str, int]  # key id, seq
Ask = Callable[[str], list[tuple[Any, ...]]]  # rows of the database that the last server left


@dataclass
class Nursery:
    """One server after the other, over one directory, on one port."""

    data_dir: Path
    port: int
    process: subprocess.Popen[bytes]
    lines: Lines

    def order(self, word: str, expected: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word}\n".encode())
        self.said(expected)

    def said(self, expected: str) -> None:
        line = self.lines.next(time.monotonic() + START_S)
        assert line == expected, f"{line!r}: {self.data_dir.with_suffix('.log').read_text()[-600:]}"


@contextlib.contextmanager
def nursery(data_dir: Path, *options: str) -> Iterator[Nursery]:
    port = free_port()
    with data_dir.with_suffix(".log").open("ab") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.real.server_nursery", str(data_dir), str(port), *options],
            env=environment(), cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, bufsize=0,
        )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    with process.stdout:
        try:
            yield Nursery(data_dir, port, process, Lines(process))
        finally:
            process.stdin.close()
            process.wait(30)


@dataclass
class Sender:
    """A host that sends its chain, again where no acknowledgement came, and notes what was acknowledged."""

    host: FakeHost
    port: int
    rng: random.Random
    acknowledged: dict[Place, str] = field(default_factory=dict)
    sent: list[Sent] = field(default_factory=list)  # made and not acknowledged yet
    refused: list[str] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)
    calm: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None
    timeout_s: float = 20
    comes_again_at: int = 0  # the status at which it does, as at a connection that is cut

    def run(self) -> None:
        while not self.stopping.is_set():
            if not self.sent and self.calm.is_set():
                return
            if not self.sent:
                made = [self.host.next() for _ in range(self.rng.randint(1, 12))]
                self.sent = [Sent(one.document["bundle_id"], 0, one.document["seq"], one.body, one.sig) for one in made]
            try:
                answer = protocol.read_evidence_reply(
                    self.exchange(), self.sent, self.host.key_id, self.host.server_key, crypto.verify
                )
            except (OSError, http.client.HTTPException):
                self.stopping.wait(0.005)
                continue
            except ServerRefused as error:
                if error.status != self.comes_again_at:
                    self.refused.append(error.line)
                    return
                self.stopping.wait(0.05)
                continue
            except AgentError as error:
                self.refused.append(error.line)
                return
            for one in self.sent[: len(answer.acknowledged)]:
                self.acknowledged[self.host.key_id, one.seq] = hashlib.sha256(one.body).hexdigest()
            self.sent = self.sent[len(answer.acknowledged) :]

    def exchange(self) -> HttpReply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=self.timeout_s)
        try:
            connection.request("POST", "/api/v1/evidence", protocol.evidence_request(self.sent), self.host.headers)
            reply = connection.getresponse()
            return HttpReply(reply.status, {}, reply.read())
        finally:
            connection.close()


async def enrolled(settings: ServerSettings, count: int) -> list[FakeHost]:
    hosts = [FakeHost(host_id=f"ws-{number:02}", now=datetime.now(UTC)) for number in range(count)]
    async with opened(settings) as services:
        for host in hosts:
            token, _, _ = await services.enrolment.new_token(
                host.site_id, host.client_id, timedelta(hours=1), ca_sha256=None, actor="test"
            )
            nonce = await services.enrolment.challenge(host.public)
            done = await services.enrolment.enrol(
                enrol.Request(token, host.public, host.host_id, nonce, host.proof(nonce, token))
            )
            host.api_key, host.server_key = done.api_key, services.ack_public_key
    return hosts


def under_fire(data_dir: Path, kills: int, rng: random.Random, *options: str) -> dict[Place, str]:
    """Kill the server so many times while hosts send; what was acknowledged to them, by the end of a calm last run."""
    hosts = asyncio.run(enrolled(ServerSettings(data_dir=data_dir), HOSTS))
    with nursery(data_dir, *options) as server, sending(hosts, server.port, rng) as senders:
        for _ in range(kills):
            before = count_of(senders)
            server.order("start", "R")
            progress(senders, before)
            time.sleep(rng.uniform(*MOMENTS_S))
            server.order("kill", "E -9")
        server.order("start", "R")
        finish(senders)
    return acknowledged_to(senders)


@contextlib.contextmanager
def sending(hosts: list[FakeHost], port: int, rng: random.Random, comes_again_at: int = 0) -> Iterator[list[Sender]]:
    """Hosts that send as fast as they are answered, until the block ends."""
    senders = [Sender(host, port, random.Random(rng.random()), comes_again_at=comes_again_at) for host in hosts]
    threads = [threading.Thread(target=sender.run) for sender in senders]
    try:
        for sender, thread in zip(senders, threads, strict=True):
            sender.thread = thread
            thread.start()
        yield senders
    finally:
        for sender in senders:
            sender.stopping.set()
        for thread in threads:
            thread.join(START_S)


def count_of(senders: list[Sender]) -> int:
    return sum(len(sender.acknowledged) for sender in senders)


def progress(senders: list[Sender], before: int) -> None:
    """Wait until something more is acknowledged, or nobody sends any more."""
    deadline = time.monotonic() + START_S
    while count_of(senders) == before and time.monotonic() < deadline:
        if all(sender.refused for sender in senders):
            break
        time.sleep(0.002)


def finish(senders: list[Sender]) -> None:
    """Let everybody get rid of what is left."""
    for sender in senders:
        sender.calm.set()
    for sender in senders:
        if sender.thread is not None:
            sender.thread.join(START_S)


def acknowledged_to(senders: list[Sender]) -> dict[Place, str]:
    return {place: digest for sender in senders for place, digest in sender.acknowledged.items()}


def root_of(leaves: list[bytes]) -> bytes:
    """The Merkle tree hash of RFC 6962, 2.1, word for word."""
    if len(leaves) <= 1:
        return hashlib.sha256(b"\0" + leaves[0]).digest() if leaves else hashlib.sha256().digest()
    split = 1 << (len(leaves) - 1).bit_length() - 1
    return hashlib.sha256(b"\1" + root_of(leaves[:split]) + root_of(leaves[split:])).digest()


def judged(data_dir: Path, acknowledged: dict[Place, str]) -> list[str]:
    """Everything that is wrong with what the last server left, in words; the program's own `fsck` is asked as well."""
    wrong = wrongs(lambda query: rows(data_dir / "server.db", query), acknowledged)
    fsck = command("server", "fsck", "--data-dir", data_dir)
    return wrong if fsck.returncode == 0 else [*wrong, f"fsck: {fsck.stdout}{fsck.stderr}"]


def wrongs(ask: Ask, acknowledged: dict[Place, str]) -> list[str]:
    """The same without `fsck`, of any database."""
    wrong = list[str]()
    held = Counter[Place]((row[0], row[1]) for row in ask("SELECT key_id, seq FROM bundles"))
    digests = {(key_id, seq): digest for key_id, seq, digest in ask("SELECT key_id, seq, sha256 FROM bundles")}
    entries = ask("SELECT key_id, seq FROM log_entries WHERE seq IS NOT NULL")
    logged = Counter[Place]((row[0], row[1]) for row in entries)
    wrong += [f"lost: {seq}" for (key, seq), digest in acknowledged.items() if digests.get((key, seq)) != digest]
    wrong += [f"doubled: {seq}" for counts in (held, logged) for (_, seq), count in counts.items() if count > 1]
    wrong += [f"not in the log: {seq}" for _, seq in held.keys() - logged.keys()]
    for table in ("forks", "gaps"):
        [[count]] = ask(f"SELECT count(*) FROM {table}")
        wrong += [f"{table}: {count}"] if count else []
    for site, year, note in ask("SELECT site_id, year, checkpoint FROM log_shards"):
        signed = Checkpoint.parse(Note.parse(bytes(note)).text)
        which = f"site_id = '{site}' AND year = {year} AND leaf_index < {signed.size}"
        leaves = [
            unpacked(bytes(row[0])) for row in ask(f"SELECT leaf FROM log_entries WHERE {which} ORDER BY leaf_index")
        ]
        if (len(leaves), root_of(leaves)) != (signed.size, signed.root):
            wrong.append(f"{site}/{year}: the entries do not give the signed root")
    return wrong


def seeded() -> random.Random:
    seed = int(os.environ.get("SEED", random.SystemRandom().randrange(2**32)))
    print(f"seed {seed} (SEED={seed} chooses the same moments)")
    return random.Random(seed)


@pytest.mark.timeout(120 + 3 * KILLS)
def test_nothing_acknowledged_is_lost_or_doubled_over_the_kills(tmp_path: Path) -> None:
    acknowledged = under_fire(tmp_path / "server", KILLS, seeded())
    print(f"{KILLS} kills, {len(acknowledged)} bundles acknowledged")
    assert len(acknowledged) > KILLS
    assert judged(tmp_path / "server", acknowledged) == []


def test_a_server_that_answers_before_it_commits_is_caught(tmp_path: Path) -> None:
    """The planted fault: between the answer and the commit there is a second to be killed in."""
    acknowledged = under_fire(tmp_path / "server", 5, seeded(), "--lying")
    assert any(word.startswith("lost: ") for word in judged(tmp_path / "server", acknowledged))
