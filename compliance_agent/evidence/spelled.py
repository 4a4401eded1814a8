"""The schema as one regular expression over the bytes: whoever judges a million documents sees form and schema in one pass.

What it matches is canonical and is what the schema allows: every key in its place, every word in its only spelling, no space. It
may refuse what is allowed (a 29th of February, the last few numbers below 2^53, the notes of an incident), never the other way
round: what it refuses is read and walked slowly, and that decides.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from compliance_agent import facts
from compliance_agent.evidence.allowlist import ByWord, Facts, Maybe, Pattern, Registry, Rows
from compliance_agent.facts import Bool, Choice, Digest, FactType, Int, Many, Name, Timestamp

_DAY = (
    "[12][0-9]{3}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    "|02-(?:0[1-9]|1[0-9]|2[0-8]))"
)
_TIME = _DAY + r"T(?:[01][0-9]|2[0-3])(?::[0-5][0-9]){2}(?:\.[0-9]{1,6})?Z"
_NEVER = "(?!)"
_FEW = 64  # numbers that are written out
_CLASS = re.compile(r"\[[^\]]*\]")
_ODD = [
    chr(at) for at in (*range(0x20), 0x22, 0x5C, *range(0x7F, 0x100))
]  # what JSON would escape, and what is not ASCII


class Spelling:
    """Whether bytes are plainly a document of this registry's schema."""

    def __init__(self, known: Registry) -> None:
        self._known = known
        # That a reason is one of its own check's is asked of every document anyway; here any word will do.
        states = ByWord(
            tuple(known.checks), {**known.schema["states"].of, "reason": Pattern("word", facts.TOKEN.pattern)}
        )
        self._match = re.compile(_form({**known.schema, "states": states}).encode("ascii")).fullmatch
        self._facts: dict[bytes, Callable[[bytes], object]] = {}

    def __call__(self, raw: bytes) -> bool:
        found = self._match(raw)
        if found is None:
            return False
        check, after, before = found.group("check", "post_state", "pre_state")
        if check == b"null":
            return bool(before == after == b"{}")
        fits = self._facts.get(check) or self._facts_of(check)
        return (before == b"{}" or fits(before) is not None) and (after == b"{}" or fits(after) is not None)

    def members(self, keys: Iterable[str], check: str | None) -> str:
        """Members of a record of this check that stand side by side, as a regular expression."""
        schema = self._known.schema
        forms = {key: self._facts_form(check) if isinstance(schema[key], Facts) else _form(schema[key]) for key in keys}
        return ",".join(f"{_word(key)}:{form}" for key, form in forms.items())

    def _facts_of(self, check: bytes) -> Callable[[bytes], object]:
        form = self._facts_form(check.decode("ascii")[1:-1])
        found = self._facts[check] = re.compile(form.encode("ascii")).fullmatch
        return found

    def _facts_form(self, check: str | None) -> str:
        declared = {} if check is None else self._known.facts_of[check]
        return _some({name: Maybe(kind) for name, kind in declared.items()})


def _form(schema: Any) -> str:
    """A part of the schema as a regular expression."""
    if isinstance(schema, Maybe):
        return f"(?:null|{_form(schema.of)})"
    if isinstance(schema, Rows | Many):
        return _list(_form(schema.of), schema.at_most)
    if isinstance(schema, ByWord):
        return _some(dict.fromkeys(schema.words, schema.of))
    if isinstance(schema, FactType):
        return _leaf(schema)
    pairs = (f"{_word(key)}:{_field(key, inner)}" for key, inner in sorted(schema.items()))
    return r"\{" + ",".join(pairs) + r"\}"


def _field(key: str, schema: Any) -> str:
    if isinstance(schema, Facts):
        return rf"(?P<{key}>\{{[^{{}}]*\}})"
    return f"(?P<check>{_form(schema)})" if key == "check" else _form(schema)


def _some(of: Mapping[str, Any]) -> str:
    """An object of some of these keys; a comma stands only before a key."""
    pairs = (rf'(?:{_word(key)}:{_form(inner)}(?:,(?=")|(?=\}})))?' for key, inner in sorted(of.items()))
    return r"(?:\{\}|\{" + "".join(pairs) + r"\})"  # most often there is none of them


def _list(inner: str, at_most: int) -> str:
    return r"\[\]" if at_most < 1 else rf"\[(?:{inner}(?:,{inner}){{0,{at_most - 1}}})?\]"


def _leaf(kind: FactType) -> str:
    if isinstance(kind, Choice):
        return f"(?:{'|'.join(map(_word, kind.words)) or _NEVER})"
    if isinstance(kind, Int):
        return f"(?:{'|'.join(_numbers(kind.low, kind.high)) or _NEVER})"
    if isinstance(kind, Bool):
        return "(?:true|false)"
    if isinstance(kind, Digest):
        return _text(facts.SHA256.pattern)
    if isinstance(kind, facts.Revision):
        return _text(facts.REVISION.pattern)
    if isinstance(kind, Pattern):
        return _text(kind.regex)
    if isinstance(kind, Name):
        return _text(facts.NAME.pattern)
    if isinstance(kind, Timestamp):
        return f'"{_TIME}"'
    if isinstance(kind, facts.Version):
        begins = "|".join(["[0-9]", *map(re.escape, kind.prefixes)])
        return f'"(?![0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}")(?={begins}){_text(facts.VERSION.pattern)[1:]}'
    return _NEVER  # left to the slow way


def _word(word: str) -> str:
    return re.escape(json.dumps(word))


def _text(regex: str) -> str:
    """A string of this form; the form lets nothing through that JSON spells in another way or that ends the string."""
    classes, rest = _CLASS.findall(regex), _CLASS.sub("", regex)
    if not re.fullmatch(r"[A-Za-z0-9/{},|()-]*", rest) or any(re.match(one, odd) for one in classes for odd in _ODD):
        raise RuntimeError(f"a form that might match what ends a string: {regex}")
    return f'"(?:{regex})"'


def _numbers(low: int, high: int) -> list[str]:
    """Most numbers from `low` to `high`, and no other."""
    if high - low < _FEW:
        return [str(number) for number in range(low, high + 1)]
    found = ["0"] if low <= 0 <= high else []
    return [*found, *_positive(max(low, 1), high), *(f"-{form}" for form in _positive(max(-high, 1), -low))]


def _positive(low: int, high: int) -> list[str]:
    shortest = len(str(low - 1)) + 1 if low > 1 else 1  # every number of so many digits is at least `low`
    longest = len(str(high))
    if high < low or longest < shortest:
        return []
    found = [f"[1-9][0-9]{{{shortest - 1},{longest - 2}}}"] if shortest < longest else []
    lead = int(str(high)[0]) - 1
    return [*found, *([f"[1-{lead}][0-9]{{{longest - 1}}}"] if lead else [])]
