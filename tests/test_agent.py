"""The agent over real evidence, queue, client and database: what it records, what it delivers, what it remembers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from compliance_agent import recording
from compliance_agent.admin.pages import Pages
from compliance_agent.admin.standing import Standing
from compliance_agent.agent import ComplianceAgent
from compliance_agent.errors import ConfigError, StorageFull
from compliance_agent.models import STATS, DriftResult, Outcome, RemediationResult, Result, Verdict
from tests.agent_scene import Scene

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    made = Scene(tmp_path)
    yield made
    await made.close()


async def test_one_iteration_records_heals_and_delivers(scene: Scene) -> None:
    agent = scene.agent()
    scene.detector.drift("time_sync")
    await scene.cycle(agent)
    assert scene.kinds() == [
        ("drift", "av_health", None),
        ("drift", "logging", None),
        ("remediation", "time_sync", "success"),
        ("heartbeat", None, None),
    ]
    assert agent.stats == {
        "loops_completed": 0,
        "drift_detected": 1,
        "remediations_attempted": 1,
        "remediations_successful": 1,
        "evidence_generated": 4,
        "evidence_uploaded": 4,
        "evidence_queued": 0,
    }
    healed = scene.documents()[2]
    assert (healed["result"], healed["post_result"], healed["trigger"]) == ("fail", "pass", "schedule")
    assert healed["error"] is None


async def test_nothing_is_recorded_again_while_nothing_changes(scene: Scene) -> None:
    agent = scene.agent()
    scene.detector.drift("time_sync")
    await scene.cycle(agent, 10)
    assert len([kind for kind in scene.kinds() if kind[0] != "heartbeat"]) == 3


async def test_an_unchanged_drift_is_recorded_once_and_a_changed_refusal_again(scene: Scene) -> None:
    agent = scene.agent()
    scene.detector.drift("time_sync")
    scene.healer.held["time_sync"] = "outside_window"
    await scene.cycle(agent, 5)
    scene.healer.held["time_sync"] = "budget"
    await scene.cycle(agent, 5)
    said = [(item["outcome"], item["error"]) for item in scene.documents() if item["check"] == "time_sync"]
    assert said == [("deferred", "outside_window"), ("deferred", "budget")]
    assert agent.stats["drift_detected"] == 10
    assert agent.stats["remediations_attempted"] == 0


async def test_a_cure_that_leaves_work_for_a_person_counts_and_is_recorded_each_time(scene: Scene) -> None:
    agent = scene.agent()
    scene.detector.drift("time_sync")
    scene.healer.in_part.add("time_sync")
    await scene.cycle(agent, 2)
    said = [
        (item["outcome"], item["error"], len(item["actions"]))
        for item in scene.documents()
        if item["check"] == "time_sync"
    ]
    assert said == [("alert", "cured_in_part", 1)] * 2  # something was done to the host twice
    assert (agent.stats["remediations_attempted"], agent.stats["remediations_successful"]) == (2, 0)


async def test_every_change_of_verdict_is_recorded_in_both_directions(scene: Scene) -> None:
    agent = scene.agent()
    scene.healer.held["time_sync"] = "mode_audit"
    await scene.cycle(agent)
    scene.detector.drift("time_sync")
    await scene.cycle(agent)
    scene.detector.standing["time_sync"] = Verdict(Result.UNKNOWN, "timed_out")
    await scene.cycle(agent)
    scene.detector.fix("time_sync")
    await scene.cycle(agent)
    results = [item["result"] for item in scene.documents() if item["check"] == "time_sync"]
    assert results == ["pass", "fail", "unknown", "pass"]


async def test_a_heartbeat_comes_every_hour_with_every_verdict(scene: Scene) -> None:
    agent = scene.agent()
    await scene.cycle(agent, 121, pause_s=60)
    beats = [item for item in scene.documents() if item["kind"] == "heartbeat"]
    assert len(beats) == 3  # at the start and after each hour
    assert set(beats[0]["states"]) == set(scene.detector.standing)


async def test_a_clock_set_back_neither_stops_heartbeats_nor_breaks_a_record(scene: Scene) -> None:
    agent = scene.agent()
    await scene.cycle(agent)
    scene.clock.step(-400 * 86_400)
    scene.detector.drift("logging")
    await scene.cycle(agent)
    kinds = scene.kinds()
    assert kinds.count(("heartbeat", None, None)) == 2
    assert ("remediation", "logging", "success") in kinds


async def test_a_clock_set_back_during_a_cure_loses_no_record(scene: Scene) -> None:
    agent = scene.agent()
    remediate = scene.healer.remediate

    async def meanwhile(drift: DriftResult) -> RemediationResult:
        scene.clock.step(-3_600)
        return await remediate(drift)

    scene.healer.remediate = meanwhile  # type: ignore[method-assign]
    scene.detector.drift("logging")
    await scene.cycle(agent)
    (healed,) = [item for item in scene.documents() if item["outcome"]]
    assert healed["timestamp_end"] >= healed["timestamp_start"]


async def test_statistics_and_what_was_recorded_survive_a_restart(scene: Scene) -> None:
    agent = scene.agent()
    scene.detector.drift("time_sync")
    scene.healer.held["time_sync"] = "paused"
    await scene.cycle(agent, 3)
    before, count = dict(agent.stats), len(scene.documents())
    again = await scene.restart()
    assert again.stats == before
    await scene.cycle(again, 3)
    assert len(scene.documents()) == count, "a restart is no news"
    assert again.stats["drift_detected"] == before["drift_detected"] + 3


async def test_what_a_crash_left_in_the_middle_is_recorded_at_start(scene: Scene) -> None:
    scene.healer.unfinished = [
        RemediationResult("time_sync", Outcome.REVERTED, reason="interrupted", error="interrupted", recovered=True)
    ]
    agent = scene.agent()
    await agent.recover()
    await scene.cycle(agent)
    first = scene.documents()[0]
    assert (first["check"], first["outcome"], first["recovered"], first["trigger"]) == (
        "time_sync", "reverted", True, "start"
    )  # fmt: skip


class PowerCut(BaseException):
    """The power went."""


async def test_a_cure_that_ended_is_recorded_also_when_the_power_goes_before_its_record(scene: Scene) -> None:
    """Its check passes again, as it did before: nothing else would ever tell of it."""
    agent = scene.agent()
    await scene.cycle(agent)

    async def cut(*_: object) -> None:
        raise PowerCut

    agent.evidence_generator.store_evidence = cut
    scene.detector.drift("time_sync")
    with pytest.raises(PowerCut):
        await agent._run_iteration()
    for _ in range(2):
        agent = await scene.restart()
        await agent.recover()
        await scene.cycle(agent)
    said = [item for item in scene.documents() if item["outcome"]]
    told = [tuple(item[name] for name in ("check", "reason", "outcome", "recovered", "post_result")) for item in said]
    assert told == [("time_sync", "daemon_down", "success", True, "pass")]


async def test_a_record_made_just_before_the_power_goes_is_not_made_again(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = scene.agent()

    async def cut(_: RemediationResult) -> None:
        raise PowerCut

    said = scene.healer.said
    monkeypatch.setattr(scene.healer, "said", cut)
    scene.detector.drift("time_sync")
    with pytest.raises(PowerCut):
        await agent._run_iteration()
    monkeypatch.setattr(scene.healer, "said", said)
    agent = await scene.restart()
    await agent.recover()
    await scene.cycle(agent)
    assert [item["check"] for item in scene.documents() if item["outcome"]] == ["time_sync"]
    assert scene.healer.kept == {}


async def test_a_crash_of_the_healer_is_recorded_once_and_stops_nobody(scene: Scene) -> None:
    agent = scene.agent()
    scene.detector.drift("logging")
    scene.detector.drift("time_sync")
    scene.healer.error = RuntimeError("patient jane")
    await scene.cycle(agent, 3)
    said = [(item["check"], item["outcome"], item["error"]) for item in scene.documents() if item["outcome"]]
    assert said == [("logging", "failed", "crashed"), ("time_sync", "failed", "crashed")]
    assert "jane" not in json.dumps(scene.documents())


async def test_what_cannot_be_recorded_is_recorded_later_and_once(scene: Scene) -> None:
    agent = scene.agent()
    await scene.cycle(agent)
    store = agent.evidence_generator.store_evidence

    async def full(*_: object) -> None:
        raise StorageFull("no room")

    agent.evidence_generator.store_evidence = full
    scene.detector.drift("time_sync")
    scene.detector.standing["logging"] = Verdict(Result.UNKNOWN, "timed_out")
    await scene.cycle(agent, 3)
    assert scene.healer.asked == ["time_sync"], "the cure itself was done and stays"
    agent.evidence_generator.store_evidence = store
    await scene.cycle(agent, 2)
    said = [(item["check"], item["result"], item["outcome"]) for item in scene.documents()][4:]
    assert sorted(said) == [("logging", "unknown", None), ("time_sync", "fail", "success")]


async def test_what_is_lost_on_a_full_disk_leaves_a_signed_gap(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A verdict that another one followed, and cures too many to keep: how many, and over which time; said once."""
    monkeypatch.setattr(recording, "MOST_UNRECORDED", 2)
    agent = scene.agent()
    await scene.cycle(agent)
    store = agent.evidence_generator.store_evidence

    async def full(*_: object) -> None:
        raise StorageFull("no room")

    agent.evidence_generator.store_evidence = full
    began = scene.clock.now()
    scene.detector.standing["logging"] = Verdict(Result.UNKNOWN, "timed_out")
    await scene.cycle(agent)
    scene.detector.fix("logging")  # nobody will ever record that it could not tell
    await scene.cycle(agent)
    for _ in range(3):  # the oldest of three cures is one too many
        scene.detector.drift("time_sync")
        await scene.cycle(agent)
    ended = scene.clock.now()
    agent.evidence_generator.store_evidence = store
    await scene.cycle(agent, 3)
    later = scene.documents()[4:]
    assert [item["outcome"] for item in later if item["check"] == "time_sync"].count("success") == 2
    (gap,) = [item for item in later if item["kind"] == "incident"]
    assert (gap["reason"], gap["counts"]) == ("not_recorded", {"gaps": 2})
    start, end = (datetime.fromisoformat(gap[f"timestamp_{name}"]) for name in ("start", "end"))
    assert began <= start < end <= ended


async def test_a_cure_at_a_persons_word_says_so(scene: Scene) -> None:
    agent = scene.agent()
    scene.detector.drift("time_sync")
    (drift,) = [item for item in await scene.detector.check_all() if item.drifted]
    assert (await agent.heal_now(drift)).outcome == Outcome.SUCCESS
    assert [item["trigger"] for item in scene.documents()] == ["manual"]


async def test_without_a_server_everything_is_recorded_and_queued(tmp_path: Path) -> None:
    scene = Scene(tmp_path, with_server=False)
    agent = ComplianceAgent(
        scene.config,
        signer=scene.signer,
        drift_detector=scene.detector,
        healing_engine=scene.healer,
        clock=scene.clock,
    )
    scene.live = agent
    assert agent.mcp_client is None
    await scene.cycle(agent)
    assert (agent.stats["evidence_generated"], agent.stats["evidence_queued"]) == (4, 4)
    assert (await agent.health_check())["mcp_server"] == "not_configured"
    assert (await agent.offline_queue.get_stats())["pending"] == 4
    await scene.close()


async def test_health_over_real_parts(scene: Scene) -> None:
    agent = scene.agent()
    await scene.cycle(agent)
    health = await agent.health_check()
    assert (health["status"], health["mcp_server"]) == ("stopped", "healthy")
    assert health["offline_queue"]["pending"] == 0
    assert health["offline_queue"]["breaker"] == {"state": "closed", "wait_s": 0.0}
    scene.server.down = True
    assert (await agent.health_check())["mcp_server"] == "unhealthy"
    breaker = agent.mcp_client.breaker
    while breaker.state(agent.clock.monotonic()) == "closed":
        breaker.failure(agent.clock.monotonic())
    told = (await agent.health_check())["offline_queue"]["breaker"]
    assert told["state"] == "open" and told["wait_s"] > 0
    nothing: Any = None
    page = await Pages(Standing(agent, nothing, nothing, nothing)).healthz(nothing)
    assert (page.status, json.loads(page.body)["breaker"]) == (200, "open")
    assert json.loads(json.dumps(health)) == health


def test_a_constructor_that_fails_lets_the_state_go(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    broken = replace(scene.config, baseline_path=tmp_path / "none.yaml")
    for _ in range(2):
        with pytest.raises(ConfigError, match="baseline"):
            ComplianceAgent(broken)
    scene.agent().offline_queue.close()


def test_the_seven_counters_have_the_names_of_the_specification() -> None:
    assert STATS == (
        "loops_completed", "drift_detected", "remediations_attempted", "remediations_successful",
        "evidence_generated", "evidence_uploaded", "evidence_queued",
    )  # fmt: skip


IMPORT = """if True:
    import time
    before = time.process_time()
    import sys, compliance_agent.agent
    spent = time.process_time() - before
    import compliance_agent.checks, compliance_agent.remedies
    compliance_agent.checks.registry(), compliance_agent.remedies.actions()  # loaded soon after, and to stay
    heavy = {"rich", "fastapi", "sqlalchemy", "uvicorn", "jinja2", "cryptography", "nacl", "pydantic", "httpx", "starlette"}
    print(spent, ",".join(sorted(heavy & set(sys.modules))))
"""


def test_importing_the_agent_is_quick_and_light(tmp_path: Path) -> None:
    """Best of five, with bytecode cached as on an installed host."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(tmp_path)
    spent = []
    for _ in range(6):
        done = subprocess.run(
            [sys.executable, "-c", IMPORT], env=environment, capture_output=True, text=True, check=True, timeout=30
        )
        seconds, _, heavy = done.stdout.strip().partition(" ")
        assert heavy == ""
        spent.append(float(seconds))
    assert min(spent[1:]) < 0.35
