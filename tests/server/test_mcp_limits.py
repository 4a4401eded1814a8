"""How much one answer and one line may hold."""

from __future__ import annotations

import asyncio
import io
import json
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from compliance_agent.evidence.canonical import canonical
from compliance_agent.server.mcp_endpoint import MOST_REQUEST_BYTES, _Lines
from compliance_agent.server.services.calls import MOST_ANSWER_BYTES
from compliance_agent.server.services.tools.words import MOST_ITEMS, Answer, page
from tests.server.builder import Hands, serving
from tests.server.mcp_clients import ON, token_of

pytestmark = pytest.mark.anyio
WHOLE = b'{"jsonrpc":"2.0","id":1,"method":"ping"}\n'


@pytest.mark.parametrize("size", [10, 700, 3_000, 20_000])
def test_pages_hold_a_list_whole_and_fit_whatever_their_items_are(size: int) -> None:
    """Every item is in exactly one page, in order, and no page is larger than an answer has room for."""
    items = [{"number": number, "filler": "x" * size} for number in range(120)]
    seen, skip = list[object](), 0
    while True:
        answer: Answer = page(items, {"skip": skip, "limit": MOST_ITEMS})
        assert answer.items and len(answer.items) <= MOST_ITEMS
        assert len(canonical([dict(item) for item in answer.items])) < MOST_ANSWER_BYTES - 2_048
        seen += answer.items
        if answer.next is None:
            break
        assert answer.next > skip
        skip = answer.next
    assert seen == items
    assert page(items, {"skip": 1_000}) == Answer({"total": 120}, [], None)


async def test_a_line_that_is_too_long_or_too_deep_is_no_request_and_the_next_one_is() -> None:
    long = b'"' + b"x" * MOST_REQUEST_BYTES * 3 + b'"\n'
    deep = b"[" * 60 + b"]" * 60 + b"\n"
    fits = b'"' + b"y" * (MOST_REQUEST_BYTES - 3) + b'"\n'
    stream = io.BytesIO(WHOLE + long + deep + fits + WHOLE + long.rstrip())
    found = [line async for line in _Lines(stream)]
    assert found == [WHOLE.decode(), "!\n", "!\n", fits.decode(), WHOLE.decode(), "!\n"]


async def test_a_client_that_sends_such_lines_is_still_served(tmp_path: Path) -> None:
    async with serving(tmp_path / "data", clock=Hands(datetime.now(UTC)), **ON) as server:
        (tmp_path / "token").touch(0o600)
        (tmp_path / "token").write_text(await token_of(server, "anna"))
        words = ["-m", "compliance_agent", "server", "--data-dir", str(tmp_path / "data"), "mcp", "--stdio"]
        process = await asyncio.create_subprocess_exec(
            sys.executable, *words, "--token-file", str(tmp_path / "token"),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            env={"MSP_SERVER_MCP": "read"},
        )  # fmt: skip
        hello = {
            "jsonrpc": "2.0", "id": 7, "method": "initialize",
            "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "x", "version": "1"}},
        }  # fmt: skip
        out, noise = await process.communicate(
            b'"' + b"x" * 200_000 + b'"\nnot json\n' + json.dumps(hello).encode() + b"\n"
        )
        answers = {answer.get("id"): answer for answer in map(json.loads, out.splitlines())}
        assert answers[7]["result"]["serverInfo"]["name"] == "compliance-agent", (out, noise)
        assert process.returncode == 0 and b"xxxx" not in out + noise
