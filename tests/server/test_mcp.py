"""The Model Context Protocol (docs/mcp.md), driven by the SDK's own client."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner

from compliance_agent.cli import group
from compliance_agent.evidence.canonical import canonical
from compliance_agent.server.services import replay
from compliance_agent.server.services.tools import TOOLS
from compliance_agent.server.services.tools.resources import RESOURCES
from tests.cli.test_json import problems
from tests.server.builder import Hands, Server, serving
from tests.server.mcp_clients import ON, by_subprocess, connected, leaves, lines, said, text_of, token_of

pytestmark = pytest.mark.anyio


@pytest.fixture
async def speaking(tmp_path: Path) -> AsyncIterator[Server]:
    """A server that speaks the protocol."""
    async with serving(tmp_path / "data", **ON) as running:
        yield running


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_a_client_reads_the_fleet(speaking: Server, mode: str) -> None:
    host = await speaking.enrolled()
    await speaking.deliver(host, host.next(result="fail", reason="daemon_down"))
    token = await token_of(speaking, "anna")
    async with connected(speaking.app, token, mode=mode) as client:
        names = {tool.name for tool in (await client.list_tools()).tools}
        assert {"list_sites", "list_hosts", "show_host", "list_drift", "why"} <= names
        sites = await said(client, "list_sites")
        assert [item["site"] for item in sites["items"]] == ["clinic-1"]
        drift = await said(client, "list_drift", site="clinic-1")
        assert [(item["host"], item["check"], item["runbook"]) for item in drift["items"]] == [
            (host.key_id, "time_sync", "time-sync")
        ]
        why = (await said(client, "why", host=host.key_id, check="time_sync"))["data"]
        assert (why["reason"], why["cured_by"]) == ("daemon_down", "agent")
        assert why["seen"] == {"facts": {"offset_us": 3}, "withheld": 0}


async def test_a_client_starts_it_as_its_own_subprocess(tmp_path: Path) -> None:
    """The same tools over standard input and output, beside the running server; what is called is in the same log."""
    clock = Hands(datetime.now(UTC))  # the other process has the machine's
    async with serving(tmp_path / "data", clock=clock, **ON) as server:
        host = await server.enrolled()
        await server.deliver(host, host.next())
        token = await token_of(server, "anna")
        async with by_subprocess(server, token, tmp_path) as client:
            assert {tool.name for tool in (await client.list_tools()).tools} == set(TOOLS)
            shown = await said(client, "show_host", host=host.key_id)
            assert [item["result"] for item in shown["items"]] == ["pass"]
        assert [call["tool"] for call in await lines(server)] == ["show_host"]


async def test_every_call_is_in_the_log_of_its_site_before_it_is_answered(speaking: Server) -> None:
    """Who, which client, which tool, with what, and the SHA-256 of the answer; the log's entry is about exactly this line."""
    host = await speaking.enrolled()
    other = await speaking.enrolled(host_id="db-01", site="clinic-2")
    await speaking.deliver(host, host.next())
    token = await token_of(speaking, "anna")
    async with connected(speaking.app, token) as client:
        answer = text_of(await client.call_tool("show_host", {"host": host.key_id}))
        await client.call_tool("list_sites", {})
        assert (await client.call_tool("show_host", {"host": "0" * 64})).is_error
        assert (await client.call_tool("forget_everything", {"now": "please"})).is_error
    found = await lines(speaking)
    assert [(call["tool"], call["outcome"]) for call in found] == [
        ("show_host", "ok"),
        ("list_sites", "ok"),
        ("show_host", "not_found"),
        ("unknown", "unknown_tool"),
    ]
    assert found[0]["arguments"] == {"host": host.key_id}
    assert found[0]["answer_sha256"] == hashlib.sha256(answer.encode()).hexdigest()
    assert {call["client"] for call in found} == {hashlib.sha256(token.encode()).hexdigest()[:16]}
    assert "please" not in str(found)
    person = await speaking.services.store.user("anna")
    assert person is not None
    subjects = [hashlib.sha256(canonical(call)).hexdigest() for call in found]
    for site, expected in ((host.site_id, subjects), (other.site_id, subjects[1:])):
        entries = [json.loads(leaf) for leaf in await leaves(speaking, site)]
        called = [entry for entry in entries if entry.get("act") == "tool_called"]
        assert [(entry["actor"], entry["subject"]) for entry in called] == [
            (person.person_id, subject) for subject in expected
        ]


def test_the_page_has_every_tool_with_its_arguments_and_every_resource() -> None:
    page = (Path(__file__).parents[2] / "docs" / "mcp.md").read_text("utf-8")
    for tool in TOOLS.values():
        arguments = ", ".join(f"`{item.name}`" for item in tool.arguments)
        assert f"| `{tool.name}` | {arguments} |" in page, tool.name
    for resource in RESOURCES:
        assert f"`{resource.uri}`" in page


async def test_a_transcript_is_replayed_and_what_was_altered_is_found(speaking: Server) -> None:
    """A record that holds gives the same bytes; standings may change; an altered record and an altered line are found."""
    host = await speaking.enrolled()
    bundle = host.next()
    await speaking.deliver(host, bundle)
    token = await token_of(speaking, "anna")
    async with connected(speaking.app, token) as client:
        await said(client, "verify_bundle", bundle=bundle.document["bundle_id"])
        await said(client, "search_evidence", site="clinic-1", before=1_000)
        await said(client, "list_drift", site="clinic-1")
        await said(client, "show_host", host="0" * 64)
    await leaves(speaking, "clinic-1")
    assert await replay_of(speaking) == ["same", "same", "same", "not_repeated"]
    await speaking.deliver(host, host.next(result="fail", reason="daemon_down"))
    assert await replay_of(speaking) == ["same", "changed", "changed", "not_repeated"]
    await speaking.by_hand("UPDATE bundles SET sig = $1 WHERE bundle_id = $2", bytes(64), bundle.document["bundle_id"])
    await speaking.by_hand("UPDATE audit SET subject = replace(subject, 'list_drift', 'list_hosts')")
    assert await replay_of(speaking) == ["differs", "changed", "not_in_log", "not_repeated"]
    assert len(await lines(speaking)) == 4, "asking again is no call"


async def test_the_command_says_what_became_of_each(speaking: Server) -> None:
    """Exit status 1 with a finding; every key of the object is on the page."""
    host = await speaking.enrolled()
    await speaking.deliver(host, host.next())
    async with connected(speaking.app, await token_of(speaking, "anna")) as client:
        await said(client, "show_host", host=host.key_id)
    await leaves(speaking, "clinic-1")
    words = [
        "server",
        "mcp",
        "transcript",
        "--replay",
        "--json",
        "--data-dir",
        str(speaking.services.settings.data_dir),
    ]
    for expected in (("same", 0), ("not_in_log", 1)):
        done = await asyncio.to_thread(CliRunner().invoke, group, words)
        document = json.loads(done.stdout)
        assert problems(document) == []
        assert ([call["replayed"] for call in document["calls"]], done.exit_code) == ([expected[0]], expected[1])
        await speaking.by_hand("UPDATE audit SET subject = replace(subject, 'show_host', 'why')")


async def replay_of(server: Server) -> list[str]:
    """What becomes of each call when it is asked again."""
    calls = await replay.transcript(server.services, 0, 100)
    return [item.found for item in await replay.replayed(server.services, calls)]
