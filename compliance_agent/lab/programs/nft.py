"""nft 1.0.6: one ruleset, changed as a whole or not at all."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field
from typing import Any

from compliance_agent.core import nftables
from compliance_agent.errors import CannotTell
from compliance_agent.lab.host import Call, FakeHost, said
from compliance_agent.lab.nft_language import Reader, SyntaxFault
from compliance_agent.lab.nft_printer import table_text
from compliance_agent.ports import Ran

METAINFO = {"metainfo": {"version": "1.0.6", "release_name": "Lester Gooch #5", "json_schema_version": 1}}
KINDS = ("table", "set", "chain", "rule")


@dataclass
class Ruleset:
    """What the kernel holds: objects as `nft -j` prints them, each with its kind; handles grow and are never used
    again.
    """

    objects: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    last_handle: int = 0

    def load(self, text: str) -> None:
        """Apply a text in the nftables language, as `nft -f` does.

        Raises:
            SyntaxFault: nothing was changed.
        """
        self.apply(Reader(text).read())

    def apply(self, commands: list[dict[str, Any]]) -> None:
        """Apply JSON commands, all of them or none.

        Raises:
            SyntaxFault: one of them is not possible; nothing was changed.
        """
        after = copy.deepcopy(self)
        # nft resolves a whole batch before the kernel sees it, so a rule may name a chain that is made further down.
        for command in sorted(commands, key=lambda item: "rule" in next(iter(item.values()), {})):
            after._apply_one(command)
        self.objects, self.last_handle = after.objects, after.last_handle

    def _apply_one(self, command: dict[str, Any]) -> None:
        (verb, target), *_ = command.items()
        if verb in {"metainfo", *KINDS}:
            verb, target = "add", command
        (kind, given), *_ = target.items()
        if kind == "metainfo":
            return
        if verb == "create" and self.select(kind, **given):
            raise SyntaxFault("Error: Could not process rule: File exists")
        if verb in {"add", "create"} and kind in KINDS:
            self._add(kind, given)
        elif verb in {"flush", "delete"} and kind in {"ruleset", *KINDS}:
            self._take_away(verb, kind, given)
        else:
            raise SyntaxFault(f"Error: Unknown command {verb} {kind}")

    def _add(self, kind: str, given: dict[str, Any]) -> None:
        if kind != "table" and not self.select("table", family=given.get("family"), name=given.get("table")):
            raise SyntaxFault("Error: No such file or directory")
        if kind == "rule" and not self._chain_of(given):
            raise SyntaxFault("Error: No such file or directory; did you mean chain")
        place = {key: given[key] for key in ("family", "table", "name") if key in given}
        if kind != "rule" and (known := self.select(kind, **place)):
            known[0].update({key: value for key, value in given.items() if key != "handle"})
            return
        self.last_handle += 1
        order = ("family", "table", "name") if kind != "rule" else ("family", "table", "chain")
        head = {key: given[key] for key in order if key in given} | {"handle": self.last_handle}
        self.objects.append(
            (kind, head | {key: copy.deepcopy(value) for key, value in given.items() if key not in head})
        )

    def _take_away(self, verb: str, kind: str, given: dict[str, Any] | None) -> None:
        if kind == "ruleset" or given is None:
            self.objects.clear()
            return
        if verb == "delete" and not self.select(kind, **{key: value for key, value in given.items() if key != "expr"}):
            raise SyntaxFault("Error: Could not process rule: No such file or directory")
        self.objects = [item for item in self.objects if not _goes(verb, kind, given, *item)]

    def _chain_of(self, rule: dict[str, Any]) -> list[dict[str, Any]]:
        return self.select("chain", family=rule.get("family"), table=rule.get("table"), name=rule.get("chain"))

    def select(self, kind: str, **wanted: Any) -> list[dict[str, Any]]:
        """The objects of a kind whose keys have these values."""
        return [item for one, item in self.objects if one == kind and all(item.get(k) == v for k, v in wanted.items())]

    def listing(self) -> list[dict[str, Any]]:
        """Everything in the order nft prints it: per table its sets, its chains, then the rules chain by chain."""
        printed: list[dict[str, Any]] = []
        for table in self.select("table"):
            inside = {"family": table["family"], "table": table["name"]}
            chains = self.select("chain", **inside)
            printed.append({"table": table})
            printed += [{"set": item} for item in self.select("set", **inside)]
            printed += [{"chain": item} for item in chains]
            printed += [
                {"rule": item} for chain in chains for item in self.select("rule", **inside, chain=chain["name"])
            ]
        return printed


def _goes(verb: str, kind: str, given: dict[str, Any], other_kind: str, other: dict[str, Any]) -> bool:
    """Whether an object is gone after flushing or deleting the given one."""
    if other.get("family") != given.get("family"):
        return False
    if kind == "table":
        inside = other.get("table") == given["name"]
        itself = other_kind == "table" and other["name"] == given["name"]
        return (inside and (verb == "delete" or other_kind == "rule")) or (itself and verb == "delete")
    if other.get("table") != given.get("table"):
        return False
    if kind == "chain":
        inside = other_kind == "rule" and other["chain"] == given["name"]
        return inside or (verb == "delete" and other_kind == "chain" and other["name"] == given["name"])
    return other_kind == kind and other.get("handle") == given.get("handle")


def provide(host: FakeHost) -> None:
    """Have the firewall of the default baseline: ssh, https and DHCPv6 come in."""
    host.install("nft")
    host.part(Ruleset).load(nftables.generate(("22", "443"), ("546",)))


def nft(call: Call) -> Ran:
    """`nft [-s] [-j] [-c] list ruleset | -f FILE | COMMAND`."""
    flags, ruleset = _flags(call.argv), call.host.part(Ruleset)
    if call.host.uid != 0:
        return said("", 1, err="Operation not permitted (you must be root)\n")
    if "f" in flags:
        return _load(call, ruleset, flags)
    words = [word for word in call.argv[1:] if not word.startswith("-")]
    if words[:2] == ["list", "table"] and "j" not in flags:
        return _print_table(ruleset, *words[2:4])
    if words[:2] == ["list", "ruleset"]:
        return said(json.dumps({"nftables": [METAINFO, *ruleset.listing()]}) + "\n")
    if "j" in flags or not words:
        return said("", 1, err="Error: syntax error\n")
    return _attempt(call, ruleset, " ".join(words), as_json=False, check="c" in flags)


def _print_table(ruleset: Ruleset, family: str = "", name: str = "") -> Ran:
    if not ruleset.select("table", family=family, name=name):
        return said("", 1, err="Error: No such file or directory\n")
    return said(table_text(family, name, ruleset.objects))


def _flags(argv: tuple[str, ...]) -> set[str]:
    long = {"--file": "f", "--check": "c", "--json": "j", "--stateless": "s"}
    short = [word[1:] for word in argv[1:] if word.startswith("-") and not word.startswith("--") and word != "-"]
    return {letter for word in short for letter in word} | {long[word] for word in argv[1:] if word in long}


def _load(call: Call, ruleset: Ruleset, flags: set[str]) -> Ran:
    name = call.argv[-1]
    try:
        content = call.stdin if name in {"-", "/dev/stdin"} else _content(call.host, name)
    except CannotTell:
        return said("", 1, err=f'internal:0:0-0: Error: Could not open file "{name}": No such file or directory\n')
    text = content.decode("utf-8", "replace")
    as_json = "j" in flags or text.lstrip().startswith("{")
    return _attempt(call, ruleset, text, as_json=as_json, check="c" in flags)


def _content(host: FakeHost, path: str) -> bytes:
    return host.find(path)[1].content


def _attempt(call: Call, ruleset: Ruleset, text: str, *, as_json: bool, check: bool) -> Ran:
    target = copy.deepcopy(ruleset) if check else ruleset
    if not check:
        call.alters()
    try:
        if as_json:
            target.apply(json.loads(text)["nftables"])
        else:
            target.load(text)
    except SyntaxFault as fault:
        return said("", 1, err=f"/dev/stdin:1:1-1: {fault}\n")
    except (ValueError, KeyError, TypeError, AttributeError):
        return said("", 1, err="internal:0:0-0: Error: Parsing list of commands failed.\n")
    return said("")


PROGRAMS = {"nft": nft}
