"""Runbooks are read strictly: what is not exactly of the agreed form is refused, and the field is named."""

from __future__ import annotations

import dataclasses
import hashlib
from importlib import resources

import pytest

from compliance_agent.errors import ConfigError, DocumentError
from compliance_agent.runbook import Argument, named, parse, shipped

GOOD = """\
id: toy-book
version: "1"
name: A toy that is off
sla_s: 3600
citations: ["164.312(b)"]
cures:
  - when: {check: time_sync, reasons: [daemon_down]}
    disruptive: false
    steps:
      - {action: ensure_unit_active, arguments: {unit: {baseline: unit}}}
    undo: everything
people:
  - when: {check: time_sync, reasons: [not_synchronised]}
    do: Look at the sources, and mend them.
"""


def test_it_says_what_the_file_says() -> None:
    book = parse(GOOD.encode())
    assert (book.id, book.version, book.sla_s, book.checks) == ("toy-book", "1", 3600, ("time_sync",))
    assert book.sha256 == hashlib.sha256(GOOD.encode()).hexdigest()
    (cure,) = book.cures_of("time_sync", "daemon_down")
    assert cure.verify == "time_sync"
    assert cure.steps[0].arguments == {"unit": Argument("baseline", "unit")}
    assert book.cures_of("time_sync", "not_synchronised") == ()
    told = book.for_people("time_sync", "not_synchronised")
    assert told is not None
    assert told.do.startswith("Look at")


def test_the_shipped_ones_are_named_after_their_ids() -> None:
    files = {item.name for item in resources.files("compliance_agent").joinpath("runbooks").iterdir() if item.is_file()}
    assert {f"{book.id}.yaml" for book in shipped().values()} == files
    assert len(files) == 11


REFUSED = {
    "unknown key": ("undo: everything", "undo: everything\n    command: rm", "unknown key 'command'"),
    "a missing one": ("    undo: everything\n", "", "undo is missing"),
    "no id": ("id: toy-book", "id: Toy_Book", "id: expected"),
    "a long id": ("id: toy-book", f"id: {'a' * 64}", "id: expected"),
    "an unquoted version": ('version: "1"', "version: 1", "version: expected"),
    "a name of control characters": ("name: A toy that is off", 'name: "A toy\\e[2J is off"', "name: expected"),
    "an endless sla": ("sla_s: 3600", "sla_s: 99999999", "sla_s: expected"),
    "a true sla": ("sla_s: 3600", "sla_s: true", "sla_s: expected"),
    "no such section": ("164.312(b)", "164.999(b)", "no section"),
    "a section twice": ('["164.312(b)"]', '["164.312(b)", "164.312(b)"]', "each once"),
    "no steps": (
        "steps:\n      - {action: ensure_unit_active, arguments: {unit: {baseline: unit}}}", "steps: []", "none;"
    ),
    "a step of two sources": ("{baseline: unit}", "{baseline: unit, value: x}", "expected one of value"),
    "a step of a shell": ("{baseline: unit}", "{shell: reboot}", "expected one of value"),
    "a list as a value": ("{baseline: unit}", "{value: [a, b]}", "expected text"),
    "another undo": ("undo: everything", "undo: perhaps", "undo: expected"),
    "a cure without a check": ("{check: time_sync, reasons: [daemon_down]}", "{code: storage_full}", "needs a check"),
    "no reasons": ("reasons: [daemon_down]", "reasons: []", "each once"),
    "a disruption as a word": ("disruptive: false", "disruptive: no", "true or false"),
    "two lines for people": ("do: Look at the sources, and mend them.", 'do: "Look\\nhere again"', "one line"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_of_the_form_is_refused(case: str) -> None:
    old, new, said = REFUSED[case]
    assert old in GOOD
    with pytest.raises(ConfigError, match=said):
        parse(GOOD.replace(old, new, 1).encode())


def test_nothing_to_do_is_no_runbook() -> None:
    empty = GOOD[: GOOD.index("cures:")] + "cures: []\npeople: []\n"
    with pytest.raises(ConfigError, match="nothing to do"):
        parse(empty.encode())


def test_what_is_not_yaml_or_of_another_name_is_refused_with_the_file() -> None:
    with pytest.raises(DocumentError):
        parse(b"a: &x 1\nb: *x\n")
    with pytest.raises(ConfigError, match=r"runbook other\.yaml: id") as refused:
        named("other.yaml", GOOD.encode())
    assert refused.value.code == "bad_runbook"
    with pytest.raises(ConfigError, match="larger than"):
        named("toy-book.yaml", b"#" * 70_000)


def test_nobody_changes_one_that_was_read() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(parse(GOOD.encode()), "sla_s", 1)  # noqa: B010
