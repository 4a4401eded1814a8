"""The idiom that ingest is measured against (PERFORMANCE S4): FastAPI with models of pydantic, SQLite with group commit.

It does the least that deserves the name: a key of its own for each host, one signature check and one durable row for each bundle,
and a signed acknowledgement after the commit. No chain, no schema, no verdicts, no log. `python -m ...bench_idiom DIRECTORY` serves
`POST /api/v1/evidence` on a free port of loopback; the directory holds `hosts.json`, API keys and the public keys behind them.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import random
import sqlite3
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Header, HTTPException
from pydantic import BaseModel, ConfigDict

from compliance_agent.errors import Unavailable
from compliance_agent.lab.bench_ingest import Ran, deliver, on_disk
from compliance_agent.lab.bench_log import Client, Host, cpu_s, started

HOSTS = "hosts.json"
GROUP = 100  # rows in one transaction, at most


def idiom(directory: Path, *, hosts: int, requests: int, size: int) -> Ran:
    """The same load as `bench_ingest.ingest` makes, on the idiom."""
    directory.mkdir()
    return asyncio.run(_run(directory, hosts, requests, size))


async def _run(directory: Path, hosts: int, requests: int, size: int) -> Ran:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    made = [Host(f"ws-{number:04}", Ed25519PrivateKey.generate()) for number in range(hosts)]
    for number, host in enumerate(made):
        host.api_key = hashlib.sha256(host.host_id.encode()).hexdigest()
        host.prepare(requests, random.Random(number), size)
    keys = {host.api_key: host.key.public_key().public_bytes_raw().hex() for host in made}
    (directory / HOSTS).write_text(json.dumps(keys), "ascii")
    server, port = await started((sys.executable, "-m", __name__, str(directory)), None)
    try:
        for host in made:
            client = Client(port, host.api_key)
            await client.open()
            await client.close()
        cpu, own, begun = cpu_s(server.pid), time.process_time(), time.perf_counter()
        found = await asyncio.gather(*(deliver(port, host, hurried=False) for host in made))
        seconds, own_s, spent = time.perf_counter() - begun, time.process_time() - own, cpu_s(server.pid) - cpu
    finally:
        server.terminate()
        await server.wait()
    taken = sum(len(json.loads(reply.body)["acks"]) for answers in found for _, reply in answers)
    if taken != hosts * requests * size:
        raise Unavailable("bench: the idiom did not take a bundle")
    raw = sum(
        len(one.sent.body) + len(one.sent.signature) for host in made for _, batch in host.batches for one in batch
    )
    latencies = [latency for answers in found for latency, _ in answers]
    return Ran(taken, seconds, spent, own_s, latencies, raw, on_disk(directory))


class Item(BaseModel):
    """A bundle, base64."""

    model_config = ConfigDict(extra="forbid")
    bundle: str
    sig: str


class Batch(BaseModel):
    """What a host sends."""

    model_config = ConfigDict(extra="forbid")
    protocol: int
    bundles: list[Item]
    gaps: list[dict[str, Any]]


class Ack(BaseModel):
    """One of them is durable."""

    sha256: str
    sig: str


class Answer(BaseModel):
    """All of them are."""

    acks: list[Ack]


class _Writer:
    """One task that commits what has come in since its last commit, and only then lets the requests answer."""

    def __init__(self, path: Path) -> None:
        self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        for statement in (
            "PRAGMA journal_mode=WAL",
            "PRAGMA synchronous=FULL",
            "CREATE TABLE bundles (sha256 TEXT PRIMARY KEY, api_key TEXT NOT NULL, body BLOB NOT NULL, sig BLOB NOT NULL)",
        ):
            self._database.execute(statement)
        self._waiting: list[tuple[list[tuple[str, str, bytes, bytes]], asyncio.Future[None]]] = []
        self._some = asyncio.Event()

    async def write(self, rows: list[tuple[str, str, bytes, bytes]]) -> None:
        """Return when they are durable."""
        done = asyncio.get_running_loop().create_future()
        self._waiting.append((rows, done))
        self._some.set()
        await done

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            await self._some.wait()
            group, self._waiting = self._waiting[:GROUP], self._waiting[GROUP:]
            if not self._waiting:
                self._some.clear()
            await asyncio.to_thread(self._commit, [row for rows, _ in group for row in rows])
            for _, done in group:
                done.set_result(None)

    def _commit(self, rows: list[tuple[str, str, bytes, bytes]]) -> None:
        self._database.execute("BEGIN IMMEDIATE")
        self._database.executemany("INSERT INTO bundles VALUES (?, ?, ?, ?)", rows)
        self._database.execute("COMMIT")


def app(directory: Path) -> Any:
    """The application."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

    keys = {
        api_key: Ed25519PublicKey.from_public_bytes(bytes.fromhex(public))
        for api_key, public in json.loads((directory / HOSTS).read_text("ascii")).items()
    }
    signer, writer = Ed25519PrivateKey.generate(), _Writer(directory / "idiom.db")

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(writer.run())
        yield
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    served = FastAPI(lifespan=lifespan, strict_content_type=False)

    @served.post("/api/v1/evidence")
    async def evidence(batch: Batch, authorization: Annotated[str, Header()]) -> Answer:
        api_key = authorization.removeprefix("Bearer ")
        public = keys.get(api_key)
        if public is None:
            raise HTTPException(401)
        rows = []
        for item in batch.bundles:
            body, sig = base64.b64decode(item.bundle), base64.b64decode(item.sig)
            try:
                public.verify(sig, body)
            except InvalidSignature as error:
                raise HTTPException(422) from error
            rows.append((hashlib.sha256(body).hexdigest(), api_key, body, sig))
        await writer.write(rows)
        acks = [Ack(sha256=row[0], sig=base64.b64encode(signer.sign(bytes.fromhex(row[0]))).decode()) for row in rows]
        return Answer(acks=acks)

    return served


def main() -> None:
    """Serve a directory until SIGTERM."""
    import socket

    import uvicorn

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(256)
        sys.stdout.write(f"listening on http://127.0.0.1:{listener.getsockname()[1]}\n")
        sys.stdout.flush()
        config = uvicorn.Config(
            app(Path(sys.argv[1])), loop="uvloop", http="httptools", access_log=False, log_level="error"
        )
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
