"""The schema as plain functions: the same answer as walking it, several times as fast, for whoever judges a million documents.

A function says yes or no. What is refused is walked by `allowlist.check_document`, which names the field.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from compliance_agent import facts
from compliance_agent.evidence.allowlist import ByWord, Facts, Maybe, Pattern, Rows, SignedNote
from compliance_agent.facts import Bool, Choice, Digest, FactType, Int, Many, Name, Timestamp

Accepts = Callable[[Any], bool]


def accepting(schema: Any) -> Accepts:
    """A function that accepts exactly what this part of a schema allows."""
    if isinstance(schema, Maybe):
        return _maybe(accepting(schema.of))
    if isinstance(schema, Rows):
        return _rows(accepting(schema.of), schema.at_most)
    if isinstance(schema, ByWord):
        return _by_word(frozenset(schema.words), accepting(schema.of))
    if isinstance(schema, Facts):
        return lambda value: isinstance(value, dict)
    if isinstance(schema, Mapping):
        return _keys({key: accepting(inner) for key, inner in schema.items()})
    return leaf(schema)


@functools.cache
def _one_of(words: tuple[str, ...]) -> frozenset[str]:
    return frozenset(words)  # many fields have the same list, some of hundreds of words


def leaf(kind: FactType) -> Accepts:
    """A function that accepts exactly what `kind` does; a `Name` by its form alone, as where no baseline is at hand."""
    if isinstance(kind, Choice):
        words = _one_of(kind.words)
        return lambda value: type(value) is str and value in words
    if isinstance(kind, Int):
        low, high = kind.low, kind.high
        return lambda value: type(value) is int and low <= value <= high
    if isinstance(kind, Bool):
        return lambda value: value is True or value is False
    if isinstance(kind, Digest):
        return _matching(facts.SHA256.pattern)
    if isinstance(kind, facts.Revision):
        return _matching(facts.REVISION.pattern)
    if isinstance(kind, Pattern):
        return _matching(kind.regex)
    if isinstance(kind, Name):
        return _matching(facts.NAME.pattern)
    if isinstance(kind, Timestamp):
        return _is_time
    if isinstance(kind, Many):
        return _rows(leaf(kind.of), kind.at_most)
    if isinstance(kind, SignedNote | facts.Version):
        return lambda value: kind.accepts(value, {})
    raise RuntimeError(f"no function for {kind!r}")  # a new type of fact has to be written here, too


def facts_accepting(declared: Mapping[str, FactType]) -> Accepts:
    """A function that accepts an object of these facts, each null or of its type."""
    known = {name: leaf(kind) for name, kind in declared.items()}

    def accepts(state: Any) -> bool:
        for name, value in state.items():
            fits = known.get(name)
            if fits is None or (value is not None and not fits(value)):
                return False
        return True

    return accepts


def _matching(regex: str) -> Accepts:
    fullmatch = re.compile(regex, re.ASCII).fullmatch
    return lambda value: type(value) is str and fullmatch(value) is not None


def _is_time(value: Any) -> bool:
    if type(value) is not str or facts.TIMESTAMP.fullmatch(value) is None:
        return False
    try:
        datetime.fromisoformat(value)
    except ValueError:
        return False
    return True


def _maybe(inner: Accepts) -> Accepts:
    return lambda value: value is None or inner(value)


def _rows(inner: Accepts, at_most: int) -> Accepts:
    def accepts(value: Any) -> bool:
        return type(value) is list and (not value or (len(value) <= at_most and all(map(inner, value))))

    return accepts


def _by_word(words: frozenset[str], inner: Accepts) -> Accepts:
    def accepts(value: Any) -> bool:
        if type(value) is not dict or not words:
            return False
        return not value or (words.issuperset(value) and all(map(inner, value.values())))

    return accepts


def _keys(inner: Mapping[str, Accepts]) -> Accepts:
    pairs, count = tuple(inner.items()), len(inner)

    def accepts(value: Any) -> bool:
        if type(value) is not dict or len(value) != count:
            return False
        try:
            for key, fits in pairs:
                if not fits(value[key]):
                    return False
        except KeyError:
            return False
        return True

    return accepts
