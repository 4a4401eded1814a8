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
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from compliance_agent import crypto
from compliance_agent.errors import AgentError
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.note import Note
from compliance_agent.ports import HttpReply
from compliance_agent.server.app import opened
from compliance_agent.server.services import enrol
from compliance_agent.server.settings import ServerSettings
from compliance_agent.transport import protocol
from compliance_agent.transport.protocol import Sent
from tests.real.stage import Server, command, environment, free_port, rows, troubles
from tests.real.test_kill9 import Lines
from tests.server.builder import FakeHost

pytestmark = [pytest.mark.real, pytest.mark.slow]
KILLS = int(os.environ.get("SERVER_KILLS", "40"))
HOSTS = 4
MOMENTS_S = (0.0, 0.12)
START_S = 30.0
ROOT = Path(__file__).parents[2]
Place = tuple[str, int]  # key id, seq


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
        line = self.lines.next(time.monotonic() + START_S)
        assert line == expected, f"{word}: {line!r}: {self.data_dir.with_suffix('.log').read_text()[-600:]}"


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
            except AgentError as error:
                self.refused.append(error.line)
                return
            for one in self.sent[: len(answer.acknowledged)]:
                self.acknowledged[self.host.key_id, one.seq] = hashlib.sha256(one.body).hexdigest()
            self.sent = self.sent[len(answer.acknowledged) :]

    def exchange(self) -> HttpReply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request("POST", "/api/v1/evidence", protocol.evidence_request(self.sent), self.host.headers)
            reply = connection.getresponse()
            return HttpReply(reply.status, {}, reply.read())
        finally:
            connection.close()


async def enrolled(data_dir: Path, count: int) -> list[FakeHost]:
    hosts = [FakeHost(host_id=f"ws-{number:02}", now=datetime.now(UTC)) for number in range(count)]
    async with opened(ServerSettings(data_dir=data_dir)) as services:
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
    hosts = asyncio.run(enrolled(data_dir, HOSTS))
    with nursery(data_dir, *options) as server:
        senders = [Sender(host, server.port, random.Random(rng.random())) for host in hosts]
        threads = [threading.Thread(target=sender.run) for sender in senders]
        try:
            for thread in threads:
                thread.start()
            for _ in range(kills):
                before = sum(len(sender.acknowledged) for sender in senders)
                server.order("start", "R")
                deadline = time.monotonic() + START_S
                while sum(len(sender.acknowledged) for sender in senders) == before and time.monotonic() < deadline:
                    if all(sender.refused for sender in senders):
                        break
                    time.sleep(0.002)
                time.sleep(rng.uniform(*MOMENTS_S))
                server.order("kill", "E -9")
            for sender in senders:
                sender.calm.set()
            server.order("start", "R")
            for thread in threads:
                thread.join(START_S)
        finally:
            for sender in senders:
                sender.stopping.set()
            for thread in threads:
                thread.join(START_S)
    return {place: digest for sender in senders for place, digest in sender.acknowledged.items()}


def root_of(leaves: list[bytes]) -> bytes:
    """The Merkle tree hash of RFC 6962, 2.1, word for word."""
    if len(leaves) <= 1:
        return hashlib.sha256(b"\0" + leaves[0]).digest() if leaves else hashlib.sha256().digest()
    split = 1 << (len(leaves) - 1).bit_length() - 1
    return hashlib.sha256(b"\1" + root_of(leaves[:split]) + root_of(leaves[split:])).digest()


def judged(data_dir: Path, acknowledged: dict[Place, str]) -> list[str]:
    """Everything that is wrong with what the last server left, in words; the program's own `fsck` is asked as well."""
    database, wrong = data_dir / "server.db", list[str]()
    held = Counter[Place](rows(database, "SELECT key_id, seq FROM bundles"))
    digests = {
        (key_id, seq): digest for key_id, seq, digest in rows(database, "SELECT key_id, seq, sha256 FROM bundles")
    }
    logged = Counter[Place](rows(database, "SELECT key_id, seq FROM log_entries WHERE seq IS NOT NULL"))
    wrong += [f"lost: {seq}" for (key, seq), digest in acknowledged.items() if digests.get((key, seq)) != digest]
    wrong += [f"doubled: {seq}" for counts in (held, logged) for (_, seq), count in counts.items() if count > 1]
    wrong += [f"not in the log: {seq}" for _, seq in held.keys() - logged.keys()]
    wrong += [f"{name}: {count}" for name, count in troubles(Server(data_dir)).items() if count]
    for site, year, note in rows(database, "SELECT site_id, year, checkpoint FROM log_shards"):
        signed = Checkpoint.parse(Note.parse(bytes(note)).text)
        query = "SELECT leaf FROM log_entries WHERE site_id = ? AND year = ? AND leaf_index < ? ORDER BY leaf_index"
        leaves = [bytes(leaf) for (leaf,) in rows(database, query, (site, year, signed.size))]
        if (len(leaves), root_of(leaves)) != (signed.size, signed.root):
            wrong.append(f"{site}/{year}: the entries do not give the signed root")
    fsck = command("server", "fsck", "--data-dir", data_dir)
    return wrong if fsck.returncode == 0 else [*wrong, f"fsck: {fsck.stdout}{fsck.stderr}"]


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
