"""What root has permitted on this host: strict JSON that is made from the adopted baseline by a command that root runs.

    {"schema": "compliance-agent/permits/v1", "baseline": "<sha256>", "version": "2026.11.1",
     "files": {"/etc/x.conf": [{"line": "A"}, {"maybe": "B"}, {"key": "Ciphers ", "of": ["a", "b"]}]},
     "modes": {"/etc/ssl/private/x.key": 416}, "units": {"auditd.service": "needed", "telnet.socket": "forbidden"},
     "ruleset": "add table ...", "may": ["audit", "apt"]}

Read anew for each question, so a new file counts at once. It counts only when it is root's: the file and every directory above it
belong to root, nobody else may write them, and no link leads there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compliance_agent.errors import BadFrame
from compliance_agent.frames import Form, Maybe, Named, Several, Text, Whole, Word, strict_object
from compliance_agent.heal.machine import Machine
from compliance_agent.heal.protocol import MOST_BYTES, PATH, SHA256, UNIT
from compliance_agent.heal.trouble import Failed, Refused

SCHEMA = "compliance-agent/permits/v1"
MOST_PERMITS_BYTES = 1_048_576
FILE_MODE = 0o644  # of every file that is written towards the baseline
MAY = ("accounts", "apt", "audit", "clock", "dnf", "logind", "nix")
_LINE, _WORD = Text(2048), Text(128, r"[^ ,]+")


class _Spec:
    """One line of a file: as it stands, as it stands or left out, or a key with some of the listed words in their order."""

    def fits(self, value: object) -> bool:
        if not isinstance(value, dict):
            return False
        if value.keys() == {"key", "of"}:
            return _LINE.fits(value["key"]) and Several(_WORD, 256).fits(value["of"])
        return value.keys() in ({"line"}, {"maybe"}) and all(map(_LINE.fits, value.values()))


class _Rules:
    """The text of a ruleset."""

    def fits(self, value: object) -> bool:
        return (
            isinstance(value, str) and len(value) <= MOST_BYTES and all(map(_LINE.fits, value.expandtabs().split("\n")))
        )


FORMS: Mapping[str, Form] = {
    "schema": Word((SCHEMA,)),
    "baseline": SHA256,
    "version": Text(64),
    "files": Named(PATH, Several(_Spec(), 256), 64),
    "modes": Named(PATH, Whole(0, 0o777), 256),
    "units": Named(UNIT, Word(("needed", "forbidden")), 1024),
    "ruleset": Maybe(_Rules()),
    "may": Several(Word(MAY), len(MAY)),
}


@dataclass(frozen=True)
class Permits:
    """The file's content, checked whole."""

    baseline: str
    version: str
    files: Mapping[str, Sequence[Mapping[str, Any]]]
    modes: Mapping[str, int]
    units: Mapping[str, str]
    ruleset: str | None
    may: Sequence[str]


def parse(raw: bytes) -> Permits:
    """Permissions from the bytes of their file.

    Raises:
        Refused: `bad_permits`.
    """
    try:
        document = strict_object(raw)
    except BadFrame as error:
        raise Refused("bad_permits") from error
    if document.keys() != FORMS.keys() or not all(form.fits(document[name]) for name, form in FORMS.items()):
        raise Refused("bad_permits")
    del document["schema"]
    return Permits(**document)


def load(machine: Machine, path: str) -> Permits:
    """Read the file, if nobody but root can have written it.

    Raises:
        Refused: `no_permits`, `permits_not_roots` or `bad_permits`.
    """
    return parse(roots(machine, path, "permits"))


def roots(machine: Machine, path: str, what: str) -> bytes:
    """A file's bytes, if nobody but root can have written it.

    Raises:
        Refused: `no_WHAT` or `WHAT_not_roots`.
    """
    try:
        found = machine.read(path, MOST_PERMITS_BYTES)
    except Failed as error:
        raise Refused(f"{what}_not_roots") from error
    if found is None:
        raise Refused(f"no_{what}")
    raw, info = found
    if not machine.owns(info) or info.st_mode & 0o022:
        raise Refused(f"{what}_not_roots")
    return raw


def fits(content: bytes, specs: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a file's content is of the permitted form, to the last byte."""
    try:
        text = content.decode("ascii")
    except UnicodeDecodeError:
        return False
    if text and not text.endswith("\n"):
        return False
    lines = text.split("\n")[:-1]
    for spec in specs:
        if lines and _fits_line(lines[0], spec):
            del lines[0]
        elif "maybe" not in spec:
            return False
    return not lines


def _fits_line(line: str, spec: Mapping[str, Any]) -> bool:
    if "key" not in spec:
        return bool(line == spec.get("line", spec.get("maybe")))
    if not line.startswith(spec["key"]):
        return False
    listed = iter(spec["of"])
    return all(word in listed for word in line[len(spec["key"]) :].split(","))
