"""TLS 1.3 under the pinned authority with the name checked, or not a byte of the request leaves."""

from __future__ import annotations

import asyncio
import ssl
import time
from pathlib import Path

import pytest

from compliance_agent.errors import ConfigError, Unavailable
from compliance_agent.transport.http import HttpTransport
from tests.transport.peer import Authority, Talk, answering, peer

pytestmark = pytest.mark.anyio
GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


async def asked(
    context: ssl.SSLContext | None, ca_file: Path | None, *, timeout_s: float = 5.0
) -> tuple[str, list[bytes]]:
    """What became of one request (`200` or the code of the refusal), and what the server read of it."""
    async with peer(answering(GOOD), context) as known:
        transport = HttpTransport(f"https://localhost:{known.port}", ca_file=ca_file, connect_timeout_s=5)
        try:
            reply = await transport.request(
                "POST", "/secret", headers={"authorization": "Bearer k"}, timeout_s=timeout_s
            )
            return str(reply.status), known.requests
        except Unavailable as error:
            return error.code, known.requests
        finally:
            await transport.close()


async def test_the_pinned_authority_is_believed(authority: Authority) -> None:
    assert (await asked(authority.server(), authority.pem))[0] == "200"


async def test_every_wrong_certificate_is_refused_before_a_byte_is_sent(authority: Authority, tmp_path: Path) -> None:
    other = Authority(tmp_path, "another authority")
    impostor = Authority(tmp_path, "test authority ")
    impostor.name = authority.name
    cases = {
        "expired": (authority.server(expired=True), authority.pem),
        "not yet valid": (authority.server(future=True), authority.pem),
        "another name": (authority.server("other.example"), authority.pem),
        "wildcard of nothing": (authority.server("*"), authority.pem),
        "self-signed": (authority.self_signed(), authority.pem),
        "another authority": (other.server(), authority.pem),
        "an authority of the same name": (impostor.server(), authority.pem),
        "the system's store, which does not know it": (authority.server(), None),
    }
    for name, (context, ca_file) in cases.items():
        code, read = await asked(context, ca_file)
        assert (code, read) == ("bad_certificate", []), name


async def test_the_system_store_is_not_asked_when_an_authority_is_pinned(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Authority(tmp_path, "another authority")
    monkeypatch.setenv("SSL_CERT_FILE", str(other.pem))
    assert (await asked(other.server(), None))[0] == "200", "the planted system store works"
    assert (await asked(other.server(), authority.pem))[0] == "bad_certificate"


async def test_an_answer_of_many_records_and_pieces_is_whole(authority: Authority) -> None:
    body = bytes(range(256)) * 4_000
    said = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body

    async def script(talk: Talk) -> None:
        await talk.request()
        for start in range(0, len(said), 7_001):
            await talk.say(said[start : start + 7_001])
        await talk.request()

    async with peer(script, authority.server()) as known:
        transport = HttpTransport(f"https://localhost:{known.port}", ca_file=authority.pem)
        assert (await transport.request("GET", "/")).body == body
        await transport.close()


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2])
async def test_nothing_older_than_tls_1_3_is_spoken(authority: Authority, newest: ssl.TLSVersion) -> None:
    context = authority.server()
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = newest
    context.set_ciphers("ALL:@SECLEVEL=0")
    code, read = await asked(context, authority.pem)
    assert code in {"tls_failed", "no_connection"} and read == []


async def test_a_server_without_tls_gets_nothing(authority: Authority) -> None:
    code, read = await asked(None, authority.pem, timeout_s=0.5)
    assert code != "200" and read == []


@pytest.mark.parametrize(
    "greeting", [b"", b"\x16", b"\x16\x03\x03\x00\x05hello", b"HTTP/1.1 200 OK\r\n\r\n", b"\x00" * 70_000]
)
async def test_a_handshake_that_is_cut_or_garbage_is_refused(authority: Authority, greeting: bytes) -> None:
    async def script(talk: Talk) -> None:
        await talk.reader.read(100)
        await talk.say(greeting)
        talk.cut()

    async with peer(script) as known:
        transport = HttpTransport(f"https://localhost:{known.port}", ca_file=authority.pem, connect_timeout_s=5)
        with pytest.raises(Unavailable):
            await transport.request("POST", "/secret", timeout_s=5)


async def test_a_handshake_that_never_ends_is_given_up(authority: Authority) -> None:
    async def script(talk: Talk) -> None:
        await asyncio.Event().wait()

    async with peer(script) as known:
        transport = HttpTransport(f"https://localhost:{known.port}", ca_file=authority.pem, connect_timeout_s=0.3)
        began = time.monotonic()
        with pytest.raises(Unavailable):
            await transport.request("POST", "/secret", timeout_s=5)
        assert time.monotonic() - began < 2


async def test_only_the_fetching_of_an_authority_believes_anybody(authority: Authority) -> None:
    async with peer(answering(GOOD), authority.self_signed()) as known:
        transport = HttpTransport(f"https://localhost:{known.port}", unverified=True)
        assert (await transport.request("GET", "/ca.pem")).status == 200
        await transport.close()


@pytest.mark.parametrize(
    "content", [None, b"", b"no certificate", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_a_certificate_file_that_is_none_is_a_configuration_error(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match="mcp_ca_file"):
        HttpTransport("https://localhost", ca_file=path)
