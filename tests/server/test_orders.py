"""Orders at the server: people approve, keys elsewhere sign, hosts answer by a record; the server itself can do nothing."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import httpx2
import pytest
from sqlalchemy import select

from compliance_agent.core import order_keys, orders
from compliance_agent.core.orders import Order, Refused
from compliance_agent.server.services import checkin, placing
from compliance_agent.server.services import orders as desk
from compliance_agent.server.store import tables
from compliance_agent.server.store.transaction import BoundTransaction
from tests.order_keys import ANNA, BEN, MALLORY, Person, keys_file
from tests.server.builder import FakeHost, Server, b64, checkin_body

pytestmark = pytest.mark.anyio
NONCE = "12" * 16
PASSWORD = "correct horse battery"


class Office:
    """Two operators at one server, and a host that takes orders."""

    def __init__(self, server: Server, host: FakeHost) -> None:
        self.server, self.host = server, host
        self.tokens: dict[str, dict[str, str]] = {}

    @classmethod
    async def opened(cls, server: Server) -> Office:
        office = cls(server, await server.enrolled())
        for name, role in (("jo", "operator"), ("kim", "operator"), ("eve", "viewer")):
            await server.services.users.add(name, PASSWORD, role=role)
            secret = (await server.services.users.tokens.create(name, timedelta(days=1)))[0]
            office.tokens[name] = {"authorization": f"Bearer {secret}"}
        await office.checkin()
        return office

    async def checkin(self, nonce: str | None = NONCE) -> list[bytes]:
        """What the host is given."""
        more = {} if nonce is None else {"order_nonce": nonce}
        reply = await self.server.post(
            "/api/v1/checkin", {**checkin_body(self.host), **more}, headers=self.host.headers
        )
        assert reply.status_code == 200, reply.text
        return [base64.b64decode(raw) for raw in reply.json()["orders"]]

    async def post(self, path: str, body: Any = None, by: str = "jo") -> httpx2.Response:
        return await self.server.post(f"/api/v1/orders{path}", {} if body is None else body, headers=self.tokens[by])

    async def draft(self, kind: str = "pause", by: str = "jo", **parameters: Any) -> str:
        reply = await self.post("", {"host": self.host.key_id, "kind": kind, "parameters": parameters}, by)
        assert reply.status_code == 201, reply.text
        return str(reply.json()["order_id"])

    async def approved(self, kind: str = "pause", **parameters: Any) -> str:
        order_id = await self.draft(kind, **parameters)
        for name in ("jo", "kim")[: order_keys.least(kind)]:
            reply = await self.post(f"/{order_id}/approve", by=name)
            assert reply.status_code == 200, reply.text
        return order_id

    async def sign(self, order_id: str, *people: Person) -> dict[str, Any]:
        """Prepare it for these and bring their signatures."""
        found = await self.post(f"/{order_id}/prepare", {"signers": [person.key_id for person in people]})
        assert found.status_code == 200, found.text
        body = base64.b64decode(found.json()["payload"])
        for person in people:
            found = await self.post(
                f"/{order_id}/signatures", {"public_key": b64(person.public), "sig": b64(person.sign(body))}
            )
            assert found.status_code == 200, found.text
        return dict(found.json())

    async def show(self, order_id: str) -> dict[str, Any]:
        reply = await self.server.client.get(f"/api/v1/orders/{order_id}", headers=self.tokens["eve"])
        return dict(reply.json())

    def judged(self, raw: bytes, **changes: Any) -> Order | Refused:
        """What a host says to an envelope."""
        at = self.server.clock()
        known = orders.Standing(
            tenant="msp", site="clinic-1", host=self.host.key_id, keys=order_keys.parse(keys_file(tenant="msp")),
            now=at, nonces=(NONCE,), counter=0, stopped=False, baseline_sha256="0" * 64, checks=("time_sync",),
        )  # fmt: skip
        return orders.judge(raw, replace(known, **changes) if changes else known)

    async def answer(self, raw: bytes, outcome: str = "success", error: str | None = None) -> str:
        """The host's record of the end of an order."""
        bundle = self.host.next(
            kind="order", trigger="order", check=None, result=None, reason=None, severity=None, hipaa_controls=[],
            pre_state={}, outcome=outcome, error=error, order_id="0" * 32,
            artifacts=[{"name": "order", "sha256": hashlib.sha256(raw).hexdigest(), "size": len(raw)}],
        )  # fmt: skip
        reply = await self.server.deliver(self.host, bundle)
        assert reply.status_code == 200, reply.text
        return str(bundle.document["bundle_id"])


@pytest.fixture
async def office(server: Server) -> Office:
    return await Office.opened(server)


async def test_an_order_goes_its_whole_way(office: Office) -> None:
    order_id = await office.approved("check", checks=["time_sync"])
    assert await office.checkin() == []
    signed = await office.sign(order_id, ANNA)
    assert (signed["state"], signed["signers"]) == ("signed", [ANNA.key_id])
    [raw] = await office.checkin()
    judged = office.judged(raw)
    assert isinstance(judged, Order) and judged.order_id == order_id and judged.parameters == {"checks": ["time_sync"]}
    assert (await office.show(order_id))["state"] == "delivered"
    assert await office.checkin() == [raw]  # until there is an answer
    bundle_id = await office.answer(raw)
    found = await office.show(order_id)
    assert (found["state"], found["outcome"], found["bundle_id"]) == ("answered", "success", bundle_id)
    assert await office.checkin() == []
    assert [(mark["what"], mark["who"]) for mark in found["marks"]] == [("approved", "jo"), ("signed", ANNA.key_id)]
    assert base64.b64decode(found["envelope"]) == raw


async def test_what_is_dangerous_needs_two_people_twice(office: Office) -> None:
    """Two who say yes, and two who sign."""
    order_id = await office.draft("approve", check="time_sync", target="t1")
    for _ in range(2):
        assert (await office.post(f"/{order_id}/approve", by="jo")).json()["state"] == "draft"
    early = await office.post(f"/{order_id}/prepare", {"signers": [ANNA.key_id, BEN.key_id]})
    assert (early.status_code, early.json()["code"]) == (409, "wrong_state")
    assert (await office.post(f"/{order_id}/approve", by="kim")).json()["state"] == "approved"
    alone = await office.post(f"/{order_id}/prepare", {"signers": [ANNA.key_id]})
    assert (alone.status_code, alone.json()["code"]) == (422, "too_few_signers")
    await office.sign(order_id, ANNA, BEN)
    [raw] = await office.checkin()
    assert isinstance(office.judged(raw), Order)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"kind": "run_command"}, "unknown_kind"), ({"kind": "check"}, "bad_order"),
        ({"parameters": {"command": "id"}}, "bad_order"), ({"host": "ef" * 32}, "no_such_host"),
        ({"kind": "check", "parameters": {"checks": ["no_such"]}}, "unknown_check"),
        ({"life_s": 86_401}, "bad_request"), ({"more": 1}, "bad_request"),
    ],
)  # fmt: skip
async def test_a_draft_that_no_host_would_take_is_refused(office: Office, change: dict[str, Any], code: str) -> None:
    reply = await office.post("", {"host": office.host.key_id, "kind": "pause", "parameters": {}, **change})
    assert reply.json()["code"] == code, reply.text


async def test_only_who_may_and_only_with_a_token(office: Office) -> None:
    order_id = await office.draft()
    for path, body in (("", {"host": office.host.key_id, "kind": "pause"}), (f"/{order_id}/approve", None),
                       (f"/{order_id}/cancel", None), (f"/{order_id}/prepare", {"signers": ["0" * 64]})):  # fmt: skip
        reply = await office.post(path, body, by="eve")
        assert (reply.status_code, reply.json()["code"]) == (403, "not_allowed"), path
        secret = await office.server.services.users.login("jo", PASSWORD)
        cookie = {"cookie": f"session={secret}"}  # as another page would have it sent
        reply = await office.server.post(f"/api/v1/orders{path}", body or {}, headers=cookie)
        assert (reply.status_code, reply.json()["code"]) == (401, "not_signed_in"), path
    assert (await office.show(order_id))["state"] == "draft"


async def test_a_proposers_token_drafts_and_can_decide_nothing(office: Office) -> None:
    """The role for programs: whoever holds such a token of an operator, over the API too, is no operator."""
    secret = (await office.server.services.users.tokens.create("jo", timedelta(days=1), role="proposer"))[0]
    office.tokens["program"] = {"authorization": f"Bearer {secret}"}
    order_id = await office.draft(by="program")
    for path, body in ((f"/{order_id}/approve", {}), (f"/{order_id}/prepare", {"signers": [ANNA.key_id]}),
                       (f"/{order_id}/signatures", {"public_key": b64(ANNA.public), "sig": b64(bytes(64))})):  # fmt: skip
        reply = await office.post(path, body, by="program")
        assert (reply.status_code, reply.json()["code"]) == (403, "not_allowed"), path
    assert (await office.show(order_id))["state"] == "draft"
    assert (await office.post(f"/{order_id}/approve")).json()["state"] == "approved", "the person may"


async def test_a_signature_counts_only_of_these_bytes_by_a_named_signer(office: Office) -> None:
    order_id = await office.approved()
    reply = await office.post(f"/{order_id}/signatures", {"public_key": b64(ANNA.public), "sig": b64(bytes(64))})
    assert reply.json()["code"] == "not_prepared"
    found = (await office.post(f"/{order_id}/prepare", {"signers": [ANNA.key_id]})).json()
    body = base64.b64decode(found["payload"])
    for person, signature, code in (
        (MALLORY, MALLORY.sign(body), "unknown_signer"),
        (ANNA, MALLORY.sign(body), "order_signature"),
        (ANNA, ANNA.sign(body + b" "), "order_signature"),
        (ANNA, bytes(ANNA.key.sign(body).signature), "order_signature"),  # without its type
    ):
        reply = await office.post(f"/{order_id}/signatures", {"public_key": b64(person.public), "sig": b64(signature)})
        assert (reply.status_code, reply.json()["code"]) == (422, code)
    assert await office.checkin() == []


async def test_bytes_that_are_prepared_anew_need_new_signatures(office: Office) -> None:
    order_id = await office.approved("approve", check="time_sync", target="t1")
    both = {"signers": [ANNA.key_id, BEN.key_id]}
    first = base64.b64decode((await office.post(f"/{order_id}/prepare", both)).json()["payload"])
    await office.post(f"/{order_id}/signatures", {"public_key": b64(ANNA.public), "sig": b64(ANNA.sign(first))})
    office.server.clock.move(60)
    again = base64.b64decode((await office.post(f"/{order_id}/prepare", both)).json()["payload"])
    assert again != first
    reply = await office.post(f"/{order_id}/signatures", {"public_key": b64(BEN.public), "sig": b64(BEN.sign(again))})
    assert reply.json()["state"] == "approved"  # Anna's is of the former bytes
    reply = await office.post(f"/{order_id}/signatures", {"public_key": b64(ANNA.public), "sig": b64(ANNA.sign(again))})
    assert reply.json()["state"] == "signed"
    [raw] = await office.checkin()
    assert isinstance(office.judged(raw), Order)


async def test_what_is_out_of_time_or_cancelled_is_not_forwarded(office: Office) -> None:
    late, gone = await office.approved(), await office.approved()
    await office.sign(late, ANNA)
    await office.sign(gone, ANNA)
    assert (await office.post(f"/{gone}/cancel")).json()["state"] == "cancelled"
    assert len(await office.checkin()) == 1
    office.server.clock.move(900)
    assert await office.checkin() == []
    assert (await office.show(late))["state"] == "expired"
    assert (await office.post(f"/{gone}/cancel")).json()["code"] == "wrong_state"


async def test_a_key_that_two_machines_seem_to_have_is_given_none(office: Office) -> None:
    """RELIABILITY 3.3 E6: orders stop for the pair."""
    order_id, later = await office.approved(), await office.approved()
    await office.sign(order_id, ANNA)

    async def contest(tx: Any) -> None:
        host = (await tx.hosts({"clinic-1"}, {office.host.key_id}))[office.host.key_id]
        await tx.save_hosts([replace(host, contested_at=office.server.clock())])

    await office.server.services.store.write(contest)
    assert await office.checkin() == []
    reply = await office.post(f"/{later}/prepare", {"signers": [ANNA.key_id]})
    assert (reply.status_code, reply.json()["code"]) == (409, "host_contested")


async def cloned_pair(office: Office) -> FakeHost:
    """The other machine of a pair: a copy of the host's disk, and both went on from there by themselves."""
    host, clone = office.host, replace(office.host)
    assert (await office.server.deliver(host, host.next())).status_code == 200
    assert (await office.server.deliver(clone, clone.next())).json()["code"] == "fork"
    return clone


async def test_a_cloned_pair_is_given_no_order_until_somebody_looked_into_it(office: Office) -> None:
    """RELIABILITY 3.3 E6, from the clone on: nobody sets a mark by hand."""
    ready, later = await office.approved(), await office.approved()
    await office.sign(ready, ANNA)
    assert len(await office.checkin()) == 1, "one machine, one key"
    clone = await cloned_pair(office)
    machines = (office.host, clone)
    for office.host in machines:
        assert await office.checkin() == []
    reply = await office.post(f"/{later}/prepare", {"signers": [ANNA.key_id]})
    assert (reply.status_code, reply.json()["code"]) == (409, "host_contested")
    await office.server.services.enrolment.approve("clinic-1", clone.key_id, actor="test")
    for office.host in machines[:1]:
        assert len(await office.checkin()) == 1
    assert (await office.sign(later, ANNA))["state"] == "signed"


def trusting_forwarder(monkeypatch: pytest.MonkeyPatch) -> None:
    real = desk.exchange

    async def exchange(tx: Any, callers: Any, now: Any) -> list[list[bytes]]:
        return await real(tx, [(replace(host, contested_at=None), nonce) for host, nonce in callers], now)

    monkeypatch.setattr(desk, "exchange", exchange)


def nobody_notices(monkeypatch: pytest.MonkeyPatch) -> None:
    def unmarked(row: Any, **changes: Any) -> Any:
        return replace(row, **{name: value for name, value in changes.items() if name != "contested_at"})

    monkeypatch.setattr(placing, "replace", unmarked)
    monkeypatch.setattr(checkin, "replace", unmarked)


def forgotten_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    real = BoundTransaction.hosts

    async def hosts(self: Any, *which: Any) -> Any:
        return {key: replace(host, contested_at=None) for key, host in (await real(self, *which)).items()}

    monkeypatch.setattr(BoundTransaction, "hosts", hosts)


@pytest.mark.parametrize("fault", [trusting_forwarder, nobody_notices, forgotten_mark])
async def test_planted_a_server_that_does_not_stop_the_pair_is_caught(
    office: Office, monkeypatch: pytest.MonkeyPatch, fault: Callable[[pytest.MonkeyPatch], None]
) -> None:
    fault(monkeypatch)
    with pytest.raises(AssertionError):
        await test_a_cloned_pair_is_given_no_order_until_somebody_looked_into_it(office)


async def test_an_older_agent_is_given_none_and_cannot_be_prepared_for(server: Server) -> None:
    office = Office(server, await server.enrolled())
    await server.services.users.add("jo", PASSWORD, role="operator")
    office.tokens["jo"] = {
        "authorization": f"Bearer {(await server.services.users.tokens.create('jo', timedelta(days=1)))[0]}"
    }
    assert await office.checkin(None) == []
    order_id = await office.approved()
    reply = await office.post(f"/{order_id}/prepare", {"signers": [ANNA.key_id]})
    assert (reply.status_code, reply.json()["code"]) == (409, "no_nonce")


async def test_numbers_grow_although_the_database_forgot_some(office: Office) -> None:
    first = await office.approved()
    await office.sign(first, ANNA)
    [raw] = await office.checkin()
    judged = office.judged(raw)
    assert isinstance(judged, Order) and judged.counter is not None
    await office.answer(raw)

    async def forget(tx: Any) -> None:
        [known] = (await tx.order_hosts({"clinic-1"}, {office.host.key_id})).values()
        await tx.save_order_host(replace(known, counter=0))

    await office.server.services.store.write(forget)
    office.server.clock.move(5)
    second = await office.approved()
    await office.sign(second, ANNA)
    [raw] = await office.checkin()
    assert isinstance(office.judged(raw, counter=judged.counter), Order)


async def test_a_record_answers_the_bytes_that_it_names_and_no_other(office: Office) -> None:
    order_id = await office.approved()
    await office.sign(order_id, ANNA)
    [raw] = await office.checkin()
    await office.answer(raw + b" ", "rejected", "order_unreadable")
    assert (await office.show(order_id))["state"] == "delivered"
    await office.answer(raw, "rejected", "stopped")
    found = await office.show(order_id)
    assert (found["state"], found["outcome"], found["error"]) == ("answered", "rejected", "stopped")


async def test_a_baseline_is_held_for_the_hosts_of_its_site_and_named_by_an_order(office: Office) -> None:
    raw, sig = b'version: "2027.1"\nchecks: {}\n', b"s" * 64
    digest = hashlib.sha256(raw).hexdigest()
    named = {"version": "2027.1", "sha256": digest}
    draft = {"host": office.host.key_id, "kind": "adopt_baseline", "parameters": named}
    assert (await office.post("", draft)).json()["code"] == "no_such_baseline"
    body = {"site": "clinic-1", "baseline": b64(raw), "sig": b64(sig)}
    made = await office.server.post("/api/v1/baselines", body, headers=office.tokens["jo"])
    assert (made.status_code, made.json()) == (201, named)
    assert (await office.post("", draft)).status_code == 201
    assert (await office.post("", {**draft, "parameters": {**named, "version": "2027.2"}})).status_code == 404
    other = await office.server.enrolled("ws-02", "clinic-2")
    for host, status in ((office.host, 200), (other, 404)):
        reply = await office.server.client.get(f"/api/v1/baselines/{digest}", headers=host.headers)
        assert reply.status_code == status
        assert status == 404 or reply.json() == {**named, "baseline": b64(raw), "sig": b64(sig)}
    for change, code in (
        ({"site": "clinic-9"}, "no_such_site"), ({"baseline": b64(b"checks: {}")}, "bad_baseline"),
        ({"baseline": b64(b"a: &a [*a]")}, "bad_baseline"), ({"sig": b64(b"s")}, "bad_request"),
    ):  # fmt: skip
        reply = await office.server.post("/api/v1/baselines", {**body, **change}, headers=office.tokens["jo"])
        assert reply.json()["code"] == code, reply.text


async def test_every_act_is_in_the_audit_of_the_site(office: Office) -> None:
    order_id = await office.approved()
    await office.sign(order_id, ANNA)
    found = await office.server.services.store.database.all(  # type: ignore[attr-defined]
        select(tables.audit).where(tables.audit.c.action.like("order%"))
    )
    said = [(row["actor"], row["action"], row["site_id"], row["subject"].split()[0]) for row in found]
    assert said == [("jo", f"order_{what}", "clinic-1", order_id) for what in ("drafted", "approved", "signed")]


async def test_the_host_page_lists_them_with_their_record(office: Office) -> None:
    order_id = await office.approved("check", checks=["time_sync"])
    await office.sign(order_id, ANNA)
    [raw] = await office.checkin()
    bundle_id = await office.answer(raw, "rejected", "stopped")
    await office.server.services.users.add("look", PASSWORD)
    cookie = await office.server.services.users.login("look", PASSWORD)
    page = await office.server.client.get(f"/hosts/{office.host.key_id}", headers={"cookie": f"session={cookie}"})
    assert page.status_code == 200
    for text in (order_id, "Check time_sync", f"/bundles/{bundle_id}", "A signed stop_all stands"):
        assert text in page.text, text


async def test_whoever_has_the_servers_database_and_every_key_of_it_makes_no_order_that_a_host_does(
    office: Office,
) -> None:
    """The whole server in the wrong hands: each of its keys signs an order of each kind; rows are changed at will."""
    directory = office.server.services.settings.data_dir
    keys = [path for path in (directory / "keys").iterdir() if path.suffix == ".pem" and "pub" not in path.name]
    assert len(keys) >= 2
    from compliance_agent.crypto import Ed25519Signer

    done = tried = 0
    signed = await office.approved()
    await office.sign(signed, ANNA)
    [genuine] = await office.checkin()
    for kind in order_keys.KINDS:
        for path in keys:
            try:
                thief = Ed25519Signer(path)
            except Exception:
                continue  # not a key of that kind
            for named in (thief.key_id, ANNA.key_id):
                made = replace(
                    _made(office, kind), signers=(named, *((BEN.key_id,) if kind in order_keys.TWO_SIGNERS else ()))
                )
                body = orders.payload(made)
                raw = orders.envelope(body, {name: orders.sign(body, thief) for name in made.signers})
                done += isinstance(office.judged(raw), Order)
                tried += 1
    whole = json.loads(genuine)
    body = json.loads(base64.b64decode(whole["payload"]))
    for field, value in (
        ("kind", "resume"),
        ("host", "ef" * 32),
        ("counter", 2**40),
        ("expires", "2036-01-01T00:00:00Z"),
        ("nonce", "99" * 16),
    ):
        changed = {**whole, "payload": b64(json.dumps({**body, field: value}).encode())}
        done += isinstance(office.judged(json.dumps(changed).encode()), Order)
        tried += 1
    assert tried >= 2 * len(order_keys.KINDS) * 2 + 5
    assert done == 0
    assert isinstance(office.judged(genuine), Order)


def _made(office: Office, kind: str) -> Order:
    from tests.order_keys import order

    changes: dict[str, Any] = {"tenant": "msp", "host": office.host.key_id, "not_before": office.server.clock()}
    changes["expires"] = office.server.clock() + timedelta(minutes=15)
    if orders.FORMS[kind].bound:
        changes["baseline_sha256"] = "0" * 64
    return order(kind, **changes)
