"""The kernel's audit subsystem as `auditctl` (audit 3.0 or later) tells it, its rules, and the daemon's configuration.

A rule is written in several ways: `-w` or `-F path=`, `-k x` or `-F key=x`, system calls together or apart; and `auditctl -l`
prints another than the files hold. So rules are read, not compared as text. The baseline names what it asks for in three ways:

    /etc/passwd:wa    writes and changes of attributes of this path are recorded, whoever makes them
    b64:settimeofday  this system call is recorded, whoever makes it
    key:identity      some rule records under this key (for rules that only hold for some: say less, and prove less)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from compliance_agent.core.tools import unparsable
from compliance_agent.dataclass import dataclass

STATUS = ("auditctl", "-s")
RULES = ("auditctl", "-l")
RULES_DIR = "/etc/audit/rules.d"
NO_RULES = "No rules\n"
MOST = 2**32 - 1  # the kernel counts in 32 bits
SPACE_ACTIONS = ("ignore", "syslog", "rotate", "email", "exec", "suspend", "single", "halt")
LOG_ACTIONS = ("ignore", "syslog", "suspend", "rotate", "keep_logs")
_STATUS_LINE = re.compile(r"([a-z_]{1,40}) ([0-9]{1,10})( [a-z]+)?")
_SETTING = re.compile(r"\s*([A-Za-z][A-Za-z0-9_]{0,39})\s*=\s*(\S+)(\s.*)?")
ARCHITECTURES = ("b64", "b32")
_WANTED_RULE = re.compile(r"key:[A-Za-z0-9@._+-]+|b(64|32):[a-z0-9_]+|/[A-Za-z0-9@._/+-]*:(?=[rwxa])r?w?x?a?")
_FIELDS = ("enabled", "pid", "lost", "backlog", "backlog_limit")


@dataclass(frozen=True)
class Status:
    """`auditctl -s`. `enabled` is 0 for off, 1 for on, 2 for on and locked until the next boot; `pid` 0 for no daemon."""

    enabled: int
    pid: int
    lost: int
    backlog: int
    backlog_limit: int


@dataclass(frozen=True)
class Rule:
    """A rule that adds: where it holds (`always,exit`), for which calls, path and permissions, and under which keys.

    `narrowed` is for any further condition: it then records what some do, and not what everybody does.
    """

    place: str
    calls: frozenset[str]
    arch: str
    path: str
    permissions: frozenset[str]
    keys: frozenset[str]
    narrowed: bool


@dataclass(frozen=True)
class Config:
    """What auditd.conf says about where records go, and what becomes of them when space ends."""

    log_file: str
    writes: bool
    space_left_action: str
    max_log_file_action: str


def read_status(text: str) -> Status:
    """What the kernel says of its audit subsystem.

    Raises:
        CannotTell: `unparsable`.
    """
    found: dict[str, int] = {}
    for line in _lines(text):
        match = _STATUS_LINE.fullmatch(line)
        if match is None or match[1] in found or int(match[2]) > MOST:
            raise unparsable("auditctl -s", "names with a number, each once")
        found[match[1]] = int(match[2])
    if not found.keys() >= set(_FIELDS) or found["enabled"] > 2:
        raise unparsable("auditctl -s", f"{', '.join(_FIELDS)}")
    return Status(*(found[name] for name in _FIELDS))


def read_rules(text: str) -> tuple[str, ...]:
    """The rules in force, in their order, as lines of words that `auditctl` takes again.

    Raises:
        CannotTell: `unparsable`; having no rules is said in words, and silence is no answer.
    """
    if text == NO_RULES:
        return ()
    lines = tuple(_lines(text))
    if not lines or not all(line.startswith(("-a ", "-w ")) for line in lines):
        raise unparsable("auditctl -l", "rules that begin with -a or -w, or the words No rules")
    return lines


def rules_of_file(text: str) -> tuple[Rule, ...]:
    """The rules in a file of /etc/audit/rules.d; what is no rule (`-b 8192`, `-e 2`) is passed over.

    Raises:
        CannotTell: `unparsable`, for files that take single rules away again: what is left then cannot be read off them.
    """
    found = []
    for line in text.splitlines():
        words = line.split()
        if words[:1] in (["-d"], ["-W"]) or (words[:1] == ["-D"] and len(words) > 1):
            raise unparsable(RULES_DIR, "files that only add rules")
        if (rule := read_rule(line)) is not None:
            found.append(rule)
    return tuple(found)


def read_rule(line: str) -> Rule | None:
    """A rule in any way of writing it; None for what is not a rule that adds."""
    words = line.split()
    if not words or len(words) % 2 or words[0] not in {"-a", "-A", "-w"}:
        return None
    place, path, permissions = "always,exit", "", ""
    calls: set[str] = set()
    keys: set[str] = set()
    arch, narrowed = "", False
    for option, value in zip(words[::2], words[1::2], strict=True):
        name, _, content = value.partition("=")
        if option in {"-a", "-A"}:
            place = ",".join(sorted(value.split(",")))
        elif option == "-S":
            calls.update(value.split(","))
        elif option == "-w" or (option == "-F" and name in {"path", "dir"}):
            path = (value if option == "-w" else content).rstrip("/") or "/"
        elif option == "-p" or (option == "-F" and name == "perm"):
            permissions += value if option == "-p" else content
        elif option == "-k" or (option == "-F" and name == "key"):
            keys.add(value if option == "-k" else content)
        elif option == "-F" and name == "arch":
            arch = content
        else:
            narrowed = True
    return Rule(place, frozenset(calls), arch, path, frozenset(permissions or "rwxa"), frozenset(keys), narrowed)


def is_wanted(name: str) -> bool:
    """Whether a name is one of the three forms."""
    return _WANTED_RULE.fullmatch(name) is not None


def covered(name: str, rules: Iterable[Rule]) -> bool:
    """Whether some rule records what the name asks for."""
    kind, _, what = name.rpartition(":")
    recording = [rule for rule in rules if rule.place == "always,exit"]
    if kind == "key":
        return any(what in rule.keys for rule in recording)
    for_all = [rule for rule in recording if not rule.narrowed]
    if kind in ARCHITECTURES:
        return any(rule.arch == kind and not rule.path and {what, "all"} & rule.calls for rule in for_all)
    return any(rule.path == kind and rule.calls <= {"all"} and set(what) <= rule.permissions for rule in for_all)


def read_config(text: str) -> Config:
    """auditd.conf; what it does not set has the daemon's own default.

    Raises:
        CannotTell: `unparsable`.
    """
    found: dict[str, str] = {}
    for line in _lines(text):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _SETTING.fullmatch(line)
        if match is None:
            raise unparsable("auditd.conf", "settings, one a line")
        found[match[1].lower()] = match[2]
    writes = found.get("write_logs", "yes").lower()
    space = found.get("space_left_action", "ignore").lower()
    full = found.get("max_log_file_action", "ignore").lower()
    log_file = found.get("log_file", "/var/log/audit/audit.log")
    if writes not in {"yes", "no"} or space not in SPACE_ACTIONS or full not in LOG_ACTIONS or log_file[0] != "/":
        raise unparsable("auditd.conf", "words that auditd.conf(5) knows")
    return Config(log_file, writes == "yes", space, full)


def _lines(text: str) -> Iterator[str]:
    if not text.endswith("\n"):
        raise unparsable("audit", "whole lines")
    yield from text.split("\n")[:-1]
