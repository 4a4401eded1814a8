"""Asks a TLS service on loopback in this process, and says only what is in order; `openssl` is asked about all else (adr/0027).

Blocks, for at most its whole deadline: the caller has a thread for it. What a service may send is bounded.
"""

from __future__ import annotations

import socket
import ssl
import time

from compliance_agent.errors import CannotTell

MOST_BYTES = 262_144  # of one service's handshake; a chain of ten certificates has some 20,000
_BEFORE = {"1.2": ssl.TLSVersion.TLSv1_1, "1.3": ssl.TLSVersion.TLSv1_2}
_ALERT = "_ALERT_"  # in OpenSSL's name of an alert that came: the other side's own word, and none of ours


def sound_certificate(port: int, name: str, ca_file: str, oldest: str, timeout_s: float) -> bytes | None:
    """What `Host.sound_tls` gives.

    Raises:
        CannotTell: `timed_out`; the service took the connection and does not go on.
    """
    if name.rpartition(".")[
        2
    ].isdigit():  # an address would be held against other fields of a certificate than openssl's
        return None
    until = time.monotonic() + timeout_s
    try:
        certificate = _handshake(_verifying(ca_file), port, name, until)
        if certificate is None or not _refuses(port, name, oldest, until):
            return None
        return ssl.DER_cert_to_PEM_cert(certificate).encode("ascii")
    except TimeoutError as error:
        raise CannotTell("timed_out", f"port {port}: no TLS handshake within {timeout_s:g} s") from error
    except (OSError, ValueError):  # of ssl too: not trusted, not reached, or not to be asked from here
        return None


def _verifying(ca_file: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # which verifies the chain and the name
    context.load_verify_locations(cafile=ca_file)
    return context


def _refuses(port: int, name: str, oldest: str, until: float) -> bool:
    """Whether the service itself says that it does not take the version before `oldest`, whatever the ciphers.

    No, where this side's OpenSSL cannot offer it: then nobody was asked.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # whose certificate it shows is not asked here
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = _BEFORE[oldest]
    try:
        _handshake(context, port, name, until)
    except ssl.SSLError as error:
        return _ALERT in (error.reason or "")
    return False


def _handshake(context: ssl.SSLContext, port: int, name: str, until: float) -> bytes | None:
    """The certificate (DER) that the service showed; it gets nothing but the handshake.

    Raises:
        OSError: of ssl, or of the connection; TimeoutError after `until`.
    """
    received, sent = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls, total = context.wrap_bio(received, sent, server_hostname=name), 0
    with socket.create_connection(("127.0.0.1", port), timeout=_left(until)) as connection:
        while True:
            try:
                tls.do_handshake()
                done = True
            except ssl.SSLWantReadError:
                done = False
            if piece := sent.read():
                connection.settimeout(_left(until))
                connection.sendall(piece)
            if done:
                return tls.getpeercert(binary_form=True)
            connection.settimeout(_left(until))
            said = connection.recv(65_536)
            total += len(said)
            if not said or total > MOST_BYTES:
                raise ConnectionError
            received.write(said)


def _left(until: float) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
