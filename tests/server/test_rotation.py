"""A host's key gives way to a new one: only by both, only at the end of what was delivered, once, and named in the log."""

from __future__ import annotations

import base64
import json
from typing import Any

import httpx2
import pytest
from nacl.signing import SigningKey, VerifyKey

from compliance_agent.entries.rotation import statement
from compliance_agent.evidence.book import Book
from compliance_agent.evidence.chains import Tagger
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.note import Note
from compliance_agent.log.tiles import Tile
from tests.server.builder import FakeHost, Server, acknowledged, b64, stamp

pytestmark = pytest.mark.anyio


def said(host: FakeHost, new: SigningKey, **changes: Any) -> bytes:
    given = {
        "site_id": host.site_id, "host_id": host.host_id, "head": (host.epoch, host.seq, host.prev), "at": stamp(host.now),
        **changes,
    }  # fmt: skip
    return statement(host.public, bytes(new.verify_key), **given)


async def rotate(
    server: Server, host: FakeHost, new: SigningKey, raw: bytes | None = None, **sent: Any
) -> httpx2.Response:
    raw = said(host, new) if raw is None else raw
    body = {
        "protocol": 1,
        "statement": b64(raw),
        "old_sig": b64(host.key.sign(raw).signature),
        "new_sig": b64(new.sign(raw).signature),
    }
    return await server.post("/api/v1/keys/rotate", {**body, **sent}, headers=host.headers)


def goes_on(host: FakeHost, new: SigningKey) -> FakeHost:
    """The same host with its new key, whose chain begins in a new epoch after the old one's last record."""
    return FakeHost(
        host.host_id, host.site_id, key=new, api_key=host.api_key, server_key=host.server_key,
        epoch=host.epoch + 1, seq=0, prev=host.prev, now=host.now,
    )  # fmt: skip


async def settled(server: Server) -> Book:
    for _ in range(50):
        await server.services.sequencer.round()
        if not await server.services.store.for_sites({"clinic-1"}).any_pending():
            break
    files = server.services.log_files
    note = files.published("clinic-1", 2026)
    assert note is not None

    def tile(wanted: Tile) -> bytes:
        return files.read("clinic-1", 2026, wanted)

    return Book.read(Checkpoint.parse(Note.parse(note).text), tile, Tagger())


async def test_the_new_key_goes_on_where_the_old_one_ended(server: Server) -> None:
    host, new = await server.enrolled(), SigningKey.generate()
    await server.deliver(host, host.heartbeat(time_sync="pass"), host.next())
    reply = await rotate(server, host, new)
    assert reply.status_code == 200, reply.text
    word = base64.b64decode(reply.json()["rotated"])
    VerifyKey(host.server_key).verify(word, base64.b64decode(reply.json()["sig"]))
    after = goes_on(host, new)
    assert json.loads(word) == {
        "schema": "compliance-agent/rotated/v1", "old_key": host.key_id, "new_key": after.key_id,
        "epoch": host.epoch, "seq": host.seq, "digest": host.prev,
    }  # fmt: skip
    bundles = [after.next(), after.next()]
    assert acknowledged(await server.deliver(after, *bundles), after, bundles) == ["stored", "stored"]
    assert (await server.checkin(after)).status_code == 200

    book = await settled(server)
    assert book.whole
    assert book.problems == []
    assert list(book.key_problems()) == []
    line = book.keys[after.key_id]
    assert line.after == ((host.epoch, host.seq), host.prev)
    assert [event for _, event, _ in book.keys[host.key_id].events] == ["enrol", "rotate"]
    headers = await server.operator()
    listed = (await server.client.get("/api/v1/hosts", headers=headers)).json()
    assert [item["key_id"] for item in listed] == [after.key_id], "one machine, one line"


async def test_the_old_key_signs_nothing_any_more(server: Server) -> None:
    host, new = await server.enrolled(), SigningKey.generate()
    await server.deliver(host, host.next())
    assert (await rotate(server, host, new)).status_code == 200
    refused = await server.deliver(host, host.next())
    assert refused.status_code in {403, 422}
    again = SigningKey.generate()
    assert (await rotate(server, host, again)).json()["code"] == "not_this_host", "its API key is the new key's by now"


async def test_the_same_statement_again_gets_the_same_answer(server: Server) -> None:
    host, new = await server.enrolled(), SigningKey.generate()
    await server.deliver(host, host.next())
    raw = said(host, new)
    first, second = await rotate(server, host, new, raw), await rotate(server, host, new, raw)
    assert (first.status_code, first.json()) == (second.status_code, second.json())
    book = await settled(server)
    assert [event for _, event, _ in book.keys[host.key_id].events].count("rotate") == 1


@pytest.mark.parametrize(
    ("case", "status", "code"),
    [("old_sig", 422, "bad_rotation"), ("new_sig", 422, "bad_rotation"), ("weak", 422, "weak_key"),
     ("site", 403, "not_this_host"), ("label", 403, "not_this_host"), ("head", 409, "wrong_head"),
     ("ahead", 409, "wrong_head"), ("known", 409, "key_known"),
     ("other", 403, "not_this_host"), ("foreign", 403, "unknown_key"), ("revoked", 403, "host_revoked"),
     ("form", 422, "bad_request")],
)  # fmt: skip
async def test_what_is_wrong_is_refused_and_changes_nothing(server: Server, case: str, status: int, code: str) -> None:
    host, other, foreign = (
        await server.enrolled(),
        await server.enrolled("ws-02"),
        await server.enrolled("ws-03", "clinic-2"),
    )
    await server.deliver(host, host.next(), host.next())
    new, sent = SigningKey.generate(), {}
    raw = said(host, new)
    if case in {"old_sig", "new_sig"}:
        sent = {case: b64(SigningKey.generate().sign(raw).signature)}
    elif case == "weak":
        document = json.loads(raw) | {"new_key": b64(bytes([1]) + bytes(31))}
        raw = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    elif case in {"site", "label"}:
        raw = said(host, new, **{"site": {"site_id": "clinic-2"}, "label": {"host_id": "ws-02"}}[case])
    elif case == "head":
        raw = said(host, new, head=(0, 1, host.prev))
    elif case == "ahead":
        host.next()
        raw = said(host, new)
    elif case == "known":
        new = other.key
        raw = said(host, new)
    elif case == "form":
        sent = {"statement": "not base64!"}
    elif case == "revoked":
        await server.services.enrolment.revoke("clinic-1", host.key_id, actor="operator")
    sender = {"other": other, "foreign": foreign}.get(case, host)
    body = {
        "protocol": 1, "statement": b64(raw), "old_sig": b64(host.key.sign(raw).signature), "new_sig": b64(new.sign(raw).signature),
        **sent,
    }  # fmt: skip
    reply = await server.post("/api/v1/keys/rotate", body, headers=sender.headers)
    assert (reply.status_code, reply.json()["code"]) == (status, code), reply.text
    held = await server.services.store.for_sites({"clinic-1"}).host(host.key_id)
    assert held is not None
    assert held.rotated_to is None


async def test_a_rotation_that_the_server_made_up_is_named(server: Server) -> None:
    """The server knows no private key: an entry of its own making does not prove itself, nor does one that was moved."""
    from compliance_agent.entries.leaf import entry
    from compliance_agent.server.records import NewLeaf

    host, thief = await server.enrolled(), SigningKey.generate()
    await server.deliver(host, host.next())
    raw = said(host, thief)
    forged = entry(
        "key", event="rotate", key=host.key_id, public_key=b64(host.public), new_key=FakeHost(key=thief).key_id,
        statement=b64(raw), old_sig=b64(thief.sign(raw).signature), new_sig=b64(thief.sign(raw).signature), at=stamp(host.now),
    )  # fmt: skip
    now = server.clock()
    await server.services.store.write(lambda tx: tx.add_leaves([NewLeaf("clinic-1", forged, host.key_id)], now))
    book = await settled(server)
    assert [problem.code for problem in book.problems] == ["bad_rotation"]


async def test_a_record_of_the_old_key_after_the_rotation_is_named(server: Server) -> None:
    """What a lying server could put in: the old key, stolen later, cannot sign into the past."""
    from compliance_agent.entries.leaf import bundle_leaf, key_leaf
    from compliance_agent.server.records import NewLeaf

    host, new = await server.enrolled(), SigningKey.generate()
    await server.deliver(host, host.next())
    assert (await rotate(server, host, new)).status_code == 200
    prev, late = host.prev, host.next()
    leaf = bundle_leaf(host.key_id, host.epoch, host.seq, prev, late.sha256, late.sig)
    now = server.clock()
    await server.services.store.write(lambda tx: tx.add_leaves([NewLeaf("clinic-1", leaf, host.key_id)], now))
    book = await settled(server)
    assert [problem.code for problem in book.key_problems()] == ["key_not_valid"]
    # Nor does it help the server to revoke the old key now, as if it had counted until then.
    revoked = key_leaf("revoke", host.key_id, host.public, stamp(host.now))
    await server.services.store.write(lambda tx: tx.add_leaves([NewLeaf("clinic-1", revoked, host.key_id)], now))
    book = await settled(server)
    assert book.keys[host.key_id].event("revoke") is not None
    assert [problem.code for problem in book.key_problems()] == ["key_not_valid"]
