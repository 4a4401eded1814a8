"""A part of the nftables language, read into the JSON commands that `nft -j` takes: what a clinic's ruleset is written
in.

Tables, base and regular chains, sets with elements, `define`, and the matches and verdicts a packet filter needs.
Output was compared with nft 1.0.6 statement by statement (tests/lab/test_nft.py does it again where nft is installed).
Anything else is a syntax error, as it would be for a misspelt rule.
"""

from __future__ import annotations

import re
from typing import Any

TOKEN = re.compile(
    r'(?P<blank>[ \t\r]+)|(?P<end>[\n;])|(?P<text>"[^"\n]*")|(?P<op>!=|==|[{}=,/&@])|(?P<comment>#[^\n]*)'
    r'|(?P<word>[^\s;{}=,!/"@&#]+)'
)
FAMILIES = {"ip", "ip6", "inet", "arp", "bridge", "netdev"}
PRIORITIES = {"raw": -300, "mangle": -150, "dstnat": -100, "filter": 0, "security": 50, "srcnat": 100}
VERDICTS = {"accept", "drop", "return", "continue"}
PAYLOADS = {
    "tcp": {"dport", "sport", "flags"},
    "udp": {"dport", "sport"},
    "ip": {"saddr", "daddr", "protocol"},
    "ip6": {"saddr", "daddr", "nexthdr"},
    "icmp": {"type"},
    "icmpv6": {"type"},
    "th": {"dport", "sport"},
}
META_ALONE = {"iif", "oif", "iifname", "oifname"}
SERVICES = {"ssh": 22, "domain": 53, "http": 80, "ntp": 123, "https": 443, "submission": 587}
# What the kernel knows by number; nft prints a set in that order. By protocol, and for everything else together.
ICMP = {"echo-reply": 0, "destination-unreachable": 3, "redirect": 5, "echo-request": 8, "time-exceeded": 11}
ICMPV6 = {"destination-unreachable": 1, "packet-too-big": 2, "time-exceeded": 3, "parameter-problem": 4}
ICMPV6 |= {"echo-request": 128, "echo-reply": 129, "mld-listener-query": 130, "nd-router-solicit": 133}
ICMPV6 |= {"nd-router-advert": 134, "nd-neighbor-solicit": 135, "nd-neighbor-advert": 136}
PROTOCOLS = {"icmp": 1, "igmp": 2, "tcp": 6, "udp": 17, "ipv6-icmp": 58}
NUMBERS = {"icmp": ICMP | {"parameter-problem": 12}, "icmpv6": ICMPV6}
STATE_ORDER = ("invalid", "new", "established", "related", "untracked")
FLAG_ORDER = ("fin", "syn", "rst", "psh", "ack", "urg")


class SyntaxFault(Exception):
    """The text is not in this part of the language; the message is the one nft would begin with."""


def tokens_of(text: str) -> list[str]:
    """The words of the text; the end of a statement is the word `;`.

    Raises:
        SyntaxFault: a character that begins no word.
    """
    words: list[str] = []
    position, text = 0, text.replace("\\\n", "  ")
    while position < len(text):
        found = TOKEN.match(text, position)
        if found is None:
            raise SyntaxFault("Error: syntax error, unexpected junk")
        if found.lastgroup == "end":
            words.append(";")
        elif found.lastgroup not in {"blank", "comment"}:
            words.append(found[0])
        position = found.end()
    return words


class Reader:
    """Reads one text into a list of JSON commands (`{"add": {...}}`, `{"flush": {...}}`)."""

    def __init__(self, text: str) -> None:
        self._words = tokens_of(text)
        self._at = 0
        self._defined: dict[str, list[str]] = {}
        self.commands: list[dict[str, Any]] = []

    def read(self) -> list[dict[str, Any]]:
        """All commands of the text.

        Raises:
            SyntaxFault: it is not nftables language, or outside the part that is known here.
        """
        while self._skip_ends():
            word = self._next()
            if word == "define":
                self._define()
            elif word == "table":
                self._table()
            elif word in {"flush", "delete", "add", "create"}:
                self._verb(word)
            else:
                raise SyntaxFault(f"Error: syntax error, unexpected {word}")
        return self.commands

    # -- words

    def _peek(self) -> str:
        return self._words[self._at] if self._at < len(self._words) else "end of file"

    def _next(self) -> str:
        word = self._peek()
        if self._at >= len(self._words):
            raise SyntaxFault("Error: syntax error, unexpected end of file")
        self._at += 1
        return word

    def _take(self, expected: str) -> None:
        if (word := self._next()) != expected:
            raise SyntaxFault(f"Error: syntax error, unexpected {word}, expecting {expected}")

    def _skip_ends(self) -> bool:
        while self._peek() == ";" and self._at < len(self._words):
            self._at += 1
        return self._at < len(self._words)

    def _end(self) -> None:
        if self._peek() == "}":
            raise SyntaxFault("Error: syntax error, unexpected '}', expecting newline or semicolon")
        if self._at < len(self._words):
            self._take(";")

    def _define(self) -> None:
        name = self._next()
        self._take("=")
        start = self._at
        while self._peek() not in {";", "end of file"}:
            self._at += 1
        self._defined[name] = self._words[start : self._at]

    def _expand(self) -> None:
        word = self._peek()
        if word.startswith("$"):
            if word[1:] not in self._defined:
                raise SyntaxFault(f"Error: unknown identifier '{word[1:]}'")
            self._words[self._at : self._at + 1] = self._defined[word[1:]]

    # -- objects

    def _family_and_name(self) -> dict[str, str]:
        family = self._next() if self._peek() in FAMILIES else "ip"
        return {"family": family, "name": self._next()}

    def _verb(self, verb: str) -> None:
        kind = self._next()
        if kind == "ruleset" and verb == "flush":
            self.commands.append({"flush": {"ruleset": None}})
        elif kind == "table":
            self.commands.append({verb: {"table": self._family_and_name()}})
        elif kind in {"chain", "rule"}:
            table = self._family_and_name()
            place = {"family": table["family"], "table": table["name"]}
            chain = self._next()
            if kind == "rule" and verb == "add":
                self.commands.append({"add": {"rule": self._rule(place, chain)}})
            elif kind == "rule" and verb == "delete":
                self._take("handle")
                self.commands.append({"delete": {"rule": place | {"chain": chain, "handle": self._number()}}})
            else:
                self.commands.append({verb: {"chain": place | {"name": chain}}})
        else:
            raise SyntaxFault(f"Error: syntax error, unexpected {kind}")
        self._end()

    def _table(self) -> None:
        table = self._family_and_name()
        place = {"family": table["family"], "table": table["name"]}
        self.commands.append({"add": {"table": table}})
        self._take("{")
        while self._skip_ends() and self._peek() != "}":
            kind = self._next()
            if kind == "chain":
                self._chain(place)
            elif kind == "set":
                self._set(place)
            else:
                raise SyntaxFault(f"Error: syntax error, unexpected {kind}")
        self._take("}")

    def _set(self, place: dict[str, str]) -> None:
        found: dict[str, Any] = {**place, "name": self._next()}
        self._take("{")
        while self._skip_ends() and self._peek() != "}":
            match self._next():
                case "type":
                    found["type"] = self._next()
                case "flags":
                    found["flags"] = [self._next()]
                case "elements":
                    self._take("=")
                    found["elem"] = self._braced()
                case word:
                    raise SyntaxFault(f"Error: syntax error, unexpected {word}")
        self._take("}")
        self.commands.append({"add": {"set": found}})

    def _chain(self, place: dict[str, str]) -> None:
        chain: dict[str, Any] = {**place, "name": self._next()}
        self.commands.append({"add": {"chain": chain}})
        self._take("{")
        while self._skip_ends() and self._peek() != "}":
            if self._peek() == "type":
                self._hook(chain)
            elif self._peek() == "policy":
                self._next()
                chain["policy"] = self._next()
                self._end()
            else:
                self.commands.append({"add": {"rule": self._rule(place, chain["name"])}})
                self._end()
        self._take("}")

    def _hook(self, chain: dict[str, Any]) -> None:
        self._take("type")
        chain["type"] = self._next()
        self._take("hook")
        chain["hook"] = self._next()
        self._take("priority")
        word = self._next()
        chain["prio"] = PRIORITIES[word] if word in PRIORITIES else _whole(word)
        chain.setdefault("policy", "accept")
        self._end()

    # -- rules

    def _rule(self, place: dict[str, str], chain: str) -> dict[str, Any]:
        rule: dict[str, Any] = {**place, "chain": chain}
        expressions: list[dict[str, Any]] = []
        while self._peek() not in {";", "}", "end of file"}:
            self._expand()
            if self._peek() == "comment":
                self._next()
                rule["comment"] = self._next().strip('"')
            else:
                expressions.append(self._statement(place["family"]))
        return {**rule, "expr": expressions}

    def _statement(self, family: str) -> dict[str, Any]:
        word = self._next()
        if word in VERDICTS:
            return {word: None}
        if word in {"jump", "goto"}:
            return {word: {"target": self._next()}}
        if word in META_ALONE:
            return self._match({"meta": {"key": word}})
        if word == "meta":
            return self._match({"meta": {"key": self._next()}})
        if word == "ct":
            return self._match({"ct": {"key": self._next()}}, order=STATE_ORDER)
        if word in PAYLOADS and self._peek() in PAYLOADS[word]:
            return self._payload(word, self._next())
        other = {"counter": self._counter, "log": self._log, "limit": self._limit}
        if word == "reject":
            return self._reject(family)
        if word not in other:
            raise SyntaxFault(f"Error: syntax error, unexpected {word}")
        return other[word]()

    def _payload(self, protocol: str, field: str) -> dict[str, Any]:
        left: dict[str, Any] = {"payload": {"protocol": protocol, "field": field}}
        if field != "flags":
            return self._match(left)
        wanted = self._list(FLAG_ORDER)
        self._take("/")
        return {"match": {"op": "==", "left": {"&": [left, self._list(FLAG_ORDER)]}, "right": wanted}}

    def _match(self, left: dict[str, Any], order: tuple[str, ...] = ()) -> dict[str, Any]:
        op = self._next() if self._peek() in {"!=", "=="} else ""
        self._expand()
        if self._peek() == "vmap":
            self._next()
            return {"vmap": {"key": left, "data": {"set": self._verdict_map(order)}}}
        if self._peek() == "{":
            values = self._braced(left)
            right = values[0] if len(values) == 1 else {"set": values}
            return {"match": {"op": op or "==", "left": left, "right": right}}
        if order:
            return {"match": {"op": op or "in", "left": left, "right": self._list(order)}}
        return {"match": {"op": op or "==", "left": left, "right": self._value()}}

    def _list(self, order: tuple[str, ...]) -> Any:
        found = [self._next()]
        while self._peek() == ",":
            self._next()
            found.append(self._next())
        if unknown := set(found) - set(order):
            raise SyntaxFault(f"Error: Could not resolve {sorted(unknown)[0]}")
        found.sort(key=order.index)
        return found if len(found) > 1 else found[0]

    def _braced(self, left: dict[str, Any] | None = None) -> list[Any]:
        self._take("{")
        found: list[Any] = []
        while self._peek() != "}":
            if self._peek() in {",", ";"}:
                self._next()
                continue
            self._expand()
            found.append(self._value())
        self._take("}")
        numbers = NUMBERS.get((left or {}).get("payload", {}).get("protocol", ""), PROTOCOLS)
        return sorted(found, key=lambda item: _rank(item, numbers))

    def _verdict_map(self, order: tuple[str, ...]) -> list[Any]:
        self._take("{")
        found: list[Any] = []
        while self._peek() != "}":
            if self._peek() in {",", ";"}:
                self._next()
                continue
            key = self._next()
            self._take(":")
            found.append([key, {self._next(): None}])
        self._take("}")
        return sorted(found, key=lambda pair: order.index(pair[0]) if pair[0] in order else 0)

    def _value(self) -> Any:
        word = self._next()
        if word == "@":
            return f"@{self._next()}"
        if word.startswith('"'):
            return word.strip('"')
        if self._peek() == "/":
            self._next()
            return {"prefix": {"addr": word, "len": self._number()}}
        if found := re.fullmatch(r"(\d+)-(\d+)", word):
            return {"range": [int(found[1]), int(found[2])]}
        if re.fullmatch(r"\d+", word):
            if (number := int(word)) > 65_535:
                raise SyntaxFault("Error: Value out of range")
            return number
        return SERVICES.get(word, word)

    def _number(self) -> int:
        return _whole(self._next())

    def _counter(self) -> dict[str, Any]:
        if self._peek() == "packets":
            for _ in range(4):
                self._next()
        return {"counter": None}

    def _log(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while self._peek() in {"prefix", "level"}:
            key = self._next()
            found[key] = self._next().strip('"')
        return {"log": found or None}

    def _limit(self) -> dict[str, Any]:
        self._take("rate")
        rate = self._number()
        self._take("/")
        found = {"rate": rate, "burst": 5, "per": self._next()}
        if self._peek() == "burst":
            self._next()
            found["burst"] = self._number()
            self._take("packets")
        return {"limit": found}

    def _reject(self, family: str) -> dict[str, Any]:
        if self._peek() != "with":
            kind = {"ip": "icmp", "ip6": "icmpv6"}.get(family, "icmpx")
            return {"reject": {"type": kind, "expr": "port-unreachable"}}
        self._take("with")
        kind = self._next()
        if kind == "tcp":
            self._take("reset")
            return {"reject": {"type": "tcp reset"}}
        if self._peek() == "type":
            self._next()
        return {"reject": {"type": kind, "expr": self._next()}}


def _rank(item: Any, numbers: dict[str, int]) -> int:
    if isinstance(item, dict):
        return int(item["range"][0]) if "range" in item else 0
    return item if isinstance(item, int) else numbers.get(str(item), 0)


def _whole(word: str) -> int:
    if not re.fullmatch(r"-?\d+", word):
        raise SyntaxFault(f"Error: syntax error, unexpected {word}, expecting number")
    return int(word)
