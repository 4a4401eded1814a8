"""The specification's twelve tests, as an outsider writes them: with patched collaborators and mocks (only here).

Its promises are kept under its names even where ours are stricter: evidence is durable before it is uploaded, and nothing is
marked as delivered that was not acknowledged.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, time
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock, MagicMock, Mock, patch

import pytest

from compliance_agent.agent import ComplianceAgent
from compliance_agent.config import AgentConfig
from compliance_agent.models import ActionTaken, DriftResult, EvidenceBundle, QueuedEvidence, RemediationResult

pytestmark = pytest.mark.anyio
PATCHED = ("DriftDetector", "HealingEngine", "EvidenceGenerator", "OfflineQueue", "MCPClient")
KEYS = {"status", "timestamp", "site_id", "host_id", "stats", "mcp_server", "offline_queue"}
DRIFT = DriftResult(
    check="patching",
    drifted=True,
    pre_state={"generation": 999},
    severity="medium",
    recommended_action="update_to_baseline_generation",
    hipaa_controls=["164.308(a)(5)(ii)(B)"],
)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def test_config(tmp_path: Path) -> AgentConfig:
    values: dict[str, Any] = {
        "deployment_mode": "direct",
        "client_id": "test-client",
        "site_id": "test-site",
        "host_id": "test-host",
        "state_dir": str(tmp_path / "state"),
        "evidence_dir": str(tmp_path / "evidence"),
        "log_dir": str(tmp_path / "logs"),
        "baseline_path": str(tmp_path / "baseline.yaml"),
        "signing_key_file": str(tmp_path / "signing-key.pem"),
        "mcp_url": "https://mcp.example.com",
        "mcp_api_key_file": str(tmp_path / "api-key.txt"),
        "mcp_poll_interval_sec": 60,
        "maintenance_window_start": time(2, 0),
        "maintenance_window_end": time(4, 0),
    }
    return AgentConfig(**values)


def patched(config: AgentConfig) -> ComplianceAgent:
    """Every collaborator's class replaced while the agent is made; nothing of them is set up."""
    with contextlib.ExitStack() as stack:
        for name in PATCHED:
            stack.enter_context(patch(f"compliance_agent.agent.{name}"))
        return ComplianceAgent(config)


def patched_with_queue(config: AgentConfig) -> ComplianceAgent:
    """As above, with a queue that can be awaited and holds nothing."""
    agent = patched(config)
    agent.offline_queue = AsyncMock()
    agent.offline_queue.get_pending = AsyncMock(return_value=[])
    return agent


def handed_in(config: AgentConfig) -> ComplianceAgent:
    """Mocks passed to the constructor as keywords."""
    queue = AsyncMock()
    queue.get_pending.return_value = []
    return ComplianceAgent(
        config,
        signer=MagicMock(),
        drift_detector=MagicMock(),
        healing_engine=AsyncMock(),
        evidence_generator=AsyncMock(),
        offline_queue=queue,
        mcp_client=AsyncMock(),
    )


@pytest.fixture(params=[patched, patched_with_queue, handed_in], ids=lambda way: way.__name__)
def agent(request: pytest.FixtureRequest, test_config: AgentConfig) -> Iterator[ComplianceAgent]:
    make: Callable[[AgentConfig], ComplianceAgent] = request.param
    made = make(test_config)
    yield made
    made._database.close()


def set_up_evidence(agent: ComplianceAgent, start: Any = None) -> EvidenceBundle:
    evidence = EvidenceBundle(
        site_id="test-site",
        host_id="test-host",
        deployment_mode="direct",
        timestamp_start=start or Mock(),
        timestamp_end=start or Mock(),
        policy_version="1.0",
        check="patching",
        outcome="success",
    )
    agent.evidence_generator.create_evidence = AsyncMock(return_value=evidence)
    agent.evidence_generator.store_evidence = AsyncMock(
        return_value=(Path("/tmp/bundle.json"), Path("/tmp/bundle.sig"))
    )
    return evidence


def test_agent_initialization(agent: ComplianceAgent, test_config: AgentConfig) -> None:
    assert agent.config == test_config
    assert agent.running is False
    assert not agent.shutdown_event.is_set()
    for name in ("signer", "drift_detector", "healing_engine", "evidence_generator", "offline_queue", "mcp_client"):
        assert getattr(agent, name) is not None
    assert set(agent.stats.values()) == {0} and len(agent.stats) == 7


def test_agent_initialization_without_mcp(tmp_path: Path) -> None:
    config = AgentConfig(client_id="c", site_id="s", host_id="h", state_dir=tmp_path / "state", mcp_url=None)
    agent = patched(config)
    assert agent.mcp_client is None
    agent._database.close()


async def test_run_iteration_no_drift(agent: ComplianceAgent) -> None:
    agent.drift_detector.check_all = AsyncMock(return_value=[])
    await agent._run_iteration()
    assert agent.stats["drift_detected"] == 0
    assert agent.stats["remediations_attempted"] == 0
    assert agent.stats["evidence_generated"] == 0


async def test_run_iteration_with_passes_and_nothing_else_set_up(agent: ComplianceAgent) -> None:
    agent.drift_detector.check_all = AsyncMock(
        return_value=[DriftResult(check="patching", drifted=False, pre_state={})]
    )
    await agent._run_iteration()
    assert agent.stats["drift_detected"] == 0
    assert agent.stats["remediations_attempted"] == 0


async def test_run_iteration_with_drift(agent: ComplianceAgent) -> None:
    agent.drift_detector.check_all = AsyncMock(return_value=[DRIFT])
    remediation = RemediationResult(
        check="patching",
        outcome="success",
        pre_state={"generation": 999},
        post_state={"generation": 1000},
        actions=[ActionTaken(action="switch_generation", timestamp=Mock())],
    )
    agent.healing_engine.remediate = AsyncMock(return_value=remediation)
    set_up_evidence(agent)
    agent.mcp_client.upload_evidence = AsyncMock(return_value=True)
    await agent._run_iteration()
    assert agent.stats["drift_detected"] == 1
    assert agent.stats["remediations_attempted"] == 1
    assert agent.stats["remediations_successful"] == 1
    assert agent.stats["evidence_generated"] == 1
    assert agent.stats["evidence_uploaded"] == 1


async def test_run_iteration_remediation_failure(agent: ComplianceAgent) -> None:
    agent.drift_detector.check_all = AsyncMock(return_value=[DRIFT])
    failed = RemediationResult(check="patching", outcome="failed", pre_state={}, error="step_failed")
    agent.healing_engine.remediate = AsyncMock(return_value=failed)
    set_up_evidence(agent)
    agent.mcp_client.upload_evidence = AsyncMock(return_value=True)
    await agent._run_iteration()
    assert agent.stats["remediations_attempted"] == 1
    assert agent.stats["remediations_successful"] == 0
    assert agent.stats["evidence_generated"] == 1


async def test_submit_evidence_success(agent: ComplianceAgent) -> None:
    evidence = set_up_evidence(agent, datetime(2025, 11, 7, 14, 32, tzinfo=UTC))
    place = agent.config.evidence_dir / "2025" / "11" / "07" / evidence.bundle_id
    place.mkdir(parents=True)
    (place / "bundle.json").write_text("{}")
    (place / "bundle.sig").write_bytes(b"x" * 64)
    agent.mcp_client.upload_evidence = AsyncMock(return_value=True)
    await agent._submit_evidence(evidence)
    agent.mcp_client.upload_evidence.assert_called_once()
    assert agent.stats["evidence_uploaded"] == 1
    assert agent.stats["evidence_queued"] == 0


@pytest.mark.parametrize("upload", [AsyncMock(return_value=False), AsyncMock(side_effect=ConnectionError("x"))])
async def test_submit_evidence_failure_queues(agent: ComplianceAgent, upload: AsyncMock) -> None:
    evidence = set_up_evidence(agent, datetime(2025, 11, 7, 14, 32, tzinfo=UTC))
    agent.mcp_client.upload_evidence = upload
    agent.offline_queue.enqueue = AsyncMock()
    await agent._submit_evidence(evidence)
    agent.offline_queue.enqueue.assert_called_once()
    assert agent.stats["evidence_uploaded"] == 0
    assert agent.stats["evidence_queued"] == 1


async def test_process_offline_queue_empty(agent: ComplianceAgent) -> None:
    agent.offline_queue.get_pending = AsyncMock(return_value=[])
    agent.mcp_client.upload_evidence = AsyncMock()
    await agent._process_offline_queue()
    agent.mcp_client.upload_evidence.assert_not_called()


async def test_process_offline_queue_success(agent: ComplianceAgent, tmp_path: Path) -> None:
    body, signature = tmp_path / "bundle.json", tmp_path / "bundle.sig"
    body.write_text("{}")
    signature.write_bytes(b"x" * 64)
    queued = QueuedEvidence(
        id=1, bundle_id="b", bundle_path=str(body), signature_path=str(signature), created_at=datetime.now(UTC)
    )
    agent.offline_queue.get_pending = AsyncMock(return_value=[queued])
    agent.offline_queue.mark_uploaded = AsyncMock()
    agent.mcp_client.upload_evidence = AsyncMock(return_value=True)
    await agent._process_offline_queue()
    agent.offline_queue.mark_uploaded.assert_called_once_with(1)
    assert agent.stats["evidence_uploaded"] == 1


async def test_process_offline_queue_failure_counts_the_attempt(agent: ComplianceAgent) -> None:
    queued = Mock(id=7, bundle_id="b", bundle_path="/tmp/x.json", signature_path="/tmp/x.sig")
    agent.offline_queue.get_pending = AsyncMock(return_value=[queued])
    agent.offline_queue.mark_uploaded = AsyncMock()
    agent.offline_queue.increment_retry = AsyncMock()
    agent.mcp_client.upload_evidence = AsyncMock(return_value=False)
    await agent._process_offline_queue()
    agent.offline_queue.mark_uploaded.assert_not_called()
    assert agent.offline_queue.increment_retry.call_args.args == (7,)


async def test_shutdown(agent: ComplianceAgent) -> None:
    agent.running = True
    await agent._shutdown()
    assert agent.running is False
    assert agent.shutdown_event.is_set()


async def test_start_ends_when_shutdown_is_asked_for(agent: ComplianceAgent) -> None:
    agent.drift_detector.check_all = AsyncMock(return_value=[])
    task = asyncio.ensure_future(agent.start())
    while agent.stats["loops_completed"] == 0:
        await asyncio.sleep(0.01)
    assert agent.running
    agent.shutdown_event.set()
    await asyncio.wait_for(task, timeout=8)
    assert not agent.running


def test_signal_handler(agent: ComplianceAgent) -> None:
    with patch("signal.signal") as taken:
        agent._setup_signal_handlers()
    assert {call.args[0] for call in taken.call_args_list} == {signal.SIGTERM, signal.SIGINT}
    agent.running = True
    handler = taken.call_args_list[0].args[1]
    handler(signal.SIGTERM, None)
    assert agent.running is False
    assert agent.shutdown_event.is_set()


async def test_health_check_healthy(agent: ComplianceAgent) -> None:
    agent.running = True
    agent.mcp_client.health_check = AsyncMock(return_value=True)
    agent.offline_queue.get_stats = AsyncMock(return_value={"pending": 0, "failed": 0})
    health = await agent.health_check()
    assert set(health) == KEYS
    assert health["status"] == "healthy"
    assert health["mcp_server"] == "healthy"
    assert health["offline_queue"] == {"pending": 0, "failed": 0}
    assert health["stats"] == agent.stats
    assert (health["site_id"], health["host_id"]) == ("test-site", "test-host")
    assert datetime.fromisoformat(health["timestamp"]).tzinfo is not None and health["timestamp"].endswith("Z")


async def test_health_check_stopped(agent: ComplianceAgent) -> None:
    agent.mcp_client.health_check = AsyncMock(return_value=False)
    agent.offline_queue.get_stats = AsyncMock(return_value={"pending": 3})
    health = await agent.health_check()
    assert set(health) == KEYS
    assert (health["status"], health["mcp_server"]) == ("stopped", "unhealthy")


async def test_health_check_no_mcp(agent: ComplianceAgent) -> None:
    agent.mcp_client = None
    agent.offline_queue.get_stats = AsyncMock(return_value={})
    health = await agent.health_check()
    assert set(health) == KEYS
    assert health["mcp_server"] == "not_configured"


async def test_health_check_never_raises(agent: ComplianceAgent) -> None:
    agent.mcp_client.health_check = AsyncMock(side_effect=ConnectionError("patient jane"))
    agent.offline_queue.get_stats = AsyncMock(side_effect=OSError("patient jane"))
    health = await agent.health_check()
    assert health["mcp_server"] == "error: ConnectionError"
    assert health["offline_queue"] == "error: OSError"


async def test_remediation_exception_handling(agent: ComplianceAgent) -> None:
    agent.healing_engine.remediate = AsyncMock(side_effect=RuntimeError("boom"))
    set_up_evidence(agent)
    agent.mcp_client.upload_evidence = AsyncMock(return_value=True)
    await agent._remediate_and_record(DRIFT)
    assert agent.stats["remediations_attempted"] == 1
    assert agent.stats["remediations_successful"] == 0
    agent.evidence_generator.create_evidence.assert_called_once()
    assert agent.evidence_generator.create_evidence.call_args.kwargs["outcome"] == "failed"
    assert "boom" not in str(agent.evidence_generator.create_evidence.call_args)
