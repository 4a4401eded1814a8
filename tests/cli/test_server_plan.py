"""`compliance-agent server plan`: what it lists is documented, and a draft needs a yes."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from compliance_agent.cli import group
from tests.cli.test_json import documented, flat, problems
from tests.core.test_advice import reply
from tests.server import test_promoting
from tests.server.builder import Hands, serving
from tests.server.scripted_model import says, scripted
from tests.server.test_cures import FAILS, cure


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A server's directory with two operators, and a host of which one check fails and one could not tell."""
    directory = tmp_path_factory.mktemp("plan") / "data"

    async def fill() -> None:
        async with serving(directory, clock=Hands(datetime.now(UTC))) as server:
            for name in ("jo", "kim"):
                await server.services.users.add(name, "correct horse battery", role="operator")
            host = await server.enrolled()
            await server.deliver(host, host.next(**FAILS), cure(host, "failed", "step_failed"))
            await server.deliver(
                host, host.next(check="firewall", pre_state={}, result="unknown", reason="timed_out", hipaa_controls=[])
            )
            await server.checkin(host, checks={})

    asyncio.run(fill())
    return directory


def plan(data: Path, *words: str, answer: str | None = None) -> Result:
    return CliRunner().invoke(group, ["server", "plan", *words, "--data-dir", str(data)], input=answer)


def listed(data: Path, *words: str) -> list[dict[str, Any]]:
    ended = plan(data, "list", *words, "--json")
    assert ended.exit_code == 0, ended.output
    document = json.loads(ended.stdout)
    assert problems(document) == []
    found: list[dict[str, Any]] = document["proposals"]
    return found


def test_what_is_listed_is_documented_whole(data: Path) -> None:
    failed = next(item for item in listed(data) if item["check"] == "time_sync")
    assert (failed["kind"], failed["runbook"]["id"], failed["expected"], failed["held"]) == (
        "remediate", "time-sync", "pass", "step_failed",
    )  # fmt: skip
    named = {key for item in listed(data) for key, _ in flat({"more": False, "proposals": [item]})}
    lists = {"proposals[].needs[]", "proposals[].parameters.*", "proposals[].runbook"}  # empty or null here
    assert set(documented("compliance-agent/server-plans/v1")) - named <= lists


def test_a_person_reads_it_in_a_table_with_the_reasons(data: Path) -> None:
    said = plan(data, "list").stdout
    assert "time_sync daemon_down" in said and "remediate" in said and "time-sync" in said
    assert "cure: the runbook has a cure and nothing holds it back" in said
    assert [len(listed(data, *words)) for words in (("--site", "clinic-9"), ("--host", "zz"), ("--orders",))] == [
        0,
        0,
        2,
    ]


def test_a_draft_is_made_after_a_yes_and_not_before(data: Path) -> None:
    proposal_id = next(item["proposal_id"] for item in listed(data) if item["check"] == "time_sync")
    no = plan(data, "draft", proposal_id, "--by", "jo", answer="n\n")
    assert no.exit_code == 1 and "step ensure_unit_active" in no.stderr and "users may notice: no" in no.stderr
    assert json.loads(CliRunner().invoke(
        group, ["server", "order", "list", "--json", "--data-dir", str(data)]).stdout)["orders"] == []  # fmt: skip
    yes = plan(data, "draft", proposal_id, "--by", "jo", "--json", answer="y\n")
    assert yes.exit_code == 0, yes.output
    [order] = json.loads(yes.stdout)["orders"]
    assert (order["kind"], order["parameters"], order["state"]) == ("remediate", {"check": "time_sync"}, "draft")
    assert problems(json.loads(yes.stdout)) == []
    again = plan(data, "draft", proposal_id, "--by", "kim", "--yes")
    assert again.exit_code != 0 and getattr(again.exception, "code", "") == "plan_open"


def test_a_model_is_asked_when_one_is_configured(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    off = plan(data, "advise", "--by", "jo")
    assert getattr(off.exception, "code", "") == "model_off"
    with scripted(says(reply({"choices": [{"finding": 0, "option": "check"}]}))) as model:
        monkeypatch.setenv("MSP_SERVER_PLANNER_MODEL_URL", model.url)
        monkeypatch.setenv("MSP_SERVER_PLANNER_MODEL", "m-1")
        document = json.loads(plan(data, "advise", "--by", "jo", "--json").stdout)
        assert problems(document) == [] and [item["option"] for item in document["choices"]] == ["check"]
        assert "the model would" in plan(data, "advise", "--by", "jo").stdout
        model.script = says(reply("no"))
        refused = plan(data, "advise", "--by", "jo")
        assert refused.exit_code == 1 and "model_answer" in refused.stderr


@pytest.fixture(scope="module")
def proven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A server's directory where people ordered a cure that held, and another host fails the same way."""
    directory = tmp_path_factory.mktemp("rules") / "data"

    async def fill() -> None:
        async with serving(directory, clock=Hands(datetime.now(UTC))) as server:
            await test_promoting.proven(server)
            host = await server.enrolled("ws-11")
            await server.deliver(host, host.next(**FAILS), cure(host, "failed", "step_failed"))
            await server.checkin(host, checks={})

    asyncio.run(fill())
    return directory


def test_a_rule_is_promoted_after_its_counts_were_shown_and_ended_again(proven: Path) -> None:
    place = ("time_sync", "daemon_down", "--site", "clinic-1", "--by", "ada")
    no = plan(proven, "promote", *place, answer="n\n")
    assert no.exit_code == 1 and "of 5 cures 3 passed when looked at again, 0 were undone" in no.stderr
    assert json.loads(plan(proven, "rules", "--json").stdout)["rules"] == []
    yes = json.loads(plan(proven, "promote", *place, "--yes", "--json").stdout)
    assert problems(yes) == [] and yes == json.loads(plan(proven, "rules", "--json").stdout)
    assert "3 of 5 held, 0 undone" in plan(proven, "rules").stdout
    drafted = json.loads(plan(proven, "draft-promoted", "--by", "ada", "--yes", "--json").stdout)
    assert problems(drafted) == [] and [item["refused"] for item in drafted["drafted"]] == [None]
    assert "plan_open" in plan(proven, "draft-promoted", "--by", "ada", answer="y\n").stdout
    assert plan(proven, "demote", *place).exit_code == 0
    assert json.loads(plan(proven, "rules", "--json").stdout)["rules"] == []
