"""Roots and lists of order keys at the server: held to the hosts' own rules, and carried to those that lack them."""

from __future__ import annotations

import base64
from datetime import timedelta
from typing import Any

import pytest

from compliance_agent.core import order_roots
from compliance_agent.core.order_roots import Trust
from compliance_agent.enrolment import parse_token
from compliance_agent.errors import Refusal
from tests.order_roots import CARA, DORA, EMIL, FAYE, keys, pin, root
from tests.server.builder import FakeHost, Server, checkin_body, on_sqlite

pytestmark = pytest.mark.anyio
ROOT = root()
SECOND = root(by=[CARA, DORA], holders=[CARA, DORA, FAYE], version=2)


async def enrolled(server: Server, site: str = "clinic-1") -> FakeHost:
    """A host of msp-1, whose root it is."""
    host = FakeHost(site_id=site, client_id="msp-1")
    reply = await server.try_enrol(host, await server.token(site, "msp-1"))
    host.api_key = reply.json()["api_key"]
    return host


class Desk:
    """An owner at one server, and hosts that say what they have."""

    def __init__(self, server: Server, host: FakeHost) -> None:
        self.server, self.host = server, host

    @classmethod
    async def opened(cls, server: Server) -> Desk:
        made = cls(server, await enrolled(server))
        await server.services.users.add("jo", "correct horse battery", role="operator")
        return made

    async def publish(self, *documents: bytes, by: str = "jo", site: str | None = None, anew: bool = False) -> Trust:
        services = self.server.services
        user = await services.store.user(by)
        assert user is not None
        reader = await services.users.reader(user)
        trust: Trust | None = None
        for raw in documents:
            trust = await services.order_trust.publish(user, reader, site or self.host.site_id, raw, anew=anew)
        assert trust is not None
        return trust

    async def refused(self, raw: bytes, **more: Any) -> str:
        with pytest.raises(Refusal) as caught:
            await self.publish(raw, **more)
        return caught.value.code

    async def carried(self, of: str = "", *, root: int = 0, keys: int = 0, host: FakeHost | None = None) -> list[bytes]:
        """What a host is given that says so."""
        host = host or self.host
        said = {"order_trust": {"pin": of or pin(ROOT), "root": root, "keys": keys}}
        reply = await self.server.post("/api/v1/checkin", {**checkin_body(host), **said}, headers=host.headers)
        assert reply.status_code == 200, reply.text
        return [base64.b64decode(raw) for raw in reply.json()["order_trust"]]


@pytest.fixture
async def desk(server: Server) -> Desk:
    return await Desk.opened(server)


async def test_a_host_is_given_what_it_lacks_and_no_more(desk: Desk) -> None:
    assert await desk.carried() == []
    await desk.publish(ROOT, keys())
    assert await desk.carried() == [ROOT, keys()]
    assert await desk.carried(root=1) == [keys()]
    assert await desk.carried(root=1, keys=1) == []
    await desk.publish(SECOND, keys(version=4))
    assert await desk.carried(root=1, keys=1) == [SECOND, keys(version=4)]
    assert await desk.carried(of=pin(SECOND)) == [SECOND, keys(version=4)], "pinned to a later root"
    assert await desk.carried(of="0" * 64) == [], "pinned to a root that is not here"
    reply = await desk.server.post("/api/v1/checkin", checkin_body(desk.host), headers=desk.host.headers)
    assert reply.json()["order_trust"] == [], "one that says nothing of it gets nothing"


@on_sqlite
async def test_a_host_that_was_away_for_long_is_given_every_root_in_order_over_some_check_ins(desk: Desk) -> None:
    roots = [ROOT, *(root(version=number) for number in range(2, 8))]
    await desk.publish(*roots, keys())
    trust, calls = None, 0
    while trust is None or (trust.root.version, trust.keys_version) != (7, 1):
        at = (0, 0) if trust is None else (trust.root.version, trust.keys_version)
        for raw in await desk.carried(root=at[0], keys=at[1]):
            trust = order_roots.begin(raw, pin(ROOT)) if trust is None else order_roots.advance(trust, raw)
        calls += 1
        assert calls < 4


@on_sqlite
@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (root(by=[CARA], version=2), "trust_threshold"),
        (root(version=3), "trust_version"),
        (root(tenant="msp-2", version=2), "trust_tenant"),
        (keys(by=[CARA]), "trust_threshold"),
        (keys(by=[CARA, FAYE]), "trust_signature"),
        (b"{}", "trust_unreadable"),
        (b"", "trust_unreadable"),
    ],
)
async def test_what_hosts_would_refuse_is_not_published(desk: Desk, raw: bytes, code: str) -> None:
    await desk.publish(ROOT)
    assert await desk.refused(raw) == code
    assert await desk.carried() == [ROOT]


@on_sqlite
async def test_a_list_needs_a_root_and_a_first_root_the_sites_client(desk: Desk) -> None:
    assert await desk.refused(keys()) == "trust_unreadable"
    assert await desk.refused(root(by=[CARA])) == "trust_threshold"
    assert await desk.refused(root(tenant="msp-2")) == "trust_tenant"
    assert await desk.carried() == []


@on_sqlite
async def test_publishing_twice_is_publishing_once_and_stands_in_the_audit(desk: Desk) -> None:
    await desk.publish(ROOT, ROOT, keys(), keys())
    assert await desk.carried() == [ROOT, keys()]
    said = await desk.server.by_hand(
        "SELECT action, actor FROM audit WHERE action LIKE 'order_trust.%' ORDER BY number"
    )
    assert [tuple(row) for row in said] == [("order_trust.root", "jo"), ("order_trust.keys", "jo")]


@on_sqlite
async def test_a_next_root_that_does_not_carry_the_list_says_so(desk: Desk) -> None:
    trust = await desk.publish(ROOT, keys(version=3, by=[CARA, EMIL]), SECOND)
    assert trust.keys is None and trust.keys_version == 3
    assert (await desk.publish(keys(version=4, by=[CARA, FAYE]))).keys is not None


async def test_other_people_and_other_sites_are_not_reached(desk: Desk) -> None:
    await desk.publish(ROOT, keys())
    other = await enrolled(desk.server, "clinic-9")
    assert await desk.carried(host=other) == []
    await desk.server.services.users.add("eve", "correct horse battery", role="viewer")
    assert await desk.refused(SECOND, by="eve") == "not_allowed"
    assert await desk.refused(SECOND, site="nowhere") == "no_such_site"


async def test_after_two_lost_keys_another_chain_takes_the_place_of_the_first(desk: Desk) -> None:
    other = root(by=[FAYE, EMIL], holders=[FAYE, EMIL])
    await desk.publish(ROOT, SECOND, keys())
    assert await desk.refused(other) == "trust_version"
    assert await desk.refused(keys(version=9), anew=True) == "trust_unreadable"
    assert await desk.carried(root=1) == [SECOND, keys()], "a refusal drops nothing"
    await desk.publish(other, anew=True)
    assert await desk.carried(of=pin(other)) == [other]
    assert await desk.carried() == []


@on_sqlite
async def test_an_enrolment_token_pins_the_newest_root(desk: Desk) -> None:
    services = desk.server.services
    await desk.publish(ROOT, SECOND)
    trust = await services.order_trust.published(desk.host.site_id)
    assert trust is not None
    token, _, _ = await services.enrolment.new_token(
        desk.host.site_id, "msp-1", timedelta(hours=1), ca_sha256=None, actor="jo", order_root=trust.root.sha256
    )
    assert parse_token(token).order_root == pin(SECOND)
    assert parse_token(await desk.server.token()).order_root is None
