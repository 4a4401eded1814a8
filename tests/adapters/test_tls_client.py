"""A TLS service asked in this process: a certificate where all is in order, nothing for every fault, and bounded in all."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from compliance_agent.adapters import tls_client
from compliance_agent.adapters.tls_client import MOST_BYTES, sound_certificate
from compliance_agent.errors import CannotTell
from tests.checks.test_transmission import NAME, Authority, serving

OLD = ("-min_protocol", "TLSv1", "-cipher", "ALL:@SECLEVEL=0")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    made = Authority(tmp_path)
    made.put(made.make(NAME, made.root, days=60.5))
    return made


def ask(authority: Authority, port: int, name: str = NAME, oldest: str = "1.2", timeout_s: float = 5.0) -> bytes | None:
    return sound_certificate(port, name, str(authority.directory / "ca.pem"), oldest, timeout_s)


def test_a_service_in_order_gives_the_certificate_that_it_shows(authority: Authority) -> None:
    with serving(authority) as port:
        assert ask(authority, port) == (authority.directory / "leaf.pem").read_bytes()
        assert ask(authority, port, oldest="1.3") is None, "it takes TLS 1.2"
    with serving(authority, "-min_protocol", "TLSv1.3") as port:
        assert ask(authority, port, oldest="1.3") is not None


@pytest.mark.parametrize("name", ["other.example", "127.0.0.1", "a..b"])
def test_another_name_is_not_in_order(authority: Authority, name: str) -> None:
    with serving(authority) as port:
        assert ask(authority, port, name) is None


def ended(authority: Authority) -> None:
    authority.put(authority.make(NAME, authority.root, days=-1.5))


def by_itself(authority: Authority) -> None:
    authority.put(authority.make(NAME, None, days=60.5))


def ended_above(authority: Authority) -> None:
    middle = authority.make("Middle", authority.root, days=-2, authority=True)
    authority.put(authority.make(NAME, middle, days=60.5), middle[1])


@pytest.mark.parametrize("fault", [ended, by_itself, ended_above])
def test_a_chain_that_does_not_verify_is_not_in_order(authority: Authority, fault: Callable[[Authority], None]) -> None:
    fault(authority)
    with serving(authority) as port:
        assert ask(authority, port) is None


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.SSLv3 is deprecated")
def test_an_old_version_is_not_in_order_nor_one_that_cannot_be_offered(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(authority, *OLD) as port:
        assert ask(authority, port) is None
        monkeypatch.setitem(tls_client._BEFORE, "1.2", ssl.TLSVersion.SSLv3)  # as this side's OpenSSL cannot
        assert ask(authority, port) is None


def test_no_authority_and_nobody_there_are_nothing(authority: Authority) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and nobody listens
        assert ask(authority, closed.getsockname()[1]) is None
    with serving(authority) as port:
        (authority.directory / "ca.pem").write_text("none")
        assert ask(authority, port) is None


@contextlib.contextmanager
def peer(talk: Callable[[socket.socket], None]) -> Iterator[int]:
    """One that does this with its first connection."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        listening.settimeout(10)

        def serve() -> None:
            connection, _ = listening.accept()
            with connection, contextlib.suppress(OSError):
                talk(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            thread.join(10)


def test_a_peer_that_drips_is_given_up_at_the_whole_deadline(authority: Authority) -> None:
    over = threading.Event()

    def drip(connection: socket.socket) -> None:
        for byte in b"\x16\x03\x03\x40\x00" + bytes(16_000):
            if over.wait(0.02):
                return
            connection.sendall(bytes([byte]))

    with peer(drip) as port:
        began = time.monotonic()
        with pytest.raises(CannotTell) as given_up:
            ask(authority, port, timeout_s=0.3)
        over.set()
    assert given_up.value.reason == "timed_out" and time.monotonic() - began < 5


@pytest.mark.parametrize(
    "said", [b"", b"SSH-2.0-x\r\n", b"\x15\x03\x03\x00\x02\x02\x46", b"\x16\x03\x03\x40\x00" + b"\x0b\xff" * 9_000]
)
def test_another_protocol_and_garbage_are_nothing(authority: Authority, said: bytes) -> None:
    def say(connection: socket.socket) -> None:
        connection.recv(65_536)
        connection.sendall(said)

    with peer(say) as port:
        assert ask(authority, port) is None


def test_a_peer_without_end_is_cut(authority: Authority) -> None:
    """Lawful records of handshake messages that OpenSSL passes over, one after the other."""
    sent = list[int]()

    def flood(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while sum(sent) < 100 * MOST_BYTES:
                sent.append(connection.send(b"\x16\x03\x03\x00\x04\x00\x00\x00\x00" * 1_000))  # HelloRequest

    with peer(flood) as port:
        assert ask(authority, port) is None
    assert sum(sent) < 100 * MOST_BYTES
