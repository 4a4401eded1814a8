"""How fast the real record path is: the generator, the chain, the database and the directories, on a real disk."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from compliance_agent.config import AgentConfig
from compliance_agent.crypto import Ed25519Signer
from compliance_agent.evidence import EvidenceGenerator
from compliance_agent.lab.clinic import healthy_host
from compliance_agent.models import BundleKind


def record_many(directory: Path, count: int) -> float:
    """Bundles recorded a second, one after the other, each durable before the next."""
    return asyncio.run(_record(directory, count))


async def _record(directory: Path, count: int) -> float:
    config = AgentConfig(client_id="bench", site_id="bench", host_id="bench", state_dir=directory)
    generator = EvidenceGenerator(config, Ed25519Signer(config.signing_key_file), host=healthy_host())
    await generator.open()
    started = time.perf_counter()
    for _ in range(count):
        bundle = await generator.create_evidence("", None, kind=BundleKind.HEARTBEAT, counts={"pending": 0})
        await generator.store_evidence(bundle)
    rate = count / (time.perf_counter() - started)
    await generator.close()
    return rate
