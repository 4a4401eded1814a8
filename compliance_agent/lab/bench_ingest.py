"""What a bundle costs the server on its way in: requests to a real server process, its processor time against one signature check.

Each bundle is verified and durable before its answer; the acknowledgements are verified afterwards, outside of what is timed.
What is measured is the whole product: places, verdicts, the log's entry and the receipt that the answer waits for are in it. The
load generator runs on the same cores.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from compliance_agent import crypto
from compliance_agent.errors import Unavailable
from compliance_agent.lab.bench_log import Client, Host, cpu_s, enrol_all, start
from compliance_agent.ports import HttpReply
from compliance_agent.server.settings import ServerSettings
from compliance_agent.transport import protocol


@dataclass(frozen=True)
class Ran:
    """One run.

    Attributes:
        bundles: how many were acknowledged.
        seconds, server_cpu_s, loader_cpu_s: what they took.
        latencies_s: of each request.
        raw_bytes, disk_bytes: of the bundles and signatures; of all that the server has written for them.
    """

    bundles: int
    seconds: float
    server_cpu_s: float
    loader_cpu_s: float
    latencies_s: list[float]
    raw_bytes: int
    disk_bytes: int

    @property
    def per_s(self) -> float:
        """Bundles a second."""
        return self.bundles / self.seconds

    @property
    def p99_s(self) -> float:
        """Of a request's time."""
        return statistics.quantiles(self.latencies_s, n=100, method="inclusive")[98]


def check_cpu_s(count: int = 4_000) -> float:
    """E: processor time of one Ed25519 check of 2 KB by `cryptography`."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key, message = Ed25519PrivateKey.generate(), os.urandom(2_048)
    public, signature = key.public_key(), key.sign(message)
    runs = []
    for _ in range(3):
        started = time.process_time()
        for _ in range(count):
            public.verify(signature, message)
        runs.append((time.process_time() - started) / count)
    return min(runs)


def ingest(
    directory: Path, *, hosts: int, requests: int, size: int, hurried: bool = False, database: str | None = None
) -> Ran:
    """So many hosts of one clinic, each sending its requests one after the other, `size` bundles in each.

    Args:
        directory: for the server's data.
        hosts: which have a connection each.
        requests: of each host.
        size: bundles in each.
        hurried: the hosts want the acknowledgement alone, now; else the answer waits for the receipts.
        database: of PostgreSQL; SQLite when it is not given.
    """
    return asyncio.run(_run(directory, hosts, requests, size, hurried, database))


async def _run(directory: Path, hosts: int, requests: int, size: int, hurried: bool, database: str | None) -> Ran:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    made = [Host(f"ws-{size}{'h' * hurried}-{number:04}", Ed25519PrivateKey.generate()) for number in range(hosts)]
    server_key, _ = await enrol_all(ServerSettings(data_dir=directory, database=database), made)
    for number, host in enumerate(made):
        host.prepare(requests, random.Random(number), size)
    before = await _kept(directory, database)
    server, port = await start(directory, database)
    try:
        await asyncio.gather(*(Client(port, host.api_key).open_and_close() for host in made))
        cpu, own, started = cpu_s(server.pid), time.process_time(), time.perf_counter()
        found = await asyncio.gather(*(deliver(port, host, hurried) for host in made))
        seconds, own_s, spent = time.perf_counter() - started, time.process_time() - own, cpu_s(server.pid) - cpu
    finally:
        server.terminate()  # and with it the database's own log goes into the database
        await server.wait()
    raw = 0
    for host, answers in zip(made, found, strict=True):
        for (_, batch), (_, reply) in zip(host.batches, answers, strict=True):
            sent = [one.sent for one in batch]
            answer = protocol.read_evidence_reply(reply, sent, host.key_id, server_key, crypto.verify)
            if answer.stopped is not None or len(answer.acknowledged) != size:
                raise Unavailable("bench: the server did not take a bundle")
            raw += sum(len(one.body) + len(one.signature) for one in sent)
    latencies = [latency for answers in found for latency, _ in answers]
    return Ran(
        hosts * requests * size, seconds, spent, own_s, latencies, raw, await _kept(directory, database) - before
    )


async def deliver(port: int, host: Host, hurried: bool) -> list[tuple[float, HttpReply]]:
    """Send every batch of a host, one after the other; how long each took, and what came back."""
    client, answers = Client(port, host.api_key), list[tuple[float, HttpReply]]()
    await client.open()
    try:
        for body, _ in host.batches:
            started = time.perf_counter()
            reply = await client.post("/api/v1/evidence", body, hurried=hurried)
            answers.append((time.perf_counter() - started, reply))
    finally:
        await client.close()
    return answers


async def _kept(directory: Path, database: str | None) -> int:
    """What the files have on disk, and the tables and indexes of PostgreSQL; its own log is not counted."""
    return on_disk(directory) + (await _in_tables(database) if database else 0)


def on_disk(directory: Path) -> int:
    """Bytes that its files take."""
    return sum(path.stat().st_blocks * 512 for path in directory.rglob("*") if path.is_file())


async def _in_tables(database: str) -> int:
    import asyncpg  # type: ignore[import-untyped]  # it has no types

    connection = await asyncpg.connect(database)
    try:
        return int(await connection.fetchval("SELECT pg_database_size(current_database())"))
    finally:
        await connection.close()
