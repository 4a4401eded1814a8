"""A host's API key gives way to a next one at the server: both count until the next one is used, and nobody else can do it."""

from __future__ import annotations

import hashlib
from typing import Any

import httpx2
import pytest

from compliance_agent.transport.protocol import api_key_message
from tests.server.builder import FakeHost, Server, b64, on_sqlite

pytestmark = pytest.mark.anyio
NEXT, OTHER = "cak1." + "n" * 43, "cak1." + "o" * 43


def sha256(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


async def announce(
    server: Server, host: FakeHost, coming: str = NEXT, *, by: str = "", **changes: Any
) -> httpx2.Response:
    present = by or host.api_key
    sig = host.key.sign(api_key_message(present, coming)).signature
    body = {"protocol": 1, "sha256": sha256(coming), "sig": b64(sig), **changes}
    return await server.post("/api/v1/api-keys", body, headers={"authorization": f"Bearer {present}"})


async def counts(server: Server, host: FakeHost, key: str) -> bool:
    host = FakeHost(**{**vars(host), "api_key": key})
    reply = await server.checkin(host)
    assert reply.status_code == 200 or reply.json()["code"] == "bad_api_key", reply.text
    return reply.status_code == 200


async def test_both_count_until_the_next_one_is_used_and_then_the_former_ends_at_once(server: Server) -> None:
    host = await server.enrolled()
    first = host.api_key
    assert (await announce(server, host)).json() == {"sha256": sha256(NEXT)}
    assert await counts(server, host, first) and await counts(server, host, first)
    assert await counts(server, host, NEXT)
    assert not await counts(server, host, first), "the very next request, whatever was remembered"
    assert await counts(server, host, NEXT)
    said = await server.by_hand("SELECT action, subject FROM audit WHERE action LIKE 'host.api_key%' ORDER BY number")
    assert [tuple(row) for row in said] == [
        ("host.api_key_announced", sha256(NEXT)[:16]),
        ("host.api_key_replaced", sha256(NEXT)[:16]),
    ]
    stored = await server.by_hand("SELECT hash FROM api_keys")
    assert {row[0] for row in stored} == {sha256(first), sha256(NEXT)}, "only hashes"


async def test_told_again_it_says_the_same_before_and_after_the_first_use(server: Server) -> None:
    host = await server.enrolled()
    for _ in range(3):
        assert (await announce(server, host)).status_code == 200
    assert await counts(server, host, NEXT)
    assert (await announce(server, host, by=NEXT)).status_code == 200
    assert await counts(server, host, NEXT)


@on_sqlite
async def test_one_that_was_announced_and_never_used_ends_with_the_one_after_it(server: Server) -> None:
    host = await server.enrolled()
    await announce(server, host)
    await announce(server, host, OTHER)
    assert not await counts(server, host, NEXT)
    assert await counts(server, host, host.api_key) and await counts(server, host, OTHER)
    assert not await counts(server, host, host.api_key)


@on_sqlite
async def test_who_has_the_api_key_alone_cannot_put_another_in_its_place(server: Server) -> None:
    host, other = await server.enrolled(), await server.enrolled("ws-02")
    good = b64(host.key.sign(api_key_message(host.api_key, NEXT)).signature)
    for changes in (
        {"sig": b64(bytes(64))},
        {"sig": b64(other.key.sign(api_key_message(host.api_key, NEXT)).signature)},
        {"sig": good, "sha256": sha256(OTHER)},
        {"sig": b64(host.key.sign(api_key_message(other.api_key, NEXT)).signature)},
    ):
        reply = await announce(server, host, **changes)
        assert (reply.status_code, reply.json()["code"]) == (403, "bad_proof")
    assert not await counts(server, host, NEXT)
    assert (await announce(server, other, by=host.api_key)).json()["code"] == "bad_proof"


@on_sqlite
async def test_a_key_that_has_ended_or_is_anothers_is_not_taken(server: Server) -> None:
    host, other = await server.enrolled(), await server.enrolled("ws-02")
    first = host.api_key
    await announce(server, host)
    assert await counts(server, host, NEXT)
    for coming in (first, other.api_key):
        reply = await announce(server, host, coming, by=NEXT)
        assert (reply.status_code, reply.json()["code"]) == (409, "api_key_ended")
    assert await counts(server, other, other.api_key) and not await counts(server, host, first)


@on_sqlite
async def test_a_revoked_host_gets_no_next_key_and_an_announced_one_ends_with_it(server: Server) -> None:
    host = await server.enrolled()
    await announce(server, host)
    await server.services.enrolment.revoke(host.site_id, host.key_id, actor="test")
    assert (await announce(server, host, OTHER)).json()["code"] == "host_revoked"
    reply = await server.checkin(FakeHost(**{**vars(host), "api_key": NEXT}))
    assert reply.json()["code"] == "host_revoked"


@on_sqlite
async def test_a_server_restored_from_before_is_told_by_the_former_key(server: Server) -> None:
    """The host has used its next key; the backup knows only the first one."""
    host = await server.enrolled()
    assert not await counts(server, host, NEXT)
    assert (await announce(server, host, NEXT)).status_code == 200
    assert await counts(server, host, NEXT) and not await counts(server, host, host.api_key)


@on_sqlite
@pytest.mark.parametrize(
    "changes", [{"sha256": "x"}, {"sha256": ""}, {"sig": "!"}, {"sig": b64(b"x")}, {"more": 1}, {"protocol": 2}]
)
async def test_a_request_of_another_form_changes_nothing(server: Server, changes: dict[str, Any]) -> None:
    host = await server.enrolled()
    assert (await announce(server, host, **changes)).status_code in {400, 422}
    assert await counts(server, host, host.api_key)
