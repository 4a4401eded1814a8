"""rsyslogd 8.2302, journald, logger and journalctl: a message goes the way that the loaded configuration gives it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from compliance_agent.lab.host import Call, FakeHost, Node, Unit, said
from compliance_agent.ports import Ran

RSYSLOG = "rsyslog.service"
JOURNALD = "systemd-journald.service"
CONF = "/etc/rsyslog.conf"
DEBIAN_CONF = """module(load="imuxsock") # provides support for local system logging
module(load="imklog")   # provides kernel logging support

$FileOwner root
$FileGroup adm
$FileCreateMode 0640
$DirCreateMode 0755
$Umask 0022
$WorkDirectory /var/spool/rsyslog
$IncludeConfig /etc/rsyslog.d/*.conf

*.*;auth,authpriv.none\t\t-/var/log/syslog
auth,authpriv.*\t\t\t/var/log/auth.log
kern.*\t\t\t\t-/var/log/kern.log
user.*\t\t\t\t-/var/log/user.log
*.emerg\t\t\t\t:omusrmsg:*
"""
LEVELS = ("emerg", "alert", "crit", "err", "warning", "notice", "info", "debug")
FACILITIES: tuple[str, ...] = (
    "kern",
    "user",
    "mail",
    "daemon",
    "auth",
    "syslog",
    "lpr",
    "news",
    "uucp",
    "cron",
    "authpriv",
    "ftp",
)
FACILITIES += ("ntp", "security", "console", "cron2", *(f"local{number}" for number in range(8)))
RULE = re.compile(r"^(?P<selector>[a-z0-9*,.;=!]+\.[a-z0-9*=!;,.]+)\s+(?P<target>\S+)\s*$")


@dataclass
class Logs:
    """The journal, and what rsyslog has loaded.

    Attributes:
        entries: the journal, oldest first.
        rules: (selector, target) pairs that rsyslog took from its files when it started.
        forwards: messages sent to other hosts, by `host:port`.
        loses: rsyslog runs and writes nothing (a full disk, a stuck queue).
    """

    entries: list[dict[str, Any]] = field(default_factory=list)
    rules: list[tuple[str, str]] = field(default_factory=list)
    forwards: dict[str, list[str]] = field(default_factory=dict)
    loses: bool = False


def provide(host: FakeHost) -> None:
    """Have journald and rsyslog running with Debian's configuration."""
    host.put(CONF, DEBIAN_CONF)
    host.place("/etc/rsyslog.d", Node("directory", mode=0o755))
    for name in ("syslog", "auth.log", "kern.log", "user.log"):
        host.put(f"/var/log/{name}", mode=0o640)
    host.install("rsyslogd", "logger", "journalctl")
    host.units_table[JOURNALD] = Unit(enabled="static")
    host.units_table[RSYSLOG] = Unit(can_start=lambda: not faults_of(host), started=lambda: load(host))
    host.aliases["syslog.service"] = RSYSLOG
    load(host)
    for message in ("Linux version 6.1.0-28-amd64", "Reached target multi-user.target - Multi-User System."):
        emit(host, "systemd", message, "daemon", "info")


def _lines(host: FakeHost) -> list[str]:
    """The configuration with its includes, in the order rsyslog reads it."""
    found: list[str] = []
    for line in _text(host, CONF):
        if line.startswith("$IncludeConfig ") or line.startswith("include("):
            parts = sorted(n for n in host.files if re.fullmatch(r"/etc/rsyslog\.d/[^/]+\.conf", n))
            found += [inner for name in parts for inner in _text(host, name)]
        else:
            found.append(line)
    return found


def _text(host: FakeHost, path: str) -> list[str]:
    node = host.files.get(path)
    return node.content.decode("utf-8", "replace").splitlines() if node else []


def faults_of(host: FakeHost) -> list[str]:
    """Lines that rsyslog would not accept."""
    bad = []
    for line in _lines(host):
        text = line.split("#")[0].strip()
        known = text.startswith(("$", ":", "if ", "}", "&")) or re.match(r"[a-z]+\(.*\)?$|[a-zA-Z.]+=|\)", text)
        if text and not known and not RULE.match(text):
            bad.append(line)
    return bad if CONF in host.files else [CONF]


def load(host: FakeHost) -> None:
    """Take the rules from the files, as rsyslog does when it starts."""
    rules = (RULE.match(line.split("#")[0].strip()) for line in _lines(host))
    host.part(Logs).rules = [(rule["selector"], rule["target"]) for rule in rules if rule]


def selects(selector: str, facility: str, level: str) -> bool:
    """Whether a sysklogd selector (`*.*;auth.none`, `mail.=info`) takes a message. Later parts overrule earlier ones."""
    taken = False
    for part in selector.split(";"):
        names, _, wanted = part.rpartition(".")
        if names != "*" and facility not in names.split(","):
            continue
        if wanted == "none":
            taken = False
        elif wanted == "*":
            taken = True
        else:
            exact = wanted.startswith("=")
            limit = LEVELS.index(wanted.lstrip("=")) if wanted.lstrip("=") in LEVELS else -1
            here = LEVELS.index(level)
            taken = taken or (here == limit if exact else here <= limit)
    return taken


def emit(host: FakeHost, tag: str, message: str, facility: str = "user", level: str = "notice") -> None:
    """A message of some program, on its way through journald and rsyslog."""
    logs, micros = host.part(Logs), int(host.now().timestamp() * 1e6)
    if host.is_active(JOURNALD):
        number = len(logs.entries) + 1
        logs.entries.append(
            {
                "__CURSOR": f"s={host.boot_id.replace('-', '')};i={number:x};b={host.boot_id.replace('-', '')}",
                "__REALTIME_TIMESTAMP": str(micros),
                "__MONOTONIC_TIMESTAMP": str(int(host.clock.monotonic() * 1e6)),
                "_BOOT_ID": host.boot_id.replace("-", ""),
                "PRIORITY": str(LEVELS.index(level)),
                "SYSLOG_FACILITY": str(FACILITIES.index(facility)),
                "SYSLOG_IDENTIFIER": tag,
                "MESSAGE": message,
                "_TRANSPORT": "syslog",
                "_UID": str(host.uid),
            }
        )
    if not host.is_active(RSYSLOG) or logs.loses:
        return
    line = f"{host.now().isoformat(timespec='microseconds')} clinic-{host.seed} {tag}: {message}\n"
    for selector, target in logs.rules:
        if not selects(selector, facility, level):
            continue
        if target.lstrip("-").startswith("/"):
            host.append(target.lstrip("-"), line)
        elif target.startswith("@"):
            logs.forwards.setdefault(target.lstrip("@"), []).append(line)


def logger(call: Call) -> Ran:
    """`logger [-t TAG] [-p FACILITY.LEVEL] [--journald] [--] MESSAGE...`."""
    words, tag, priority, message = list(call.argv[1:]), "root", "user.notice", ""
    while words:
        word = words.pop(0)
        if word in {"-t", "--tag", "-p", "--priority"} and words:
            value = words.pop(0)
            tag, priority = (value, priority) if word in {"-t", "--tag"} else (tag, value)
        elif word.startswith("--tag="):
            tag = word.partition("=")[2]
        elif word.startswith("--priority="):
            priority = word.partition("=")[2]
        elif word == "--":
            message, words = " ".join(words), []
        elif word.startswith("--journald"):
            pairs = dict(line.partition("=")[::2] for line in call.stdin.decode("utf-8", "replace").splitlines())
            message, tag = pairs.get("MESSAGE", ""), pairs.get("SYSLOG_IDENTIFIER", tag)
        elif not word.startswith("-"):
            message, words = " ".join([word, *words]), []
    facility, _, level = priority.rpartition(".")
    if facility not in FACILITIES or level not in LEVELS:
        return said("", 1, err=f"logger: unknown priority name: {priority}\n")
    # /dev/log belongs to journald, which hands on to rsyslog; without it there is nowhere to write to.
    if not call.host.is_active(JOURNALD):
        return said("", 1, err="logger: socket /dev/log: Connection refused\n")
    emit(call.host, tag, message or call.stdin.decode("utf-8", "replace").rstrip("\n"), facility, level)
    return said("")


def journalctl(call: Call) -> Ran:
    """`journalctl -o json [-n N] [-t TAG] [-b] [--after-cursor C] [--show-cursor] [FIELD=VALUE ...]`."""
    entries = list(call.host.part(Logs).entries)
    words, most, show_cursor = list(call.argv[1:]), None, False
    as_json = False
    while words:
        word = words.pop(0)
        name, _, value = word.partition("=")
        if name in {"-o", "--output", "-n", "--lines", "-t", "--identifier", "--after-cursor", "-c", "--cursor"}:
            value = value or (words.pop(0) if words else "")
        if name in {"-o", "--output"}:
            as_json = value.startswith("json")
        elif name in {"-n", "--lines"}:
            most = int(value)
        elif name in {"-t", "--identifier"}:
            entries = [entry for entry in entries if entry["SYSLOG_IDENTIFIER"] == value]
        elif name == "--after-cursor":
            after = [i for i, entry in enumerate(call.host.part(Logs).entries) if entry["__CURSOR"] == value]
            if not after:
                return said("", 1, err="Failed to seek to cursor: Invalid argument\n")
            later = call.host.part(Logs).entries[after[0] + 1 :]
            entries = [entry for entry in entries if entry in later]
        elif name == "--show-cursor":
            show_cursor = True
        elif re.fullmatch(r"_?[A-Z_]+", name) and "=" in word:
            entries = [entry for entry in entries if entry.get(name) == value]
    entries = entries[-most:] if most else [] if most == 0 else entries
    return said(_printed(entries, as_json=as_json, show_cursor=show_cursor))


def _printed(entries: list[dict[str, Any]], *, as_json: bool, show_cursor: bool) -> str:
    if as_json:
        text = "".join(json.dumps(entry) + "\n" for entry in entries)
    else:
        text = (
            "".join(f"{entry['SYSLOG_IDENTIFIER']}: {entry['MESSAGE']}\n" for entry in entries) or "-- No entries --\n"
        )
    return text + (f"-- cursor: {entries[-1]['__CURSOR']}\n" if show_cursor and entries else "")


def rsyslogd(call: Call) -> Ran:
    """`rsyslogd -N1 [-f FILE]`: is the configuration good?"""
    if not any(word.startswith("-N") for word in call.argv):
        raise RuntimeError("the simulated rsyslogd runs as a unit only")
    begin = f"rsyslogd: version 8.2302.0, config validation run (level 1), master config {CONF}\n"
    bad = faults_of(call.host)
    if bad:
        return said(
            "", 1, err=f"{begin}rsyslogd: error during parsing file {CONF}, on or before line 1: syntax error\n"
        )
    return said("", 0, err=f"{begin}rsyslogd: End of config validation run. Bye.\n")


PROGRAMS = {"logger": logger, "journalctl": journalctl, "rsyslogd": rsyslogd}
