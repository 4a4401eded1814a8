"""A packet whose log third parties have seen: one host, three hours, a witness with two keys, and a time-stamping authority."""

from __future__ import annotations

import asyncio
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

from compliance_agent.packet.build import Built, build
from compliance_agent.packet.opening import Sleep
from compliance_agent.server import opening as module
from compliance_agent.server.log_keys import LogKeys
from compliance_agent.transport.http import HttpTransport
from tests.packet.scene import SITE, Made
from tests.server.authority import stamping
from tests.server.builder import Hands, serving
from tests.server.test_cosigning import URL, Way, settled
from tests.witness.builder import Local, Wall

START = datetime(2024, 11, 22, 12, tzinfo=UTC)  # well before any time that a real authority says
DAY = date(2024, 11, 22)
ORIGIN = f"compliance-server/{SITE}/2024"
HOURS = 3


def witnessed(directory: Path) -> Made:
    """The server's data at rest in `server`, and the packet."""
    with pytest.MonkeyPatch.context() as patch, stamping(directory / "tsa") as authority:
        asyncio.run(_live(directory, patch, authority.url, authority.ca_file))
    result = built_again(directory / "server", directory / "packet.zip")
    return Made(directory / "server", result.path.read_bytes(), result)


def built_again(data_dir: Path, out: Path, sleep: Sleep = asyncio.sleep) -> Built:
    """The packet of its day."""
    return asyncio.run(build(data_dir, SITE, DAY, DAY, out, sleep=sleep))


async def _live(directory: Path, patch: pytest.MonkeyPatch, tsa_url: str, tsa_ca: Path) -> None:
    data, clock, wall = directory / "server", Hands(START), Wall(int(START.timestamp()))
    data.mkdir(mode=0o700)
    logs = {ORIGIN: [LogKeys(data / "keys").verifier(ORIGIN)]}
    witness = Local(directory / "witness", wall, ml_dsa=True, logs=logs)
    ed25519, mldsa44 = witness.keys.keys
    lines = directory / "witnesses.policy"
    lines.write_text(
        f"witness w1-pq {mldsa44} {URL}\nwitness w1 {ed25519} {URL}\ngroup all-of-w1 all w1 w1-pq\nquorum all-of-w1\n"
    )
    way = Way(witness.witness.answer)
    patch.setattr(module, "HttpTransport", lambda url: way if url == URL else HttpTransport(url))
    asked: dict[str, Any] = {
        "witness_policy_file": lines,
        "witness_deadline_ms": 10_000,
        "tsa_url": tsa_url,
        "tsa_ca_file": tsa_ca,
    }
    async with serving(data, clock=clock, **asked) as server:
        host = await server.enrolled(site=SITE)
        for hour in range(HOURS):
            if hour:  # and not after the last: a server that looks again by itself would begin what it cannot end
                clock.move(3_600)
                wall.at += 3_600
            host.now = clock()
            reply = await server.deliver(host, host.next(), host.next())
            assert all(reply.json()["receipts"]), reply.text
            await settled(server)
    witness.store.close()
