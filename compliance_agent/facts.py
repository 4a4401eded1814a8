"""The closed vocabulary of evidence: what a value may be. There is no type for open text.

A check declares each thing it sees as a dataclass field made by `fact(...)`. Only such values may leave a host
(HIPAA, specification RELIABILITY 3.5): a truth, a bounded number, one word of a fixed list, a time, a digest, a
version, or a name that the *baseline* already holds. What a host calls its users, files or patients has no way in.

`None` means "could not tell" or "there is none", and is always allowed.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any

from compliance_agent.dataclass import dataclass
from compliance_agent.errors import FactRefused

TOKEN = re.compile(r"[a-z][a-z0-9_]{0,39}")
SHA256 = re.compile(r"[0-9a-f]{64}")
REVISION = re.compile(r"[0-9a-f]{40}")
VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+~:_-]{0,39}")
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
NAME = re.compile(r"[A-Za-z0-9@._:/+-]{1,96}")
TIMESTAMP = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T([01][0-9]|2[0-3])(:[0-5][0-9]){2}(\.[0-9]{1,6})?Z")
LARGEST_INT = 2**53 - 1


def is_timestamp(value: object) -> bool:
    """Whether it is a time that exists, in RFC 3339 form with `Z`."""
    if not isinstance(value, str) or TIMESTAMP.fullmatch(value) is None:
        return False
    try:
        datetime.fromisoformat(value)
    except ValueError:
        return False
    return True


class FactType:
    """What one value may be. `names` are the baseline's values of the parameter that a `Name` refers to."""

    def accepts(self, value: object, names: Mapping[str, Collection[str]]) -> bool:
        """Whether `value` may be recorded on this host."""
        raise NotImplementedError

    def schema(self) -> dict[str, Any]:
        """The type as data, for the registry that the server and auditors read."""
        raise NotImplementedError


@dataclass(frozen=True)
class Bool(FactType):
    """A truth."""

    def accepts(self, value: object, names: Mapping[str, Collection[str]]) -> bool:
        return isinstance(value, bool)

    def schema(self) -> dict[str, Any]:
        return {"type": "bool"}


@dataclass(frozen=True)
class Int(FactType):
    """A whole number from `low` to `high`, both included. Units belong in the fact's name (`_ms`, `_bytes`)."""

    low: int
    high: int

    def accepts(self, value: object, names: Mapping[str, Collection[str]]) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and self.low <= value <= self.high

    def schema(self) -> dict[str, Any]:
        return {"type": "int", "low": self.low, "high": self.high}


@dataclass(frozen=True)
class Choice(FactType):
    """One word of a fixed list."""

    words: tuple[str, ...]

    def accepts(self, value: object, names: Mapping[str, Collection[str]]) -> bool:
        return isinstance(value, str) and value in self.words

    def schema(self) -> dict[str, Any]:
        return {"type": "choice", "words": list(self.words)}


@dataclass(frozen=True)
class Timestamp(FactType):
    """A time in UTC, RFC 3339 with `Z`."""

    def accepts(self, value: object, names: Mapping[str, Collection[str]]) -> bool:
        return is_timestamp(value)

    def schema(self) -> dict[str, Any]:
        return {"type": "timestamp"}


@dataclass(frozen=True)
class Digest(FactType):
    """A SHA-256 in lower-case hex."""

    def accepts(self, value: object, names: Mapping[str, Collection[str]]) -> bool:
        return isinstance(value, str) and SHA256.fullmatch(value) is not None

    def schema(self) -> dict[str, Any]:
        return {"type": "digest"}


@dataclass(frozen=True)
class Revision(FactType):
    """A revision of a public source repository: a SHA-1 in lower-case hex, as git names it."""

    def accepts(self, value: object, names: Mapping[str, Collection[str]]) -> bool:
        return isinstance(value, str) and REVISION.fullmatch(value) is not None

    def schema(self) -> dict[str, Any]:
        return {"type": "revision"}


@dataclass(frozen=True)
class Version(FactType):
    """The version a program reports: at most 40 characters, no spaces, beginning with a digit or a word of `prefixes`.

    A day (`1984-02-30`) is no version: it may be somebody's date of birth.
    """

    prefixes: tuple[str, ...] = ()

    def accepts(self, value: object, names: Mapping[str, Collection[str]]) -> bool:
        return (
            isinstance(value, str)
            and VERSION.fullmatch(value) is not None
            and _DAY.fullmatch(value) is None
            and (value[0].isdigit() or value.startswith(self.prefixes or ("\0",)))
        )

    def schema(self) -> dict[str, Any]:
        return {"type": "version", "prefixes": list(self.prefixes)}


@dataclass(frozen=True)
class Name(FactType):
    """A name that stands in the baseline's parameter `parameter`, so that the host adds no word of its own."""

    parameter: str

    def accepts(self, value: object, names: Mapping[str, Collection[str]]) -> bool:
        return isinstance(value, str) and NAME.fullmatch(value) is not None and value in names.get(self.parameter, ())

    def schema(self) -> dict[str, Any]:
        return {"type": "name", "parameter": self.parameter}


@dataclass(frozen=True)
class Many(FactType):
    """A list of at most `at_most` values of one type (in a dataclass: a tuple)."""

    of: FactType
    at_most: int = 64

    def accepts(self, value: object, names: Mapping[str, Collection[str]]) -> bool:
        return (
            isinstance(value, list | tuple)
            and len(value) <= self.at_most
            and all(self.of.accepts(item, names) for item in value)
        )

    def schema(self) -> dict[str, Any]:
        return {"type": "many", "of": self.of.schema(), "at_most": self.at_most}


def fact(kind: FactType, doc: str) -> Any:
    """A dataclass field that may be recorded. `doc` is its sentence in docs/checks.md. Without a value it is None."""
    return dataclasses.field(default=None, metadata={"fact": kind, "doc": doc})


def declared(observation: type) -> dict[str, FactType]:
    """The facts of an observation class, in order.

    Raises:
        RuntimeError: a field was not made by `fact`, which a check may not do.
    """
    types: dict[str, FactType] = {}
    for field in dataclasses.fields(observation):
        kind = field.metadata.get("fact")
        if not isinstance(kind, FactType):
            raise RuntimeError(f"{observation.__name__}.{field.name} is not declared as a fact")
        types[field.name] = kind
    return types


def export(observation: object, names: Mapping[str, Collection[str]]) -> dict[str, Any]:
    """The observation as a JSON object, every value held against its declared type.

    Raises:
        FactRefused: a value is not what its fact declares. The message names the fact and never holds the value.
    """
    exported: dict[str, Any] = {}
    for name, kind in declared(type(observation)).items():
        value = getattr(observation, name)
        if value is not None and not kind.accepts(value, names):
            raise FactRefused(f"fact {name}: value is not {kind.schema()['type']} as declared")
        exported[name] = _plain(value)
    return exported


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def from_schema(schema: Mapping[str, Any]) -> FactType:
    """The type that `FactType.schema` wrote.

    Raises:
        ValueError: no such type.
    """
    match schema:
        case {"type": "bool"}:
            return Bool()
        case {"type": "int", "low": int(low), "high": int(high)}:
            return Int(low, high)
        case {"type": "choice", "words": [*words]}:
            return Choice(tuple(words))
        case {"type": "timestamp"}:
            return Timestamp()
        case {"type": "digest"}:
            return Digest()
        case {"type": "revision"}:
            return Revision()
        case {"type": "version", "prefixes": [*prefixes]}:
            return Version(tuple(prefixes))
        case {"type": "name", "parameter": str(parameter)}:
            return Name(parameter)
        case {"type": "many", "of": dict(inner), "at_most": int(at_most)}:
            return Many(from_schema(inner), at_most)
    raise ValueError("unknown fact type")
