"""Enrolment from the host's side: a token is read and never shown, the proof is bound to it, and nothing is believed on sight."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import ssl
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compliance_agent.crypto import Ed25519Signer
from compliance_agent.enrolment import enrol, parse_token, pin_authority, read_token, save
from compliance_agent.errors import BadReply, ConfigError, ServerRefused, StorageError, Unavailable
from compliance_agent.lab.server import FakeServer, Fault
from compliance_agent.ports import HttpReply
from compliance_agent.transport import protocol
from tests.transport.peer import Authority

pytestmark = pytest.mark.anyio
GOOD: dict[str, Any] = {"v": 1, "site": "clinic-1", "exp": 4_000_000_000, "secret": "ab" * 16, "ca_sha256": None}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def signer(tmp_path: Path) -> Ed25519Signer:
    return Ed25519Signer(tmp_path / "key.pem")


def token(**changes: Any) -> str:
    raw = json.dumps({**GOOD, **changes}, sort_keys=True, separators=(",", ":")).encode()
    return "cae1." + base64.urlsafe_b64encode(raw).decode().rstrip("=")


def test_a_token_says_site_expiry_and_authority_and_hides_the_rest() -> None:
    found = parse_token(token(ca_sha256="cd" * 32))
    assert (found.site, found.ca_sha256, found.expires_at.year) == ("clinic-1", "cd" * 32, 2096)
    assert "abab" not in repr(found) + str(found) and found.text not in repr(found)


BAD: list[str] = [
    "", "cae1.", "cae2." + token()[5:], token()[5:], token() + "=", token()[:-4], "cae1.!!!!", "cae1." + "A" * 5_000,
    token(v=2), token(v=True), token(site="../up"), token(site=""), token(site=7), token(exp=0), token(exp=-1),
    token(exp=2**33), token(exp="4000000000"), token(exp=True), token(secret=""), token(secret="short"),
    token(secret="ZZ" * 16), token(ca_sha256=""), token(ca_sha256="cd" * 31), token(ca_sha256=7),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(BAD)))
def test_what_is_no_token_is_refused_without_showing_it(tmp_path: Path, number: int) -> None:
    path = tmp_path / "token"
    path.write_text(BAD[number])
    path.chmod(0o600)
    with pytest.raises(ConfigError) as refused:
        read_token(path)
    assert "\n" not in refused.value.line and "abab" not in refused.value.line
    assert len(BAD[number]) < 8 or BAD[number][8:] not in refused.value.line


@given(st.text(max_size=200))
def test_no_text_raises_anything_but_a_refusal(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_token("cae1." + text)


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"\xef\xbb\xbf" + token().encode(), token().encode("utf-16"), b"x" * 100_000]
)
def test_a_token_file_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="token"):
        read_token(path)


def test_a_token_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(token() + "\n")
    path.chmod(0o600)
    assert read_token(path).site == "clinic-1"
    for mode in (0o640, 0o604, 0o666):
        path.chmod(mode)
        with pytest.raises(ConfigError) as refused:
            read_token(path)
        assert "chmod" in refused.value.line
    with pytest.raises(ConfigError):
        read_token(tmp_path / "none")


async def test_a_host_is_enrolled_once_and_a_lost_answer_is_given_again(signer: Ed25519Signer) -> None:
    server = FakeServer()
    one = parse_token(server.new_token())
    server.faults.extend([Fault.NONE, Fault.LOSE_REPLY])
    with pytest.raises(Unavailable):
        await enrol(server, signer, one, "srv-1")
    enrolled = await enrol(server, signer, one, "srv-1")
    assert (enrolled.site_id, enrolled.host_id, enrolled.key_id) == ("clinic-1", "srv-1", signer.key_id)
    assert enrolled.server_key == server.public and len(server.chains) == 1


async def test_a_token_is_good_for_one_host(signer: Ed25519Signer, tmp_path: Path) -> None:
    server = FakeServer()
    one = parse_token(server.new_token())
    await enrol(server, signer, one, "srv-1")
    with pytest.raises(ServerRefused) as refused:
        await enrol(server, Ed25519Signer(tmp_path / "other.pem"), one, "srv-2")
    assert refused.value.code == "token_refused"
    with pytest.raises(ServerRefused):
        await enrol(server, signer, parse_token(token()), "srv-1")


class Edited(FakeServer):
    """Changes one field of its answer to enrolment."""

    def __init__(self, **changes: Any) -> None:
        super().__init__()
        self.changes = changes

    def _enrol(self, request: dict[str, Any]) -> HttpReply:
        reply = super()._enrol(request)
        return HttpReply(reply.status, reply.headers, json.dumps({**json.loads(reply.body), **self.changes}).encode())


WEAK = base64.b64encode(b"\x01" + bytes(31)).decode()


@pytest.mark.parametrize(
    "changes",
    [
        {"site_id": "clinic-2"}, {"key_id": "ab" * 32}, {"server_key": WEAK}, {"server_key": ""}, {"api_key": ""},
        {"api_key": "a b"}, {"api_key": "a\r\nX: y"}, {"host_id": "../up"}, {"client_id": "a b"}, {"client_id": None},
        {"api_key": "x" * 257},
    ],
)  # fmt: skip
async def test_an_answer_that_does_not_fit_is_not_believed(signer: Ed25519Signer, changes: dict[str, Any]) -> None:
    server = Edited(**changes)
    with pytest.raises(BadReply):
        await enrol(server, signer, parse_token(server.new_token()), "srv-1")


def test_what_enrolment_gave_is_written_for_the_agent_alone(tmp_path: Path) -> None:
    from compliance_agent.transport.protocol import Enrolled

    enrolled = Enrolled("c", "s", "h", "k", "cak1.secret", b"k" * 32, "server")
    api_key, server_key = tmp_path / "keys" / "api-key", tmp_path / "keys" / "server-key"
    save(enrolled, api_key, server_key)
    assert (api_key.read_text(), server_key.read_text()) == ("cak1.secret\n", (b"k" * 32).hex() + "\n")
    assert {path.stat().st_mode & 0o777 for path in (api_key, server_key)} == {0o600}
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        save(enrolled, tmp_path / "file" / "api-key", tmp_path / "file" / "server-key")


def enrolled_with(log_key: bytes | None) -> protocol.Enrolled:
    return protocol.Enrolled("msp-1", "clinic-1", "srv-1", "ab" * 32, "cak1.secret", b"k" * 32, "fake", log_key)


async def test_the_key_of_the_log_is_pinned_beside_the_servers(tmp_path: Path, signer: Ed25519Signer) -> None:
    server = FakeServer()
    enrolled = await enrol(server, signer, parse_token(server.new_token()), "srv-1")
    assert server.log is not None and enrolled.log_key == server.log.public
    save(enrolled, tmp_path / "api-key", tmp_path / "server-key")
    assert (tmp_path / "log-key").read_text() == server.log.public.hex() + "\nfake\n"
    save(enrolled, tmp_path / "api-key", tmp_path / "server-key", tmp_path / "elsewhere" / "log")
    assert (tmp_path / "elsewhere" / "log").read_text() == server.log.public.hex() + "\nfake\n"


def test_an_older_server_leaves_no_log_key_behind(tmp_path: Path) -> None:
    for key in (b"l" * 32, None, None):
        save(enrolled_with(key), tmp_path / "api-key", tmp_path / "server-key")
        assert (tmp_path / "log-key").exists() is (key is not None)
    spoken = dataclasses.replace(enrolled_with(b"l" * 32), server_name="Acme MSP")
    save(spoken, tmp_path / "api-key", tmp_path / "server-key")
    assert (tmp_path / "log-key").read_text() == (b"l" * 32).hex() + "\n", "a name that begins no origin"
    assert (tmp_path / "api-key").read_text() == "cak1.secret\n"


async def test_a_weak_log_key_is_refused(signer: Ed25519Signer, monkeypatch: pytest.MonkeyPatch) -> None:
    server = FakeServer()
    monkeypatch.setattr(type(server.log), "public", bytes([1]) + bytes(31))
    with pytest.raises(BadReply) as refused:
        await enrol(server, signer, parse_token(server.new_token()), "srv-1")
    assert refused.value.code == "weak_key"


async def test_an_authority_is_kept_only_when_the_token_vouches_for_it(tmp_path: Path) -> None:
    server = FakeServer()
    real, impostor = Authority(tmp_path, "real"), Authority(tmp_path, "impostor")
    server.authority = real.pem.read_bytes()
    digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(real.pem.read_text())).hexdigest()
    path = tmp_path / "pinned" / "ca.pem"
    await pin_authority(server, digest, path)
    assert ssl.PEM_cert_to_DER_cert(path.read_text()) == ssl.PEM_cert_to_DER_cert(real.pem.read_text())
    path.unlink()
    for shown in (impostor.pem.read_bytes(), b"", b"no certificate", b"\xff"):
        server.authority = shown
        with pytest.raises(BadReply):
            await pin_authority(server, digest, path)
    server.authority = real.pem.read_bytes()
    server.faults.append(Fault.refuse(404, "not_found"))
    with pytest.raises(BadReply):
        await pin_authority(server, digest, path)
    assert not path.exists()
