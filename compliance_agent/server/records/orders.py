"""Orders as the server keeps them: drafted, approved, signed elsewhere, forwarded, answered by a record."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class OrderRow:
    """One order.

    Attributes:
        key_id: of the host that it is for.
        parameters: canonical JSON.
        life_s: how long it is to be good for, once it is prepared for signing.
        state: draft, approved, signed, delivered, answered or cancelled.
        payload: the exact bytes that are signed; None until somebody asked to sign.
        signers: key ids, as the payload names them.
        envelope: payload and every signature; None until all are here.
        sha256: of the envelope: the host's record names it.
        outcome, error, bundle_id: of that record.
    """

    order_id: str
    site_id: str
    key_id: str
    kind: str
    parameters: str
    life_s: int
    drafted_by: str
    drafted_at: datetime
    state: str = "draft"
    baseline_sha256: str | None = None
    signers: str = ""
    payload: bytes | None = None
    not_before: datetime | None = None
    expires: datetime | None = None
    counter: int | None = None
    envelope: bytes | None = None
    sha256: str | None = None
    ended_at: datetime | None = None
    outcome: str | None = None
    error: str | None = None
    bundle_id: str | None = None


@dataclass(frozen=True)
class OrderMark:
    """Who approved or signed an order: a person's name, or a signer's key id with the signature."""

    order_id: str
    site_id: str
    what: str  # approved | signed
    who: str
    at: datetime
    signature: bytes | None = None


@dataclass(frozen=True)
class OrderHost:
    """What orders to a host must name: its nonce, as it said last, and the last number that was given out."""

    key_id: str
    site_id: str
    nonce: str
    nonce_at: datetime
    counter: int = 0


@dataclass(frozen=True)
class SignedBaseline:
    """A baseline that hosts of a site may be told to adopt: its exact bytes, and the signature that they will verify."""

    site_id: str
    sha256: str
    version: str
    body: bytes
    sig: bytes
    added_by: str
    added_at: datetime


@dataclass(frozen=True)
class TrustDocument:
    """A root, or a list of order keys: its exact envelope, and the SHA-256 of its payload."""

    site_id: str
    role: str  # root | keys
    version: int
    sha256: str
    envelope: bytes
    added_by: str
    added_at: datetime


@dataclass(frozen=True)
class TrustSaid:
    """What a host says of the roots and lists that it has: what it is pinned to, and versions (0: none)."""

    pin: str
    root: int
    keys: int


@dataclass(frozen=True)
class Answer:
    """How a host's record says an order ended."""

    site_id: str
    sha256: str
    outcome: str
    error: str | None
    bundle_id: str
