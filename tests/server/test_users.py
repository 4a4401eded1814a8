"""People: one limit for all parallel guesses, sessions that end, and nothing that tells who exists."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time

import pytest
from argon2 import PasswordHasher, extract_parameters
from argon2.profiles import RFC_9106_LOW_MEMORY

from compliance_agent.errors import Refusal
from compliance_agent.server.services.users import ATTEMPTS, Users
from compliance_agent.server.store.transaction import BoundTransaction
from tests.server.builder import Server

pytestmark = pytest.mark.anyio
PASSWORD = "correct horse battery"
HASHED = f"""
import asyncio
from compliance_agent.server.services.users import Users
print(asyncio.run(Users(None, None, None)._digest("{PASSWORD}")))
"""


@pytest.fixture
async def users(server: Server) -> Users:
    await server.services.users.add("j.doe", PASSWORD)
    return server.services.users


async def code_of(users: Users, name: str, password: str) -> str:
    try:
        await users.login(name, password)
    except Refusal as refusal:
        return refusal.code
    return "in"


async def test_a_session_has_its_own_secret_and_can_be_ended(users: Users) -> None:
    secret = await users.login("j.doe", PASSWORD)
    other = await users.login("j.doe", PASSWORD)
    found = await users.of_session(secret)
    assert found is not None and found.name == "j.doe" and secret != other
    await users.logout(other)
    assert await users.of_session(other) is None
    assert await users.of_session(secret) is not None
    assert await users.of_session(None) is None


def test_a_password_is_hashed_as_rfc_9106_advises() -> None:
    """In a process of its own: in this one a hash costs nothing (tests/conftest.py)."""
    done = subprocess.run([sys.executable, "-c", HASHED], check=True, capture_output=True, text=True)
    assert extract_parameters(done.stdout.strip()) == RFC_9106_LOW_MEMORY


async def test_parallel_guesses_share_one_limit(users: Users) -> None:
    codes = await asyncio.gather(*(code_of(users, "j.doe", f"wrong {number}") for number in range(60)))
    assert codes.count("bad_login") == ATTEMPTS and codes.count("too_many_attempts") == 60 - ATTEMPTS
    assert await code_of(users, "j.doe", PASSWORD) == "too_many_attempts"


async def test_a_limit_that_does_not_count_is_caught(users: Users, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(_self: object, _bucket: int, _now: object, **_limits: int) -> bool:
        return True

    monkeypatch.setattr(BoundTransaction, "count_attempt", never)
    with pytest.raises(AssertionError):
        await test_parallel_guesses_share_one_limit(users)


async def test_the_limit_ends_and_a_login_resets_it(server: Server, users: Users) -> None:
    for _ in range(ATTEMPTS - 1):
        assert await code_of(users, "j.doe", "wrong password") == "bad_login"
    assert await code_of(users, "j.doe", PASSWORD) == "in"
    for _ in range(ATTEMPTS):
        assert await code_of(users, "j.doe", "wrong password") == "bad_login"
    assert await code_of(users, "j.doe", PASSWORD) == "too_many_attempts"
    server.clock.move(901)
    assert await code_of(users, "j.doe", PASSWORD) == "in"


async def test_nobody_learns_who_exists(users: Users) -> None:
    """Same answers, same limit, and the same work, for a name that does not exist."""
    users._hasher = PasswordHasher(3, 16_384, 4)  # rounds, KiB, lanes: most of what a login costs
    await users.set_password("j.doe", PASSWORD)
    await code_of(users, "nobody", "warm up")
    took = {}
    for name in ("j.doe", "nobody.else"):
        began = time.process_time()
        codes = [await code_of(users, name, "wrong password") for _ in range(ATTEMPTS + 1)]
        took[name] = time.process_time() - began
        assert codes == ["bad_login"] * ATTEMPTS + ["too_many_attempts"]
    assert 0.3 < took["j.doe"] / took["nobody.else"] < 3


@pytest.mark.parametrize("password", ["short", "x" * 257, "with\nnewline in it", ""])
async def test_a_password_that_cannot_be_used_is_refused(server: Server, password: str) -> None:
    with pytest.raises(Refusal) as caught:
        await server.services.users.add("new", password)
    assert caught.value.code == "bad_password"


async def test_hostile_names_and_passwords_are_only_wrong(users: Users) -> None:
    for name in ("", "\0", "\ud800", "x" * 100_000, "admin' OR 1=1 --"):
        assert await code_of(users, name, "\ud800" * 20) == "bad_login"


async def test_a_changed_password_ends_every_session(users: Users) -> None:
    secret = await users.login("j.doe", PASSWORD)
    await users.set_password("j.doe", "another good password")
    assert await users.of_session(secret) is None
    assert await code_of(users, "j.doe", PASSWORD) == "bad_login"
    assert await code_of(users, "j.doe", "another good password") == "in"


async def test_a_name_is_taken_once(users: Users) -> None:
    with pytest.raises(Refusal) as caught:
        await users.add("j.doe", PASSWORD)
    assert caught.value.code == "user_exists"


async def test_the_first_start_makes_an_admin(server: Server) -> None:
    path = server.services.settings.data_dir / "admin-password"
    assert path.stat().st_mode & 0o777 == 0o600
    assert await code_of(server.services.users, "admin", path.read_text().strip()) == "in"
