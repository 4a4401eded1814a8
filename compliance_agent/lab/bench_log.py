"""How fast evidence becomes receipts: a real server process on a real disk, hosts on loopback that verify what they are given.

The hosts' bundles are made and signed beforehand. Timed is everything from the first request to the last verified receipt, the
load generator's own work included, which shares the machine with the server.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import hashlib
import os
import random
import statistics
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from compliance_agent import crypto
from compliance_agent.entries.leaf import bundle_leaf
from compliance_agent.errors import Unavailable
from compliance_agent.evidence.canonical import canonical
from compliance_agent.log.merkle import hash_leaf, verify_inclusion
from compliance_agent.log.note import KeyType, VerifierKey
from compliance_agent.log.policy import Policy, Verified
from compliance_agent.log.proof import Proof
from compliance_agent.ports import HttpReply
from compliance_agent.server.services import enrol
from compliance_agent.server.settings import PREFIX, ServerSettings
from compliance_agent.transport import protocol
from compliance_agent.transport.protocol import OfferedReceipt, Sent

SITE = "bench"
BATCH = 100
ZEROS = "0" * 64


@dataclass(frozen=True)
class Load:
    """What was measured.

    Attributes:
        receipts_per_s: verified receipts of bundles that were durable, over the whole run.
        latencies_s: from a batch's upload to its verified receipts, one for each bundle.
        server_cpu_s: processor time of the server process.
        loader_cpu_s: processor time of the load generator.
        seconds: of the whole run.
    """

    receipts_per_s: float
    latencies_s: list[float]
    server_cpu_s: float
    loader_cpu_s: float
    seconds: float

    def percentile(self, part: int) -> float:
        """A percentile of the latencies."""
        return statistics.quantiles(self.latencies_s, n=100, method="inclusive")[part - 1]


@dataclass(frozen=True)
class Made:
    """A bundle as it goes out, and the entry it has to have in the log."""

    sent: Sent
    leaf: bytes


@dataclass
class Host:
    """A host with its chain, made beforehand."""

    host_id: str
    key: Any
    api_key: str = ""
    site_id: str = SITE
    batches: list[tuple[bytes, list[Made]]] = field(default_factory=list)  # requests, with the bundles in each
    seq: int = 0  # of the newest bundle
    digest: str = ZEROS  # and what it is

    @functools.cached_property
    def key_id(self) -> str:
        """Of the key that signs."""
        return crypto.key_id(self.key.public_key().public_bytes_raw())

    def next(self, rng: random.Random, now: datetime) -> Made:
        """Build and sign the next bundle of the chain."""
        bundle_id = str(uuid.UUID(int=rng.getrandbits(128), version=4))
        self.seq, prev = self.seq + 1, self.digest
        place = {"epoch": 0, "seq": self.seq, "prev": prev, "bundle_id": bundle_id}
        body = canonical(_document(self.host_id, self.key_id, now, self.site_id) | place)
        sent = Sent(bundle_id, 0, self.seq, body, self.key.sign(body))
        self.digest = sent.sha256
        return Made(sent, bundle_leaf(self.key_id, 0, sent.seq, prev, sent.sha256, sent.signature))

    def prepare(self, batches: int, rng: random.Random, size: int = BATCH) -> None:
        """Build and sign the whole chain."""
        now = datetime.now(UTC)
        for _ in range(batches):
            made = [self.next(rng, now) for _ in range(size)]
            self.batches.append((protocol.evidence_request([one.sent for one in made]), made))


def strict_verifies_per_s(seconds: float = 1.0) -> float:
    """Strict signature checks of 2 KiB messages a second, on one core: the floor under every receipt."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key, message = Ed25519PrivateKey.generate(), os.urandom(2_048)
    public, signature = key.public_key().public_bytes_raw(), key.sign(message)
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        for _ in range(100):
            crypto.verify(public, signature, message)
        count += 100
    return count / (time.perf_counter() - started)


def receipts_under_load(directory: Path, hosts: int, batches: int) -> Load:
    """Run `hosts` hosts of one clinic, each delivering its batches one after the other."""
    return asyncio.run(_run(directory, hosts, batches))


async def _run(directory: Path, hosts: int, batches: int) -> Load:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    made = [Host(f"ws-{number:02}", Ed25519PrivateKey.generate()) for number in range(hosts)]
    settings = ServerSettings(data_dir=directory)
    server_key, log_key = await enrol_all(settings, made)
    for number, host in enumerate(made):
        host.prepare(batches, random.Random(number))
    server, port = await start(directory)
    try:
        await asyncio.gather(*(Client(port, host.api_key).open_and_close() for host in made))
        judges = [_Judge(settings.name, host.key_id, server_key, log_key) for host in made]
        before, own, started = cpu_s(server.pid), time.process_time(), time.perf_counter()
        found = await asyncio.gather(*(_deliver(port, host, judge) for host, judge in zip(made, judges, strict=True)))
        seconds, own_s = time.perf_counter() - started, time.process_time() - own
        spent = cpu_s(server.pid) - before
    finally:
        server.terminate()
        await server.wait()
    latencies = [latency for one in found for latency in one]
    return Load(len(latencies) / seconds, latencies, spent, own_s, seconds)


async def enrol_all(settings: ServerSettings, hosts: list[Host]) -> tuple[bytes, bytes]:
    """Make them hosts of the clinic; the server's key for acknowledgements, and its log's."""
    from compliance_agent.server.opening import opened

    async with opened(settings) as services:
        for host in hosts:
            public = host.key.public_key().public_bytes_raw()
            token, _, _ = await services.enrolment.new_token(
                SITE, "bench", timedelta(hours=1), ca_sha256=None, actor="bench"
            )
            nonce = await services.enrolment.challenge(public)
            proof = host.key.sign(enrol.CONTEXT + nonce + hashlib.sha256(token.encode()).digest())
            done = await services.enrolment.enrol(enrol.Request(token, public, host.host_id, nonce, proof))
            host.api_key = done.api_key
        return services.ack_public_key, services.log_keys.public_bytes


def _environment(database: str | None, *, limited: bool) -> dict[str, str]:
    """The environment of a server: without limits, it lets one host send as much as it can."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MSP_")}
    limits = [item.name for item in dataclasses.fields(ServerSettings) if item.name.endswith(("_per_min", "_per_day"))]
    none = {} if limited else {PREFIX + name.upper(): "0" for name in limits}
    return kept | none | ({PREFIX + "DATABASE": database} if database else {})


async def start(
    directory: Path, database: str | None = None, *, limited: bool = False
) -> tuple[asyncio.subprocess.Process, int]:
    """A server on this directory, with the limits that it is shipped with or with none, and its port."""
    words = (sys.executable, "-m", "compliance_agent", "server", "--data-dir", str(directory), "--port", "0")
    return await started(words, _environment(database, limited=limited))


async def started(words: Sequence[str], environ: dict[str, str] | None) -> tuple[asyncio.subprocess.Process, int]:
    """A server that says `listening on ...:PORT` once it does, and its port."""
    server = await asyncio.create_subprocess_exec(
        *words,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=environ,
    )
    line = await server.stdout.readline() if server.stdout is not None else b""
    if not line.startswith(b"listening on "):
        raise Unavailable("bench: the server did not start")
    return server, int(line.rpartition(b":")[2])


class _Judge:
    """Verifies as a host does: each acknowledgement by the agent's own reader, each checkpoint once, each path."""

    def __init__(self, name: str, key_id: str, server_key: bytes, log_key: bytes) -> None:
        vkey = VerifierKey(f"{name}/{SITE}/{datetime.now(UTC).year}", KeyType.ED25519, log_key)
        self._policy = Policy.parse(f"log {vkey}\nquorum none\n".encode())
        self._key_id = key_id
        self._server_key = server_key
        self._seen: dict[bytes, Verified] = {}

    def acknowledged(self, reply: HttpReply, made: list[Made]) -> list[OfferedReceipt | None]:
        """What is offered with the acknowledgements of all of them; raises AgentError."""
        sent = [one.sent for one in made]
        answer = protocol.read_evidence_reply(reply, sent, self._key_id, self._server_key, crypto.verify)
        if answer.stopped is not None:
            raise Unavailable("bench: the server did not take a bundle")
        return [one.receipt for one in answer.acknowledged]

    def holds(self, receipt: OfferedReceipt, made: Made) -> None:
        """Raises BadEvidence."""
        proof = Proof.parse(receipt.proof)
        if receipt.leaf != made.leaf:
            raise Unavailable("bench: a receipt of another bundle")
        if proof.checkpoint not in self._seen:
            self._seen = {proof.checkpoint: self._policy.verify(proof.checkpoint)}
        tree = self._seen[proof.checkpoint].checkpoint
        verify_inclusion(hash_leaf(receipt.leaf), proof.index, tree.size, proof.path, tree.root)


async def _deliver(port: int, host: Host, judge: _Judge) -> list[float]:
    """Send every batch; the time from each upload to its verified receipt."""
    client, latencies = Client(port, host.api_key), list[float]()
    await client.open()
    for body, made in host.batches:
        started = time.perf_counter()
        offered = judge.acknowledged(await client.post("/api/v1/evidence", body), made)
        missing = _judged(offered, made, judge, started, latencies)
        while missing:  # those that were not published within the server's patience
            ids = [one.sent.bundle_id for one in missing]
            reply = await client.post("/api/v1/receipts", protocol.receipts_request(ids))
            missing = _judged(protocol.read_receipts_reply(reply, ids), missing, judge, started, latencies)
    await client.close()
    return latencies


def _judged(
    receipts: list[OfferedReceipt | None], made: list[Made], judge: _Judge, started: float, latencies: list[float]
) -> list[Made]:
    for receipt, one in zip(receipts, made, strict=True):
        if receipt is not None:
            judge.holds(receipt, one)
            latencies.append(time.perf_counter() - started)
    return [one for receipt, one in zip(receipts, made, strict=True) if receipt is None]


class Client:
    """HTTP as little as possible, so that the load generator costs little."""

    def __init__(self, port: int, api_key: str) -> None:
        self._port = port
        self._api_key = api_key

    async def open(self) -> None:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 22)

    async def close(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()

    async def open_and_close(self) -> None:
        """So that the server knows the key before anything is timed."""
        await self.open()
        await self.post("/api/v1/receipts", protocol.receipts_request([str(uuid.UUID(int=1))]))
        await self.close()

    async def post(self, path: str, body: bytes, *, hurried: bool = False) -> HttpReply:
        head = f"POST {path} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {self._api_key}\r\n"
        if hurried:
            head += "Prefer: wait=0\r\n"
        self._writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        answer = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        length = int(answer.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        raw = await self._reader.readexactly(length)
        if not answer.startswith(b"http/1.1 200"):
            raise Unavailable(f"bench: {raw[:200]!r}")
        return HttpReply(200, {}, raw)


def _document(host_id: str, key_id: str, now: datetime, site_id: str = SITE) -> dict[str, Any]:
    """A drift bundle of the usual size."""
    at = now.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    clock = {
        "source": "chrony",
        "synchronized": True,
        "offset_us": 12,
        "stratum": 3,
        "boot_id": None,
        "monotonic_ns": 1,
    }
    empty = ("post_result", "post_reason", "outcome", "error", "exception_id", "order_id", "log_head", "incident")
    return {
        "schema": "compliance-agent/bundle/v1", "kind": "drift", "client_id": "bench", "site_id": site_id,
        "host": {"id": host_id, "key_id": key_id}, "deployment_mode": "direct", "created_at": at, "timestamp_start": at,
        "timestamp_end": at, "clock": clock, "agent": {"version": "0.1.0", "sha256": ZEROS},
        "baseline": {"version": "2026.11.1", "sha256": ZEROS}, "policy_version": "1.0", "trigger": "schedule",
        "check": "time_sync", "result": "pass", "reason": "as_expected", "severity": "medium",
        "hipaa_controls": ["164.312(b)"], "pre_state": {"offset_us": 3}, "post_state": {}, "actions": [],
        "rollback": {"available": False, "generation": None}, "recovered": False, "states": {}, "counts": {},
        "artifacts": [], **dict.fromkeys(empty),
    }  # fmt: skip


def cpu_s(pid: int) -> float:
    """Processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
