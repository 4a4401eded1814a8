"""The table E1 to E8 of RELIABILITY 3.3 as the server sees it, each with the fault it must catch planted.

E3 and E4 from the host's side are in tests/cli/test_enrol_command.py, and so is E10; E7 is in tests/faults/test_enrolment_crash.py.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from nacl.signing import SigningKey
from sqlalchemy import Select, select

from compliance_agent.crypto import key_words
from compliance_agent.errors import Refusal
from compliance_agent.server.services import checkin, enrol
from compliance_agent.server.services.access import HostAccess
from compliance_agent.server.store import SqlStore, tables
from compliance_agent.server.store.transaction import BoundTransaction
from tests.server.builder import START, ZEROS, FakeHost, Server, b64, serving
from tests.server.test_rotation import rotate, settled

pytestmark = pytest.mark.anyio
DAY = 86_400


async def row(server: Server, host: FakeHost) -> Any:
    found = await server.services.store.for_sites({host.site_id}).host(host.key_id)
    assert found is not None
    return found


async def rows(server: Server, query: Select[Any]) -> Any:
    assert isinstance(server.services.store, SqlStore)
    return await server.services.store.database.all(query)


async def acts(server: Server) -> list[tuple[str, str, str]]:
    """(actor, action, subject) of the audit."""
    found = await rows(server, select(tables.audit).order_by(tables.audit.c.number))
    return [(item["actor"], item["action"], item["subject"]) for item in found]


async def leaves(server: Server, host: FakeHost) -> list[tuple[str, str]]:
    """(kind, event) of what the log says of a host's key, pending entries too."""
    table = tables.log_entries
    found = await rows(server, select(table.c.leaf).where(table.c.key_id == host.key_id).order_by(table.c.number))
    said = [json.loads(item["leaf"]) for item in found]
    return [(leaf["kind"], leaf.get("event", "")) for leaf in said]


# --- E1, E2, E3 ----------------------------------------------------------------------------------


async def test_e1_fifty_at_once_make_one_host(server: Server) -> None:
    """The nonces are fetched first, so that the fifty redemptions themselves meet."""
    token, hosts = await server.token(), [FakeHost(f"ws-{number}") for number in range(50)]
    nonces = [await server.services.enrolment.challenge(host.public) for host in hosts]
    replies = await asyncio.gather(
        *(
            server.try_enrol(host, token, nonce=b64(nonce), proof=b64(host.proof(nonce, token)))
            for host, nonce in zip(hosts, nonces, strict=True)
        )
    )
    codes = sorted(reply.json().get("code", str(reply.status_code)) for reply in replies)
    assert codes == ["201", *["token_used"] * 49]
    assert len(await server.services.store.for_sites({"clinic-1"}).hosts()) == 1


@pytest.mark.parametrize(
    ("moved_s", "code"), [(-301, "token_early"), (3_601, "token_expired"), (-299, ""), (3_599, "")]
)
async def test_e2_a_token_is_good_from_when_it_was_made_until_it_ends(server: Server, moved_s: int, code: str) -> None:
    token = await server.token(hours=1)
    server.clock.move(moved_s)
    reply = await server.try_enrol(FakeHost(), token)
    assert reply.json().get("code", "") == code


async def test_e2_a_server_that_trusts_any_clock_is_caught(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enrol, "CLOCKS_DIFFER", timedelta(days=10_000))
    with pytest.raises(AssertionError):
        await test_e2_a_token_is_good_from_when_it_was_made_until_it_ends(server, -301, "token_early")


def altered(token: str, **changes: Any) -> str:
    body = token.removeprefix("cae1.")
    document = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))) | changes
    raw = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    return "cae1." + base64.urlsafe_b64encode(raw).decode().rstrip("=")


@pytest.mark.parametrize(
    "changes", [{"site": "clinic-2"}, {"exp": 4_000_000_000}, {"ca_sha256": "ab" * 32}, {"v": 2}, {"secret": "00" * 16}]
)
async def test_e3_a_token_is_bound_to_all_that_it_says(server: Server, changes: dict[str, Any]) -> None:
    token = await server.token()
    await server.token("clinic-2")
    assert altered(token) == token
    reply = await server.try_enrol(FakeHost(), altered(token, **changes))
    assert (reply.status_code, reply.json()["code"]) == (403, "token_unknown")
    assert await server.services.store.for_sites({"clinic-1", "clinic-2"}).hosts() == []


# --- E5 -------------------------------------------------------------------------------------------


async def test_e5_a_taken_label_makes_a_second_host_and_touches_nothing_of_the_first(server: Server) -> None:
    first = await server.enrolled()
    await server.deliver(first, first.next())
    before = await row(server, first)
    second = FakeHost(first.host_id)
    reply = await server.try_enrol(second, await server.token())
    assert (reply.status_code, reply.json()["waiting"]) == (201, True)
    second.api_key = reply.json()["api_key"]
    assert await row(server, first) == before
    assert (f"host:{second.key_id}", "host.label_taken", first.key_id) in await acts(server)
    for refused in (await server.checkin(second), await server.deliver(second, second.sign(second.document()))):
        assert (refused.status_code, refused.json()["code"]) == (403, "host_waiting")
    assert await leaves(server, second) == []  # its key counts for nothing yet
    assert (await server.checkin(first)).status_code == 200
    assert (await server.deliver(first, first.next())).status_code == 200
    await server.services.enrolment.approve("clinic-1", second.key_id, actor="test")
    assert (await server.checkin(second)).status_code == 200
    assert (await server.deliver(second, second.next())).status_code == 200
    assert await leaves(server, second) == [("key", "enrol"), ("bundle", "")]
    assert {host.key_id for host in await server.services.store.for_sites({"clinic-1"}).hosts()} == {
        first.key_id, second.key_id,
    }  # fmt: skip


async def test_e5_a_server_that_lets_the_second_in_is_caught(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    async def none(*_: object) -> None:
        return None

    monkeypatch.setattr(BoundTransaction, "live_label", none)
    with pytest.raises(AssertionError):
        await test_e5_a_taken_label_makes_a_second_host_and_touches_nothing_of_the_first(server)


async def test_a_label_belongs_to_its_site_and_a_revoked_host_gives_it_free(server: Server) -> None:
    first = await server.enrolled()
    elsewhere = await server.try_enrol(FakeHost(first.host_id), await server.token("clinic-2"))
    assert (elsewhere.status_code, elsewhere.json()["waiting"]) == (201, False)
    await server.services.enrolment.revoke("clinic-1", first.key_id, actor="test")
    again = await server.try_enrol(FakeHost(first.host_id), await server.token())
    assert (again.status_code, again.json()["waiting"]) == (201, False)


async def test_where_operators_approve_every_host_waits(tmp_path: Path) -> None:
    async with serving(tmp_path / "data", enrol_approval=True) as server:
        host, token = FakeHost(), await server.token()
        lost, reply = await server.try_enrol(host, token), await server.try_enrol(host, token)
        for answer in (lost, reply):
            assert (answer.status_code, answer.json()["waiting"]) == (201, True)
        host.api_key = reply.json()["api_key"]
        assert (await server.checkin(host)).json()["code"] == "host_waiting"
        with pytest.raises(Refusal):
            await server.services.enrolment.approve("clinic-2", host.key_id, actor="test")
        await server.services.enrolment.approve("clinic-1", host.key_id, actor="test")
        assert (await server.checkin(host)).status_code == 200
        assert ("test", "host.approved", host.key_id) in await acts(server)


async def test_a_host_that_was_never_approved_leaves_no_trace_in_the_log(tmp_path: Path) -> None:
    async with serving(tmp_path / "data", enrol_approval=True) as server:
        host = FakeHost()
        await server.try_enrol(host, await server.token())
        await server.services.enrolment.revoke("clinic-1", host.key_id, actor="test")
        assert await leaves(server, host) == []
        with pytest.raises(Refusal):
            await server.services.enrolment.approve("clinic-1", host.key_id, actor="test")


def test_key_words_are_told_apart_by_80_bits() -> None:
    assert key_words("7f000001" + "0" * 56) == "lusab-babad-babab-babab-babab"  # the first two as in the paper
    assert len({key_words(f"{number:020x}" + "0" * 44) for number in range(4_096)}) == 4_096


# --- E6 -------------------------------------------------------------------------------------------


async def cloned(server: Server) -> tuple[FakeHost, FakeHost]:
    """Two machines with one key, from a snapshot that was taken after the first record."""
    host = await server.enrolled()
    await server.deliver(host, host.next())
    return host, dataclasses.replace(host)


async def test_e6_two_that_show_the_same_counter_are_both_kept_and_contested(server: Server) -> None:
    host, clone = await cloned(server)
    ours, theirs = host.next(), clone.next()
    assert (await server.deliver(host, ours)).status_code == 200
    reply = await server.deliver(clone, theirs)
    assert (reply.status_code, reply.json()["code"]) == (409, "fork")
    kept = await server.services.store.for_sites({"clinic-1"}).forks(host.key_id)
    assert [fork.body for fork in kept] == [theirs.body]
    assert (await row(server, host)).contested_at == START
    assert 'compliance_server_hosts{state="contested"} 1.0' in (await server.client.get("/metrics")).text


async def test_e6_a_clone_that_only_checks_in_is_seen_too(server: Server) -> None:
    host, clone = await cloned(server)
    await server.deliver(host, host.next())
    clone.next()
    assert (await server.checkin(clone)).status_code == 200
    assert (await row(server, host)).contested_at == START


async def test_e6_two_that_take_turns_are_contested_at_the_second_turn(server: Server) -> None:
    """Each finds the server ahead of it, and begins a new epoch, as a host does after a restored disk."""
    host, clone = await cloned(server)
    await server.deliver(host, host.next())
    await server.checkin(clone)
    await server.checkin(clone)  # the answer was lost: the same again
    assert (await row(server, host)).contested_at is None, "once may be a restored disk"
    clone.epoch, clone.seq, clone.prev = 1, 0, host.prev
    assert (await server.deliver(clone, clone.next())).status_code == 200
    server.clock.move(DAY)
    await server.checkin(host)
    assert (await row(server, host)).contested_at == server.clock.time


async def test_e6_a_disk_restored_twice_in_a_month_is_no_clone(server: Server) -> None:
    host = await server.enrolled()
    for _ in range(2):
        await server.deliver(host, host.next())
        await server.checkin(dataclasses.replace(host, seq=0, epoch=0, prev=ZEROS))
        server.clock.move(8 * DAY)
    assert (await row(server, host)).contested_at is None


async def test_e6_a_server_that_never_counts_is_caught(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkin, "_contested", lambda host, _said, _now: host)
    with pytest.raises(AssertionError):
        await test_e6_two_that_take_turns_are_contested_at_the_second_turn(server)


async def test_e6_a_contested_key_does_not_rotate_until_an_operator_looked_into_it(server: Server) -> None:
    host, clone = await cloned(server)
    await server.deliver(host, host.next())
    await server.deliver(clone, clone.next())
    new = SigningKey.generate()
    refused = await rotate(server, host, new)
    assert (refused.status_code, refused.json()["code"]) == (409, "host_contested")
    await server.services.enrolment.approve("clinic-1", host.key_id, actor="test")
    assert await leaves(server, host) == [("key", "enrol"), ("bundle", ""), ("bundle", ""), ("fork", "")]
    after = await row(server, host)
    assert after.contested_at is None and after.forks == 1
    assert (await rotate(server, host, new)).status_code == 200


# --- E8 -------------------------------------------------------------------------------------------


LEASE = {"protocol": 1, "act": "take", "check": "patching", "target": "ab" * 32, "life_s": 600, "fence": None}


def calls(server: Server, host: FakeHost) -> dict[str, Callable[[], Awaitable[httpx2.Response]]]:
    """Every call that hosts make, by its route."""
    held, later, new = host.next(), host.next(), SigningKey.generate()
    return {
        "/api/v1/evidence": lambda: server.deliver(host, held, later),
        "/api/v1/checkin": lambda: server.checkin(host),
        "/api/v1/receipts": lambda: server.post(
            "/api/v1/receipts", {"protocol": 1, "bundles": [held.document["bundle_id"]]}, headers=host.headers
        ),
        "/api/v1/leases": lambda: server.post("/api/v1/leases", LEASE, headers=host.headers),
        "/api/v1/keys/rotate": lambda: rotate(server, host, new),
        "/api/v1/certificates": lambda: server.post("/api/v1/certificates", {}, headers=host.headers),
    }


async def test_e8_knows_every_route_that_hosts_call(server: Server) -> None:
    paths = server.app.openapi()["paths"]
    posts = {path: operations["post"] for path, operations in paths.items() if "post" in operations}
    with_api_key = {path for path, operation in posts.items() if {"host": []} in operation.get("security", [])}
    assert with_api_key == set(calls(server, FakeHost()))


async def test_e8_a_revoked_host_is_refused_at_its_next_request_wherever_it_calls(server: Server) -> None:
    host = await server.enrolled()
    bundle = host.next()
    await server.deliver(host, bundle)
    for path, call in calls(server, host).items():
        if path not in {"/api/v1/keys/rotate", "/api/v1/certificates"}:  # the latter where they are asked for
            assert (await call()).status_code == 200, path
    checkpoint = "/log/clinic-1/2026/checkpoint"
    await settled(server)
    assert (await server.client.get(checkpoint, headers=host.headers)).status_code == 200
    elsewhere = enrol.Enrolment(server.services.store, server.clock)  # another process: nothing here is told
    await elsewhere.revoke("clinic-1", host.key_id, actor="test")
    assert (await server.client.get(checkpoint, headers=host.headers)).status_code == 404
    for path, call in calls(server, host).items():
        reply = await call()
        assert (reply.status_code, reply.json()["code"]) == (403, "host_revoked"), path
    whole = await server.services.store.for_sites({"clinic-1"}).bundle(bundle.document["bundle_id"])
    assert whole is not None and whole[1] == bundle.body  # what it sent stays, and its key was good then:
    line = (await settled(server)).keys[host.key_id]
    assert [event for _, event, _ in line.events] == ["enrol", "revoke"] and line.valid


async def test_e8_a_server_that_remembers_too_long_is_caught(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    real = HostAccess.caller

    async def remembering(self: HostAccess, authorization: str | None, *, fresh: bool = False) -> Any:
        return await real(self, authorization)  # as if every call wrote

    monkeypatch.setattr(HostAccess, "caller", remembering)
    with pytest.raises(AssertionError):
        await test_e8_a_revoked_host_is_refused_at_its_next_request_wherever_it_calls(server)


# --- tokens ---------------------------------------------------------------------------------------


async def test_a_token_that_was_revoked_is_worth_nothing_and_a_used_one_cannot_be(server: Server) -> None:
    token, used = await server.token(), await server.token()
    await server.try_enrol(FakeHost(), used)
    desk, sites = server.services.enrolment, {"clinic-1"}
    listed = {item.id: item for item in await desk.tokens(sites)}
    assert {item.state(server.clock.time) for item in listed.values()} == {"open", "used"}
    [opened] = [item for item in listed.values() if item.used_at is None]
    for wrong in ({"clinic-2"}, set[str]()):
        with pytest.raises(Refusal, match="0 have"):
            await desk.revoke_token(wrong, opened.id, actor="test")
    await desk.revoke_token(sites, opened.id, actor="test")
    assert (await server.try_enrol(FakeHost("ws-02"), token)).json()["code"] == "token_revoked"
    for item in listed.values():
        with pytest.raises(Refusal, match="already"):
            await desk.revoke_token(sites, item.id, actor="test")
    server.clock.move(2 * 3_600)
    assert {item.state(server.clock.time) for item in await desk.tokens(sites)} == {"used", "revoked"}
