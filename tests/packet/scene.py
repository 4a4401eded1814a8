"""A packet to look at and to damage: three days of two hosts at a real server, and a third host that never says anything."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from compliance_agent.crypto import Ed25519Signer
from compliance_agent.packet import archive
from compliance_agent.packet.build import Built, build
from compliance_agent.packet.manifest import MANIFEST, MANIFEST_SIGNATURE, manifest
from tests.server.builder import START, FakeHost, Hands, Server, serving

SITE = "clinic-1"
DAY = date(2026, 11, 22)  # the second of three
HEALED: dict[str, Any] = {
    "kind": "remediation", "result": "fail", "reason": "offset_too_large", "outcome": "success", "error": "healed",
    "post_result": "pass", "post_reason": "as_expected", "post_state": {"offset_us": 3},
}  # fmt: skip
FAILED = {"result": "fail", "reason": "offset_too_large"}
Files = dict[str, bytes]
Damage = Callable[[Files], None]


@dataclass(frozen=True)
class Made:
    """A server's data directory at rest, and the packet of its second day."""

    data_dir: Path
    raw: bytes
    built: Built

    @property
    def files(self) -> Files:
        return archive.unpack(self.raw)

    def signed_again(self, files: Mapping[str, bytes]) -> Files:
        """The same with a manifest that is right, as whoever has the server's packet key can make it."""
        signer = Ed25519Signer(self.data_dir / "keys" / "packet.pem")
        listed = manifest(files)
        return {**files, MANIFEST: listed, MANIFEST_SIGNATURE: signer.sign(listed)}

    def pick(self, ending: str, at: int = 0) -> str:
        """The path of a file by its ending."""
        return sorted(path for path in self.files if path.endswith(ending))[at]


def make(data_dir: Path, more: int = 0) -> None:
    """Live through the three days; `more` further records on the second one."""
    asyncio.run(_live(data_dir, more))


async def _live(data_dir: Path, more: int) -> None:
    clock = Hands(START - timedelta(days=1))
    async with serving(data_dir, clock=clock) as server:
        hosts = [await server.enrolled(name, SITE) for name in ("ws-01", "ws-02", "ws-03")]
        await server.enrolled("other-01", "clinic-2")
        for _ in range(3):
            for host in hosts[:2]:
                await _day(server, host, clock, more if clock.time == START else 0)
            clock.move(86_400)


async def _day(server: Server, host: FakeHost, clock: Hands, more: int) -> None:
    host.now = clock()
    bundles = [
        host.heartbeat(time_sync="pass", logging="unknown"),
        host.next(**FAILED),
        host.next(**HEALED),
        host.next(),
    ]
    bundles += [host.next() for _ in range(more)]
    for at in range(0, len(bundles), 100):
        reply = await server.deliver(host, *bundles[at : at + 100])
        assert reply.status_code == 200, reply.text
        assert all(reply.json()["receipts"]), "every record is in the log before the scene goes on"


def built(data_dir: Path, out: Path, since: date = DAY, until: date = DAY, **asked: Any) -> Built:
    """A packet of the scene."""
    return asyncio.run(build(data_dir, SITE, since, until, out, **asked))


def copied(made: Made, directory: Path) -> Made:
    """The same with a data directory of its own."""
    shutil.copytree(made.data_dir, directory)
    return replace(made, data_dir=directory)
