"""Only what a fact declares may leave a host: there is no type that open text fits into."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compliance_agent import facts
from compliance_agent.checks import registry
from compliance_agent.errors import FactRefused
from compliance_agent.facts import Bool, Choice, Digest, FactType, Int, Many, Name, Revision, Timestamp, Version, fact

NAMES: Mapping[str, tuple[str, ...]] = {"units": ("sshd.service", "rsyslog.service")}
KINDS: dict[str, FactType] = {
    "bool": Bool(),
    "int": Int(-5, 5),
    "choice": Choice(("up", "down")),
    "timestamp": Timestamp(),
    "digest": Digest(),
    "revision": Revision(),
    "version": Version(("v", "openssl-")),
    "name": Name("units"),
    "many": Many(Name("units"), at_most=2),
}

ACCEPTED: list[tuple[str, Any]] = [
    ("bool", True),
    ("bool", False),
    ("int", -5),
    ("int", 5),
    ("choice", "up"),
    ("timestamp", "2026-02-28T23:59:59Z"),
    ("timestamp", "2026-02-28T23:59:59.123456Z"),
    ("digest", "0" * 64),
    ("version", "1.2.3-4+deb12u1~bpo"),
    ("revision", "0a" * 20),
    ("version", "v5"),
    ("version", "2026.11.1"),
    ("version", "openssl-3"),
    ("name", "sshd.service"),
    ("many", ("sshd.service", "rsyslog.service")),
    ("many", []),
]

REFUSED: list[tuple[str, Any]] = [
    ("bool", 1),
    ("bool", "true"),
    ("int", True),
    ("int", 6),
    ("int", -6),
    ("int", 1.0),
    ("int", "1"),
    ("choice", "sideways"),
    ("choice", "up\n"),
    ("timestamp", "2026-02-30T00:00:00Z"),
    ("timestamp", "0000-01-01T00:00:00Z"),
    ("timestamp", "2026-02-28T24:00:00Z"),
    ("timestamp", "2026-02-28T23:59:60Z"),
    ("timestamp", "2026-02-28T25:00:00Z"),
    ("timestamp", "2026-02-28T00:00:00+01:00"),
    ("timestamp", "2026-02-28T00:00:00"),
    ("timestamp", "2026-02-28 00:00:00Z"),
    ("timestamp", "\uff12026-02-28T00:00:00Z"),
    ("timestamp", "2026-02-28T00:00:00Z\n"),
    ("digest", "0" * 63),
    ("digest", "A" * 64),
    ("revision", "0A" * 20),
    ("revision", "0a" * 32),
    ("version", "Jane Doe"),
    ("version", "jane.doe"),
    ("version", "1984-02-30"),
    ("version", "1" * 41),
    ("version", "\uff11.2"),
    ("version", ""),
    ("name", "cron.service"),
    ("name", "../sshd.service"),
    ("many", ("sshd.service", "cron.service")),
    ("many", ["sshd.service"] * 3),
    ("many", "sshd.service"),
    ("many", {"sshd.service": 1}),
]


@pytest.mark.parametrize(("kind", "value"), ACCEPTED)
def test_a_value_of_the_declared_type_is_accepted(kind: str, value: Any) -> None:
    assert KINDS[kind].accepts(value, NAMES)


@pytest.mark.parametrize(("kind", "value"), REFUSED)
def test_a_value_of_another_type_is_refused(kind: str, value: Any) -> None:
    assert not KINDS[kind].accepts(value, NAMES)


@given(st.sampled_from(sorted(KINDS)), st.one_of(st.none(), st.text(), st.binary(), st.floats(), st.integers()))
def test_whatever_is_accepted_is_within_the_closed_vocabulary(kind: str, value: Any) -> None:
    if KINDS[kind].accepts(value, NAMES) and isinstance(value, str):
        assert len(value) <= 96 and value.isascii() and " " not in value and value.isprintable()


@pytest.mark.parametrize("kind", KINDS)
def test_a_type_survives_its_schema(kind: str) -> None:
    written = json.loads(json.dumps(KINDS[kind].schema()))
    assert facts.from_schema(written) == KINDS[kind]


@pytest.mark.parametrize("schema", [{}, {"type": "text"}, {"type": "int"}, {"type": "many", "of": {}, "at_most": 3}])
def test_an_unknown_schema_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="unknown fact type"):
        facts.from_schema(schema)


class Word(StrEnum):
    UP = "up"


@dataclass(frozen=True)
class Seen:
    active: bool | None = fact(Bool(), "It runs.")
    state: str | None = fact(Choice(("up", "down")), "Its state.")
    units: tuple[str, ...] | None = fact(Many(Name("units")), "Units that run.")
    pairs: tuple[tuple[int, ...], ...] | None = fact(Many(Many(Int(0, 9))), "Pairs of numbers.")


def test_an_observation_is_exported_as_plain_json_with_none_for_what_is_not_known() -> None:
    exported = facts.export(Seen(active=True, state=Word.UP, units=("sshd.service",), pairs=((1, 2),)), NAMES)
    assert exported == {"active": True, "state": "up", "units": ["sshd.service"], "pairs": [[1, 2]]}
    assert json.loads(json.dumps(exported)) == exported
    assert facts.export(Seen(), NAMES) == {"active": None, "state": None, "units": None, "pairs": None}


def test_a_refusal_names_the_fact_and_never_the_value() -> None:
    with pytest.raises(FactRefused) as refused:
        facts.export(Seen(units=("patient-jane-doe.service",)), NAMES)
    assert "units" in str(refused.value)
    assert "jane" not in refused.value.line


def test_an_undeclared_field_is_a_mistake_of_the_check() -> None:
    @dataclass(frozen=True)
    class Open:
        text: str = "anything"

    with pytest.raises(RuntimeError, match=r"Open\.text is not declared"):
        facts.export(Open(), NAMES)


def test_no_registered_check_declares_open_text() -> None:
    """Every leaf of every observation is one of the closed types of this module."""
    closed = (Bool, Int, Choice, Timestamp, Digest, Revision, Version, Name)
    for check in registry().values():
        for name, kind in facts.declared(check.spec.observation).items():
            while isinstance(kind, Many):
                assert kind.at_most <= 256, f"{check.id}.{name}"
                kind = kind.of
            assert isinstance(kind, closed), f"{check.id}.{name}"
