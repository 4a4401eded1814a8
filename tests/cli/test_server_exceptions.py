"""`compliance-agent server exception`: granted, listed and ended on the data directory, by a person who may."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from compliance_agent.cli import group
from compliance_agent.errors import NoInput, Refusal
from tests.cli.test_json import documented, flat, problems
from tests.server.builder import Hands, serving

WORDS = (
    "--check",
    "time_sync",
    "--reason",
    "vendor_requires",
    "--measure",
    "watched",
    "--reference",
    "RA-7",
    "--days",
    "30",
)


@pytest.fixture
def data(tmp_path: Path) -> tuple[Path, str]:
    """A server's directory with a host whose check fails, and two people; and the host's key id."""
    directory = tmp_path / "data"

    async def fill() -> str:
        async with serving(directory, clock=Hands(datetime.now(UTC))) as server:
            for name, role in (("jo", "operator"), ("kim", "owner"), ("vi", "viewer")):
                await server.services.users.add(name, "correct horse battery", role=role)
            host = await server.enrolled()
            await server.deliver(host, host.next(result="fail", reason="daemon_down"))
            return host.key_id

    return directory, asyncio.run(fill())


def exception(data: Path, *words: str) -> Result:
    return CliRunner().invoke(group, ["server", "exception", *words, "--data-dir", str(data)])


def said(data: Path, *words: str) -> list[dict[str, Any]]:
    ended = exception(data, *words, "--json")
    assert ended.exit_code == 0, ended.output
    document = json.loads(ended.stdout)
    assert problems(document) == []
    found: list[dict[str, Any]] = document["exceptions"]
    return found


def test_the_way_of_an_exception(data: tuple[Path, str]) -> None:
    directory, key_id = data
    [made] = said(directory, "grant", "--host", key_id[:12], *WORDS, "--by", "jo")
    assert (made["state"], made["approver"], made["key_id"]) == ("stands", "jo", key_id)
    assert {key for key, _ in flat({"exceptions": [made]})} == set(documented("compliance-agent/server-exceptions/v1"))
    for words, count in ((("--standing",), 1), (("--site", "clinic-9"), 0), (("--host", key_id[:12]), 1)):
        assert len(said(directory, "list", *words)) == count, words
    line = exception(directory, "list").stdout.splitlines()[1]
    assert made["exception_id"] in line and "stands" in line and "RA-7" in line
    assert said(directory, "end", made["exception_id"], "--by", "jo")[0]["state"] == "withdrawn"
    assert said(directory, "list", "--standing") == [] and said(directory, "list")[0]["withdrawn_by"] == "jo"


def test_what_is_refused(data: tuple[Path, str]) -> None:
    directory, key_id = data
    grant = ("grant", "--host", key_id[:12], *WORDS)
    refused = exception(directory, *grant, "--by", "vi").exception
    assert isinstance(refused, Refusal) and refused.code == "not_allowed"
    for words, error in (
        ((*grant[:-1], "3650", "--by", "jo"), SystemExit),
        ((*grant, "--by", "jo", "--check", "no_such"), Refusal),
        (("grant", "--host", "0" * 12, *WORDS, "--by", "jo"), NoInput),
        (("end", "0" * 32, "--by", "jo"), Refusal),
    ):
        assert isinstance(exception(directory, *words).exception, error), words
    assert said(directory, "list") == []


def test_a_clinic_that_asks_for_two_people(data: tuple[Path, str]) -> None:
    directory, key_id = data
    assert "one person" in exception(directory, "rule", "--site", "clinic-1").stdout
    assert isinstance(
        exception(directory, "rule", "--site", "clinic-1", "--people", "2", "--by", "jo").exception, Refusal
    )
    shown = json.loads(
        exception(directory, "rule", "--site", "clinic-1", "--people", "2", "--by", "kim", "--json").stdout
    )
    assert (problems(shown), shown["people"]) == ([], 2)
    [made] = said(directory, "grant", "--host", key_id[:12], *WORDS, "--by", "jo")
    assert (made["state"], len(said(directory, "list", "--standing"))) == ("waiting", 1)
    assert isinstance(exception(directory, "approve", made["exception_id"], "--by", "jo").exception, Refusal)
    assert said(directory, "approve", made["exception_id"], "--by", "kim")[0]["state"] == "stands"
    assert "jo and kim" in exception(directory, "list").stdout
    assert isinstance(exception(directory, "rule", "--site", "clinic-9").exception, NoInput)
