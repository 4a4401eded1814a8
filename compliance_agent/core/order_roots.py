"""The chain from an offline root to the keys whose orders count on a host, with roles as in TUF. Pure.

    pin -> root 1 -> root 2 -> ... -> root n -> keys m

A root names keys that never leave their holders, and how many of them must sign: the next root, and the list of order keys
(`core.order_keys`, the very bytes of an `order_keys_file`). A host is pinned to one root by the SHA-256 of its payload. From there:

- A next root has the next version, and is signed by the threshold of the former root's keys and of its own. So one lost key is
  replaced by those that are left, and fewer keys than the threshold replace nothing.
- A list of keys has a higher version than any before, and is signed by the threshold of the present root. One that was signed
  under a former root counts on only while the present root's keys carry it too.
- Each document is signed as what it is; a root's key signs no orders; a signature that is not one of the named keys' is refused.
- What has expired still leads on to what came after it; who asks whether an order counts looks at `Trust.keys_now`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from compliance_agent import crypto
from compliance_agent.core import envelopes, order_keys
from compliance_agent.core.envelopes import Envelope
from compliance_agent.core.order_keys import OrderKeys
from compliance_agent.dataclass import dataclass
from compliance_agent.documents import read_json
from compliance_agent.errors import BadEvidence, ConfigError, DocumentError
from compliance_agent.evidence.canonical import canonical
from compliance_agent.facts import LARGEST_INT, is_timestamp
from compliance_agent.log.fields import from_base64, to_base64

SCHEMA = "compliance-agent/order-root/v1"
ROOT_TYPE = "application/vnd.compliance-agent.order-root.v1+json"
KEYS_TYPE = "application/vnd.compliance-agent.order-keys.v1+json"
LEAST_THRESHOLD = 2  # one key that is lost or stolen must decide nothing
MAX_KEYS = 16
MAX_BYTES = 131_072  # of an envelope: a whole list of keys in base64, and its signatures
MOST_SIGNATURES = 2 * MAX_KEYS
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")

REASONS = {
    "trust_unreadable": "it is not an envelope and a payload of exactly the agreed form",
    "trust_pin": "it is not the root that this host is pinned to",
    "trust_tenant": "it is another client's",
    "trust_version": "its version is not the next one of a root, or not higher than that of the list of keys before",
    "trust_signature": "a signature is not one of the root's keys', or not of these bytes as what they are",
    "trust_threshold": "fewer of the root's keys have signed it than must",
    "trust_role": "a key of the root is also one that signs orders",
}


@dataclass(frozen=True)
class Holder:
    """Who holds a key of a root."""

    name: str
    public: bytes


@dataclass(frozen=True)
class Root:
    """A root of the agreed form. `sha256` is its payload's: what a host is pinned to."""

    version: int
    tenant: str
    expires: datetime
    threshold: int
    keys: Mapping[str, Holder]
    sha256: str


@dataclass(frozen=True)
class Trust:
    """Where a host stands: the present root, the list of keys that it carries, and the highest version of a list ever taken."""

    root: Root
    keys: OrderKeys | None = None
    keys_version: int = 0

    def keys_now(self) -> OrderKeys | None:
        """Whose orders count; they expire with their list or with its root, whichever ends first."""
        return None if self.keys is None else replace(self.keys, expires=min(self.keys.expires, self.root.expires))


def begin(raw: bytes, pin: str) -> Trust:
    """The root that a host is pinned to.

    Raises:
        DocumentError: it is not that one; `code` is a key of REASONS.
    """
    envelope = _envelope(raw, ROOT_TYPE)
    root = read_root(envelope.payload)
    if root.sha256 != pin:
        raise _refused("trust_pin", f"root: expected SHA-256 {pin}, found {root.sha256}")
    _signed(envelope, ROOT_TYPE, [root])
    return Trust(root)


def first(raw: bytes) -> Trust:
    """A root that is held to nothing but its own keys: for whoever makes or publishes it, never for a host.

    Raises:
        DocumentError: it is no root, or its own keys have not signed it; `code` is a key of REASONS.
    """
    return begin(raw, sha256(_envelope(raw, ROOT_TYPE).payload).hexdigest())


def advance(trust: Trust, raw: bytes) -> Trust:
    """What a host trusts after one more document; the same when it has that one.

    Raises:
        DocumentError: it does not follow, and nothing changes; `code` is a key of REASONS.
    """
    if envelopes.payload_type(raw, limit_bytes=MAX_BYTES) == ROOT_TYPE:
        return _next_root(trust, raw)
    return _next_keys(trust, raw)


def _next_root(trust: Trust, raw: bytes) -> Trust:
    envelope, former = _envelope(raw, ROOT_TYPE), trust.root
    root = read_root(envelope.payload)
    if root.sha256 == former.sha256:
        return trust
    if root.tenant != former.tenant:
        raise _refused("trust_tenant", f"root: expected one of {former.tenant}")
    if root.version != former.version + 1:
        raise _refused("trust_version", f"root: expected version {former.version + 1}, found {root.version}")
    _signed(envelope, ROOT_TYPE, [former, root])
    return Trust(root, None, trust.keys_version)  # `with_keys` says whether the list stands on


def _next_keys(trust: Trust, raw: bytes) -> Trust:
    envelope = _envelope(raw, KEYS_TYPE)
    keys = _keys(envelope, trust.root)
    if keys.version < trust.keys_version or (keys.version == trust.keys_version and keys != trust.keys):
        raise _refused("trust_version", f"keys: expected version {trust.keys_version + 1} or higher")
    _signed(envelope, KEYS_TYPE, [trust.root])
    return Trust(trust.root, keys, keys.version)


def with_keys(trust: Trust, raw: bytes | None) -> Trust:
    """The trust with the list of keys that it had under a former root, if the present root's keys carry that too.

    Its version counts either way: an older list is never taken again.
    """
    if raw is None:
        return trust
    try:
        envelope = _envelope(raw, KEYS_TYPE)
        version = order_keys.parse(envelope.payload).version
    except (ConfigError, DocumentError):
        return trust
    known = replace(trust, keys_version=max(trust.keys_version, version))
    ours = {name: sig for name, sig in envelope.signatures.items() if name in trust.root.keys}
    try:
        keys = _keys(envelope, trust.root)
        _signed(Envelope(envelope.payload, ours), KEYS_TYPE, [trust.root])
    except DocumentError:
        return known
    return replace(known, keys=keys)


def replay(pin: str, roots: Sequence[bytes], keys: bytes | None) -> Trust | None:
    """What follows from documents that were taken before, each held to the same rules again; None where the first is not the pin's.

    Raises:
        DocumentError: one of them does not follow from the one before.
    """
    if not roots:
        return None
    trust = begin(roots[0], pin)
    for raw in roots[1:]:
        trust = _next_root(trust, raw)
    return with_keys(trust, keys)


def _keys(envelope: Envelope, root: Root) -> OrderKeys:
    try:
        keys = order_keys.parse(envelope.payload)
    except ConfigError as error:
        raise _refused("trust_unreadable", f"keys: {error}") from error
    if keys.tenant != root.tenant:
        raise _refused("trust_tenant", f"keys: expected those of {root.tenant}")
    if not keys.signers.keys().isdisjoint(root.keys):
        raise _refused("trust_role", "keys: names a key of the root, which signs no orders")
    return keys


def signers_of(raw: bytes, payload_type: str, root: Root) -> list[str]:
    """Key ids of the root's keys whose signature over this document is good; an envelope that nobody has signed yet has none."""
    envelope = _envelope(raw, payload_type, least=0)
    message = crypto.pae(payload_type, envelope.payload)
    return [
        name
        for name, signature in envelope.signatures.items()
        if name in root.keys and crypto.verify(root.keys[name].public, signature, message)
    ]


def _signed(envelope: Envelope, payload_type: str, roots: Sequence[Root]) -> None:
    """Every signature is a named key's, and of each root as many keys have signed as must."""
    message = crypto.pae(payload_type, envelope.payload)
    named = {name: holder.public for root in roots for name, holder in root.keys.items()}
    for name, signature in envelope.signatures.items():
        if name not in named or not crypto.verify(named[name], signature, message):
            raise _refused("trust_signature", f"signature of {name[:16]}: not a key of the root, or not of these bytes")
    for root in roots:
        count = len(envelope.signatures.keys() & root.keys.keys())
        if count < root.threshold:
            raise _refused(
                "trust_threshold",
                f"expected {root.threshold} keys of root {root.version} to have signed, found {count}",
            )


# Reading and writing


def read_root(raw: bytes) -> Root:
    """A root from its payload; nothing is verified.

    Raises:
        DocumentError: code `trust_unreadable`; names the field and what was expected.
    """
    try:
        document = read_json(raw, limit_bytes=MAX_BYTES, max_depth=envelopes.MAX_DEPTH)
    except DocumentError as error:
        raise _refused("trust_unreadable", f"root: {error}") from error
    _exactly(document, "root", {"schema", "version", "tenant", "expires", "threshold", "keys"})
    if document["schema"] != SCHEMA:
        raise _bad("schema", SCHEMA)
    if type(document["version"]) is not int or not 1 <= document["version"] <= LARGEST_INT:
        raise _bad("version", "a whole number from 1")
    if not _is_name(document["tenant"]):
        raise _bad("tenant", "the client's id")
    if not is_timestamp(document["expires"]):
        raise _bad("expires", "a time such as 2029-12-31T00:00:00Z")
    keys = _holders(document["keys"])
    if type(document["threshold"]) is not int or not LEAST_THRESHOLD <= document["threshold"] <= len(keys):
        raise _bad("threshold", f"a whole number from {LEAST_THRESHOLD} to the number of keys")
    return Root(
        document["version"],
        document["tenant"],
        datetime.fromisoformat(document["expires"]).astimezone(UTC),
        document["threshold"],
        keys,
        sha256(raw).hexdigest(),
    )


def _holders(value: Any) -> dict[str, Holder]:
    if not isinstance(value, list) or not LEAST_THRESHOLD <= len(value) <= MAX_KEYS:
        raise _bad("keys", f"a list of {LEAST_THRESHOLD} to {MAX_KEYS}")
    found: dict[str, Holder] = {}
    for number, item in enumerate(value):
        _exactly(item, f"keys[{number}]", {"name", "key"})
        if not _is_name(item["name"]) or item["name"] in {holder.name for holder in found.values()}:
            raise _bad(f"keys[{number}].name", "a name that no other key has")
        try:
            text = item["key"] if isinstance(item["key"], str) else ""
            public = from_base64(text, f"keys[{number}].key", "trust_unreadable")
            crypto.check_public_key(public)
        except BadEvidence as error:
            raise _bad(f"keys[{number}].key", "a raw Ed25519 public key in base64") from error
        if (name := crypto.key_id(public)) in found:
            raise _bad(f"keys[{number}].key", "a key that nobody else holds")
        found[name] = Holder(item["name"], public)
    return found


def root_payload(version: int, tenant: str, expires: datetime, threshold: int, holders: Sequence[Holder]) -> bytes:
    """The bytes of a root, as `read_root` reads them back.

    Raises:
        DocumentError: it is not a root of the agreed form.
    """
    raw = canonical(
        {
            "schema": SCHEMA,
            "version": version,
            "tenant": tenant,
            "expires": expires.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "threshold": threshold,
            "keys": [{"name": holder.name, "key": to_base64(holder.public)} for holder in holders],
        }
    )
    read_root(raw)
    return raw


def _envelope(raw: bytes, payload_type: str, *, least: int = 1) -> Envelope:
    try:
        return envelopes.read(raw, payload_type=payload_type, limit_bytes=MAX_BYTES, most=MOST_SIGNATURES, least=least)
    except DocumentError as error:
        raise _refused("trust_unreadable", f"{error}") from error


def _exactly(value: Any, at: str, wanted: set[str]) -> None:
    if not isinstance(value, dict) or value.keys() != wanted:
        raise _bad(at, f"exactly the keys {', '.join(sorted(wanted))}")


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def _bad(field: str, expected: str) -> DocumentError:
    return _refused("trust_unreadable", f"root: {field}: expected {expected}")


def _refused(code: str, message: str) -> DocumentError:
    return DocumentError(message, code=code)
