"""Operator tokens: shown once, never wider than their person, rotated with an overlap, worth nothing once revoked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import date, timedelta
from typing import Any

import pytest
from sqlalchemy import select

from compliance_agent.errors import Refusal
from compliance_agent.server.records import Dates, OperatorToken
from compliance_agent.server.services import operator_tokens
from compliance_agent.server.services.operator_tokens import OperatorTokens
from compliance_agent.server.services.roles import ROLES
from compliance_agent.server.services.secrets import hashed
from compliance_agent.server.store import tables
from tests.server.builder import Server

pytestmark = pytest.mark.anyio
PASSWORD = "correct horse battery"
DAY, HOUR = timedelta(days=1), timedelta(hours=1)


@pytest.fixture
async def two(server: Server) -> Server:
    """Two sites with a host each, and an operator who sees both."""
    await server.enrolled("ws-1", "clinic-1")
    await server.enrolled("ws-2", "clinic-2")
    await server.services.users.add("j.doe", PASSWORD, role="operator", client_id="msp")
    return server


async def status(server: Server, secret: str, path: str = "/api/v1/hosts") -> int:
    return (await server.client.get(path, headers={"authorization": f"Bearer {secret}"})).status_code


async def sites_seen(server: Server, secret: str) -> set[str]:
    reply = await server.client.get("/api/v1/hosts", headers={"authorization": f"Bearer {secret}"})
    return {item["site_id"] for item in reply.json()} if reply.status_code == 200 else set()


async def pause(server: Server, secret: str) -> int:
    """A try to draft an order, which an operator may and a viewer may not."""
    host = (await server.services.store.for_sites({"clinic-1"}).hosts("clinic-1"))[0]
    body = {"host": host.key_id, "kind": "pause", "parameters": {}}
    return (await server.post("/api/v1/orders", body, headers={"authorization": f"Bearer {secret}"})).status_code


async def code_of(act: Any) -> str:
    with pytest.raises(Refusal) as caught:
        await act
    return caught.value.code


async def test_it_is_kept_as_a_hash_and_shown_once(two: Server) -> None:
    secret, made = await two.services.users.tokens.create("j.doe", DAY, label="nightly")
    assert await status(two, secret) == 200
    [row] = await two.services.store.database.all(select(tables.operator_tokens))  # type: ignore[attr-defined]
    assert row["hash"] == hashed(secret) == made.hash
    assert secret not in str(row) and secret[5:] not in str(row)
    assert await status(two, made.hash) == await status(two, f"cao1.{made.hash}") == 401


async def test_it_is_narrower_than_its_person_where_it_was_made_so(two: Server) -> None:
    tokens = two.services.users.tokens
    whole, _ = await tokens.create("j.doe", DAY)
    one, _ = await tokens.create("j.doe", DAY, role="viewer", sites=frozenset({"clinic-1"}))
    assert (await sites_seen(two, whole), await pause(two, whole)) == ({"clinic-1", "clinic-2"}, 201)
    assert (await sites_seen(two, one), await pause(two, one)) == ({"clinic-1"}, 403)


async def test_it_never_does_more_than_its_person_may_now(two: Server) -> None:
    users = two.services.users
    secret, _ = await users.tokens.create("j.doe", DAY, role="operator", sites=frozenset({"clinic-1"}))
    assert await pause(two, secret) == 201
    await users.set_role("j.doe", "viewer")
    assert await pause(two, secret) == 403
    await users.set_sites("j.doe", client_id="msp", sites=frozenset({"clinic-2"}))
    assert await sites_seen(two, secret) == set() and await status(two, secret) == 200
    dates = Dates(date(2026, 1, 1), date(2026, 1, 2))
    await users.set_role("j.doe", "auditor", dates)
    caller = await users.tokens.user_of(secret)
    assert caller is not None and (caller.role, caller.dates) == ("auditor", dates)
    await users.set_disabled("j.doe", True)
    assert await status(two, secret) == 401
    await users.set_disabled("j.doe", False)
    assert await status(two, secret) == 401


def person_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator_tokens, "narrowed", lambda token: token.user)


def token_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def as_made(token: OperatorToken) -> Any:
        return replace(token.user, role=token.role or token.user.role, sites=token.sites)

    monkeypatch.setattr(operator_tokens, "narrowed", as_made)


@pytest.mark.parametrize(
    ("fault", "test"),
    [
        (person_alone, test_it_is_narrower_than_its_person_where_it_was_made_so),
        (token_alone, test_it_never_does_more_than_its_person_may_now),
    ],
)
async def test_planted_limits_that_count_for_nothing_are_caught(
    two: Server, monkeypatch: pytest.MonkeyPatch, fault: Callable[[pytest.MonkeyPatch], None], test: Any
) -> None:
    fault(monkeypatch)
    with pytest.raises(AssertionError):
        await test(two)


async def test_nobody_makes_a_wider_one(two: Server) -> None:
    users = two.services.users
    await users.set_sites("j.doe", client_id="msp", sites=frozenset({"clinic-1"}))
    create = users.tokens.create
    for role in ("owner", "auditor", "king"):
        assert await code_of(create("j.doe", DAY, role=role)) == "bad_role"
    for sites in ({"clinic-2"}, {"clinic-1", "nowhere"}):
        assert await code_of(create("j.doe", DAY, sites=frozenset(sites))) == "no_such_site"
    for life in (timedelta(), timedelta(seconds=59), timedelta(days=367), -DAY):
        assert await code_of(create("j.doe", life)) == "bad_expiry"
    await users.set_disabled("j.doe", True)
    assert await code_of(create("j.doe", DAY)) == await code_of(create("nobody", DAY)) == "no_such_user"
    assert await users.tokens.all() == []


@pytest.mark.parametrize("narrow", ["viewer", "operator", "owner"])
@pytest.mark.parametrize("wide", list(ROLES))
def test_of_two_roles_the_lesser_counts(wide: str, narrow: str) -> None:
    from tests.server.test_roles import NOW, person

    user = person(wide)
    acts = ROLES[operator_tokens.narrowed(OperatorToken("", user, None, narrow, None, NOW, NOW)).role]
    assert acts == ROLES[wide] & ROLES[narrow]


async def test_rotation_has_an_overlap_and_then_the_new_one_alone(two: Server) -> None:
    tokens = two.services.users.tokens
    old, first = await tokens.create("j.doe", 30 * DAY, label="nightly", role="viewer", sites=frozenset({"clinic-2"}))
    two.clock.move(10 * 86_400)
    new, second = await tokens.rotate(first.id, HOUR)
    assert (second.label, second.role, second.sites) == (first.label, first.role, first.sites)
    assert second.expires_at == two.clock() + 30 * DAY
    assert await sites_seen(two, old) == await sites_seen(two, new) == {"clinic-2"}
    assert [item.state(two.clock()) for item in await tokens.all("j.doe")] == ["live", "replaced"]
    two.clock.move(3_599)
    assert await status(two, old) == 200
    two.clock.move(1)
    assert (await status(two, old), await status(two, new)) == (401, 200)
    assert await code_of(tokens.rotate(first.id, HOUR)) == "token_used"


async def test_an_overlap_does_not_lengthen_a_life_and_may_be_none(two: Server) -> None:
    tokens = two.services.users.tokens
    old, first = await tokens.create("j.doe", HOUR)
    await tokens.rotate(first.id, 7 * DAY)
    two.clock.move(3_600)
    assert await status(two, old) == 401
    old, first = await tokens.create("j.doe", DAY)
    new, _ = await tokens.rotate(first.id, timedelta())
    assert (await status(two, old), await status(two, new)) == (401, 200)
    for overlap in (-HOUR, 31 * DAY):
        assert await code_of(tokens.rotate(first.id, overlap)) == "bad_expiry"


async def test_one_rotation_at_a_time_wins(two: Server) -> None:
    tokens = two.services.users.tokens
    _, first = await tokens.create("j.doe", DAY)
    done = await asyncio.gather(*(tokens.rotate(first.id, HOUR) for _ in range(8)), return_exceptions=True)
    assert sum(not isinstance(item, BaseException) for item in done) == 1
    assert {item.code for item in done if isinstance(item, Refusal)} == {"token_used"}
    assert len(await tokens.all("j.doe")) == 2


async def test_a_revoked_one_is_refused_at_the_next_request_by_every_process(two: Server) -> None:
    tokens = two.services.users.tokens
    secret, made = await tokens.create("j.doe", DAY)
    other, _ = await tokens.create("j.doe", DAY)
    assert await status(two, secret) == 200
    elsewhere = OperatorTokens(two.services.store, two.clock)  # nothing here is told
    await elsewhere.revoke(made.id)
    assert (await status(two, secret), await status(two, other)) == (401, 200)
    for act in (tokens.revoke(made.id), tokens.rotate(made.id, HOUR)):
        assert await code_of(act) == "token_used"
    assert await code_of(tokens.revoke("0" * 16)) == "not_found"


async def test_planted_a_token_that_is_remembered_is_caught(two: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    store, seen = type(two.services.store), dict[str, Any]()
    real = store.operator_token

    async def remembered(self: Any, token_hash: str) -> Any:
        return seen.setdefault(token_hash, await real(self, token_hash))

    monkeypatch.setattr(store, "operator_token", remembered)
    with pytest.raises(AssertionError):
        await test_a_revoked_one_is_refused_at_the_next_request_by_every_process(two)


async def test_its_last_use_is_known_to_a_minute(two: Server) -> None:
    tokens = two.services.users.tokens
    secret, made = await tokens.create("j.doe", DAY)

    async def used() -> Any:
        return (await tokens.all("j.doe"))[0].used_at

    assert await used() is None
    await status(two, secret)
    first = two.clock()
    assert await used() == first
    two.clock.move(59)
    await status(two, secret)
    assert await used() == first
    two.clock.move(1)
    await status(two, secret)
    assert await used() == two.clock()
    await tokens.revoke(made.id)
    two.clock.move(600)
    await status(two, secret)
    assert await used() != two.clock()
