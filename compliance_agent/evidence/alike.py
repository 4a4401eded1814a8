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
from typing import Any, NamedTuple

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


class _Kind(NamedTuple):
    """Records that are alike."""

    pieces: tuple[bytes, ...]
    document: Mapping[str, Any]
    fits: Callable[[bytes], object]


class Alike:
    """The kinds of record that were seen last.

    Args:
        known: the registry that the records are held to.
    """

    def __init__(self, known: Registry) -> None:
        self._spelling = Spelling(known)
        self._fits: dict[str | None, Callable[[bytes], object]] = {}
        self._kept: list[_Kind] = []

    def read(self, body: bytes) -> dict[str, Any] | None:
        """The document, where it is of a kind that was seen lately and all is well with it but for its signature."""
        for number, kind in enumerate(self._kept):
            own = _gaps(body, kind.pieces)
            if own is None:
                continue
            if number:
                self._kept = [kind, *self._kept[:number], *self._kept[number + 1 :]]
            # No form lets a line end through, so each gap is held to its own form.
            return _read(kind, own) if kind.fits(b"\n".join(own)) is not None else None
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
        kind = _Kind((*pieces, body[at:]), document, self._form(document["check"]))
        self._kept = [kind, *self._kept[: KEPT - 1]]

    def _form(self, check: str | None) -> Callable[[bytes], object]:
        found = self._fits.get(check)
        if found is None:
            form = "\n".join(self._spelling.members(keys, check) for keys in OWN)
            found = self._fits[check] = re.compile(form.encode("ascii")).fullmatch
        return found


def _gaps(body: bytes, pieces: Sequence[bytes]) -> list[bytes] | None:
    """What stands between the pieces where a body begins with the first, ends with the last and has the others in their order."""
    first, last = pieces[0], pieces[-1]
    if not body.startswith(first):
        return None
    at, found = len(first), list[bytes]()
    for piece in pieces[1:-1]:
        start = body.find(piece, at)
        if start < 0:
            return None
        found.append(body[at:start])
        at = start + len(piece)
    end = len(body) - len(last)
    if at > end or not body.endswith(last):
        return None
    found.append(body[at:end])
    return found


def _read(kind: _Kind, own: Sequence[bytes]) -> dict[str, Any] | None:
    document = {**kind.document, **_DECODE(f"{{{b','.join(own).decode('ascii')}}}")[0]}
    try:
        check_logic(document)
    except BadEvidence:
        return None
    return document
