"""Records that are alike but for what each has of its own: what was found of one holds for the next. Pure.

    alike = Alike(registry())
    document = alike.read(body)     # None: nothing like it was seen lately, and it is read in full
    alike.learn(body, document)     # one that was read in full: `Registry.spelled`, and all is well with it

A host says much the same again and again. A record is kept as pieces of text, with a gap for each group of OWN members between
them. A body that is exactly these pieces, with members of the form that the schema gives them in the gaps, is a document that
differs from the one before in these members alone: canonical, and what the schema allows. What members say of each other is asked
again of each.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from compliance_agent.errors import BadEvidence
from compliance_agent.evidence.allowlist import Registry, check_logic
from compliance_agent.evidence.canonical import canonical
from compliance_agent.evidence.spelled import Spelling

# Members that stand side by side in canonical order. No reason, result or citation is among them: these are held to each other.
OWN = (
    ("bundle_id",),
    ("clock", "counts", "created_at"),
    ("log_head",),
    ("pre_state", "prev"),
    ("seq",),
    ("timestamp_end", "timestamp_start"),
)
KEPT = 16
_DECODE = json.JSONDecoder().raw_decode


@dataclass(frozen=True, eq=False)  # one is another's equal only where it is the same one
class Kind:
    """Records that are alike; `lengths` of what stood between the pieces, where one was seen to differ."""

    pieces: tuple[bytes, ...]
    document: Mapping[str, Any]
    fits: Callable[[bytes], object]
    lengths: list[int] = field(default_factory=lambda: [0] * len(OWN))


class Alike:
    """The kinds of record that were seen last.

    Args:
        known: the registry that the records are held to.

    Attributes:
        kind: of the record that was read or learned last; None where it is of none.
    """

    kind: Kind | None = None

    def __init__(self, known: Registry) -> None:
        self._spelling = Spelling(known)
        self._fits: dict[str | None, Callable[[bytes], object]] = {}
        self._kept: list[Kind] = []

    def read(self, body: bytes) -> dict[str, Any] | None:
        """The document, where it is of a kind that was seen lately and all is well with it but for its signature."""
        self.kind = None
        for number, kind in enumerate(self._kept):
            own = _gaps(body, kind)
            if own is None:
                continue
            if number:
                self._kept = [kind, *self._kept[:number], *self._kept[number + 1 :]]
            # No form lets a line end through, so each gap is held to its own form.
            found = _read(kind, own) if kind.fits(b"\n".join(own)) is not None else None
            self.kind = None if found is None else kind
            return found
        return None

    def learn(self, body: bytes, document: Mapping[str, Any]) -> None:
        """Keep the kind of a record of these bytes that was found right."""
        pieces, at = list[bytes](), 0
        for keys in OWN:
            members = canonical({key: document[key] for key in keys})[1:-1]
            start = body.find(members, at)
            if start < 0 or body.count(members) != 1:  # once, so it is where the members themselves are
                return
            pieces.append(body[at:start])
            at = start + len(members)
        kind = self.kind = Kind((*pieces, body[at:]), document, self._form(document["check"]))
        self._kept = [kind, *self._kept[: KEPT - 1]]

    def _form(self, check: str | None) -> Callable[[bytes], object]:
        found = self._fits.get(check)
        if found is None:
            form = "\n".join(self._spelling.members(keys, check) for keys in OWN)
            found = self._fits[check] = re.compile(form.encode("ascii")).fullmatch
        return found


def _gaps(body: bytes, kind: Kind) -> list[bytes] | None:
    """What stands between the pieces where a body begins with the first, ends with the last and has the others in their order.

    A gap is looked for where it would end if it were as long as the last time: what is found fits together as well there.
    """
    first, *between, last = kind.pieces
    if not body.startswith(first):
        return None
    at, found, lengths = len(first), list[bytes](), kind.lengths
    for number, piece in enumerate(between):
        start = at + lengths[number]
        if not body.startswith(piece, start):
            start = body.find(piece, at)
            if start < 0:
                return None
            lengths[number] = start - at
        found.append(body[at:start])
        at = start + len(piece)
    end = len(body) - len(last)
    if at > end or not body.endswith(last):
        return None
    found.append(body[at:end])
    return found


def _read(kind: Kind, own: Sequence[bytes]) -> dict[str, Any] | None:
    document = {**kind.document, **_DECODE(f"{{{b','.join(own).decode('ascii')}}}")[0]}
    try:
        check_logic(document)
    except BadEvidence:
        return None
    return document
