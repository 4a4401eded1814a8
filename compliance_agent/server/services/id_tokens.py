"""Who somebody is, by the word of an OpenID provider: the id token, held against everything that it must be. Pure.

    claims = verified(token, keys, issuer=..., client_id=..., nonce=..., now=...)     # Refusal 403 with the reason

Only signatures by a key pair count, of the algorithms named here: with the provider's public key as a shared secret (HS256),
or with none, anybody could sign. Keys that the provider does not mean for signatures are left out.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from joserfc import jws, jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, RSAKey

from compliance_agent.documents import read_json
from compliance_agent.errors import DocumentError, Refusal
from compliance_agent.server.services.secrets import from_base64url

ALGORITHMS = ("RS256", "PS256", "ES256")
MAX_TOKEN = 16_384
LEEWAY_S = 60
OLDEST_S = 600  # a token for this very login is minutes old
LEAST_RSA_BITS = 2_048
SECOND_FACTOR = "mfa"  # RFC 8176: more than one factor was shown

SigningKey = RSAKey | ECKey


@dataclass(frozen=True)
class Claims:
    """What of a verified token is used: the person's name at the provider, and whether a second factor was shown there."""

    issuer: str
    subject: str
    second_factor: bool


class UnknownKey(Exception):
    """The token names a key that is not among these; the provider may have new ones."""


def signing_keys(document: object) -> list[SigningKey]:
    """The keys of a JWK set that may sign for us; what cannot be used is left out.

    Raises:
        Refusal: not a key set.
    """
    listed = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(listed, list):
        raise _refused("bad_metadata", "the provider's keys are not a JWK set")
    return [key for key in map(_key, listed[:64]) if key is not None]


def _key(item: object) -> SigningKey | None:
    if (
        not isinstance(item, dict)
        or item.get("use", "sig") != "sig"
        or "d" in item
        or item.get("kty") not in {"RSA", "EC"}
    ):
        return None
    try:
        key = RSAKey.import_key(item) if item["kty"] == "RSA" else ECKey.import_key(item)
        raw = key.public_key
        small = isinstance(key, RSAKey) and raw.key_size < LEAST_RSA_BITS
    except (JoseError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return None if small else key


def verified(
    token: str, keys: Sequence[SigningKey], *, issuer: str, client_id: str, nonce: str, now: datetime
) -> Claims:
    """What the token says, once everything about it is right.

    Raises:
        Refusal: 403; `bad_token`, `bad_issuer`, `wrong_audience`, `token_expired`, `wrong_nonce`.
        UnknownKey: it is signed by a key that is not among these.
    """
    claims = _signed(token, keys)
    if claims.get("iss") != issuer:
        raise _refused("bad_issuer", "the token is of another issuer")
    _check_audience(claims, client_id)
    _check_times(claims, now)
    said = claims.get("nonce")
    if not isinstance(said, str) or not hmac.compare_digest(said.encode(), nonce.encode()):
        raise _refused("wrong_nonce", "the token was made for another sign-in")
    subject = claims.get("sub")
    if not isinstance(subject, str) or not 1 <= len(subject) <= 255 or not subject.isprintable():
        raise _refused("bad_token", "the token names nobody")
    methods = claims.get("amr")
    return Claims(issuer, subject, isinstance(methods, list) and SECOND_FACTOR in methods)


def _signed(token: str, keys: Sequence[SigningKey]) -> Mapping[str, Any]:
    """The claims, signed by one of these keys with one of our algorithms."""
    header = _header(token)
    algorithm = header.get("alg")
    if algorithm not in ALGORITHMS:
        raise _refused(
            "bad_token", f"the token is signed with {str(algorithm)[:20]!r}, expected one of {', '.join(ALGORITHMS)}"
        )
    kind = ECKey if algorithm == "ES256" else RSAKey
    fitting = [key for key in keys if isinstance(key, kind) and key.dict_value.get("alg", algorithm) == algorithm]
    if "kid" in header:
        fitting = [key for key in fitting if key.dict_value.get("kid") == header["kid"]]
    if not fitting:
        raise UnknownKey
    for key in fitting:
        try:
            found = jwt.decode(token, key, algorithms=[algorithm], registry=jws.JWSRegistry(algorithms=[algorithm]))
        except (JoseError, ValueError, TypeError):
            continue
        if isinstance(found.claims, dict):
            return found.claims
    raise _refused("bad_token", "the token's signature does not verify")


def _header(token: str) -> Mapping[str, Any]:
    parts = token.split(".")
    if len(parts) != 3 or len(token) > MAX_TOKEN or not token.isascii():
        raise _refused("bad_token", "what came is no token")
    try:
        header, claims = (read_json(from_base64url(part)) for part in parts[:2])  # strict: no key twice
    except (DocumentError, ValueError) as error:
        raise _refused("bad_token", "the token is not JSON") from error
    if not isinstance(header, dict) or not isinstance(claims, dict) or "crit" in header:
        raise _refused("bad_token", "the token's head is not one that is understood")
    return header


def _check_audience(claims: Mapping[str, Any], client_id: str) -> None:
    audience = claims.get("aud")
    listed = [audience] if isinstance(audience, str) else audience
    if not isinstance(listed, list) or client_id not in listed:
        raise _refused("wrong_audience", "the token was made for another client")
    party = claims.get("azp")
    if (party is None and len(listed) > 1) or (party is not None and party != client_id):
        raise _refused("wrong_audience", "the token was given to another client")


def _check_times(claims: Mapping[str, Any], now: datetime) -> None:
    at = now.timestamp()
    ends, made, begins = (_time(claims.get(name, 0 if name == "nbf" else None)) for name in ("exp", "iat", "nbf"))
    if at >= ends + LEEWAY_S or at > made + OLDEST_S + LEEWAY_S:
        raise _refused("token_expired", "the token is too old")
    if made > at + LEEWAY_S or begins > at + LEEWAY_S:
        raise _refused("token_expired", "the token is from the future: look at both clocks")


def _time(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 2**40:
        raise _refused("token_expired", "the token has no times")
    return value


def _refused(code: str, why: str) -> Refusal:
    return Refusal(f"sign-in: {why}", code=code, status=403)


def parsed(raw: bytes, what: str) -> dict[str, Any]:
    """A provider's JSON object.

    Raises:
        Refusal: it is none.
    """
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise _refused("bad_metadata", f"{what} is not JSON") from error
    if not isinstance(document, dict):
        raise _refused("bad_metadata", f"{what} is not an object")
    return document
