"""A fleet at one server: hosts that call every minute over connections they keep, as agents do, and now and then bring a record.

Each host is a task of its own with its own key, chain and connection. What it sends is built, and what it hears is read and
verified, by the agent's own protocol code: a check-in with the state of its checks at every poll, and a signed record at some. The
hosts' rows are made beforehand, in one transaction, and their enrolment is in the log. Everybody connects within the first seconds
and then polls at a time of its own; what is measured begins after that. The load generator runs on the same cores, and what it is
late itself counts as the server's.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from compliance_agent import crypto
from compliance_agent.entries.leaf import key_leaf
from compliance_agent.errors import AgentError, Unavailable
from compliance_agent.lab.bench_log import Client, Host, cpu_s, start
from compliance_agent.server import records
from compliance_agent.server.records import NewLeaf, Site, Transaction
from compliance_agent.server.records.orders import OrderHost
from compliance_agent.server.services.secrets import API_KEY_PREFIX, hashed, new_secret
from compliance_agent.server.settings import ServerSettings
from compliance_agent.transport import protocol

HOSTS_OF_A_SITE = 100
JITTER = 0.1  # of the time between two polls, as the agent's
HEARTBEATS = 1 / 60  # of the polls: a record each hour that says the state of every check
CHECKS = ("av_health", "backup", "encryption", "firewall", "logging", "patching", "ssh_access", "time_sync")
_STATES = dict.fromkeys(CHECKS, ("pass", "as_expected"))


@dataclass(frozen=True)
class Fleet:
    """What calls.

    Attributes:
        hosts: how many, a hundred to a clinic.
        poll_s: seconds between two polls of a host.
        drifting: share of the polls at which a host has found drift and brings its record; heartbeats come on top.
        connect_s: seconds within which all connect.
        seconds: that are measured.
    """

    hosts: int = 10_000
    poll_s: float = 60.0
    drifting: float = 0.01
    connect_s: float = 30.0
    seconds: float = 90.0


@dataclass
class Seen:
    """What was measured.

    Attributes:
        checkins_s, records_s: from each request to its answer, read and verified.
        failed: requests that were not answered as agreed, by code.
        seconds, server_cpu_s, loader_cpu_s: of the time that is measured.
        rss_bytes, peak_rss_bytes: of the server, at its end and at most.
    """

    checkins_s: list[float] = field(default_factory=list)
    records_s: list[float] = field(default_factory=list)
    failed: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    server_cpu_s: float = 0.0
    loader_cpu_s: float = 0.0
    rss_bytes: int = 0
    peak_rss_bytes: int = 0

    def failure(self, code: str) -> None:
        """One more."""
        self.failed[code] = self.failed.get(code, 0) + 1


def percentile(values: list[float], part: int) -> float:
    """Of these; 0.0 when there are too few."""
    return statistics.quantiles(values, n=100, method="inclusive")[part - 1] if len(values) > 1 else sum(values)


def run(directory: Path, fleet: Fleet, database: str | None = None) -> Seen:
    """Let the fleet call a server on this directory."""
    return asyncio.run(_run(directory, fleet, database))


async def _run(directory: Path, fleet: Fleet, database: str | None) -> Seen:
    hosts, server_key = await _made(ServerSettings(data_dir=directory, database=database), fleet.hosts)
    server, port = await start(directory, database, limited=True)
    seen, begin = Seen(), time.perf_counter() + fleet.connect_s
    lives = [_Life(host, port, server_key, fleet, seen, begin, random.Random(n)) for n, host in enumerate(hosts)]
    tasks = [asyncio.create_task(life.live()) for life in lives]
    try:
        await asyncio.sleep(begin - time.perf_counter())
        cpu, own = cpu_s(server.pid), time.process_time()
        await asyncio.sleep(fleet.seconds)
        seen.seconds = time.perf_counter() - begin
        seen.server_cpu_s, seen.loader_cpu_s = cpu_s(server.pid) - cpu, time.process_time() - own
        seen.rss_bytes, seen.peak_rss_bytes = _memory(server.pid, "VmRSS"), _memory(server.pid, "VmHWM")
        if (crashed := [task for task in tasks if task.done()]) and crashed[0].exception() is not None:
            raise Unavailable("bench: a host stopped") from crashed[0].exception()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        server.terminate()
        await server.wait()
    return seen


async def _made(settings: ServerSettings, count: int) -> tuple[list[Host], bytes]:
    """So many enrolled hosts, and the key that acknowledgements verify under."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from compliance_agent.server.opening import opened

    hosts = [
        Host(
            f"ws-{number:05}",
            Ed25519PrivateKey.generate(),
            new_secret(API_KEY_PREFIX),
            f"clinic-{number // HOSTS_OF_A_SITE:04}",
        )
        for number in range(count)
    ]
    now = datetime.now(UTC)

    async def work(tx: Transaction) -> None:
        for site_id in sorted({host.site_id for host in hosts}):
            await tx.add_site(Site(site_id, "bench", now))
        for host in hosts:
            public = host.key.public_key().public_bytes_raw()
            await tx.add_host(records.Host(host.key_id, host.site_id, "bench", host.host_id, public, now))
            await tx.replace_api_key(host.site_id, host.key_id, hashed(host.api_key), now)
            leaf = key_leaf("enrol", host.key_id, public, now.strftime("%Y-%m-%dT%H:%M:%S.%fZ"))
            await tx.add_leaves([NewLeaf(host.site_id, leaf, host.key_id)], now)
            await tx.save_order_host(OrderHost(host.key_id, host.site_id, _nonce(host), now, 0))

    async with opened(settings) as services:
        await services.store.write(work)
        while await services.sequencer.round():
            pass
        return hosts, services.ack_public_key


def _nonce(host: Host) -> str:
    """What orders to this host must name, as it has said before."""
    return host.key_id[:32]


class _Life:
    """One host of the fleet."""

    def __init__(
        self, host: Host, port: int, server_key: bytes, fleet: Fleet, seen: Seen, begin: float, rng: random.Random
    ) -> None:
        self._host = host
        self._client = Client(port, host.api_key)
        self._server_key = server_key
        self._fleet = fleet
        self._seen = seen
        self._begin = begin
        self._rng = rng

    async def live(self) -> None:
        """Connect at some moment before the beginning, then poll until cancelled."""
        rng, poll_s, at = self._rng, self._fleet.poll_s, self._rng.random()
        await asyncio.sleep((self._begin - time.perf_counter()) * at)
        await self._client.open()
        try:
            await self._poll()
            due = self._begin + poll_s * at
            while True:
                await asyncio.sleep(due - time.perf_counter())
                await self._poll()
                due = max(due, time.perf_counter()) + poll_s * rng.uniform(1 - JITTER, 1 + JITTER)
        finally:
            await self._client.close()

    async def _poll(self) -> None:
        try:
            await self._check_in()
            if self._rng.random() < self._fleet.drifting + HEARTBEATS:
                await self._deliver()
        except AgentError as error:
            self._seen.failure(error.code)
        except (OSError, EOFError):
            self._seen.failure("connection")
            await self._client.close()
            await self._client.open()

    async def _check_in(self) -> None:
        host = self._host
        body = protocol.checkin_request(
            key_id=host.key_id,
            head=(0, host.seq, host.digest),
            pending=0,
            baseline=("2026.11.1", "0" * 64),
            checks=_STATES,
            order_nonce=_nonce(host),
        )
        started = time.perf_counter()
        answer = protocol.read_checkin_reply(await self._client.post("/api/v1/checkin", body))
        self._took(self._seen.checkins_s, started)
        if answer.known != ((0, host.seq, host.digest) if host.seq else None):
            raise Unavailable("bench: the server does not hold what it acknowledged", code="lost")

    async def _deliver(self) -> None:
        made = self._host.next(self._rng, datetime.now(UTC))
        body = protocol.evidence_request([made.sent])
        started = time.perf_counter()
        reply = await self._client.post("/api/v1/evidence", body)
        answer = protocol.read_evidence_reply(reply, [made.sent], self._host.key_id, self._server_key, crypto.verify)
        self._took(self._seen.records_s, started)
        if answer.stopped is not None:
            raise answer.stopped

    def _took(self, into: list[float], started: float) -> None:
        now = time.perf_counter()
        if now >= self._begin:
            into.append(now - started)


def _memory(pid: int, name: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) * 1_024 for line in lines if line.startswith(f"{name}:"))
