"""A host's key gives way to a new one: the statement that both sign, and its entry in the log. Pure.

    said = statement(old_public, new_public, site_id=..., host_id=..., head=(epoch, seq, digest), at=...)
    verified(said, old_public, old_sig, new_sig)        # who, to whom, and after which record

The old key's chain ends with the record that the statement names; the new key's begins in a later epoch, and its first record names
that one as the one before it. So neither key can sign on the other's side of the entry, and nothing can be put in between.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compliance_agent import crypto
from compliance_agent.dataclass import dataclass
from compliance_agent.documents import read_json
from compliance_agent.entries.leaf import canonical, entry
from compliance_agent.errors import BadEvidence, DocumentError
from compliance_agent.facts import SHA256, is_timestamp
from compliance_agent.log.fields import from_base64, to_base64

SCHEMA = "compliance-agent/key-rotation/v1"
CODE = "bad_rotation"
_KEYS = {"schema", "site_id", "host_id", "old_key", "new_key", "epoch", "seq", "digest", "at"}


@dataclass(frozen=True)
class Rotation:
    """What a statement says. `old_key` is a key id, `new_public` the raw new key; the rest is the old chain's last record."""

    site_id: str
    host_id: str
    old_key: str
    new_public: bytes
    epoch: int
    seq: int
    digest: str
    at: str

    @property
    def new_key(self) -> str:
        """The new key's id."""
        return crypto.key_id(self.new_public)


def statement(
    old_public: bytes, new_public: bytes, *, site_id: str, host_id: str, head: tuple[int, int, str], at: str
) -> bytes:
    """The bytes that both keys sign: canonical JSON with a schema of its own, so that it can be taken for nothing else."""
    return canonical(
        {
            "schema": SCHEMA,
            "site_id": site_id,
            "host_id": host_id,
            "old_key": crypto.key_id(old_public),
            "new_key": to_base64(new_public),
            "epoch": head[0],
            "seq": head[1],
            "digest": head[2],
            "at": at,
        }
    )


def read(raw: bytes) -> Rotation:
    """What exactly these bytes say; nothing of it is true before `verified`.

    Raises:
        BadEvidence: `bad_rotation`, or `weak_key` for the new key.
    """
    try:
        document = read_json(raw)
    except DocumentError as error:
        raise _bad("is not JSON") from error
    if not isinstance(document, dict) or document.keys() != _KEYS or canonical(document) != raw:
        raise _bad("is not a statement in canonical form")
    texts = all(isinstance(document[name], str) for name in _KEYS - {"epoch", "seq"})
    places = all(type(document[name]) is int and document[name] >= 0 for name in ("epoch", "seq"))
    if not texts or not places or document["schema"] != SCHEMA or not is_timestamp(document["at"]):
        raise _bad("has a field of another form")
    if not SHA256.fullmatch(document["old_key"]) or not SHA256.fullmatch(document["digest"]):
        raise _bad("has a digest of another form")
    new_public = from_base64(document["new_key"], "new_key", CODE)
    crypto.check_public_key(new_public)
    named = {name: document[name] for name in ("site_id", "host_id", "old_key", "epoch", "seq", "digest", "at")}
    return Rotation(new_public=new_public, **named)


def verified(raw: bytes, old_public: bytes, old_sig: bytes, new_sig: bytes) -> Rotation:
    """The statement, signed by the key that goes and by the one that comes.

    Raises:
        BadEvidence: as `read`, and `bad_rotation` when a signature does not verify.
    """
    said = read(raw)
    if crypto.key_id(old_public) != said.old_key or said.new_key == said.old_key:
        raise _bad("is of another key")
    if not crypto.verify(old_public, old_sig, raw) or not crypto.verify(said.new_public, new_sig, raw):
        raise _bad("is not signed by both keys")
    return said


def rotation_leaf(raw: bytes, old_public: bytes, old_sig: bytes, new_sig: bytes, at: str) -> bytes:
    """The entry of a rotation; it holds all that is needed to check it. `at` is the server's time."""
    said = read(raw)
    return entry(
        "key",
        event="rotate",
        key=said.old_key,
        public_key=to_base64(old_public),
        new_key=said.new_key,
        statement=to_base64(raw),
        old_sig=to_base64(old_sig),
        new_sig=to_base64(new_sig),
        at=at,
    )


def read_leaf(leaf: Mapping[str, Any]) -> Rotation:
    """The rotation in an entry, its signatures verified with what the entry holds.

    Raises:
        BadEvidence: as `verified`; a lying server cannot make such an entry without both keys.
    """
    fields = {}
    for name in ("public_key", "statement", "old_sig", "new_sig"):
        if not isinstance(leaf.get(name), str):
            raise _bad(f"has no {name}")
        fields[name] = from_base64(leaf[name], name, CODE)
    said = verified(fields["statement"], fields["public_key"], fields["old_sig"], fields["new_sig"])
    if (said.old_key, said.new_key) != (leaf.get("key"), leaf.get("new_key")):
        raise _bad("names other keys than its statement")
    return said


def _bad(what: str) -> BadEvidence:
    return BadEvidence(f"rotation {what}", code=CODE)
