"""Sessions end by idleness, by age and by everybody who may end them; the second factor is asked for, and each code works once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from compliance_agent.errors import Refusal, StorageError
from compliance_agent.server.services import totp
from compliance_agent.server.services.users import ATTEMPTS, Users
from compliance_agent.server.store import tables
from compliance_agent.server.store.people import PeopleRows
from tests.cli.command import run
from tests.cli.test_json import problems
from tests.server.builder import Server, serving

pytestmark = pytest.mark.anyio
PASSWORD = "correct horse battery"


@pytest.fixture
async def users(server: Server) -> Users:
    await server.services.users.add("j.doe", PASSWORD)
    return server.services.users


async def code_of(act: object) -> str:
    """How it is refused; "in" when it is not."""
    try:
        await act  # type: ignore[misc]
    except Refusal as refusal:
        return refusal.code
    return "in"


async def with_factor(server: Server, name: str = "j.doe") -> tuple[bytes, list[str]]:
    """A confirmed factor's secret, and its recovery codes; the code of this step is used up."""
    users = server.services.users
    secret = await users.factors.begin(name)
    return secret, await users.factors.confirm(name, now_code(server, secret))


def now_code(server: Server, secret: bytes) -> str:
    return totp.code_at(secret, totp.step_of(server.clock()))


async def test_a_session_ends_when_nobody_uses_it(server: Server, users: Users) -> None:
    secret = await users.login("j.doe", PASSWORD)
    for _ in range(5):
        server.clock.move(14 * 60)
        assert await users.of_session(secret) is not None
    server.clock.move(15 * 60 + 1)
    assert await users.of_session(secret) is None


async def test_a_page_that_asks_by_itself_is_no_use(server: Server, users: Users) -> None:
    secret = await users.login("j.doe", PASSWORD)
    for _ in range(15):
        server.clock.move(60)
        assert await users.of_session(secret, use=False) is not None
    server.clock.move(1)
    assert await users.of_session(secret, use=False) is None
    server.client.cookies.set("session", await users.login("j.doe", PASSWORD))
    answers = []
    for _ in range(16):
        server.clock.move(60)
        answers.append(await server.client.get("/", headers={"hx-request": "true"}))
    answer = answers[-1]
    assert (answer.status_code, answer.headers["hx-refresh"]) == (401, "true")


async def test_a_session_ends_after_twelve_hours_however_much_it_is_used(server: Server, users: Users) -> None:
    secret = await users.login("j.doe", PASSWORD)
    for _ in range(12 * 6 - 1):
        server.clock.move(600)
        assert await users.of_session(secret) is not None
    server.clock.move(600)
    assert await users.of_session(secret) is None


async def test_idle_and_life_are_settings(tmp_path: Path) -> None:
    async with serving(tmp_path / "data", session_idle_s=60, session_life_s=120) as server:
        users = server.services.users
        await users.add("j.doe", PASSWORD)
        secret = await users.login("j.doe", PASSWORD)
        server.clock.move(61)
        assert await users.of_session(secret) is None


async def test_who_signs_in_again_has_a_new_session_and_the_old_one_ends(server: Server, users: Users) -> None:
    page = await server.client.get("/login")
    token = page.text.partition('name="form_token" value="')[2][:43]
    old = await users.login("j.doe", PASSWORD)
    server.client.cookies.set("session", old)
    answer = await server.client.post("/login", data={"form_token": token, "name": "j.doe", "password": PASSWORD})
    new = answer.headers["set-cookie"].partition("session=")[2].partition(";")[0]
    assert answer.status_code == 303 and new and new != old
    assert await users.of_session(old) is None and await users.of_session(new) is not None


async def test_sessions_are_listed_and_ended_one_by_one(users: Users) -> None:
    await users.add("other", PASSWORD)
    secrets = [await users.login("j.doe", PASSWORD) for _ in range(3)]
    theirs = await users.login("other", PASSWORD)
    listed = await users.sessions.all_of("j.doe")
    assert len({item.id for item in listed}) == 3 and not any(
        secret[:16] == item.id for item in listed for secret in secrets
    )
    [foreign] = await users.sessions.all_of("other")
    assert await code_of(users.sessions.end_named("j.doe", foreign.id, by=None)) == "no_such_session"
    first = await users.sessions.of(secrets[0])
    assert first is not None
    assert await users.sessions.end_named("j.doe", first.id, by=None) == 1
    assert await users.sessions.end_named("j.doe", None, by=None, but=None) == 2
    assert [await users.of_session(secret) for secret in secrets] == [None] * 3
    assert await users.of_session(theirs) is not None


def test_the_command_lists_and_ends_sessions(tmp_path: Path) -> None:
    async def start() -> None:
        async with serving(tmp_path / "data") as server:
            server.clock.time = server.clock.time.now(server.clock.time.tzinfo)
            await server.services.users.add("j.doe", PASSWORD)
            for _ in range(2):
                await server.services.users.login("j.doe", PASSWORD)

    asyncio.run(start())
    command = ("server", "user", "sessions", "j.doe", "--data-dir", tmp_path / "data", "--json")
    document = json.loads(run(*command).out)
    assert problems(document) == [] and len(document["sessions"]) == 2
    left = json.loads(run(*command, "--end", document["sessions"][0]["session_id"]).out)
    assert left["sessions"] == document["sessions"][1:]
    assert json.loads(run(*command, "--end", "all").out)["sessions"] == []
    refused = run(*command, "--end", "0" * 16)
    assert refused.status != 0 and "none with this id" in refused.err


# --- the second factor ----------------------------------------------------------------------------


async def test_who_has_a_factor_needs_its_code(server: Server, users: Users) -> None:
    secret, _ = await with_factor(server)
    assert await code_of(users.login("j.doe", PASSWORD)) == "bad_login"
    assert await code_of(users.login("j.doe", PASSWORD, "000000")) == "bad_login"
    server.clock.move(30)
    assert await code_of(users.login("j.doe", "wrong password", now_code(server, secret))) == "bad_login"
    assert await code_of(users.login("j.doe", PASSWORD, now_code(server, secret))) == "in"


async def test_a_code_works_once(server: Server, users: Users) -> None:
    """Also the one that confirmed the factor, also an older one of the same minute, also for two that come together."""
    secret, _ = await with_factor(server)
    assert await code_of(users.login("j.doe", PASSWORD, now_code(server, secret))) == "bad_login"
    server.clock.move(60)
    code = now_code(server, secret)
    results = await asyncio.gather(*(code_of(users.login("j.doe", PASSWORD, code)) for _ in range(4)))
    assert sorted(results) == ["bad_login"] * 3 + ["in"]
    before = totp.code_at(secret, totp.step_of(server.clock()) - 1)
    assert await code_of(users.login("j.doe", PASSWORD, before)) == "bad_login"


async def test_a_replay_that_is_let_through_is_caught(
    server: Server, users: Users, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def forgetful(_self: object, _name: str, _step: int) -> bool:
        return True

    monkeypatch.setattr(PeopleRows, "use_step", forgetful)
    with pytest.raises(AssertionError):
        await test_a_code_works_once(server, users)


async def test_guesses_of_codes_share_the_limit_of_passwords(server: Server, users: Users) -> None:
    await with_factor(server)
    codes = [await code_of(users.login("j.doe", PASSWORD, f"{number:06}")) for number in range(ATTEMPTS + 1)]
    assert codes == ["bad_login"] * ATTEMPTS + ["too_many_attempts"]


async def test_a_recovery_code_works_once_and_is_kept_as_a_hash(server: Server, users: Users) -> None:
    _, codes = await with_factor(server)
    assert len(set(codes)) == 10
    assert await code_of(users.login("j.doe", PASSWORD, codes[3].upper())) == "in"
    assert await code_of(users.login("j.doe", PASSWORD, codes[3])) == "bad_login"
    assert await code_of(users.login("j.doe", PASSWORD, codes[4])) == "in"
    raw = repr([await server.by_hand(f"SELECT * FROM {table}") for table in tables.metadata.tables])
    assert "j.doe" in raw and not any(code in raw for code in codes)


async def test_the_database_alone_gives_no_codes(server: Server, users: Users) -> None:
    secret, _ = await with_factor(server)
    held = await server.services.store.factor("j.doe")
    assert held is not None and secret not in held.sealed
    key = server.services.settings.data_dir / "keys" / "factors.key"
    assert key.stat().st_mode & 0o777 == 0o600
    other = Users(
        server.services.store, server.clock, type(users.factors)(server.services.store, server.clock, bytes(32))
    )
    with pytest.raises(StorageError) as caught:
        await other.login("j.doe", PASSWORD, "123456")
    assert caught.value.code == "factor_key_lost"


async def test_a_factor_counts_only_once_it_is_confirmed(server: Server, users: Users) -> None:
    first = await users.factors.begin("j.doe")
    assert await code_of(users.login("j.doe", PASSWORD)) == "in"
    second = await users.factors.begin("j.doe")
    assert await code_of(users.factors.confirm("j.doe", now_code(server, first))) == "bad_code"
    assert await code_of(users.factors.confirm("j.doe", now_code(server, second))) == "in"
    assert await code_of(users.factors.begin("j.doe")) == "factor_exists"
    assert await code_of(users.factors.confirm("j.doe", now_code(server, second))) == "bad_code"


async def test_a_reset_takes_it_away_and_ends_every_session(server: Server, users: Users) -> None:
    secret, codes = await with_factor(server)
    session = await users.login("j.doe", PASSWORD, codes[0])
    await users.factors.reset("j.doe")
    assert await users.of_session(session) is None
    assert await code_of(users.login("j.doe", PASSWORD)) == "in"
    assert await code_of(users.factors.reset("j.doe")) == "no_factor"
    new, _ = await with_factor(server)
    assert new != secret and await code_of(users.login("j.doe", PASSWORD, codes[1])) == "bad_login"


@pytest.fixture
async def strict(tmp_path: Path) -> AsyncIterator[Server]:
    async with serving(tmp_path / "strict", second_factor_for="msp third") as server:
        for name, client in (("of-msp", "msp"), ("of-other", "other"), ("of-all", None)):
            await server.services.users.add(name, PASSWORD, client_id=client)
        yield server


async def test_a_client_can_demand_a_factor(strict: Server) -> None:
    """Until there is one, the person is signed in for the pages that set it up, and for nothing else."""
    users, client = strict.services.users, strict.client
    for name, demanded in (("of-msp", True), ("of-other", False), ("of-all", True)):
        secret = await users.login(name, PASSWORD)
        assert (await users.of_session(secret) is None) is demanded, name
        client.cookies.clear()
        client.cookies.set("session", secret)
        home = await client.get("/")
        assert home.headers.get("location") == ("/account/factor" if demanded else None)
        assert (await client.get("/api/v1/sites")).status_code == (401 if demanded else 200)
        assert (await client.get("/account/factor")).status_code == 200
    await with_factor(strict, "of-msp")
    strict.clock.move(30)
    held = await strict.services.store.factor("of-msp")
    assert held is not None
    secret = await users.login("of-msp", PASSWORD, now_code(strict, users.factors._opened(held)))
    assert await users.of_session(secret) is not None


async def test_what_needs_it_fresh_asks_again(server: Server, users: Users) -> None:
    secret, codes = await with_factor(server)
    cookie = await users.login("j.doe", PASSWORD, codes[0])
    within = timedelta(minutes=5)

    async def proven() -> bool:
        session = await users.sessions.of(cookie)
        assert session is not None
        return users.sessions.proven(session, within)

    assert await proven()
    server.clock.move(301)
    assert not await proven()
    session = await users.sessions.of(cookie)
    assert session is not None
    assert await code_of(users.step_up(session, cookie, "000000")) == "bad_code"
    assert not await proven()
    assert await code_of(users.step_up(session, cookie, now_code(server, secret))) == "in"
    assert await proven()
    assert await code_of(users.step_up(session, cookie, now_code(server, secret))) == "bad_code"
    for _ in range(ATTEMPTS):
        await code_of(users.step_up(session, cookie, "000000"))
    server.clock.move(30)
    assert await code_of(users.step_up(session, cookie, now_code(server, secret))) == "too_many_attempts"
    plain = await users.login("admin", (server.services.settings.data_dir / "admin-password").read_text().strip())
    other = await users.sessions.of(plain)
    assert other is not None and not users.sessions.proven(other, within)
