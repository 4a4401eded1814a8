"""Enrolment: one one-time token turns a host's own new key into a known host (RELIABILITY 3.3).

The key is made here and never leaves. The token is read from a file or standard input, never from the command line or the
environment. The proof is a signature over the server's nonce and this token. What comes back is written durably before success is
told: the API key (0600) and the server's keys for acknowledgements and for its transparency log, which are pinned from then on.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from compliance_agent.adapters.durable import make_directory, read_file, remove_file, write_file
from compliance_agent.config import LABEL, LOG_KEY_NAME
from compliance_agent.crypto import Ed25519Signer, check_public_key
from compliance_agent.documents import read_json
from compliance_agent.errors import AgentError, BadEvidence, BadReply, ConfigError, DocumentError
from compliance_agent.facts import SHA256
from compliance_agent.ports import Transport
from compliance_agent.transport import protocol

TOKEN_PREFIX = "cae1."  # noqa: S105  the token's version mark
MAX_TOKEN_BYTES = 4_096
_BASE64URL = re.compile(r"[A-Za-z0-9_-]+")
_SECRET = re.compile(r"[0-9a-f]{32,128}")


@dataclass(frozen=True)
class Token:
    """A one-time enrolment token as the operator handed it over.

    Attributes:
        text: the whole line, a secret.
        site: the site a host may be enrolled to with it.
        expires_at: UTC; the server's own clock decides, this is for the message.
        ca_sha256: SHA-256 of the server's certificate authority (DER), or None for a server on this very machine.
        order_root: SHA-256 of the root whose holders say whose orders count, or None where there is none.
    """

    text: str
    site: str
    expires_at: datetime
    ca_sha256: str | None
    order_root: str | None = None

    def __repr__(self) -> str:
        return f"Token(site={self.site!r}, ***)"


def read_token(path: Path, stdin: BinaryIO | None = None) -> Token:
    """The token in a file, or in what `-` stands for.

    Raises:
        ConfigError: absent, readable by others, or not a token; the token itself is never in the message.
    """
    try:
        if stdin is not None and str(path) == "-":
            raw = stdin.read(MAX_TOKEN_BYTES + 1)
        else:
            raw = read_file(path, limit_bytes=MAX_TOKEN_BYTES, secret=True)
    except AgentError as error:
        raise ConfigError(f"token file {error}", hint=error.hint) from error
    try:
        return parse_token(raw.decode("ascii").strip())
    except (UnicodeDecodeError, ConfigError) as error:
        raise ConfigError(
            f"token file {path}: not an enrolment token", hint="compliance-agent server enrol-token --site ID"
        ) from error


def parse_token(text: str) -> Token:
    """A token from its text.

    Raises:
        ConfigError: it is not one.
    """
    problem = ConfigError("not an enrolment token")
    body = text.removeprefix(TOKEN_PREFIX)
    if not text.startswith(TOKEN_PREFIX) or len(text) > MAX_TOKEN_BYTES or not _BASE64URL.fullmatch(body):
        raise problem
    try:
        document = read_json(base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True))
    except (binascii.Error, ValueError, DocumentError) as error:
        raise problem from error
    order_root = document.get("order_root") if isinstance(document, dict) else None
    if order_root is not None and not (isinstance(order_root, str) and SHA256.fullmatch(order_root)):
        raise problem
    match document:
        case {
            "v": int(version),
            "site": str(site),
            "exp": int(expires),
            "secret": str(secret),
            "ca_sha256": (str() | None) as authority,
        } if version is not True and version == 1 and _is_token(site, expires, secret, authority):
            return Token(text, site, datetime.fromtimestamp(expires, UTC), authority, order_root)
    raise problem


def _is_token(site: str, expires: int, secret: str, authority: str | None) -> bool:
    return (
        LABEL.fullmatch(site) is not None
        and type(expires) is int
        and 0 < expires < 2**33
        and _SECRET.fullmatch(secret) is not None
        and (authority is None or SHA256.fullmatch(authority) is not None)
    )


async def enrol(transport: Transport, signer: Ed25519Signer, token: Token, host_id: str) -> protocol.Enrolled:
    """Prove possession of the key and redeem the token.

    Raises:
        ServerRefused: the token is used, expired or of another site, the label is taken, ...
        Unavailable, BadReply: try again; an answer that was lost is given again to the same key.
    """
    headers = protocol.headers(None)
    challenge = await transport.request(
        "POST", "/api/v1/enrol/challenge", headers=headers, body=protocol.challenge_request(signer.public_bytes)
    )
    nonce = protocol.read_challenge_reply(challenge)
    proof = signer.sign(protocol.proof_message(nonce, token.text))
    body = protocol.enrol_request(
        token=token.text, public_key=signer.public_bytes, host_id=host_id, nonce=nonce, proof=proof
    )
    enrolled = protocol.read_enrol_reply(await transport.request("POST", "/api/v1/enrol", headers=headers, body=body))
    if enrolled.key_id != hashlib.sha256(signer.public_bytes).hexdigest():
        raise BadReply("reply to enrolment: it names another key than this host's")
    if enrolled.site_id != token.site:
        raise BadReply("reply to enrolment: it names another site than the token")
    if not all(LABEL.fullmatch(label) for label in (enrolled.client_id, enrolled.host_id)):
        raise BadReply("reply to enrolment: client_id or host_id cannot stand in a configuration")
    try:
        for key in (enrolled.server_key, enrolled.log_key):
            if key is not None:
                check_public_key(key)
    except BadEvidence as error:
        raise BadReply("reply to enrolment: a key of the server is weak", code="weak_key") from error
    return enrolled


async def pin_authority(transport: Transport, ca_sha256: str, path: Path) -> None:
    """Fetch the server's certificate authority over a connection that is not trusted, and keep it if the token vouches for it.

    Args:
        transport: to the server, believing any certificate. Nothing secret is sent over it.
        ca_sha256: of the authority's DER form, from the token.
        path: file to write the authority to (PEM).

    Raises:
        BadReply: what the server showed is not the authority that the token names; nothing was written.
        Unavailable: it could not be fetched.
    """
    reply = await transport.request("GET", "/ca.pem")
    if reply.status != 200:
        raise BadReply(f"/ca.pem: the server answered {reply.status}; expected its certificate authority")
    try:
        authority = ssl.PEM_cert_to_DER_cert(reply.body.decode("ascii").strip())
    except (UnicodeDecodeError, ValueError) as error:
        raise BadReply("/ca.pem: not a certificate") from error
    if hashlib.sha256(authority).hexdigest() != ca_sha256:
        raise BadReply(
            "/ca.pem: not the authority that the token names; somebody may stand between", code="bad_certificate"
        )
    make_directory(path.parent)
    write_file(path, ssl.DER_cert_to_PEM_cert(authority).encode("ascii"), 0o644)


def order_root_of(token: Token, wanted: str | None) -> str | None:
    """The root that this host is to be pinned to: what the operator says, or what is in the token that they handed over.

    Raises:
        ConfigError: the token names another root than the operator.
    """
    if wanted is not None and token.order_root not in {None, wanted}:
        raise ConfigError(
            f"the token names order root {token.order_root}, and --order-root says {wanted}; nothing was sent",
            hint="hold both against what `compliance-agent order-root show` says where the root was made",
        )
    return wanted or token.order_root


def pin_order_root(path: Path, root: str | None, *, insisted: bool) -> str | None:
    """Keep what this host is to be pinned to; what it is pinned to then, if to any root.

    A pin that is there stays unless the operator insists: a server that asks for a new enrolment must not change it.

    Raises:
        AgentError: it could not be kept, or what is there cannot be read.
    """
    if root is not None and (insisted or not path.exists()):
        make_directory(path.parent)
        write_file(path, root.encode("ascii") + b"\n", 0o600)
    return read_file(path, limit_bytes=128, trusted=True).decode("ascii", "replace").strip() if path.exists() else None


def save(
    enrolled: protocol.Enrolled, api_key_file: Path, server_key_file: Path, log_key_file: Path | None = None
) -> None:
    """Write what enrolment gave, durably; the API key last, because it is what makes the host enrolled.

    Args:
        enrolled: the server's reply.
        api_key_file: for the API key.
        server_key_file: for the acknowledgement key.
        log_key_file: for the key of the server's transparency logs and the server's name, which begins their origins;
            `log-key` beside `server_key_file` when not given. It is removed where the server has no log, so that none is
            trusted that this server does not vouch for.

    Raises:
        StorageError: nothing may be relied on.
    """
    log_key_file = log_key_file or server_key_file.with_name(LOG_KEY_NAME)
    written = [(server_key_file, enrolled.server_key.hex()), (api_key_file, enrolled.api_key)]
    if enrolled.log_key is not None:
        name = f"\n{enrolled.server_name}" if LABEL.fullmatch(enrolled.server_name) else ""
        written.insert(0, (log_key_file, enrolled.log_key.hex() + name))
    else:
        remove_file(log_key_file)
    for path, content in written:
        make_directory(path.parent)
        write_file(path, content.encode("ascii") + b"\n", 0o600)
