"""Runbooks: what is done about a finding, as data. Nothing here acts, and nothing here decides.

    id: time-sync
    cures:
      - when: {check: time_sync, reasons: [daemon_down]}
        steps: [{action: ensure_unit_active, arguments: {unit: {baseline: unit}}}]
    people:
      - when: {check: time_sync, reasons: [not_synchronised]}
        do: No good source answers. ...

The agent's healing transaction executes, with the plan that the check itself makes, behind every gate. A runbook says which
rows of the fixed table that plan has, so that it can be read, proposed and approved by people who are not on the host;
`runbook_lint` holds each step to the table and each cure to the check's own plans. Where only a person can act, it says so.

An argument comes from one of three places: `value` (a constant), `baseline` (that parameter of the check, or one of its names,
or all of them with commas between), `seen` (what the check makes of its look at the host, said in a sentence).
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from compliance_agent.core.citations import SECTIONS
from compliance_agent.documents import read_yaml
from compliance_agent.errors import ConfigError, DocumentError
from compliance_agent.facts import TOKEN, VERSION
from compliance_agent.words import nearest

MAX_BYTES = 65_536
MOST = 64  # of anything that is a list
LONGEST_SLA_S = 2_592_000
SOURCES = ("value", "baseline", "seen")
UNDO = ("everything", "something", "nothing")
_ID = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_SENTENCE = re.compile(r"[\x20-\x7e]{8,400}")


@dataclass(frozen=True)
class When:
    """The finding: a check with some of its reasons, or a code that the agent's own records give (`code`)."""

    check: str = ""
    reasons: tuple[str, ...] = ()
    code: str = ""


@dataclass(frozen=True)
class Argument:
    """Where an argument of a step comes from."""

    source: str
    value: str | int | bool


@dataclass(frozen=True)
class RunbookStep:
    """A row of the table with its arguments; `repeated`: once or more often, once for each thing that is concerned."""

    action: str
    arguments: Mapping[str, Argument]
    repeated: bool = False


@dataclass(frozen=True)
class Cure:
    """What the agent does by itself, or when it is ordered to: these steps, then the same look again, else the undo.

    Attributes:
        when: the finding.
        disruptive: it waits for a maintenance window, a site lease and, where the host's mode says so, an approval.
        steps: in order.
        undo: how much of the steps can be taken back.
    """

    when: When
    disruptive: bool
    steps: tuple[RunbookStep, ...]
    undo: str

    @property
    def verify(self) -> str:
        """The check whose pass is the only proof of a cure."""
        return self.when.check


@dataclass(frozen=True)
class ForPeople:
    """What only a person can end, and what to do then."""

    when: When
    do: str


@dataclass(frozen=True)
class Runbook:
    """One runbook, whole and typed.

    Attributes:
        id: also the name of its file.
        version, sha256: as it says, and of the file's exact bytes.
        name: the finding in one line.
        sla_s: how long the finding may stand.
        citations: sections of 45 CFR Part 164 that it serves.
        cures, people: by finding.
    """

    id: str
    version: str
    sha256: str
    name: str
    sla_s: int
    citations: tuple[str, ...]
    cures: tuple[Cure, ...]
    people: tuple[ForPeople, ...]

    @property
    def checks(self) -> tuple[str, ...]:
        """The checks whose findings it is about, in order."""
        return tuple(dict.fromkeys(when.check for when in self.findings if when.check))

    @property
    def findings(self) -> tuple[When, ...]:
        """Every finding that it is about, in order: the agent's first, then those for people."""
        return (*(cure.when for cure in self.cures), *(item.when for item in self.people))

    def cures_of(self, check: str, reason: str) -> tuple[Cure, ...]:
        """The cures of one finding; which of them, the host's own look decides."""
        return tuple(cure for cure in self.cures if cure.when.check == check and reason in cure.when.reasons)

    def for_people(self, check: str, reason: str) -> ForPeople | None:
        """What a person does about one finding."""
        found = (item for item in self.people if item.when.check == check and reason in item.when.reasons)
        return next(found, None)


@functools.cache
def shipped() -> Mapping[str, Runbook]:
    """The runbooks that come with the product, by id.

    Raises:
        ConfigError: one cannot be used.
    """
    found = {}
    for item in sorted(resources.files(__package__).joinpath("runbooks").iterdir(), key=lambda item: item.name):
        if item.name.endswith(".yaml"):
            found[item.name.removesuffix(".yaml")] = named(item.name, item.read_bytes())
    return found


def named(name: str, raw: bytes) -> Runbook:
    """A runbook from the bytes of the file of this name.

    Raises:
        ConfigError: it cannot be used, or is another one than its name says.
    """
    try:
        runbook = parse(raw)
    except (ConfigError, DocumentError) as error:
        raise ConfigError(f"runbook {name}: {error}", code="bad_runbook") from error
    if name != f"{runbook.id}.yaml":
        raise ConfigError(f"runbook {name}: id: expected {name.removesuffix('.yaml')[:60]!r}", code="bad_runbook")
    return runbook


def parse(raw: bytes) -> Runbook:
    """A runbook from bytes. Its words are held against the checks by `runbook_lint`.

    Raises:
        ConfigError: names the field.
        DocumentError: not YAML.
    """
    keys = {"id", "version", "name", "sla_s", "citations", "cures", "people"}
    document = _exactly(read_yaml(raw, limit_bytes=MAX_BYTES), "runbook", keys)
    citations = _words(document["citations"], "citations")
    for section in citations:
        if section not in SECTIONS:
            raise ConfigError(f"citations: no section {section[:40]!r}{nearest(section, SECTIONS)}")
    sla_s = document["sla_s"]
    if type(sla_s) is not int or not 300 <= sla_s <= LONGEST_SLA_S:
        raise ConfigError(f"sla_s: expected 300 to {LONGEST_SLA_S} seconds")
    runbook = Runbook(
        id=_matching(_ID, document["id"], "id", "words of small letters and digits, with dashes between"),
        version=_matching(VERSION, document["version"], "version", 'a quoted version such as "2026.11.1"'),
        sha256=hashlib.sha256(raw).hexdigest(),
        name=_sentence(document["name"], "name"),
        sla_s=sla_s,
        citations=citations,
        cures=tuple(_cure(item, f"cures[{n}]") for n, item in enumerate(_list(document["cures"], "cures"))),
        people=tuple(_for_people(item, f"people[{n}]") for n, item in enumerate(_list(document["people"], "people"))),
    )
    if not runbook.cures and not runbook.people:
        raise ConfigError("runbook: says nothing to do, neither for the agent nor for people")
    return runbook


def _cure(value: Any, where: str) -> Cure:
    item = _exactly(value, where, {"when", "disruptive", "steps", "undo"})
    when = _when(item["when"], f"{where}.when")
    if when.code:
        raise ConfigError(f"{where}.when: a cure needs a check, which shows that it helped")
    if not isinstance(item["disruptive"], bool):
        raise ConfigError(f"{where}.disruptive: expected true or false")
    if item["undo"] not in UNDO:
        raise ConfigError(f"{where}.undo: expected one of {', '.join(UNDO)}")
    steps = tuple(_step(step, f"{where}.steps[{n}]") for n, step in enumerate(_list(item["steps"], f"{where}.steps")))
    if not steps:
        raise ConfigError(f"{where}.steps: none; what only people can do stands under people")
    return Cure(when, item["disruptive"], steps, item["undo"])


def _step(value: Any, where: str) -> RunbookStep:
    item = _exactly(value, where, {"action", "arguments"}, {"repeated"})
    if not isinstance(item.get("repeated", False), bool) or not isinstance(item["arguments"], dict):
        raise ConfigError(f"{where}: expected arguments by name, and repeated true or false")
    arguments = {_token(name, where): _argument(given, f"{where}.{name}") for name, given in item["arguments"].items()}
    return RunbookStep(_token(item["action"], f"{where}.action"), arguments, item.get("repeated", False))


def _argument(value: Any, where: str) -> Argument:
    if not isinstance(value, dict) or len(value) != 1 or next(iter(value)) not in SOURCES:
        raise ConfigError(f"{where}: expected one of {', '.join(SOURCES)}, and what")
    source, given = next(iter(value.items()))
    if source == "seen":
        return Argument(source, _sentence(given, where))
    if source == "baseline":
        return Argument(source, _token(given, where))
    if not isinstance(given, str | int):
        raise ConfigError(f"{where}: expected text, a whole number, true or false")
    return Argument(source, given)


def _for_people(value: Any, where: str) -> ForPeople:
    item = _exactly(value, where, {"when", "do"})
    return ForPeople(_when(item["when"], f"{where}.when"), _sentence(item["do"], f"{where}.do"))


def _when(value: Any, where: str) -> When:
    if isinstance(value, dict) and "code" in value:
        return When(code=_token(_exactly(value, where, {"code"})["code"], where))
    item = _exactly(value, where, {"check", "reasons"})
    reasons = tuple(_token(reason, f"{where}.reasons") for reason in _words(item["reasons"], f"{where}.reasons"))
    return When(_token(item["check"], f"{where}.check"), reasons)


def _exactly(value: Any, where: str, needed: set[str], also: frozenset[str] | set[str] = frozenset()) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: expected a mapping")
    for key in value:
        if key not in needed | also:
            raise ConfigError(f"{where}: unknown key {key[:60]!r}{nearest(key, needed | also)}")
    if needed - value.keys():
        raise ConfigError(f"{where}: {min(needed - value.keys())} is missing")
    return value


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list) or len(value) > MOST:
        raise ConfigError(f"{where}: expected a list of at most {MOST}")
    return value


def _words(value: Any, where: str) -> tuple[str, ...]:
    words = _list(value, where)
    if not words or not all(isinstance(word, str) for word in words) or len(set(words)) != len(words):
        raise ConfigError(f"{where}: expected words, each once")
    return tuple(words)


def _matching(pattern: re.Pattern[str], value: Any, where: str, expected: str) -> str:
    if not isinstance(value, str) or len(value) > 63 or not pattern.fullmatch(value):
        raise ConfigError(f"{where}: expected {expected}")
    return value


def _token(value: Any, where: str) -> str:
    return _matching(TOKEN, value, where, "a word of small letters, digits and _")


def _sentence(value: Any, where: str) -> str:
    if not isinstance(value, str) or not _SENTENCE.fullmatch(value):
        raise ConfigError(f"{where}: expected one line of 8 to 400 plain characters")
    return value
