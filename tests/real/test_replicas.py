"""Two real server processes on one real PostgreSQL: frozen, thawed and killed while hosts send through both.

Hosts send each batch to whichever of the two they like, as through a load balancer, and again where no answer came. Afterwards
everything acknowledged is held once and logged once, the log has the root that was signed, and nobody was told anything twice.
`REPLICA_FREEZE_S=30` is the full run: the leader is frozen for 30 seconds, under the lease that servers have by themselves.

Planted: a replica that believes for ever that it is on duty is refused by its epoch alone; without that check a log stands still.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import random
import shutil
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from compliance_agent.ports import HttpReply
from compliance_agent.server.services.duties import log_duty
from compliance_agent.server.settings import ServerSettings
from compliance_agent.transport import protocol
from compliance_agent.transport.protocol import Sent
from tests.real import stage
from tests.real.test_database_kills import AWAY, NAME, Database, a_database, whole
from tests.real.test_server_kills import (
    Nursery,
    Place,
    Sender,
    acknowledged_to,
    count_of,
    enrolled,
    finish,
    nursery,
    progress,
    seeded,
    wrongs,
)
from tests.server.builder import FakeHost

pytestmark = [pytest.mark.real, pytest.mark.slow]
FREEZE_S = float(os.environ.get("REPLICA_FREEZE_S", "4"))
LEASE_S = 1 if FREEZE_S < 30 else 10
ROUNDS = int(os.environ.get("REPLICA_ROUNDS", "3"))
KILLS = int(os.environ.get("REPLICA_KILLS", "8"))
UP_S = 40.0
SETTLED_S = 5.0
SITE = "clinic-1"


class Roaming(Sender):
    """Sends each batch to one of several ports."""

    ports: tuple[int, ...] = ()

    def exchange(self) -> HttpReply:
        self.port = self.rng.choice(self.ports)
        return super().exchange()


@dataclass
class Receiver:
    """Takes webhooks, slowly, and counts how often each delivery came."""

    seen: Counter[str] = field(default_factory=Counter)
    delay_s: float = 0.2

    @contextlib.contextmanager
    def listening(self) -> Iterator[str]:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                receiver.seen[self.headers["x-compliance-delivery"]] += 1
                time.sleep(receiver.delay_s)
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_words: object) -> None: ...

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/in"
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


@dataclass
class Pair:
    """Two replicas, their hosts, and who hears of alerts."""

    root: Path
    database: Database
    hosts: list[FakeHost]
    replicas: dict[str, Nursery]  # by the id of the data directory
    receiver: Receiver

    def holder(self, duty: str = log_duty(SITE)) -> str:
        [(holder,)] = self.database.ask(f"SELECT holder FROM duties WHERE name = '{duty}'")
        return str(holder)

    def epoch(self, duty: str = log_duty(SITE)) -> int:
        [(epoch,)] = self.database.ask(f"SELECT epoch FROM duties WHERE name = '{duty}'")
        return int(epoch)

    def said(self, event: str) -> int:
        return sum(path.read_text().count(event) for path in self.root.glob("*.log"))

    def ready(self, replica: Nursery) -> list[str]:
        """Why a replica is not."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{replica.port}/readyz", timeout=5) as answer:
                return [] if answer.status == 200 else [str(answer.status)]
        except urllib.error.HTTPError as error:
            return [reason["code"] for reason in json.loads(error.read())["reasons"]]

    def unready(self) -> list[str]:
        """Why some replica is not ready, and does not become it: what ends by itself does at its next look, two seconds later."""
        until = time.monotonic() + SETTLED_S
        while True:
            found = [f"not ready: {reason}" for one in self.replicas.values() for reason in self.ready(one)]
            if not found or time.monotonic() > until:
                return found
            time.sleep(0.1)

    def fork(self, host: FakeHost) -> None:
        """A host contradicts itself, which people are told once."""
        first = host.next()
        other = host.sign({**first.document, "bundle_id": "00000000-0000-4000-8000-000000000000"})
        for signed in (first, other):
            for _ in range(200):
                sent = Sent(signed.document["bundle_id"], 0, signed.document["seq"], signed.body, signed.sig)
                with contextlib.suppress(OSError, http.client.HTTPException):
                    if _post(random.choice(list(self.replicas.values())).port, host, sent) in {200, 409, 422}:
                        break
                time.sleep(0.05)

    def judged(self, acknowledged: dict[Place, str]) -> list[str]:
        wrong = [word for word in wrongs(self.database.ask, acknowledged) if not word.startswith("forks")]
        wrong += self.unready()
        named = stage.environment(MSP_SERVER_DATABASE=self.database.server.address(NAME).url)
        for name in ("a", "b"):
            fsck = stage.command("server", "fsck", "--data-dir", self.root / name, env=named)
            wrong += [] if fsck.returncode == 0 else [f"fsck {name}: {fsck.stdout}{fsck.stderr}"]
        return wrong


def _post(port: int, host: FakeHost, sent: Sent) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=3)
    try:
        connection.request("POST", "/api/v1/evidence", protocol.evidence_request([sent]), host.headers)
        return connection.getresponse().status
    finally:
        connection.close()


@contextlib.contextmanager
def a_pair(root: Path, *options: str, hosts: int = 4) -> Iterator[Pair]:
    receiver = Receiver()
    with a_database() as database, receiver.listening() as url, contextlib.ExitStack() as stack:
        address = database.server.address(NAME).url
        made = asyncio.run(enrolled(ServerSettings(data_dir=root / "a", database=address), hosts))
        shutil.copytree(root / "a" / "keys", root / "b" / "keys")
        secret, alerts = root / "secret", root / "alerts.yaml"
        secret.write_text("s" * 32)
        secret.chmod(0o600)
        alerts.write_text(
            f"channels:\n  - {{name: hook, kind: webhook, url: '{url}', secret_file: {secret}, private: true}}\n"
        )
        given = ("--database", address, "--lease", str(LEASE_S), "--alerts", str(alerts), *options)
        pair = Pair(root, database, made, {}, receiver)
        for name in ("a", "b"):
            replica = stack.enter_context(nursery(root / name, *given))
            replica.order("start", "R")
            pair.replicas[(root / name / "replica").read_text().strip()] = replica
        yield pair


@contextlib.contextmanager
def roaming(pair: Pair, hosts: list[FakeHost], rng: random.Random) -> Iterator[list[Sender]]:
    ports = tuple(replica.port for replica in pair.replicas.values())
    senders: list[Sender] = []
    for host in hosts:
        one = Roaming(host, ports[0], random.Random(rng.random()), timeout_s=2, comes_again_at=AWAY)
        one.ports = ports
        one.thread = threading.Thread(target=one.run)
        senders.append(one)
    try:
        for sender in senders:
            assert sender.thread is not None
            sender.thread.start()
        yield senders
    finally:
        for sender in senders:
            sender.stopping.set()
        for sender in senders:
            if sender.thread is not None:
                sender.thread.join(UP_S)


def ended(pair: Pair, senders: list[Sender]) -> dict[Place, str]:
    """Everybody gets rid of what is left, and all of it is in the log."""
    progress(senders, count_of(senders))
    finish(senders)
    assert [sender.refused for sender in senders if sender.refused] == []
    stage.until(lambda: whole(pair.database), UP_S, "every record is in the log, under its checkpoint")
    return acknowledged_to(senders)


@pytest.mark.timeout(180 + ROUNDS * (int(FREEZE_S) + 60))
def test_a_leader_that_is_frozen_and_thawed_forks_nothing_and_tells_nobody_twice(tmp_path: Path) -> None:
    rng = seeded()
    with a_pair(tmp_path, hosts=2 + 2 * ROUNDS) as pair:
        with roaming(pair, pair.hosts[:2], rng) as senders:
            progress(senders, 0)
            for number in range(ROUNDS):
                one, other = pair.hosts[2 + 2 * number], pair.hosts[3 + 2 * number]
                before, leader = pair.epoch(), pair.holder()
                pair.fork(one)
                time.sleep(rng.uniform(0, 2.2))  # somewhere in the rounds of the outbox
                pair.replicas[leader].order("freeze", "F")
                frozen = time.monotonic()
                pair.fork(other)
                stage.until(lambda: pair.epoch() > before, UP_S, "the other replica has taken over")  # noqa: B023
                assert pair.holder() != leader
                progress(senders, count_of(senders))
                time.sleep(max(0.0, frozen + FREEZE_S - time.monotonic()))
                pair.replicas[leader].order("thaw", "T")
                progress(senders, count_of(senders))
            acknowledged = ended(pair, senders)
        stage.until(lambda: len(pair.receiver.seen) == 2 * ROUNDS, 90, "everybody was told of every fork")
        print(f"{ROUNDS} freezes of {FREEZE_S:g} s, {len(acknowledged)} bundles, {dict(pair.receiver.seen)}")
        assert set(pair.receiver.seen.values()) == {1}
        assert pair.judged(acknowledged) == []
        assert pair.said("log.stopped") == 0


@pytest.mark.timeout(180 + 6 * KILLS)
def test_replicas_that_are_killed_lose_and_double_nothing(tmp_path: Path) -> None:
    rng = seeded()
    with a_pair(tmp_path) as pair:
        with roaming(pair, pair.hosts, rng) as senders:
            for _ in range(KILLS):
                progress(senders, count_of(senders))
                time.sleep(rng.uniform(0, 0.3))
                victim = rng.choice([*pair.replicas])
                pair.replicas[victim].order("kill", "E -9")
                progress(senders, count_of(senders))
                pair.replicas[victim].order("start", "R")
            acknowledged = ended(pair, senders)
        print(f"{KILLS} kills, {len(acknowledged)} bundles acknowledged")
        assert pair.judged(acknowledged) == []


def _slept(pair: Pair) -> list[str]:
    """A leader is frozen beyond its lease and goes on believing; what is wrong afterwards."""
    with roaming(pair, pair.hosts, seeded()) as senders:
        progress(senders, 0)
        leader, before = pair.holder(), pair.epoch()
        pair.replicas[leader].order("freeze", "F")
        stage.until(lambda: pair.epoch() > before, UP_S, "the other replica has taken over")
        progress(senders, count_of(senders))
        pair.replicas[leader].order("thaw", "T")
        stage.until(lambda: bool(pair.said("duty.refused") + pair.said("log.stopped")), UP_S, "it wanted to write")
        acknowledged = ended(pair, senders)
    return pair.judged(acknowledged)


def test_a_replica_that_believes_for_ever_is_refused_by_its_epoch(tmp_path: Path) -> None:
    with a_pair(tmp_path, "--sleepwalking") as pair:
        assert _slept(pair) == []
        assert pair.said("duty.refused") >= 1 and pair.said("log.stopped") == 0


def test_planted_without_the_epoch_it_is_seen_at_once(tmp_path: Path) -> None:
    """Nothing is lost and nothing forks even then: the compare-and-swap holds. But a log stands still."""
    with a_pair(tmp_path, "--sleepwalking", "--unfenced") as pair:
        assert "not ready: sequenced_elsewhere" in _slept(pair)
