"""What people do is in the log of every site that it concerns, and of no other; in ids; and cannot be left out unseen."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from datetime import date, timedelta
from typing import Any

import pytest

from compliance_agent.entries.act import CONSOLE, Act, digest_of
from compliance_agent.errors import Refusal, StorageError
from compliance_agent.server.records import Dates
from compliance_agent.server.services import totp
from compliance_agent.server.store.transaction import BoundTransaction
from tests.server.builder import FakeHost, Server

pytestmark = pytest.mark.anyio
PASSWORD = "correct horse battery"
SITES = {"clinic-1": "msp", "clinic-2": "msp", "clinic-9": "other"}
LATER = {
    "order_drafted",
    "order_approved",
    "order_refused",
    "order_withdrawn",
    "exception_recorded",
    "exception_withdrawn",
    "exception_approved",
    "exception_rule",
    "rule_promoted",
    "rule_demoted",
    "model_answered",
    "model_refused",
    "order_signed",
    "baseline_added",
    "identity_linked",
    "identity_unlinked",
    "pruned",
    "tool_called",
    "tool_proposed",
    "sample_drawn",
    "packet_asked",
    "packet_built",
    "packet_removed",
    "packet_taken",
}


@pytest.fixture
async def three(server: Server) -> Server:
    """Three sites of two clients, each with a host."""
    for site, client in SITES.items():
        token = await server.token(site, client)
        reply = await server.try_enrol(FakeHost(host_id=f"ws-{site}", site_id=site, client_id=client), token)
        assert reply.status_code == 201
    return server


async def acts(server: Server) -> dict[str, list[dict[str, Any]]]:
    """The acts in each site's log, once everything has its place there."""
    services = server.services
    reader = services.store.for_sites(SITES)
    while await reader.any_pending():
        await services.sequencer.round()
    found: dict[str, list[dict[str, Any]]] = {site: [] for site in SITES}
    for shard in await reader.shards():
        for leaf in await reader.leaves(shard.site_id, shard.year, 0, shard.size):
            document = json.loads(leaf)
            if document["kind"] == "act":
                found[shard.site_id].append(document)
    return found


async def done(
    server: Server, act: Callable[[], Awaitable[Any]]
) -> tuple[dict[str, list[tuple[str, str, str | None]]], Any]:
    """What an act added to each log: word, actor and subject."""
    before = {site: len(items) for site, items in (await acts(server)).items()}
    result = await act()
    after = await acts(server)
    return {
        site: [(item["act"], item["actor"], item["subject"]) for item in items[before[site] :]]
        for site, items in after.items()
    }, result


async def test_each_act_is_where_it_concerns(three: Server) -> None:
    users, seen = three.services.users, set()
    added, user = await done(three, lambda: users.add("j.doe", PASSWORD, client_id="msp"))
    person = user.person_id
    everywhere = {"clinic-1", "clinic-2"}

    def expect(
        found: dict[str, list[tuple[str, str, str | None]]], act: str, by: str, about: str | None, sites: set[str]
    ) -> None:
        seen.add(act)
        assert {site: items for site, items in found.items() if items} == {
            site: [(act, by, about)] for site in sites
        }, act

    expect(added, "user_added", CONSOLE, person, everywhere)
    found, secret = await done(three, lambda: users.login("j.doe", PASSWORD))
    expect(found, "login", person, None, everywhere)
    found, _ = await done(three, lambda: users.logout(secret))
    expect(found, "logout", person, None, everywhere)
    found, _ = await done(three, lambda: users.logout(secret))
    assert not any(found.values()), "what has ended ends once"
    found, _ = await done(three, lambda: users.set_sites("j.doe", client_id="msp", sites=frozenset({"clinic-2"})))
    expect(found, "user_sites", CONSOLE, person, everywhere)
    found, _ = await done(three, lambda: users.set_role("j.doe", "auditor", Dates(date(2026, 1, 1), date(2026, 2, 1))))
    expect(found, "user_role", CONSOLE, person, {"clinic-2"})
    found, _ = await done(three, lambda: users.set_sites("j.doe", client_id="other", sites=frozenset({"clinic-9"})))
    expect(found, "user_sites", CONSOLE, person, {"clinic-2", "clinic-9"})
    for disabled, word in ((True, "user_disabled"), (False, "user_enabled")):
        found, _ = await done(three, lambda disabled=disabled: users.set_disabled("j.doe", disabled))  # type: ignore[misc]
        expect(found, word, CONSOLE, person, {"clinic-9"})
    found, _ = await done(three, lambda: users.set_password("j.doe", PASSWORD))
    expect(found, "user_password", CONSOLE, person, {"clinic-9"})
    found, (_, token) = await done(three, lambda: users.tokens.create("j.doe", timedelta(days=1)))
    expect(found, "user_token", CONSOLE, person, {"clinic-9"})
    found, (_, newer) = await done(three, lambda: users.tokens.rotate(token.id, timedelta(hours=1)))
    expect(found, "token_rotated", CONSOLE, person, {"clinic-9"})
    found, _ = await done(three, lambda: users.tokens.revoke(newer.id))
    expect(found, "token_revoked", CONSOLE, person, {"clinic-9"})
    await users.login("j.doe", PASSWORD)
    found, _ = await done(three, lambda: users.sessions.end_named("j.doe", None, by=None))
    expect(found, "session_ended", CONSOLE, person, {"clinic-9"})
    key = await users.factors.begin("j.doe")
    found, codes = await done(
        three, lambda: users.factors.confirm("j.doe", totp.code_at(key, totp.step_of(three.clock())))
    )
    expect(found, "factor_set", person, None, {"clinic-9"})
    secret = await users.login("j.doe", PASSWORD, codes[0])
    session = await users.sessions.of(secret)
    assert session is not None
    found, _ = await done(three, lambda: users.step_up(session, secret, codes[1]))
    expect(found, "step_up", person, None, {"clinic-9"})
    found, _ = await done(three, lambda: users.factors.reset("j.doe"))
    expect(found, "factor_reset", CONSOLE, person, {"clinic-9"})
    hold = digest_of({"site_id": "clinic-1", "host_id": None, "reason_id": "case-of-j.smith"})
    for work, word in ((three.services.holds.add, "hold_added"), (three.services.holds.release, "hold_released")):
        found, _ = await done(three, lambda work=work: work("clinic-1", None, "case-of-j.smith"))  # type: ignore[misc]
        expect(found, word, CONSOLE, hold, {"clinic-1"})
    assert {str(act) for act in Act} == seen | LATER, "an act that nobody does is on the list"


async def test_what_was_refused_is_no_act(three: Server) -> None:
    users = three.services.users
    await users.add("j.doe", PASSWORD)

    async def refused() -> None:
        for act in (
            lambda: users.login("j.doe", "wrong password"),
            lambda: users.add("j.doe", PASSWORD),
            lambda: users.set_disabled("admin", True),
            lambda: users.set_role("j.doe", "auditor"),
        ):
            with pytest.raises(Refusal):
                await act()

    found, _ = await done(three, refused)
    assert not any(found.values())


async def test_no_log_holds_a_name(three: Server) -> None:
    """Names of people, reasons of holds, labels of hosts: nothing of it is in any entry."""
    users = three.services.users
    await users.add("jane.doe@provider", PASSWORD)
    await users.login("jane.doe@provider", PASSWORD)
    await three.services.holds.add("clinic-1", None, "case-of-j.smith")
    text = json.dumps(await acts(three))
    assert "login" in text
    for canary in ("jane", "provider", "smith", "ws-", 'clinic-1"', "admin"):
        assert canary not in text.replace('"clinic-1": ', "").replace('"clinic-1"', ""), canary


async def test_an_act_and_its_entry_are_one_transaction(three: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """An act whose entry cannot be decided does not happen."""

    async def failing(_self: object, _leaves: object, _now: object) -> None:
        raise StorageError("disk", code="full")

    users = three.services.users
    await users.add("j.doe", PASSWORD)
    monkeypatch.setattr(BoundTransaction, "add_leaves", failing)
    for act in (
        lambda: users.login("j.doe", PASSWORD),
        lambda: users.set_disabled("j.doe", True),
        lambda: users.add("new", PASSWORD),
    ):
        with pytest.raises(StorageError):
            await act()
    held = await three.services.store.user("j.doe")
    assert held is not None and held.disabled_at is None
    assert await three.services.store.user("new") is None
    assert await users.sessions.all_of("j.doe") == []
