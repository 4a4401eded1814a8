"""What the agent calls: bundles with the host's own circumstances, durable when store_evidence returns."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from compliance_agent.adapters.database import Database
from compliance_agent.config import AgentConfig
from compliance_agent.crypto import Ed25519Signer
from compliance_agent.errors import BadEvidence, CannotTell, ConfigError
from compliance_agent.evidence import EvidenceGenerator
from compliance_agent.evidence.allowlist import registry
from compliance_agent.evidence.verify import verify_paths
from compliance_agent.lab.clock import START, FakeClock
from compliance_agent.models import ClockState, EvidenceBundle
from tests.evidence.conftest import BOOT


class Ticking:
    """A host whose clock can be asked, and which answers late answers later."""

    def __init__(self) -> None:
        self.reads = 0
        self.silent = False

    async def clock_state(self) -> ClockState:
        self.reads += 1
        number = self.reads
        if self.silent:
            raise CannotTell("tool_missing")
        for _ in range(10 - number % 10):
            await asyncio.sleep(0)
        return ClockState("chrony", True, -7, 2, BOOT, number * 1_000)


@pytest.fixture
def config(tmp_path: Path) -> AgentConfig:
    return AgentConfig(
        client_id="client-1",
        site_id="site-1",
        host_id="host-1",
        state_dir=tmp_path / "state",
        evidence_dir=tmp_path / "evidence",
        reserve_kb=4,
    )


@pytest.fixture
async def generator(config: AgentConfig) -> AsyncIterator[EvidenceGenerator]:
    signer = Ed25519Signer(config.signing_key_file)
    made = EvidenceGenerator(config, signer, clock=FakeClock(), host=Ticking())  # type: ignore[arg-type]
    yield made
    await made.close()


async def heartbeat(generator: EvidenceGenerator) -> EvidenceBundle:
    return await generator.create_evidence(check="", outcome=None, kind="heartbeat", reason="as_expected")


async def test_a_bundle_says_where_and_when(generator: EvidenceGenerator) -> None:
    made = await generator.create_evidence(check=next(iter(registry().checks)), outcome="alert", result="fail")
    paths = await generator.store_evidence(made)
    document = json.loads(paths[0].read_bytes())
    assert document["host"] == {"id": "host-1", "key_id": generator.signer.key_id}
    assert (document["site_id"], document["client_id"], document["kind"]) == ("site-1", "client-1", "remediation")
    assert document["created_at"] == "2026-11-22T12:00:00.000000Z"
    assert document["clock"]["monotonic_ns"] == 1_000
    assert document["hipaa_controls"] == registry().checks[document["check"]]["citations"]
    assert paths[1].stat().st_size == 64


async def test_openssl_accepts_what_was_stored(generator: EvidenceGenerator, tmp_path: Path) -> None:
    bundle_path, signature_path = await generator.store_evidence(await heartbeat(generator))
    key = tmp_path / "host.pub.pem"
    key.write_text(generator.signer.public_pem())
    command: list[str | Path] = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", key, "-rawin"]
    command += ["-in", bundle_path, "-sigfile", signature_path]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


async def test_many_at_once_keep_number_and_clock_in_one_order(
    generator: EvidenceGenerator, config: AgentConfig
) -> None:
    """Otherwise an honest chain would show a clock that ran back."""
    bundles = [await heartbeat(generator) for _ in range(30)]
    await asyncio.gather(*(generator.store_evidence(item) for item in bundles))
    report = verify_paths([config.evidence_dir], {generator.signer.key_id: generator.signer.public_bytes})
    assert report.ok, report.problems
    assert report.verified == 30


async def test_a_clock_that_cannot_be_read_is_said_to_be_unknown(generator: EvidenceGenerator) -> None:
    generator._host.silent = True  # type: ignore[attr-defined]
    paths = await generator.store_evidence(await heartbeat(generator))
    clock = json.loads(paths[0].read_bytes())["clock"]
    assert (clock["source"], clock["synchronized"]) == ("unknown", None)


async def test_times_that_are_left_out(generator: EvidenceGenerator) -> None:
    late = START + timedelta(days=2)
    assert (await heartbeat(generator)).timestamp_start == START
    made = await generator.create_evidence("", None, kind="heartbeat", timestamp_start=late)
    assert made.timestamp_end == late, "never before the start"


async def test_unsigned_evidence_is_refused(generator: EvidenceGenerator) -> None:
    with pytest.raises(ValueError, match="unsigned"):
        await generator.store_evidence(await heartbeat(generator), sign=False)


async def test_a_fact_that_no_check_declares_is_refused(generator: EvidenceGenerator) -> None:
    check = next(iter(registry().checks))
    made = await generator.create_evidence(check, None, pre_state={"patient": "Jane Doe"})
    with pytest.raises(BadEvidence) as caught:
        await generator.store_evidence(made)
    assert "Jane" not in str(caught.value)


async def test_a_policy_version_that_could_not_be_recorded_is_refused_at_start(config: AgentConfig) -> None:
    signer = Ed25519Signer(config.signing_key_file)
    with pytest.raises(ConfigError, match="policy_version"):
        EvidenceGenerator(replace(config, policy_version="our policy"), signer)


async def test_a_lost_database_is_the_first_thing_that_is_recorded(config: AgentConfig) -> None:
    """An incident bundle in the new epoch says so; nothing is silent."""
    signer = Ed25519Signer(config.signing_key_file)

    async def run(count: int) -> list[dict[str, object]]:
        database = Database(config.state_dir / "agent.db", threaded=False, reserve_kb=4)
        made = EvidenceGenerator(config, signer, database=database, clock=FakeClock(), host=Ticking())  # type: ignore[arg-type]
        for _ in range(count):
            await made.store_evidence(await heartbeat(made))
        rows = database.read(
            lambda connection: connection.execute("SELECT body FROM evidence ORDER BY epoch, seq").fetchall()
        )
        database.close()
        return [json.loads(row[0]) for row in rows]

    await run(3)
    (config.state_dir / "agent.db").write_bytes(b"\0" * 8192)
    documents = await run(2)
    assert [(item["epoch"], item["seq"], item["kind"]) for item in documents[3:]] == [
        (1, 1, "incident"),
        (1, 2, "heartbeat"),
        (1, 3, "heartbeat"),
    ]
    assert documents[3]["reason"] == "storage_damaged"
    report = verify_paths([config.evidence_dir], {signer.key_id: signer.public_bytes})
    assert [problem.code for problem in report.problems] == ["clock_ran_back"], "the fake host began to count again"


def test_importing_the_words_imports_no_hands() -> None:
    """The server reads `evidence.allowlist`; it must not get the agent's database with it."""
    program = (
        "import sys, compliance_agent.evidence.allowlist, compliance_agent.evidence.canonical\n"
        "assert 'sqlite3' not in sys.modules and 'compliance_agent.adapters.database' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


async def test_a_rehearsal_records_nothing(generator: EvidenceGenerator) -> None:
    await generator.rehearse()
    assert await generator.head() == (0, 0, "0" * 64)
    await generator.store_evidence(await heartbeat(generator))
    await generator.rehearse()
    assert (await generator.head())[1] == 1
    assert not list(generator.config.evidence_dir.rglob("*.tmp"))


REHEARSED = r"""
import asyncio, sys
from pathlib import Path
from compliance_agent import baseline, healing, installed
from compliance_agent.adapters.clock import SystemClock
from compliance_agent.config import AgentConfig
from compliance_agent.crypto import Ed25519Signer
from compliance_agent.evidence import EvidenceGenerator
place = Path(sys.argv[1])
config = AgentConfig(client_id="c", site_id="s", host_id="h", state_dir=place, reserve_kb=4)
held = baseline.parse(b'version: "1"\nchecks:\n  time_sync: {mode: enforce}\n')

async def main():
    generator = EvidenceGenerator(config, Ed25519Signer(config.signing_key_file), clock=SystemClock(), baseline=held)
    await generator.rehearse()
    await healing.HealingEngine(config, baseline=held, clock=SystemClock()).rehearse()
    before, digests = set(sys.modules), installed.agent_digest.cache_info().misses
    made = await generator.create_evidence("time_sync", "success", result="fail", reason="not_synchronised")
    await generator.store_evidence(made)
    healing.actions()
    print(*sorted(name for name in set(sys.modules) - before if name.split(".")[0] in ("compliance_agent", "nacl")))
    print(digests, installed.agent_digest.cache_info().misses)
    await generator.close()

asyncio.run(main())
"""


def test_after_a_rehearsal_a_first_record_loads_nothing(tmp_path: Path) -> None:
    words = (sys.executable, "-c", REHEARSED, str(tmp_path))
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-2:] == ["", "1 1"]
