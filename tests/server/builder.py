"""A host as the server sees one: a key, a chain of signed bundles, and the calls it makes. No agent code but the canonical form."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import re
import sqlite3
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import asyncpg  # type: ignore[import-untyped]  # it has no types
import httpx2
import pytest
from fastapi import FastAPI
from nacl.signing import SigningKey, VerifyKey
from sqlalchemy import Engine
from sqlalchemy.dialects import sqlite
from sqlalchemy.schema import CreateIndex

from compliance_agent.evidence.canonical import canonical
from compliance_agent.server.app import create_app
from compliance_agent.server.desks import Services
from compliance_agent.server.sequencer import Sequencer
from compliance_agent.server.services.verification import Verifier
from compliance_agent.server.settings import ServerSettings
from compliance_agent.server.store import SqlStore, schema_3, tables
from compliance_agent.server.store.engine import SqliteDatabase
from compliance_agent.server.store.fences import STONES
from compliance_agent.server.store.postgres import PostgresDatabase
from compliance_agent.server.store.wall import WALL

# For tests in which it makes no difference which database there is, or that are about the files of one.
on_sqlite = pytest.mark.parametrize("server", ["sqlite"], indirect=True)
START = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
ZEROS = "0" * 64


def b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def stamp(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@dataclass
class Hands:
    """A clock that moves when told."""

    time: datetime = START
    looks: int = 0

    def __call__(self) -> datetime:
        return self.time

    def advancing(self) -> datetime:
        """The same for the log, which wants time to have advanced whenever it looks."""
        self.looks += 1
        return self.time + timedelta(microseconds=self.looks)

    def move(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)


@dataclass
class Signed:
    """A bundle's bytes and signature, and its document."""

    document: dict[str, Any]
    body: bytes
    sig: bytes

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.body).hexdigest()

    @property
    def item(self) -> dict[str, str]:
        return {"bundle": b64(self.body), "sig": b64(self.sig)}


@dataclass
class FakeHost:
    """An enrolled (or not yet enrolled) host that builds its own chain."""

    host_id: str = "ws-01"
    site_id: str = "clinic-1"
    client_id: str = "msp"
    key: SigningKey = field(default_factory=SigningKey.generate)
    api_key: str = ""
    server_key: bytes = b""
    epoch: int = 0
    seq: int = 0
    prev: str = ZEROS
    now: datetime = START

    @property
    def public(self) -> bytes:
        return bytes(self.key.verify_key)

    @property
    def key_id(self) -> str:
        return hashlib.sha256(self.public).hexdigest()

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.api_key}"}

    def document(self, **changes: Any) -> dict[str, Any]:
        """A whole drift bundle for the next place in the chain."""
        return {
            "schema": "compliance-agent/bundle/v1",
            "bundle_id": str(uuid.uuid4()),
            "kind": "drift",
            "client_id": self.client_id,
            "site_id": self.site_id,
            "host": {"id": self.host_id, "key_id": self.key_id},
            "deployment_mode": "direct",
            "epoch": self.epoch,
            "seq": self.seq + 1,
            "prev": self.prev,
            "log_head": None,
            "created_at": stamp(self.now),
            "timestamp_start": stamp(self.now),
            "timestamp_end": stamp(self.now),
            "clock": {
                "source": "chrony",
                "synchronized": True,
                "offset_us": 12,
                "stratum": 3,
                "boot_id": None,
                "monotonic_ns": 1,
            },
            "agent": {"version": "0.1.0", "sha256": ZEROS},
            "baseline": {"version": "2026.11.1", "sha256": ZEROS},
            "policy_version": "1.0",
            "trigger": "schedule",
            "check": "time_sync",
            "result": "pass",
            "reason": "as_expected",
            "severity": "medium",
            "hipaa_controls": ["164.312(b)"],
            "exception_id": None,
            "pre_state": {"offset_us": 3},
            "post_state": {},
            "post_result": None,
            "post_reason": None,
            "outcome": None,
            "error": None,
            "actions": [],
            "rollback": {"available": False, "generation": None},
            "recovered": False,
            "order_id": None,
            "states": {},
            "counts": {},
            "incident": None,
            "artifacts": [],
            **changes,
        }

    def sign(self, document: dict[str, Any]) -> Signed:
        body = canonical(document)
        return Signed(document, body, self.key.sign(body).signature)

    def next(self, **changes: Any) -> Signed:
        """The next bundle of the chain, which moves on."""
        bundle = self.sign(self.document(**changes))
        self.epoch, self.seq, self.prev = bundle.document["epoch"], bundle.document["seq"], bundle.sha256
        return bundle

    def heartbeat(self, **states: str) -> Signed:
        """A heartbeat with a verdict for each check."""
        return self.next(
            kind="heartbeat",
            check=None,
            result=None,
            reason=None,
            severity=None,
            hipaa_controls=[],
            pre_state={},
            states={check: {"result": result, "reason": "as_expected"} for check, result in states.items()},
        )

    def proof(self, nonce: bytes, token: str) -> bytes:
        message = b"compliance-agent/enrol/v1\n" + nonce + hashlib.sha256(token.encode()).digest()
        return bytes(self.key.sign(message).signature)


@dataclass
class Server:
    """The app, opened, with a client for it."""

    app: FastAPI
    client: httpx2.AsyncClient
    clock: Hands

    @property
    def services(self) -> Services:
        services = self.app.state.services
        assert isinstance(services, Services)
        return services

    async def post(self, path: str, body: Any, **options: Any) -> httpx2.Response:
        return await self.client.post(path, content=canonical(body), **options)

    async def token(self, site: str = "clinic-1", client: str = "msp", hours: float = 1) -> str:
        token, _, _ = await self.services.enrolment.new_token(
            site, client, timedelta(hours=hours), ca_sha256=None, actor="test"
        )
        return token

    async def try_enrol(self, host: FakeHost, token: str, /, **changes: Any) -> httpx2.Response:
        """Challenge and enrolment, with fields of the second request replaced."""
        challenge = await self.post("/api/v1/enrol/challenge", {"protocol": 1, "public_key": b64(host.public)})
        assert challenge.status_code == 200, challenge.text
        nonce = base64.b64decode(challenge.json()["nonce"])
        body = {
            "protocol": 1,
            "token": token,
            "public_key": b64(host.public),
            "host_id": host.host_id,
            "nonce": b64(nonce),
            "proof": b64(host.proof(nonce, token)),
        }
        return await self.post("/api/v1/enrol", {**body, **changes})

    async def enrolled(self, host_id: str = "ws-01", site: str = "clinic-1") -> FakeHost:
        """A new host of a site."""
        host = FakeHost(host_id=host_id, site_id=site, now=self.clock())
        reply = await self.try_enrol(host, await self.token(site))
        assert reply.status_code == 201, reply.text
        host.api_key = reply.json()["api_key"]
        host.server_key = base64.b64decode(reply.json()["server_key"])
        return host

    async def deliver(self, host: FakeHost, *bundles: Signed) -> httpx2.Response:
        """Send bundles."""
        body = {"protocol": 1, "bundles": [bundle.item for bundle in bundles], "gaps": []}
        return await self.post("/api/v1/evidence", body, headers=host.headers)

    async def checkin(self, host: FakeHost, **changes: Any) -> httpx2.Response:
        """Check in at the end of the host's chain."""
        return await self.post("/api/v1/checkin", {**checkin_body(host), **changes}, headers=host.headers)

    async def by_hand(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """One statement as whoever owns the database, and is not stopped by the wall; values stand for $1, $2, ..."""
        url = self.services.settings.database
        if url is not None:
            return await by_hand(url, statement, *values)
        with contextlib.closing(sqlite3.connect(self.services.settings.data_dir / "server.db")) as database, database:
            unwalled(database)
            return database.execute(re.sub(r"\$(\d+)", r"?\1", statement), values).fetchall()

    async def operator(self, name: str = "op", sites: frozenset[str] | None = None) -> dict[str, str]:
        """A user's token as headers."""
        await self.services.users.add(name, "correct horse battery", sites=sites)
        return {"authorization": f"Bearer {(await self.services.users.tokens.create(name, timedelta(days=1)))[0]}"}


def checkin_body(host: FakeHost) -> dict[str, Any]:
    """A valid check-in."""
    return {
        "protocol": 1,
        "key_id": host.key_id,
        "head": {"epoch": host.epoch, "seq": host.seq, "digest": host.prev},
        "pending": 0,
        "agent_version": "0.1.0",
        "baseline": {"version": "2026.11.1", "sha256": ZEROS},
        "checks": {"time_sync": {"result": "pass", "reason": "as_expected"}},
    }


def ack_of(reply: httpx2.Response, host: FakeHost) -> dict[str, Any]:
    """The document of a reply's acknowledgement, once the server's signature over it and its form are right."""
    import json

    assert reply.status_code == 200, reply.text
    ack = reply.json()["ack"]
    raw = base64.b64decode(ack["document"])
    VerifyKey(host.server_key).verify(raw, base64.b64decode(ack["sig"]))
    document: dict[str, Any] = json.loads(raw)
    assert canonical(document) == raw
    assert (document["schema"], document["key_id"]) == ("compliance-agent/ack/v2", host.key_id)
    return document


def acknowledged(reply: httpx2.Response, host: FakeHost, bundles: Sequence[Signed]) -> list[str]:
    """The statuses in a reply whose acknowledgement verifies and names our bundles, in order."""
    named = ack_of(reply, host)["bundles"]
    for item, bundle in zip(named, bundles, strict=False):
        place = (bundle.sha256, bundle.document["epoch"], bundle.document["seq"])
        assert (item["bundle_sha256"], item["epoch"], item["seq"]) == place
    return [item["status"] for item in named]


def unwalled(database: sqlite3.Connection) -> None:
    """Take the wall down, as whoever owns the file can."""
    for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        database.execute(f"DROP TRIGGER {name}")


def unrevised(database: sqlite3.Connection, version: str) -> None:
    """Say the version of the schema as it was said before there were revisions, which made tables since."""
    wall = database.execute("SELECT sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
    unwalled(database)  # SQLite reads every trigger when a column goes, and one may be about a table that is gone
    for table in reversed(tables.metadata.sorted_tables):
        if table.name not in schema_3.METADATA.tables:
            database.execute(f"DROP TABLE {table.name}")
            continue
        former = schema_3.METADATA.tables[table.name]
        there = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
        names = {str(index.name) for index in former.indexes}
        for name in {str(index.name) for index in table.indexes} & there - names:
            database.execute(f"DROP INDEX {name}")
        for index in former.indexes if table.name in there else ():
            if index.name not in there:
                database.execute(str(CreateIndex(index).compile(dialect=sqlite.dialect())))
        for name in set(table.c.keys()) - set(former.c.keys()):
            database.execute(f"ALTER TABLE {table.name} DROP COLUMN {name}")
    database.execute("DROP TABLE alembic_version")
    database.execute("CREATE TABLE meta (key VARCHAR PRIMARY KEY, value VARCHAR NOT NULL)")
    database.execute("INSERT INTO meta VALUES ('schema_version', ?)", (version,))
    for (statement,) in wall:
        database.execute(statement)


def walled(database: sqlite3.Connection) -> None:
    """Put the wall up again, so that nobody sees that it was down."""
    for statement in WALL.values():
        database.execute(statement)


async def by_hand(url: str, statement: str, *values: Any) -> list[tuple[Any, ...]]:
    """One statement in a PostgreSQL database as its owner, with the wall down."""
    connection = await asyncpg.connect(url.replace("//server@", "//owner@"))
    try:
        async with connection.transaction():
            for table in {stone.table for stone in STONES.values()}:
                await connection.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER")
            found = [tuple(row) for row in await connection.fetch(statement, *values)]
            for name, stone in STONES.items():
                await connection.execute(f"ALTER TABLE {stone.table} ENABLE ALWAYS TRIGGER {name}")
    finally:
        await connection.close()
    return found


def engines_of(server: Server) -> list[Engine]:
    """What runs the store's statements, for who listens to them."""
    store = server.services.store
    assert isinstance(store, SqlStore)
    if isinstance(store.database, PostgresDatabase):
        return [store.database.writers.sync_engine, store.database.readers.sync_engine]
    assert isinstance(store.database, SqliteDatabase)
    return [store.database.writer, store.database.readers]


@contextlib.asynccontextmanager
async def serving(
    directory: Path, *, clock: Hands | None = None, verifier: Verifier | None = None, **settings: Any
) -> AsyncIterator[Server]:
    """A server over a data directory, in this process.

    Nobody wants to wait for receipts: one entry begins a round of its log, where the test sets no interval. Rounds that came so
    often by themselves would be a quarter of all that these tests do.
    """
    hands = clock or Hands()
    app = create_app(
        ServerSettings(data_dir=directory, **settings), clock=hands, verifier=verifier, log_clock=hands.advancing
    )
    eager = {} if "log_interval_ms" in settings else {"batch": 1}
    transport = httpx2.ASGITransport(app)
    async with contextlib.AsyncExitStack() as stack:
        with patch.dict(Sequencer.__init__.__kwdefaults__, eager):
            await stack.enter_async_context(app.router.lifespan_context(app))
        client = httpx2.AsyncClient(transport=transport, base_url="http://server.test")
        yield Server(app, await stack.enter_async_context(client), hands)
