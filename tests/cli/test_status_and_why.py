"""`status` and `why` read a running agent's own records, change nothing, and say plainly when there is nothing to read."""

from __future__ import annotations

import asyncio
import json
import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from compliance_agent.adapters.agent_view import looking
from compliance_agent.errors import NotPermitted
from compliance_agent.installed import agent_digest
from compliance_agent.models import STATS, ActionTaken, Outcome, RemediationResult, Result, Verdict
from tests.agent_scene import Scene
from tests.cli.command import configured, run
from tests.order_scene import OrderScene


async def _live(scene: Scene) -> None:
    """A cure that worked, one that was undone, one that is held back, a look that failed; and a bundle that waits."""
    agent = scene.agent()
    detector, healer = scene.detector, scene.healer
    detector.drift("time_sync")
    await scene.cycle(agent)
    remediate = healer.remediate

    async def undone(drift: Any) -> RemediationResult:
        if drift.check != "logging":
            return await remediate(drift)
        steps = (
            ActionTaken("restart_unit", result="failed", code="step_failed"),
            ActionTaken("restart_unit", result="undone"),
        )
        return RemediationResult("logging", Outcome.REVERTED, actions=steps, error="step_failed", reason="step_failed")

    healer.remediate = undone  # type: ignore[method-assign]
    detector.drift("logging")
    await scene.cycle(agent)
    healer.remediate = remediate  # type: ignore[method-assign]
    healer.held["logging"] = "outside_window"
    await scene.cycle(agent)
    scene.server.down = True
    detector.standing["av_health"] = Verdict(Result.UNKNOWN, "timed_out")
    await scene.cycle(agent)
    await agent._save_statistics()


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    made = Scene(tmp_path)
    asyncio.run(_live(made))
    configured(tmp_path, maintenance_window_start=opening(6), maintenance_window_end=opening(8))
    return made


def opening(hours: int) -> str:
    """A time of day that many hours from now: a window that is closed whenever this runs."""
    return (datetime.now(UTC) + timedelta(hours=hours)).strftime("%H:%M")


def config(scene: Scene) -> Path:
    return scene.root / "agent.yaml"


def untouched(scene: Scene) -> dict[str, tuple[int, int]]:
    """Name, size and time of everything in the state directory."""
    found = {}
    for path in scene.config.state_dir.rglob("*"):
        if not path.name.endswith("-shm"):
            info = path.stat()
            found[str(path)] = (info.st_size, info.st_mtime_ns)
    return found


def test_status_beside_a_running_agent(scene: Scene) -> None:
    before = untouched(scene)
    ended = run("status", "--json", "--config", config(scene))
    assert json.loads(ended.out)["code_sha256"] == agent_digest()
    assert (ended.status, ended.err) == (0, "")
    document = json.loads(ended.out)
    assert set(document) == {
        "schema", "site_id", "host_id", "version", "code_sha256", "running", "source", "live", "healing_paused", "pause",
        "last_heartbeat", "last_heartbeat_age_s",
        "statistics", "queue", "chain", "events", "orders", "log", "proven", "checks",
    }  # fmt: skip
    assert document["schema"] == "compliance-agent/status/v1"
    assert (document["running"], document["source"], document["live"]) == (True, "records", None), "it has no socket"
    assert set(document["statistics"]) == set(STATS)
    queue = document["queue"]
    assert queue["pending"] == 1 and queue["uploaded"] > 4 and queue["oldest_pending_age_s"] is not None
    assert document["events"] == {"sources": 0, "untold": [{"kind": "all", "code": "off"}]}, (
        "its detector takes no turns"
    )
    assert document["chain"]["key_id"] == scene.signer.key_id
    log = document["log"]
    assert (log["origin"], log["unlogged"], log["contradicted"]) == ("fake/clinic-1/2026", 0, [])
    assert log["receipted"] == queue["uploaded"] > 0
    verdicts = {item["check"]: (item["result"], item["outcome"], item["gate"]) for item in document["checks"]}
    assert verdicts == {
        "av_health": ("unknown", "", ""),
        "logging": ("fail", "deferred", "outside_window"),
        "time_sync": ("pass", "", ""),
    }
    text = run("status", "--config", config(scene))
    assert text.status == 0
    assert "srv-1 at clinic-1: running" in text.out and "1 waiting" in text.out
    assert untouched(scene) == before


def test_status_of_an_agent_that_does_not_run(scene: Scene) -> None:
    assert scene.live is not None
    scene.live._database.close()
    document = json.loads(run("status", "--json", "--config", config(scene)).out)
    assert document["running"] is False
    assert document["statistics"]["remediations_successful"] == 1


def test_why_something_was_not_fixed(scene: Scene) -> None:
    ended = run("why", "logging", "--json", "--config", config(scene))
    [opens] = re.findall(r"^maintenance_window_start: '?([0-9:]+)", config(scene).read_text(), re.MULTILINE)
    assert (ended.status, ended.err) == (0, "")
    document = json.loads(ended.out)
    assert document["schema"] == "compliance-agent/why/v1"
    assert (document["result"], document["outcome"], document["held_by"]) == ("fail", "deferred", "outside_window")
    assert "maintenance window" in document["held_by_text"]
    assert document["not_before"] is not None and document["not_before"].endswith(f"T{opens}:00Z")
    held, undone = document["remediations"]
    assert (held["outcome"], held["steps"]) == ("deferred", [])
    assert undone["outcome"] == "reverted"
    assert undone["steps"] == [
        {"action": "restart_unit", "result": "failed", "code": "step_failed"},
        {"action": "restart_unit", "result": "undone", "code": None},
    ]
    assert document["bundle_id"] == held["bundle_id"] and held["acknowledged"] is True
    text = run("why", "logging", "--config", config(scene)).out
    assert "not fixed (deferred)" in text and "outside_window" in text and undone["bundle_id"] in text


def test_why_something_was_fixed(scene: Scene) -> None:
    document = json.loads(run("why", "time_sync", "--json", "--config", config(scene)).out)
    assert (document["result"], document["held_by"], document["not_before"]) == ("pass", None, None)
    assert [item["outcome"] for item in document["remediations"]] == ["success"]
    assert document["remediations"][0]["post_result"] == "pass"


def test_why_a_look_failed(scene: Scene) -> None:
    document = json.loads(run("why", "av_health", "--json", "--config", config(scene)).out)
    assert (document["result"], document["reason"]) == ("unknown", "timed_out")
    assert document["remediations"] == []


def test_nothing_recorded_of_a_check_is_66(scene: Scene) -> None:
    ended = run("why", "firewall", "--config", config(scene))
    assert ended.status == 66
    assert "nothing has been recorded" in ended.line


@pytest.mark.parametrize("words", [["status"], ["why", "time_sync"]])
def test_no_state_yet_is_66(tmp_path: Path, words: list[str]) -> None:
    ended = run(*words, "--config", configured(tmp_path))
    assert ended.status == 66
    assert "no agent has run here yet" in ended.line
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("damage", [b"", b"not a database at all" * 400])
def test_a_database_that_is_none_is_one_line(tmp_path: Path, damage: bytes) -> None:
    path = configured(tmp_path)
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "agent.db").write_bytes(damage)
    for words in (["status"], ["why", "time_sync"]):
        ended = run(*words, "--config", path)
        assert ended.status in {0, 66, 74}
        assert ended.status == 0 or len(ended.err.splitlines()) == 1


@pytest.mark.parametrize("refused", ["stat", "access"])
def test_somebody_who_may_not_look_is_told_so(scene: Scene, monkeypatch: pytest.MonkeyPatch, refused: str) -> None:
    def no(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "planted")

    if refused == "stat":
        monkeypatch.setattr(Path, "stat", no)
    else:
        monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(NotPermitted, match="no permission"), looking(scene.config.database_path):
        pass


def test_plan_works_beside_a_running_agent(scene: Scene) -> None:
    before = untouched(scene)
    assert run("plan", "--config", config(scene)).status in {0, 1}
    assert untouched(scene) == before


def test_heal_beside_a_running_agent_is_75(scene: Scene) -> None:
    ended = run("heal", "--config", config(scene))
    assert ended.status == 75
    assert "in use" in ended.line


def test_orders_are_shown_by_both(tmp_path: Path) -> None:
    """What came, how it ended and why; a stop is said loudly."""
    made = OrderScene(tmp_path)

    async def ordered() -> None:
        agent = made.agent()
        await made.cycle(agent)
        await made.give(agent, made.signed("approve"), made.signed("remediate", host="ef" * 32), b"no order")
        await made.give(agent, made.signed("stop_all"))

    asyncio.run(ordered())
    configured(tmp_path)
    document = json.loads(run("status", "--json", "--config", tmp_path / "agent.yaml").out)["orders"]
    assert (document["counter"], document["stopped"]) == (1, True)
    assert [(item["kind"], item["state"], item["outcome"], item["error"]) for item in document["recent"]] == [
        ("stop_all", "said", "success", None),
        (None, "said", "rejected", "order_unreadable"),
        ("remediate", "said", "rejected", "other_host"),
        ("approve", "said", "success", None),
    ]
    text = run("status", "--config", tmp_path / "agent.yaml").out
    assert "STOPPED by a signed stop_all" in text and "unreadable : rejected order_unreadable" in text
    asked = json.loads(run("why", "time_sync", "--json", "--config", tmp_path / "agent.yaml").out)["orders"]
    assert [(item["order_id"], item["outcome"]) for item in asked] == [("0" * 31 + "1", "success")]
    assert "order at (UTC)" in run("why", "time_sync", "--config", tmp_path / "agent.yaml").out
