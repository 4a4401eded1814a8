"""Receipts: with the evidence when the log is quick, later when it is not; each proves its own leaf, and nobody gets another's."""

from __future__ import annotations

import base64
import json
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest

from compliance_agent.entries.leaf import bundle_leaf
from compliance_agent.errors import BadEvidence
from compliance_agent.log.merkle import LeafHash, hash_leaf
from compliance_agent.log.note import KeyType, VerifierKey
from compliance_agent.log.policy import Policy, Verified
from compliance_agent.log.proof import Proof
from compliance_agent.server.services.receipts import Receipts
from tests.server.builder import START, FakeHost, Hands, Server, Signed, ack_of, serving

pytestmark = pytest.mark.anyio


def policy_of(directory: Path, site: str = "clinic-1", year: int = 2026) -> Policy:
    """Trust in the log whose verifier key the server wrote."""
    vkey = (directory / "keys" / f"{site}-{year}.vkey").read_text().strip()
    return Policy.parse(f"log {vkey}\nquorum none\n".encode())


def leaf_of(host: FakeHost, bundle: Signed) -> bytes:
    document = bundle.document
    return bundle_leaf(host.key_id, document["epoch"], document["seq"], document["prev"], bundle.sha256, bundle.sig)


def proven(receipt: Any, host: FakeHost, bundle: Signed, policy: Policy) -> Verified:
    """The receipt is of this bundle, and its proof holds."""
    assert receipt["bundle_id"] == bundle.document["bundle_id"]
    leaf = base64.b64decode(receipt["leaf"])
    assert leaf == leaf_of(host, bundle)
    return Proof.parse(base64.b64decode(receipt["proof"])).verify(hash_leaf(leaf), policy)


async def fetched(server: Server, host: FakeHost, *bundle_ids: str) -> httpx2.Response:
    body = {"protocol": 1, "bundles": list(bundle_ids)}
    return await server.post("/api/v1/receipts", body, headers=host.headers)


@pytest.mark.parametrize(("said", "waits"), [("wait=0", False), ("Wait=0", False), ("wait=9", True), ("wait=-1", True)])
async def test_a_host_in_a_hurry_gets_its_acknowledgement_alone(tmp_path: Path, said: str, waits: bool) -> None:
    """The log is slow here: whoever waits for receipts waits for a second. What is held is the same."""
    async with serving(tmp_path / "data", log_interval_ms=60_000) as server:
        host = await server.enrolled()
        bundle = host.next()
        body = {"protocol": 1, "bundles": [bundle.item], "gaps": []}
        started = time.monotonic()
        reply = await server.post("/api/v1/evidence", body, headers={**host.headers, "prefer": said})
        assert (time.monotonic() - started > 0.9) is waits
        assert reply.json()["receipts"] == [None]
        assert ack_of(reply, host)["bundles"][0]["bundle_sha256"] == bundle.sha256


async def test_evidence_is_answered_with_receipts(server: Server) -> None:
    host = await server.enrolled()
    bundles = [host.next() for _ in range(12)]
    reply = (await server.deliver(host, *bundles)).json()
    policy = policy_of(server.services.settings.data_dir)
    found = [proven(item, host, bundle, policy) for item, bundle in zip(reply["receipts"], bundles, strict=True)]
    assert {item.checkpoint.origin for item in found} == {"compliance-server/clinic-1/2026"}
    assert found[-1].checkpoint.size >= 14  # the year's first entry, the enrolment, twelve bundles
    again = (await server.deliver(host, *bundles)).json()
    assert len(again["receipts"]) == 12
    for item, bundle in zip(again["receipts"], bundles, strict=True):
        proven(item, host, bundle, policy)


async def test_a_receipt_of_another_leaf_does_not_hold(server: Server) -> None:
    """The check above has something to refuse."""
    host = await server.enrolled()
    reply = (await server.deliver(host, host.next(), host.next())).json()
    policy = policy_of(server.services.settings.data_dir)
    first, second = reply["receipts"]
    proof = Proof.parse(base64.b64decode(first["proof"]))
    with pytest.raises(BadEvidence, match="no proof"):
        proof.verify(hash_leaf(base64.b64decode(second["leaf"])), policy)
    with pytest.raises(BadEvidence):
        proof.verify(LeafHash(base64.b64decode(first["leaf"])[:32]), policy)
    weak = Policy.parse(
        f"log {VerifierKey('compliance-server/clinic-1/2026', KeyType.ED25519, host.public)}\nquorum none\n".encode()
    )
    with pytest.raises(BadEvidence):
        proof.verify(hash_leaf(base64.b64decode(first["leaf"])), weak)


async def test_without_a_sequencer_evidence_is_acknowledged_and_the_receipt_comes_later(tmp_path: Path) -> None:
    async with serving(tmp_path / "data") as server:
        host = await server.enrolled()
        bundle = host.next()
        server.services.board.stopped["clinic-1"] = "tile_conflict"
        reply = await server.deliver(host, bundle)
        assert (len(ack_of(reply, host)["bundles"]), reply.json()["receipts"]) == (1, [None])
        assert (await fetched(server, host, bundle.document["bundle_id"])).json() == {"receipts": [None]}
    async with serving(tmp_path / "data", clock=Hands(START + timedelta(seconds=1))) as server:
        await server.deliver(host, host.next())  # answered after the round that also takes what had waited
        reply = (await fetched(server, host, bundle.document["bundle_id"])).json()
        proven(reply["receipts"][0], host, bundle, policy_of(tmp_path / "data"))


async def test_only_ones_own_receipts_are_given(server: Server) -> None:
    ours, theirs = await server.enrolled(), await server.enrolled("ws-99", "clinic-2")
    neighbour = await server.enrolled("ws-02")
    bundles = [ours.next(), theirs.next(), neighbour.next()]
    for host, bundle in zip((ours, theirs, neighbour), bundles, strict=True):
        await server.deliver(host, bundle)
    ids = [bundle.document["bundle_id"] for bundle in bundles]
    reply = (await fetched(server, ours, *ids, "0" * 8 + "-0000-4000-8000-" + "0" * 12)).json()
    assert [item is not None for item in reply["receipts"]] == [True, False, False, False]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"protocol": 1, "bundles": []},
        {"protocol": 2, "bundles": ["0" * 36]},
        {"protocol": 1, "bundles": ["x"]},
        {"protocol": 1, "bundles": [1]},
        {"protocol": 1, "bundles": ["00000000-0000-4000-8000-000000000000"] * 101},
        {"protocol": 1, "bundles": ["00000000-0000-4000-8000-000000000000"], "more": 1},
    ],
)
async def test_a_bad_request_names_the_field(server: Server, body: dict[str, Any]) -> None:
    host = await server.enrolled()
    reply = await server.post("/api/v1/receipts", body, headers=host.headers)
    assert (reply.status_code, reply.json()["code"]) == (422, "bad_request")


async def test_without_a_key_nothing_is_given(server: Server) -> None:
    reply = await server.post("/api/v1/receipts", {"protocol": 1, "bundles": ["0" * 36]})
    assert reply.status_code == 401


async def test_unusable_tiles_give_no_receipt(server: Server) -> None:
    """A tile that somebody cut gives no proof at all, rather than a wrong one."""
    host = await server.enrolled()
    bundle = host.next()
    await server.deliver(host, bundle)
    for tile in (server.services.settings.data_dir / "log").rglob("tile/0/**/*"):
        if tile.is_file():
            tile.write_bytes(b"short")
    services = server.services
    fresh = Receipts(services.store, services.log_files, services.board)
    known = (await services.store.for_sites({"clinic-1"}).hosts())[0]
    assert await fresh.of(known, [bundle.document["bundle_id"]]) == [None]


async def test_enrolment_gives_the_log_key_and_keys_are_leaves(server: Server) -> None:
    host = FakeHost()
    reply = (await server.try_enrol(host, await server.token())).json()
    host.api_key = reply["api_key"]
    assert base64.b64decode(reply["log_key"]) == server.services.log_keys.public_bytes
    await server.deliver(host, host.next())
    await server.services.enrolment.revoke("clinic-1", host.key_id, actor="operator")
    await server.services.enrolment.revoke("clinic-1", host.key_id, actor="operator")  # once is enough
    other = await server.enrolled("ws-02")
    await server.deliver(other, other.next())
    leaves = await server.services.store.for_sites({"clinic-1"}).leaves("clinic-1", 2026, 0, 99)
    said = [(leaf["kind"], leaf.get("event"), leaf.get("key")) for leaf in map(json.loads, leaves)]
    assert said == [
        ("shard", None, None),
        ("key", "enrol", host.key_id),
        ("bundle", None, host.key_id),
        ("key", "revoke", host.key_id),
        ("key", "enrol", other.key_id),
        ("bundle", None, other.key_id),
    ]
    assert not any(b"ws-0" in leaf for leaf in leaves)  # no machine's name


async def test_a_fork_is_a_leaf_with_both_digests(server: Server) -> None:
    host = await server.enrolled()
    twin = FakeHost(key=host.key, api_key=host.api_key, now=host.now)
    held, seen = host.next(), twin.next()
    await server.deliver(host, held)
    assert (await server.deliver(twin, seen)).status_code == 409
    assert (await server.deliver(twin, seen)).status_code == 409  # said once
    await server.deliver(host, host.next())
    leaves = [
        json.loads(leaf) for leaf in await server.services.store.for_sites({"clinic-1"}).leaves("clinic-1", 2026, 0, 99)
    ]
    assert [leaf["kind"] for leaf in leaves] == ["shard", "key", "bundle", "fork", "bundle"]
    assert (leaves[3]["held"], leaves[3]["seen"]) == (held.sha256, seen.sha256)
