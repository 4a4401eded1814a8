"""Who the sudoers files name: the left side of every rule, aliases resolved. What the rules allow is not weighed: any counts.

Names in them are the host's own and never leave it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from compliance_agent.dataclass import dataclass
from compliance_agent.errors import CannotTell

MAIN = "/etc/sudoers"
_INCLUDE = re.compile(r"[@#](include|includedir)\s+(\S+)")
_ALIAS = re.compile(r"(User|Runas|Host|Cmnd|Cmd)_Alias\s+(.+)")
_NAME = r'(?:"[^"]*"|(?:\\.|[^\s,="!\\])+)'
_RULE = re.compile(rf"(!?{_NAME}(?:\s*,\s*!?{_NAME})*)\s+\S[^=]*=\s*\S.*")
MOST_DEPTH = 8


@dataclass(frozen=True)
class Sudoers:
    """One file of them.

    Attributes:
        subjects: who rules name, as written: a user, %group, #uid, +netgroup, ALL or an alias.
        aliases: the members of each user alias.
        files, directories: what it includes.
    """

    subjects: tuple[str, ...] = ()
    aliases: tuple[tuple[str, tuple[str, ...]], ...] = ()
    files: tuple[str, ...] = ()
    directories: tuple[str, ...] = ()


def read_sudoers(text: str) -> Sudoers:
    """One file.

    Raises:
        CannotTell: `unparsable`; a line is none of sudoers' kinds.
    """
    subjects: list[str] = []
    aliases: list[tuple[str, tuple[str, ...]]] = []
    includes: dict[str, list[str]] = {"include": [], "includedir": []}
    for line in _lines(text):
        if line.startswith("Defaults"):
            continue
        if (included := _INCLUDE.fullmatch(line)) is not None:
            includes[included[1]].append(included[2].strip('"'))
        elif (alias := _ALIAS.fullmatch(line)) is not None:
            aliases += _aliases(alias[2]) if alias[1] == "User" else []
        elif (rule := _RULE.fullmatch(line)) is not None:
            subjects += [name.strip() for name in rule[1].split(",")]
        else:
            raise CannotTell("unparsable", "a line of sudoers is neither a rule nor a setting")
    return Sudoers(tuple(subjects), tuple(aliases), tuple(includes["include"]), tuple(includes["includedir"]))


def is_read(name: str) -> bool:
    """Whether sudo reads a file of this name in an included directory."""
    return "." not in name and not name.endswith("~")


def resolved(subjects: tuple[str, ...], aliases: Mapping[str, tuple[str, ...]]) -> set[str]:
    """The subjects with every alias replaced by its members. A negated one takes nothing away here: it is no right."""
    found, waiting = set[str](), [(subject, 0) for subject in subjects]
    while waiting:
        subject, depth = waiting.pop()
        name = subject.strip('"')
        if name.startswith("!"):
            continue
        if name in aliases and depth < MOST_DEPTH:
            waiting += [(member, depth + 1) for member in aliases[name]]
        else:
            found.add(name)
    return found


def _lines(text: str) -> Iterator[str]:
    """Whole lines without comments. `#include` and `#1000` are no comments."""
    for line in text.replace("\\\n", " ").splitlines():
        stripped = line.strip()
        if stripped.startswith("#") and not re.match(r"#(include|includedir)\s|#\d", stripped):
            continue
        stripped = re.sub(r"\s#(?!\d).*$", "", stripped)
        if stripped:
            yield stripped


def _aliases(text: str) -> list[tuple[str, tuple[str, ...]]]:
    found = []
    for one in text.split(":"):
        name, equals, members = one.partition("=")
        if not equals or not re.fullmatch(r"[A-Z][A-Z0-9_]*", name.strip()):
            raise CannotTell("unparsable", "a User_Alias of sudoers is not understood")
        found.append((name.strip(), tuple(member.strip() for member in members.split(","))))
    return found
