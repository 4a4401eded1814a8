"""Roles: one table decides, whole; every route for people asks it."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from compliance_agent.errors import Refusal
from compliance_agent.server.records import Dates, User
from compliance_agent.server.services import roles
from compliance_agent.server.services.roles import ROLES, Act
from tests.server.builder import Server
from tests.server.tenants import all_routes, filled

DOCS = Path(__file__).resolve().parent.parent.parent / "docs" / "people.md"
NOW = datetime(2026, 11, 22, tzinfo=UTC)
TABLE = """
act            owner operator proposer viewer auditor
look           yes   yes      yes      yes    yes
draft_order    yes   yes      yes      no     no
approve_order  yes   yes      no       no     no
enrol_host     yes   yes      no       no     no
revoke_host    yes   yes      no       no     no
hold           yes   yes      no       no     no
prune          yes   no       no       no     no
people         yes   no       no       no     no
"""
FOR_NOBODY_IN_PARTICULAR = {"/healthz", "/readyz", "/metrics", "/ca.pem", "/login", "/logout", "/verify",
                            "/api/v1/openapi.json", "/static/{digest}/{name}", "/{path:path}"}  # fmt: skip
FOR_HOSTS = {"/api/v1/enrol/challenge", "/api/v1/enrol", "/api/v1/keys/rotate", "/api/v1/checkin", "/api/v1/receipts",
             "/api/v1/evidence", "/api/v1/baselines/{sha256}", "/api/v1/leases", "/api/v1/certificates",
             "/api/v1/api-keys"}  # fmt: skip
OWN_ACCOUNT = {"/account", "/account/sessions/end", "/account/factor", "/account/factor/begin", "/account/factor/confirm",
               "/account/prove", "/login/oidc", "/login/oidc/callback"}  # fmt: skip
FOR_WITNESSES = {"/log/{site_id}/{year}/cosignature"}


def person(
    role: str, sites: frozenset[str] | None = None, dates: Dates | None = None, gone: datetime | None = None
) -> User:
    return User("j.doe", "p1", "", role, sites, NOW, gone, None, dates)


def table(text: str) -> dict[tuple[str, str], bool]:
    """(role, act) -> may, from lines of words."""
    head, *lines = [re.findall(r"[a-z_]+", line) for line in text.strip().splitlines() if "---" not in line]
    return {(role, line[0]): word == "yes" for line in lines for role, word in zip(head[1:], line[1:], strict=True)}


def test_the_whole_table() -> None:
    said = {(role, act.value): roles.may(person(role), act) for role in ROLES for act in Act}
    assert said == table(TABLE)


def test_the_page_says_the_same_table() -> None:
    lines = [line for line in DOCS.read_text("utf-8").splitlines() if line.startswith("|")]
    assert table("\n".join(lines)) == table(TABLE)


@pytest.mark.parametrize("user", [person("owner", gone=NOW), person("admin"), person("")])
def test_a_disabled_person_and_an_unknown_role_may_nothing(user: User) -> None:
    assert [act for act in Act if roles.may(user, act)] == []
    with pytest.raises(Refusal) as caught:
        roles.check(user, Act.LOOK)
    assert (caught.value.status, caught.value.code) == (403, "not_allowed")


@pytest.mark.parametrize(
    ("user", "code"),
    [
        (person("root"), "bad_role"),
        (person("auditor"), "auditor_needs_limits"),
        (person("auditor", sites=frozenset({"a"})), "auditor_needs_limits"),
        (person("auditor", sites=frozenset(), dates=Dates(date(2026, 1, 1), date(2026, 2, 1))), "auditor_needs_limits"),
        (person("viewer", dates=Dates(date(2026, 1, 1), date(2026, 2, 1))), "dates_not_for_role"),
    ],
)
def test_limits_that_a_role_must_have(user: User, code: str) -> None:
    with pytest.raises(Refusal) as caught:
        roles.check_limits(user)
    assert caught.value.code == code


@pytest.mark.anyio
async def test_every_route_for_people_asks_the_table(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A role that has lost every act gets nothing from any route that is not public."""
    host = await server.enrolled()
    bundle = host.next()
    await server.deliver(host, bundle)
    ids = {
        "key_id": host.key_id,
        "bundle_id": bundle.document["bundle_id"],
        "site_id": "clinic-1",
        "year": "2026",
        "name": "bundle.json",
        "path": "0/000.p/1",
        "index": "0",
        "size": "1",
        "digest": "0" * 12,
        "order_id": "0" * 32,
        "job_id": "0" * 32,
        "exception_id": "0" * 32,
        "sha256": "0" * 64,
        "check": "time_sync",
    }
    headers = await server.operator("nothing")
    server.client.cookies.set("session", await server.services.users.login("nothing", "correct horse battery"))

    async def answers() -> dict[str, int]:
        found = {}
        for route in all_routes(server.app.routes):
            if route.path in FOR_NOBODY_IN_PARTICULAR | FOR_HOSTS | FOR_WITNESSES | OWN_ACCOUNT:
                continue
            sent = headers if route.path.startswith(("/api/", "/log/")) else {}
            path = filled(route.path, ids)
            for method in route.methods or ():
                found[f"{method} {route.path}"] = (await server.client.request(method, path, headers=sent)).status_code
        return found

    before = await answers()
    assert sum(status == 200 for status in before.values()) >= 12, before
    monkeypatch.setattr(roles, "ROLES", {**ROLES, "viewer": frozenset()})
    after = await answers()
    assert {name: status for name, status in after.items() if status not in {403, 404}} == {}
    monkeypatch.setattr(roles, "check", lambda user, act: None)
    assert {status for status in (await answers()).values()} >= {200}, "a route that asks nobody would be seen"
