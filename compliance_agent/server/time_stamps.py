"""Time stamps of a third party over checkpoints (RFC 3161): asked for, and believed only when they verify.

The chain must end in the one authority that was configured, and the nonce and digest must be those that were sent. What is kept is
the answer as it came: `openssl ts -verify -data <checkpoint> -in <answer> -CAfile <authority>` says the same years later.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from compliance_agent.adapters.durable import read_file
from compliance_agent.errors import AgentError, BadReply, ConfigError
from compliance_agent.ports import Transport

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

MAX_TOKEN_BYTES = 16_384
MAX_PEM_BYTES = 65_536
_ASK = {"content-type": "application/timestamp-query", "accept": "application/timestamp-reply"}


class TimeStamps:
    """One time-stamping authority.

    Args:
        transport: the way to it.
        path: what is asked there.
        ca_file: PEM with the root that its answers must chain to, and intermediates if there are any.

    Raises:
        ConfigError: `ca_file` holds no certificate.
    """

    def __init__(self, transport: Transport, path: str, ca_file: Path) -> None:
        self._transport = transport
        self._path = path
        self.ca_pem = _read(ca_file)
        self._certificates = _certificates(self.ca_pem, ca_file)

    async def close(self) -> None:
        """Let go of the connection."""
        await self._transport.close()

    async def stamp(self, note: bytes, deadline_s: float) -> tuple[bytes, datetime]:
        """The authority's answer over exactly these bytes, and the time it says.

        Raises:
            Unavailable, BadReply: no answer, or one that is not a granted token for this very request under the configured root.
        """
        from rfc3161_client import HashAlgorithm, TimestampRequestBuilder

        asked = TimestampRequestBuilder().data(note).hash_algorithm(HashAlgorithm.SHA256).build()
        reply = await self._transport.request(
            "POST", self._path, headers=_ASK, body=asked.as_bytes(), timeout_s=deadline_s
        )
        if reply.status != 200 or len(reply.body) > MAX_TOKEN_BYTES:
            raise BadReply(f"time stamp: status {reply.status}, {len(reply.body)} bytes", code="bad_time_stamp")
        return reply.body, verified(reply.body, note, self._certificates, nonce=asked.nonce)

    def said(self, token: bytes, note: bytes) -> datetime:
        """The time of a token of long ago over these bytes; BadReply when it does not verify under the configured root."""
        return verified(token, note, self._certificates)


def verified(token: bytes, note: bytes, certificates: Sequence[Certificate], *, nonce: int | None = None) -> datetime:
    """The time of a token that verifies over these bytes.

    Args:
        token: the answer (DER TimeStampResp).
        note: what it must be over.
        certificates: the root first, then intermediates.
        nonce: of the request, where it is known.

    Raises:
        BadReply: code `bad_time_stamp`.
    """
    from rfc3161_client import VerificationError, VerifierBuilder, decode_timestamp_response

    try:
        decoded = decode_timestamp_response(token)
        builder = VerifierBuilder(roots=[*certificates[:1]], intermediates=[*certificates[1:]], nonce=nonce)
        builder.build().verify_message(decoded, note)
        return decoded.tst_info.gen_time
    except (VerificationError, ValueError) as error:
        raise BadReply("time stamp: does not verify over this checkpoint", code="bad_time_stamp") from error


def _read(path: Path) -> bytes:
    try:
        return read_file(path, limit_bytes=MAX_PEM_BYTES)
    except AgentError as error:
        raise ConfigError(f"tsa_ca_file {error}", hint=error.hint) from error


def _certificates(pem: bytes, path: Path) -> list[Certificate]:
    from cryptography.x509 import load_pem_x509_certificates

    try:
        return load_pem_x509_certificates(pem)
    except ValueError as error:
        raise ConfigError(f"tsa_ca_file {path}: holds no certificate in PEM") from error
