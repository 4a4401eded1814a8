"""Enrolment (RELIABILITY 3.3): one token makes one host, a live host is never replaced, and nothing is told without a proof."""

from __future__ import annotations

import asyncio
import base64
import dataclasses

import pytest
from nacl.signing import SigningKey

from compliance_agent.errors import Refusal
from compliance_agent.server.services.chain import expected
from compliance_agent.server.services.secrets import hashed
from compliance_agent.server.services.verification import Verifier
from compliance_agent.server.store import tables
from compliance_agent.server.store.transaction import BoundTransaction
from tests.server.builder import FakeHost, Server, b64, serving

pytestmark = pytest.mark.anyio
SMALL_ORDER = b"\x01" + b"\0" * 31
SIGNS_EVERYTHING = b"\x01" + b"\0" * 63


async def hosts_of(server: Server, site: str = "clinic-1") -> list[str]:
    return [host.key_id for host in await server.services.store.for_sites({site}).hosts()]


async def test_a_token_makes_a_host(server: Server) -> None:
    host = FakeHost()
    reply = await server.try_enrol(host, await server.token())
    assert reply.status_code == 201
    answer = reply.json()
    assert (answer["site_id"], answer["client_id"], answer["host_id"]) == ("clinic-1", "msp", "ws-01")
    assert (answer["key_id"], answer["server_name"]) == (host.key_id, "compliance-server")
    assert base64.b64decode(answer["server_key"]) == server.services.ack_public_key
    assert await hosts_of(server) == [host.key_id]


async def test_a_token_in_fifty_hands_makes_one_host(server: Server) -> None:
    token = await server.token()
    hosts = [FakeHost(f"ws-{number}") for number in range(50)]
    replies = await asyncio.gather(*(server.try_enrol(host, token) for host in hosts))
    codes = sorted(reply.json().get("code", str(reply.status_code)) for reply in replies)
    assert codes == ["201", *["token_used"] * 49]
    assert len(await hosts_of(server)) == 1


async def test_a_redemption_that_forgets_to_look_is_caught(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    real = BoundTransaction.token

    async def always_new(self: BoundTransaction, token_hash: str) -> object:
        found = await real(self, token_hash)
        return found and dataclasses.replace(found, used_at=None, used_by=None)

    monkeypatch.setattr(BoundTransaction, "token", always_new)
    with pytest.raises(AssertionError):
        await test_a_token_in_fifty_hands_makes_one_host(server)


async def test_an_answer_that_was_lost_is_given_again_to_the_same_key(server: Server) -> None:
    """The retry works with a new API key, the lost one is dead, and there is one host."""
    host, token = FakeHost(), await server.token()
    lost = (await server.try_enrol(host, token)).json()["api_key"]
    again = await server.try_enrol(host, token)
    assert again.status_code == 201
    assert await hosts_of(server) == [host.key_id]
    for api_key, status in ((lost, 401), (again.json()["api_key"], 200)):
        host.api_key = api_key
        assert (await server.checkin(host)).status_code == status


async def test_a_revoked_host_gives_its_label_free_and_not_its_key(server: Server) -> None:
    host = await server.enrolled()
    await server.services.enrolment.revoke("clinic-1", host.key_id, actor="test")
    assert (await server.try_enrol(host, await server.token())).json()["code"] == "key_known"
    assert (await server.try_enrol(FakeHost(host.host_id), await server.token())).status_code == 201


async def test_a_token_ends(server: Server) -> None:
    token = await server.token(hours=1)
    server.clock.move(3_601)
    assert (await server.try_enrol(FakeHost(), token)).json()["code"] == "token_expired"
    assert (await server.try_enrol(FakeHost(), token[:-1] + "A")).json()["code"] == "token_unknown"
    with pytest.raises(Refusal, match="7 days"):
        await server.token(hours=24 * 8)


async def test_a_proof_must_be_of_this_key_nonce_and_token(server: Server) -> None:
    host, token, other = FakeHost(), await server.token(), await server.token()
    stranger = FakeHost()
    for changes in (
        {"proof": b64(b"\0" * 64)},
        {"token": other},
        {"nonce": b64(b"\1" * 32)},
        {"public_key": b64(stranger.public)},
    ):
        reply = await server.try_enrol(host, token, **changes)
        assert (reply.status_code, reply.json()["code"]) == (403, "bad_proof")
    assert await hosts_of(server) == []


async def test_a_verifier_that_takes_every_proof_is_caught(tmp_path_factory: pytest.TempPathFactory) -> None:
    careless = Verifier(verify=lambda _key, _sig, _message: True)
    async with serving(tmp_path_factory.mktemp("planted") / "data", verifier=careless) as server:
        with pytest.raises((AssertionError, KeyError)):
            await test_a_proof_must_be_of_this_key_nonce_and_token(server)


async def test_a_nonce_works_once_for_its_key_within_five_minutes(server: Server) -> None:
    token, nonce = await server.token(), await server.services.enrolment.challenge(FakeHost().public)
    host = FakeHost()
    stolen = await server.try_enrol(host, token, nonce=b64(nonce), proof=b64(host.proof(nonce, token)))
    assert stolen.json()["code"] == "bad_nonce"
    nonce = await server.services.enrolment.challenge(host.public)
    server.clock.move(301)
    late = await server.try_enrol(host, token, nonce=b64(nonce), proof=b64(host.proof(nonce, token)))
    assert late.json()["code"] == "bad_nonce"


async def test_a_key_that_signs_everything_is_refused(server: Server) -> None:
    """EVIDENCE 2.5: one signature of this key "verifies" for every message in OpenSSL."""
    reply = await server.post("/api/v1/enrol/challenge", {"protocol": 1, "public_key": b64(SMALL_ORDER)})
    assert (reply.status_code, reply.json()["code"]) == (422, "weak_key")
    assert not server.services.verifier.verify(SMALL_ORDER, SIGNS_EVERYTHING, b"anything")


async def test_challenges_cannot_fill_the_disk(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compliance_agent.server.services.enrol.MOST_NONCES", 3)
    body = {"protocol": 1, "public_key": b64(FakeHost().public)}
    statuses = [(await server.post("/api/v1/enrol/challenge", body)).status_code for _ in range(5)]
    assert statuses == [200, 200, 200, 429, 429]
    server.clock.move(301)
    assert (await server.post("/api/v1/enrol/challenge", body)).status_code == 200


async def test_no_secret_is_kept(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    """E10: the token and the API key are in no file of the data directory and in no log line."""
    token, host = await server.token(), FakeHost(key=SigningKey.generate())
    api_key = (await server.try_enrol(host, token)).json()["api_key"]
    directory = server.services.settings.data_dir
    rows = [row for table in tables.metadata.tables for row in await server.by_hand(f"SELECT * FROM {table}")]
    assert any(hashed(api_key) in row for row in rows)
    kept = b"".join(path.read_bytes() for path in directory.rglob("*") if path.is_file()) + repr(rows).encode()
    said = "".join(capsys.readouterr())
    for secret in (token, token.removeprefix("cae1."), api_key, api_key.removeprefix("cak1.")):
        assert secret.encode() not in kept
        assert secret not in said


async def test_a_new_host_is_expected_at_its_beginning(server: Server) -> None:
    host = await server.enrolled()
    found = await server.services.store.for_sites({"clinic-1"}).host(host.key_id)
    assert found is not None and expected(found.head)["seq"] == 1
