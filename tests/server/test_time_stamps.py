"""Time stamps over checkpoints: what openssl grants is taken and verifies with openssl; anything else stops nothing."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.x509 import load_pem_x509_certificates

from compliance_agent.errors import BadReply, ConfigError
from compliance_agent.server.settings import ServerSettings
from compliance_agent.server.time_stamps import MAX_TOKEN_BYTES, TimeStamps, verified
from compliance_agent.transport.http import HttpTransport
from tests.server.authority import Authority, made, openssl, stamping
from tests.server.builder import Server, serving

pytestmark = pytest.mark.anyio
NOTE = b"compliance-server/clinic-1/2026\n3\nAAAA\n\nline\n"


@pytest.fixture
def authority(tmp_path: Path) -> Iterator[Authority]:
    with stamping(tmp_path / "tsa") as found:
        yield found


async def stamp(authority: Authority, ca_file: Path | None = None) -> bytes:
    transport = HttpTransport(authority.url.removesuffix("/tsr"))
    try:
        token, _ = await TimeStamps(transport, "/tsr", ca_file or authority.ca_file).stamp(NOTE, 10)
    finally:
        await transport.close()
    return token


async def test_a_token_verifies_here_and_with_openssl(authority: Authority, tmp_path: Path) -> None:
    token = await stamp(authority)
    (tmp_path / "note").write_bytes(NOTE)
    (tmp_path / "note.tsr").write_bytes(token)
    argv = ["ts", "-verify", "-data", "note", "-in", "note.tsr", "-CAfile", str(authority.ca_file)]
    assert "Verification: OK" in openssl(tmp_path, *argv)
    certificates = load_pem_x509_certificates(authority.ca_file.read_bytes())
    verified(token, NOTE, certificates)
    with pytest.raises(BadReply, match="does not verify"):
        verified(token, NOTE + b"x", certificates)
    flipped = bytearray(token)
    flipped[-20] ^= 1
    with pytest.raises(BadReply, match="does not verify"):
        verified(bytes(flipped), NOTE, certificates)


async def test_a_token_of_another_authority_is_refused(authority: Authority, tmp_path: Path) -> None:
    other = made(tmp_path / "other")
    with pytest.raises(BadReply, match="does not verify"):
        await stamp(authority, other.ca_file)


async def test_an_old_answer_is_not_taken_for_a_new_one(authority: Authority) -> None:
    """Same bytes, another nonce: a replay."""
    authority.answer = (200, await stamp(authority))
    with pytest.raises(BadReply, match="does not verify"):
        await stamp(authority)


@pytest.mark.parametrize(
    "answer", [(500, b""), (200, b""), (200, b"\x30\x03\x02\x01\x00"), (200, b"A" * (MAX_TOKEN_BYTES + 1))]
)
async def test_what_is_no_token_is_refused(authority: Authority, answer: tuple[int, bytes]) -> None:
    authority.answer = answer
    with pytest.raises(BadReply) as refused:
        await stamp(authority)
    assert refused.value.code == "bad_time_stamp"


async def entries(server: Server) -> list[dict[str, Any]]:
    for _ in range(20):
        await server.services.sequencer.round()
        assert server.services.cosigning is not None
        await server.services.cosigning.settled()
        if not await server.services.store.for_sites({"clinic-1"}).any_pending():
            break
    found = await server.services.store.for_sites({"clinic-1"}).leaves("clinic-1", 2026, 0, 1_000)
    return [leaf for leaf in map(json.loads, found) if leaf["kind"] == "time"]


async def test_a_server_writes_them_into_its_log_without_any_witness(authority: Authority, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"tsa_url": authority.url, "tsa_ca_file": authority.ca_file}
    async with serving(tmp_path / "data", **settings) as server:
        host = await server.enrolled()
        await server.deliver(host, host.next())
        (entry,) = await entries(server)
        note, (token,) = base64.b64decode(entry["checkpoint"]), map(base64.b64decode, entry["tokens"])
        (tmp_path / "note").write_bytes(note)
        (tmp_path / "token").write_bytes(token)
        ca = str(tmp_path / "data/keys/tsa-ca.pem")
        openssl(tmp_path, "ts", "-verify", "-data", "note", "-in", "token", "-CAfile", ca)
        assert server.services.board.stamped_at is not None
        await server.deliver(host, host.next())
        await entries(server)
        assert authority.asked == 1, "one an hour"


async def test_an_authority_that_fails_is_said_and_asked_again(authority: Authority, tmp_path: Path) -> None:
    authority.answer = (503, b"")
    settings: dict[str, Any] = {"tsa_url": authority.url, "tsa_ca_file": authority.ca_file}
    async with serving(tmp_path / "data", **settings) as server:
        host = await server.enrolled()
        reply = await server.deliver(host, host.next())
        assert reply.json()["receipts"][0] is not None, "receipts do not wait for it"
        assert await entries(server) == []
        assert server.services.board.stamp_failed == "bad_time_stamp"
        authority.answer = None
        server.clock.move(301)
        await server.deliver(host, host.next())
        assert len(await entries(server)) == 1
        assert server.services.board.stamp_failed == ""


@pytest.mark.parametrize(
    "settings",
    [{"tsa_url": "http://t"}, {"tsa_ca_file": Path("/x")}, {"tsa_url": "ftp://t", "tsa_ca_file": Path("/x")},
     {"tsa_url": "http://t", "tsa_ca_file": Path("x")}, {"witness_policy_file": Path("x")}],
)  # fmt: skip
def test_half_a_configuration_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        ServerSettings(**settings)


async def test_a_file_without_a_certificate_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing")
    with pytest.raises(ConfigError, match="tsa_ca_file"):
        async with serving(tmp_path / "data", tsa_url="http://127.0.0.1:9", tsa_ca_file=tmp_path / "ca.pem"):
            raise AssertionError
