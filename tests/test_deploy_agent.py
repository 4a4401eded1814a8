"""The agents' alert rules and dashboard fit the agent: every figure and label they name is one that it shows."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from compliance_agent.adapters.notify import Notify
from compliance_agent.admin.figures import families
from compliance_agent.admin.standing import Standing
from compliance_agent.core.exposition import PLAIN, rendered
from compliance_agent.log_level import LogLevel
from compliance_agent.watchdog import Watchdog
from tests.agent_scene import Scene
from tests.test_deploy import ROOT, Reader, Shown, wrong

pytestmark = pytest.mark.anyio
RULES, DASHBOARD = ROOT / "deploy/prometheus/agent-rules.yml", ROOT / "deploy/grafana/agent.json"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


async def never() -> None:
    raise AssertionError("not asked for here")


@pytest.fixture
async def standing(tmp_path: Path) -> AsyncIterator[Standing]:
    """A host whose server went away after a while, with drift and a cycle that failed."""
    scene = Scene(tmp_path)
    agent = scene.agent()
    await scene.cycle(agent)
    await scene.delivered(agent)
    scene.detector.drift("time_sync")
    scene.server.down = True
    await scene.cycle(agent, 8)
    await scene.delivered(agent)
    agent.counts.add("cycles_failed", "storage_full")
    level = LogLevel(lambda _level: None, agent.clock)
    yield Standing(agent, Watchdog(agent, Notify({})), level, never)
    await scene.close()


async def shown(standing: Standing) -> Shown:
    found: Shown = {}
    for family in text_string_to_metric_families(rendered(await families(standing), PLAIN).decode()):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(dict(sample.labels))
    return found


async def test_every_figure_that_is_named_is_shown(standing: Standing) -> None:
    there = await shown(standing)
    recorded = {rule["record"]: Reader(rule["expr"]).by for rule in rules() if "record" in rule}
    panels = json.loads(DASHBOARD.read_text())["panels"]
    named = [*(rule["expr"] for rule in rules()), *(target["expr"] for panel in panels for target in panel["targets"])]
    assert len(named) >= 25
    for expression in named:
        assert wrong(expression, there, recorded) == [], expression
    for planted in ("compliance_agent_nothing > 0", 'compliance_agent_breaker_state{state="ajar"} == 1'):
        assert wrong(planted, there, recorded) != [], planted


async def test_the_figures_say_what_stands(standing: Standing) -> None:
    values = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(rendered(await families(standing), PLAIN).decode())
        for sample in family.samples
    }
    queue = await standing.agent.offline_queue.get_stats()
    assert values["compliance_agent_queue_records",] == queue["pending"] > 0
    assert values["compliance_agent_queue_oldest_seconds",] > 0
    states = {state: values["compliance_agent_breaker_state", state] for state in ("closed", "half_open", "open")}
    assert sum(states.values()) == 1 and states["closed"] == 0, "the server failed again and again"
    assert sum(count for (name, *_), count in values.items() if name == "compliance_agent_delivery_failed_total") > 0
    assert values["compliance_agent_drift_total",] >= 1
    now = [key[1:] for key, value in values.items() if key[0] == "compliance_agent_check_result" and value == 1]
    assert sorted(check for check, _ in now) == ["av_health", "logging", "time_sync"], "one verdict each"


def test_every_alert_has_a_severity_and_a_sentence() -> None:
    alerts = [rule for rule in rules() if "alert" in rule]
    assert len({rule["alert"] for rule in alerts}) == len(alerts) >= 10
    for rule in alerts:
        assert rule["labels"]["severity"] in {"page", "ticket"} and rule["annotations"]["summary"].endswith(".")
