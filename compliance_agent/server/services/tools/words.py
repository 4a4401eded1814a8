"""What a tool is, and what may be said to it: names, numbers and words of closed lists, never open text. Pure.

    LIST_HOSTS = Tool("list_hosts", Tier.READ, "...", (SITE, SKIP, LIMIT), run)

An argument has one JSON schema, which clients are shown, and one function that decides: they are made from the same parts here.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from compliance_agent.errors import Refusal
from compliance_agent.evidence.canonical import canonical
from compliance_agent.server.services import roles

if TYPE_CHECKING:
    from compliance_agent.server.services.tools.scene import Scene

MOST_ITEMS = 50
USUAL_ITEMS = 25
MOST_PAGE_BYTES = 24_576  # of the items of one page; the frame and what stands beside the items fit into the rest
MOST_SKIP = 1_000_000


class Tier(StrEnum):
    """How far a tool reaches. There is no third: what is proposed, people approve and sign, and no tool does either."""

    READ = "read"
    PROPOSE = "propose"


@dataclass(frozen=True)
class Argument:
    """One argument: its schema for clients, and whether a value is one.

    `loose`: its form has room for words, so of a refused call the record has a digest of it alone.
    """

    name: str
    doc: str
    schema: Mapping[str, Any]
    fits: Callable[[Any], bool]
    required: bool = True
    loose: bool = False

    def optional(self) -> Argument:
        """The same, where it may be left out."""
        return replace(self, required=False)


def text(name: str, doc: str, pattern: str, longest: int, *, loose: bool = False) -> Argument:
    """A string that one expression without spaces matches whole."""
    whole = re.compile(pattern, re.ASCII)
    return Argument(
        name,
        doc,
        {"type": "string", "pattern": f"^(?:{pattern})$", "maxLength": longest},
        lambda value: isinstance(value, str) and len(value) <= longest and whole.fullmatch(value) is not None,
        loose=loose,
    )


def word(name: str, doc: str, words: Collection[str]) -> Argument:
    """A word of a closed list."""
    known = tuple(words)
    return Argument(
        name, doc, {"type": "string", "enum": list(known)}, lambda value: isinstance(value, str) and value in known
    )


def words(name: str, doc: str, known: Collection[str], at_most: int) -> Argument:
    """Some words of a closed list, each once."""
    allowed = tuple(known)
    items = {"type": "string", "enum": list(allowed)}
    return Argument(
        name,
        doc,
        {"type": "array", "items": items, "minItems": 1, "maxItems": at_most, "uniqueItems": True},
        lambda value: (
            isinstance(value, list)
            and 1 <= len(value) <= at_most
            and all(isinstance(item, str) and item in allowed for item in value)
            and len(set(value)) == len(value)
        ),
    )


def number(name: str, doc: str, low: int, high: int) -> Argument:
    """A whole number."""
    return Argument(
        name,
        doc,
        {"type": "integer", "minimum": low, "maximum": high},
        lambda value: type(value) is int and low <= value <= high,
    )


@dataclass(frozen=True)
class Tool:
    """One tool.

    Attributes:
        name: a word of the closed list that the log's audit events use too.
        doc: what it says and what not, for clients.
        arguments: all that may be said to it.
        run: answers, in ids, numbers, times and words of closed lists.
        act: what the person's role must have.
        lasting: its answer is about what does not change any more, so the same call must give the same bytes later.
    """

    name: str
    tier: Tier
    doc: str
    arguments: tuple[Argument, ...]
    run: Callable[[Scene, Mapping[str, Any]], Awaitable[Answer]]
    act: roles.Act = roles.Act.LOOK
    lasting: bool = False

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON schema of its arguments."""
        return {
            "type": "object",
            "properties": {item.name: {**item.schema, "description": item.doc} for item in self.arguments},
            "required": [item.name for item in self.arguments if item.required],
            "additionalProperties": False,
        }

    def unsaid(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments as the record of a refused call has them."""
        loose = {item.name for item in self.arguments if item.loose}
        return {
            name: {"sha256": hashlib.sha256(value.encode()).hexdigest()} if name in loose else value
            for name, value in arguments.items()
        }

    def parsed(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments, every one of its type.

        Raises:
            Refusal: 422 `bad_argument`; the message has the name of a declared argument at most, and nothing that was given.
        """
        known = {item.name: item for item in self.arguments}
        if not given.keys() <= known.keys():
            raise _bad(f"expected none but {', '.join(known) or 'none'}")
        for name, item in known.items():
            if name not in given:
                if item.required:
                    raise _bad(f"{name}: is missing")
            elif not item.fits(given[name]):
                raise _bad(f"{name}: expected {item.doc[:1].lower()}{item.doc[1:]}")
        return {name: given[name] for name in known if name in given}


@dataclass(frozen=True)
class Answer:
    """What a tool found: `data`, and for a list the items of this page and how to ask for the next one."""

    data: Mapping[str, Any] = field(default_factory=dict)
    items: Sequence[Mapping[str, Any]] | None = None
    next: int | None = None


def page(items: Sequence[Mapping[str, Any]], arguments: Mapping[str, Any], **data: Any) -> Answer:
    """The part of a whole list that was asked for, and of that what fits."""
    skip = arguments.get("skip", 0)
    kept = fitting(items[skip : skip + arguments.get("limit", USUAL_ITEMS)])
    end = skip + len(kept)
    return Answer({**data, "total": len(items)}, kept, end if end < len(items) else None)


def fitting(items: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """As many of the first as one answer has room for; the first one in any case."""
    kept, size = list[Mapping[str, Any]](), 0
    for item in items:
        size += len(canonical(dict(item)))
        if kept and size > MOST_PAGE_BYTES:
            break
        kept.append(item)
    return kept


def _bad(what: str) -> Refusal:
    return Refusal(f"arguments: {what}", code="bad_argument", status=422)
