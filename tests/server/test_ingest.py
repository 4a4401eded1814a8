"""Evidence: what is acknowledged is stored, once, as it came; what contradicts or skips is refused by name."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compliance_agent.errors import StorageError
from compliance_agent.server.records import BundleQuery, Host
from compliance_agent.server.services import chain
from compliance_agent.server.services.verification import Verifier, plainly_spelled
from compliance_agent.server.store.transaction import BoundTransaction
from tests.server.builder import START, FakeHost, Server, Signed, acknowledged, serving

pytestmark = pytest.mark.anyio


async def stored(server: Server) -> list[tuple[int, int, bytes]]:
    """(epoch, seq, bytes) of all that is stored, in order of arrival."""
    reader = server.services.store.for_sites(await server.services.store.all_sites())
    found = []
    for item in reversed(await reader.bundles(BundleQuery(limit=200))):
        whole = await reader.bundle(item.bundle_id, item.key_id)
        assert whole is not None
        found.append((item.epoch, item.seq, whole[1]))
    return found


async def test_a_batch_is_stored_byte_for_byte_and_acknowledged(server: Server) -> None:
    host = await server.enrolled()
    bundles = [host.next() for _ in range(12)]
    reply = await server.deliver(host, *bundles)
    assert acknowledged(reply, host, bundles) == ["stored"] * 12
    assert reply.json()["stopped"] is None
    assert await stored(server) == [(0, n + 1, bundle.body) for n, bundle in enumerate(bundles)]


async def test_the_same_bundle_again_is_known_and_acknowledged_afresh(server: Server) -> None:
    host = await server.enrolled()
    bundles = [host.next(), host.next()]
    await server.deliver(host, *bundles)
    server.clock.move(60)
    bundles.append(host.next())
    reply = await server.deliver(host, *bundles)
    assert acknowledged(reply, host, bundles) == ["known", "known", "stored"]
    assert len(await stored(server)) == 3


async def test_the_same_bundle_at_once_is_stored_once(server: Server) -> None:
    host = await server.enrolled()
    bundles = [host.next(), host.next()]
    replies = await asyncio.gather(*(server.deliver(host, *bundles) for _ in range(20)))
    statuses = [status for reply in replies for status in acknowledged(reply, host, bundles)]
    assert sorted(statuses) == ["known"] * 38 + ["stored"] * 2
    assert len(await stored(server)) == 2


async def test_a_skipped_bundle_is_asked_for(server: Server) -> None:
    host = await server.enrolled()
    first, second, third = host.next(), host.next(), host.next()
    reply = await server.deliver(host, second)
    assert (reply.status_code, reply.json()["code"]) == (409, "seq_gap")
    assert reply.json()["expected"] == {"epoch": 0, "seq": 1, "prev": "0" * 64}
    reply = await server.deliver(host, first, third)
    assert acknowledged(reply, host, [first]) == ["stored"]
    assert reply.json()["stopped"] == {
        "index": 1,
        "code": "seq_gap",
        "expected": {"epoch": 0, "seq": 2, "prev": first.sha256},
    }
    reader = server.services.store.for_sites({"clinic-1"})
    assert [gap.closed_at is None for gap in await reader.gaps(host.key_id)] == [True, False]
    assert await reader.gapped() == {host.key_id}
    acknowledged(await server.deliver(host, second, third), host, [second, third])
    assert await reader.gapped() == frozenset()


async def test_a_second_history_is_kept_and_refused(server: Server) -> None:
    """Same key, same place, other bytes: both are kept, the host is marked, nothing of the first is touched."""
    host = await server.enrolled()
    twin = FakeHost(host.host_id, key=host.key, api_key=host.api_key, now=host.now)
    ours, theirs = host.next(), twin.next(result="fail", reason="daemon_down")
    await server.deliver(host, ours)
    for _ in range(2):
        reply = await server.deliver(host, theirs)
        assert (reply.status_code, reply.json()["code"]) == (409, "fork")
    reader = server.services.store.for_sites({"clinic-1"})
    forks = await reader.forks(host.key_id)
    assert [(fork.sha256, fork.body, fork.sig) for fork in forks] == [(theirs.sha256, theirs.body, theirs.sig)]
    found = await reader.host(host.key_id)
    assert found is not None and found.forks == 1 and found.head is not None and found.head.digest == ours.sha256
    assert await stored(server) == [(0, 1, ours.body)]


async def test_a_new_epoch_continues_what_we_hold(server: Server) -> None:
    host = await server.enrolled()
    bundles = [host.next(), host.next()]
    host.epoch, host.seq = 3, 0
    bundles.append(host.next())
    reply = await server.deliver(host, *bundles)
    assert acknowledged(reply, host, bundles) == ["stored"] * 3
    late = FakeHost(host.host_id, key=host.key, api_key=host.api_key, seq=2, prev=bundles[1].sha256).next()
    assert (await server.deliver(host, late)).json()["code"] == "fork"  # epoch 0 is over


async def test_a_new_epoch_on_top_of_something_else_is_refused(server: Server) -> None:
    host = await server.enrolled()
    await server.deliver(host, host.next())
    host.epoch, host.seq, host.prev = 1, 0, "1" * 64
    reply = await server.deliver(host, host.next())
    assert (reply.status_code, reply.json()["code"]) == (409, "seq_gap")


async def test_a_right_number_on_a_wrong_predecessor_is_refused(server: Server) -> None:
    host = await server.enrolled()
    await server.deliver(host, host.next())
    host.prev = "1" * 64
    assert (await server.deliver(host, host.next())).json()["code"] == "seq_gap"


async def test_an_id_used_twice_in_a_chain_is_refused(server: Server) -> None:
    host = await server.enrolled()
    first = host.next()
    reply = await server.deliver(host, first, host.next(bundle_id=first.document["bundle_id"]))
    assert reply.json()["stopped"]["code"] == "bundle_id_reused"


async def test_an_id_is_used_in_its_own_chain_alone(server: Server) -> None:
    host, other = await server.enrolled(), await server.enrolled("ws-2")
    first = host.next()
    await server.deliver(host, first)
    assert (await server.deliver(other, other.next(bundle_id=first.document["bundle_id"]))).status_code == 200
    again = await server.deliver(host, host.next(bundle_id=first.document["bundle_id"]))
    assert (again.status_code, again.json()["code"]) == (422, "bundle_id_reused")


def _altered_sig(_host: FakeHost, bundle: Signed) -> Signed:
    return replace(bundle, sig=bytes([bundle.sig[0] ^ 1]) + bundle.sig[1:])


def _altered_body(_host: FakeHost, bundle: Signed) -> Signed:
    return replace(bundle, body=bundle.body.replace(b'"stratum":3', b'"stratum":4'))


def _other_key(_host: FakeHost, bundle: Signed) -> Signed:
    return FakeHost().sign(bundle.document)


def _spaced(host: FakeHost, bundle: Signed) -> Signed:
    body = json.dumps(bundle.document, sort_keys=True).encode()
    return Signed(bundle.document, body, host.key.sign(body).signature)


def _twice(host: FakeHost, bundle: Signed) -> Signed:
    body = bundle.body.replace(b'"seq":1', b'"seq":1,"seq":1')
    return Signed(bundle.document, body, host.key.sign(body).signature)


def _deep(host: FakeHost, bundle: Signed) -> Signed:
    body = b"[" * 200_000 + b"]" * 200_000
    return Signed(bundle.document, body, host.key.sign(body).signature)


def _changed(**changes: Any) -> Callable[[FakeHost, Signed], Signed]:
    return lambda host, bundle: host.sign({**bundle.document, **changes})


REFUSED: dict[str, tuple[Callable[[FakeHost, Signed], Signed], str]] = {
    "signature altered": (_altered_sig, "bad_signature"),
    "body altered": (_altered_body, "bad_signature"),
    "signed by another key": (_other_key, "bad_signature"),
    "not canonical": (_spaced, "not_canonical"),
    "duplicate key": (_twice, "not_canonical"),
    "too deep": (_deep, "not_canonical"),
    "free text": (_changed(pre_state={"note": "Jane Roe, born 1970"}), "bad_schema"),
    "unknown field": (_changed(note="x"), "bad_schema"),
    "true for a number": (_changed(seq=True), "bad_schema"),
    "no such day": (_changed(created_at="2026-02-30T00:00:00Z"), "bad_schema"),
    "another host's name": (_changed(host={"id": "ws-99", "key_id": "0" * 64}), "wrong_host"),
    "another site": (_changed(site_id="clinic-2"), "wrong_site"),
    "another client": (_changed(client_id="other"), "wrong_site"),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_what_does_not_verify_is_refused_by_name(server: Server, case: str) -> None:
    spoil, code = REFUSED[case]
    host = await server.enrolled()
    reply = await server.deliver(host, spoil(host, host.sign(host.document())))
    assert (reply.status_code, reply.json()["code"]) == (422, code)
    assert "Jane" not in reply.text
    assert await stored(server) == []
    good, bad = host.next(), spoil(host, host.sign(host.document()))
    if case != "duplicate key":  # its seq is that of the first place
        reply = await server.deliver(host, good, bad)
        assert acknowledged(reply, host, [good]) == ["stored"]
        assert reply.json()["stopped"]["index"] == 1


class Careless:
    """Verifiers with one point taken out: what the tests above must catch."""

    signature = Verifier(verify=lambda _key, _sig, _body: True)
    schema = Verifier(check_document=lambda _document, **_: None)
    spelling = Verifier(spelled=lambda _body: True)


@asynccontextmanager
async def planted(tmp_path: Path, verifier: Verifier) -> AsyncIterator[Server]:
    async with serving(tmp_path / "planted", verifier=verifier) as running:
        yield running


@pytest.mark.parametrize(
    ("verifier", "cases"),
    [
        (Careless.signature, ["signature altered", "body altered", "signed by another key"]),
        (Careless.schema, ["free text", "unknown field"]),
        (Careless.spelling, ["not canonical", "duplicate key", "free text", "no such day"]),
    ],
)
async def test_a_planted_fault_is_caught(tmp_path: Path, verifier: Verifier, cases: list[str]) -> None:
    """With a point of the verification taken out, the test that needs it fails."""
    for number, case in enumerate(cases):
        async with planted(tmp_path / str(number), verifier) as server:
            with pytest.raises((AssertionError, KeyError)):
                await test_what_does_not_verify_is_refused_by_name(server, case)


@pytest.mark.parametrize("case", REFUSED)
async def test_the_long_way_alone_refuses_the_same(tmp_path: Path, case: str) -> None:
    async with planted(tmp_path, Verifier(spelled=lambda _body: False)) as server:
        await test_what_does_not_verify_is_refused_by_name(server, case)


def test_plain_bundles_go_the_short_way_and_say_the_same() -> None:
    """The bundles of these tests are plainly spelled, so both ways are tried here."""
    fake = FakeHost()
    host = Host(fake.key_id, "clinic-1", "msp", fake.host_id, fake.public, START)
    for bundle in (fake.next(), fake.heartbeat(time_sync="pass"), fake.next(result="fail", reason="daemon_down")):
        assert plainly_spelled(bundle.body)
        found = [
            Verifier(spelled=way).all(host, bundle.body, bundle.sig) for way in (plainly_spelled, lambda _body: False)
        ]
        assert found == [bundle.document] * 2


async def test_a_chain_rule_that_takes_everything_is_caught(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain, "place", lambda _link, _head, _held: chain.Placed.NEXT)
    with pytest.raises((AssertionError, KeyError)):
        await test_a_skipped_bundle_is_asked_for(server)


async def test_nothing_is_acknowledged_when_the_write_fails(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    host = await server.enrolled()
    bundle = host.next()

    async def full(_self: object, _bundles: object) -> None:
        raise StorageError("planted")

    with monkeypatch.context() as patch:
        patch.setattr(BoundTransaction, "add_bundles", full)
        reply = await server.deliver(host, bundle)
    assert reply.status_code == 503
    assert reply.headers["retry-after"] == "5"
    assert await stored(server) == []
    assert acknowledged(await server.deliver(host, bundle), host, [bundle]) == ["stored"]


async def test_one_that_cannot_be_written_does_not_take_the_others_with_it(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts = [await server.enrolled(f"ws-{number}") for number in range(4)]
    real: Callable[[BoundTransaction, Any], Awaitable[None]] = BoundTransaction.add_bundles

    async def picky(self: BoundTransaction, bundles: Any) -> None:
        if any(bundle.key_id == hosts[2].key_id for bundle in bundles):
            raise StorageError("planted")
        await real(self, bundles)

    monkeypatch.setattr(BoundTransaction, "add_bundles", picky)
    replies = await asyncio.gather(*(server.deliver(host, host.next()) for host in hosts))
    assert [reply.status_code for reply in replies] == [200, 200, 503, 200]


async def test_without_a_key_nothing_is_read(server: Server) -> None:
    host = await server.enrolled()
    for headers in ({}, {"authorization": "Bearer cak1.wrong"}, {"authorization": host.api_key}):
        reply = await server.client.post("/api/v1/evidence", content=b"{", headers=headers)
        assert reply.status_code == 401
        assert reply.headers["www-authenticate"] == "Bearer"


async def test_a_revoked_host_is_refused_from_the_next_request_on(server: Server) -> None:
    host = await server.enrolled()
    bundle = host.next()
    acknowledged(await server.deliver(host, bundle), host, [bundle])  # now its key is remembered, too
    await server.services.enrolment.revoke("clinic-1", host.key_id, actor="test")
    for reply in (await server.deliver(host, host.next()), await server.checkin(host)):
        assert (reply.status_code, reply.json()["code"]) == (403, "host_revoked")
    assert await stored(server) == [(0, 1, bundle.body)]


async def test_the_acknowledgement_key_is_in_the_data_directory(server: Server) -> None:
    host = await server.enrolled()
    pem = (server.services.settings.data_dir / "keys" / "ack.pub.pem").read_text()
    der = base64.b64decode("".join(pem.splitlines()[1:-1]))
    assert der[-32:] == host.server_key == server.services.ack_public_key
