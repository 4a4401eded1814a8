"""docs/json.md names every key of every `--json` object, and the objects have every key that it names."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from compliance_agent import cli
from compliance_agent.cli import heal
from compliance_agent.models import ActionTaken, Outcome, RemediationResult
from compliance_agent.server.services.fsck import Finding
from tests.agent_scene import Scene
from tests.cli.command import WHOLE_HOST_S, configured, run
from tests.cli.test_status_and_why import _live

PAGE = (Path(__file__).resolve().parent.parent.parent / "docs" / "json.md").read_text("utf-8")
COMMANDS = Path(cli.__file__).parent
OTHERS = {"packet.py", "packet_sample.py", "witness.py"}  # documented with their own subjects
BY_NAME = {"counts", "facts", "statistics", "settings", "parameters"}
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{6})?Z")


def documented(schema: str) -> dict[str, str]:
    """Key -> type, of the table under the heading that names the schema."""
    (section,) = (text for text in PAGE.split("\n## ")[1:] if re.search(rf"{schema}\b(?!-)", text.splitlines()[0]))
    rows = re.findall(r"^\| (`.*?) \| (.*?) \|", section, re.MULTILINE)
    return {key: kind for keys, kind in rows for key in re.findall(r"`([^`]+)`", keys)}


def flat(value: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys with their values, as the page writes them."""
    name = at.rpartition(".")[2]
    if isinstance(value, dict) and name in BY_NAME:
        yield from ((f"{at}.*", item) for item in value.values())
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from flat(item, f"{at}.{key}" if at else key)
    elif isinstance(value, list):
        for item in value:
            yield from flat(item, f"{at}[]")
    else:
        yield at, value


def problems(document: dict[str, Any]) -> list[str]:
    """Keys that the page does not name, and times that are none."""
    known = documented(document["schema"])
    found = dict(flat({key: value for key, value in document.items() if key != "schema"}))
    undocumented = [key for key in found if key not in known]
    times = [key for key, kind in known.items() if kind.startswith("time") and isinstance(found.get(key), str)]
    return undocumented + [f"{key} is {found[key]}" for key in times if not TIME.fullmatch(found[key])]


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """One of every object that can be had without a server."""
    root = tmp_path_factory.mktemp("json")
    scene = Scene(root)
    asyncio.run(_live(scene))
    path = configured(root)
    calls: list[tuple[str | Path, ...]] = [
        ("check",), ("plan",), ("lab", "drift", "--list"), ("lab", "drift", "chrony_stopped"),
        ("drill", "--list", "--config", path), ("keys", "list", "--config", path),
        ("status", "--config", path), ("why", "logging", "--config", path),
        ("config", "show", "--config", path),
        ("config", "check", "--config", path), ("verify", scene.config.evidence_dir),
        ("baseline", "show"), ("baseline", "init"), ("baseline", "lint", root / "baseline.yaml"),
        ("baseline", "diff", root / "baseline.yaml", root / "baseline.yaml"),
        ("runbook", "lint"), ("runbook", "list"), ("runbook", "show", "time-sync"),
    ]  # fmt: skip
    return [json.loads(run(*call, "--json", deadline_s=WHOLE_HOST_S).out) for call in calls]


def test_every_key_is_documented_and_every_time_is_one(objects: list[dict[str, Any]]) -> None:
    assert {document["schema"]: problems(document) for document in objects if problems(document)} == {}


def test_every_documented_key_is_there(objects: list[dict[str, Any]]) -> None:
    """Elements of lists that are empty here, parts of an object that is null, and what only the other command of a chapter
    has, are left out.
    """
    for document in objects:
        found = {key for key, _ in flat(document)}
        nothing = tuple(f"{key}." for key, value in flat(document) if value is None)
        for key in documented(document["schema"]):
            if "[]" in key or key.startswith(nothing) or document["schema"].startswith("compliance-agent/config"):
                continue
            assert key in found or any(other.startswith(f"{key}.") for other in found), f"{document['schema']}: {key}"


def test_the_result_of_a_cure() -> None:
    step = ActionTaken("restart_unit", result="failed", code="timed_out")
    held = RemediationResult("toy", Outcome.DEFERRED, actions=(step,), not_before=datetime(2026, 11, 23, 2, tzinfo=UTC))
    document = {"schema": heal.SCHEMA, "results": [heal._document(held)], "unknown": [{"check": "a", "reason": "b"}]}
    assert problems(document) == []
    assert {key for key, _ in flat(document)} - {"schema"} == set(documented(heal.SCHEMA))


def test_a_log_of_the_server() -> None:
    names = {field.name for field in dataclasses.fields(Finding)}
    assert {
        key.removeprefix("logs[].").removesuffix("[]") for key in documented("compliance-agent/server-fsck/v1")
    } == {"valid", *names}


def test_every_schema_of_a_command_has_its_chapter() -> None:
    sources = [path.read_text("utf-8") for path in COMMANDS.glob("*.py") if path.name not in OTHERS]
    schemas = {schema for text in sources for schema in re.findall(r'"(compliance-agent/[a-z-]+/v1)"', text)}
    assert len(schemas) >= 10
    for schema in schemas:
        assert documented(schema), schema


def test_a_key_that_nobody_wrote_down_would_be_found() -> None:
    assert problems({"schema": "compliance-agent/plan/v1", "plans": [{"check": "a", "secret": 1}]}) == [
        "plans[].secret"
    ]
    late = {"schema": "compliance-agent/status/v1", "last_heartbeat": "2026-11-22T14:57:55+00:00"}
    assert problems(late) == ["last_heartbeat is 2026-11-22T14:57:55+00:00"]
