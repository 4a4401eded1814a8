"""A rotation is what both keys have signed, to the last bit, and its entry proves itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from nacl.signing import SigningKey

from compliance_agent import crypto
from compliance_agent.entries.rotation import read, read_leaf, rotation_leaf, statement, verified
from compliance_agent.errors import BadEvidence
from compliance_agent.log.fields import to_base64

HEAD = (0, 7, "d" * 64)
AT = "2026-11-28T06:00:00Z"
SMALL_ORDER = bytes([1]) + bytes(31)


@dataclass
class Pair:
    """The key that goes, the one that comes, and what they sign."""

    old: SigningKey = field(default_factory=lambda: SigningKey(b"o" * 32))
    new: SigningKey = field(default_factory=lambda: SigningKey(b"n" * 32))

    @property
    def raw(self) -> bytes:
        return statement(
            bytes(self.old.verify_key), bytes(self.new.verify_key), site_id="c", host_id="h", head=HEAD, at=AT
        )

    def signed(self, raw: bytes | None = None) -> tuple[bytes, bytes, bytes, bytes]:
        raw = self.raw if raw is None else raw
        return raw, bytes(self.old.verify_key), self.old.sign(raw).signature, self.new.sign(raw).signature

    def leaf(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(rotation_leaf(*self.signed(), at=AT))
        return found


def test_what_both_have_signed_is_what_it_says() -> None:
    pair = Pair()
    said = verified(*pair.signed())
    assert (said.old_key, said.new_key) == (
        crypto.key_id(bytes(pair.old.verify_key)), crypto.key_id(bytes(pair.new.verify_key)),
    )  # fmt: skip
    assert ((said.epoch, said.seq, said.digest), said.site_id, said.host_id) == (HEAD, "c", "h")
    assert read_leaf(pair.leaf()) == said


@pytest.mark.parametrize("which", [2, 3])
def test_either_signature_alone_is_nothing(which: int) -> None:
    parts = list(Pair().signed())
    parts[which] = bytes(64)
    with pytest.raises(BadEvidence, match="not signed by both keys"):
        verified(*parts)


def test_every_bit_of_the_statement_is_signed() -> None:
    raw, public, old_sig, new_sig = Pair().signed()
    for at in range(len(raw)):
        changed = bytearray(raw)
        changed[at] ^= 1
        with pytest.raises(BadEvidence):
            verified(bytes(changed), public, old_sig, new_sig)


CHANGES: dict[str, Callable[[dict[str, Any]], None]] = {
    "another schema": lambda said: said.update(schema="compliance-agent/enrol/v1"),
    "one field more": lambda said: said.update(more=1),
    "one field less": lambda said: said.pop("at"),
    "seq is text": lambda said: said.update(seq="7"),
    "seq is true": lambda said: said.update(seq=True),
    "epoch below 0": lambda said: said.update(epoch=-1),
    "no digest": lambda said: said.update(digest="x"),
    "no time": lambda said: said.update(at="yesterday"),
    "no key": lambda said: said.update(new_key="!"),
    "a key of small order": lambda said: said.update(new_key=to_base64(SMALL_ORDER)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_statement_of_another_form_is_refused_though_both_signed_it(name: str) -> None:
    pair = Pair()
    said = json.loads(pair.raw)
    CHANGES[name](said)
    raw = json.dumps(said, sort_keys=True, separators=(",", ":")).encode()
    with pytest.raises(BadEvidence):
        verified(*pair.signed(raw))


def test_another_spelling_is_refused() -> None:
    pair = Pair()
    raw = json.dumps(json.loads(pair.raw)).encode()
    with pytest.raises(BadEvidence, match="canonical"):
        verified(*pair.signed(raw))


def test_a_key_cannot_give_way_to_itself() -> None:
    pair = Pair(new=SigningKey(b"o" * 32))
    with pytest.raises(BadEvidence, match="another key"):
        verified(*pair.signed())


@pytest.mark.parametrize("name", ["public_key", "statement", "old_sig", "new_sig", "key", "new_key"])
def test_an_entry_that_was_changed_does_not_prove_itself(name: str) -> None:
    other = Pair(SigningKey(b"x" * 32), SigningKey(b"y" * 32)).leaf()
    for value in (other[name], None, 7, ""):
        with pytest.raises(BadEvidence):
            read_leaf({**Pair().leaf(), name: value})


def test_reading_does_not_need_the_signatures() -> None:
    assert read(Pair().raw).host_id == "h"
