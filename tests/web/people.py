"""People with a second factor, for tests of what needs one that was shown lately."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from playwright.sync_api import Page, expect

from compliance_agent.server.services import totp
from tests.web.browsing import Visit
from tests.web.serving import PASSWORD, Served

OPERATORS = ("ada", "ben")
SECRETS: dict[tuple[int, str], bytes] = {}


async def with_people(served: Served) -> None:
    """Two operators of every site, one of the harbour alone, a viewer: all but the viewer with a second factor."""
    for name in OPERATORS:
        await with_factor(served, name, role="operator")
    await with_factor(served, "harbour", role="operator", sites=frozenset({"clinic-harbour"}))
    await served.services.users.add("looker", PASSWORD, role="viewer")


async def with_factor(served: Served, name: str, **limits: Any) -> None:
    """One more person, who has a second factor."""
    users = served.services.users
    await users.add(name, PASSWORD, **limits)
    secret = await users.factors.begin(name)
    await users.factors.confirm(name, totp.code_at(secret, totp.step_of(served.clock.now)))
    SECRETS[id(served.clock), name] = secret


def code_of(served: Served, name: str) -> str:
    """A code that was not used yet: the clock moves on to the next half minute."""
    served.clock.now += timedelta(seconds=30)
    return totp.code_at(SECRETS[id(served.clock), name], totp.step_of(served.clock.now))


def sign_in_as(visit: Visit, served: Served, name: str) -> Page:
    """Sign in with a code, as these people do."""
    page = visit.page
    page.goto(f"{visit.address}/login")
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_label("Code").fill(code_of(served, name))
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("All sites")
    page.wait_for_load_state("load")
    return page
