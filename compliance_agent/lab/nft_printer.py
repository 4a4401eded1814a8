"""A table of a simulated ruleset as `nft list table` prints it: text that nft_language.py reads back to the same objects."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from compliance_agent.lab.nft_language import PRIORITIES

Objects = Sequence[tuple[str, dict[str, Any]]]


def table_text(family: str, name: str, objects: Objects) -> str:
    """The table with its sets, chains and rules."""
    inside = [(kind, item) for kind, item in objects if (item["family"], item.get("table")) == (family, name)]
    lines = [f"table {family} {name} {{"]
    for kind, item in inside:
        if kind == "set":
            lines += _set(item)
    for kind, item in inside:
        if kind == "chain":
            lines += _chain(item, (rule for one, rule in inside if one == "rule" and rule["chain"] == item["name"]))
    return "\n".join([*lines, "}"]) + "\n"


def _set(item: Mapping[str, Any]) -> list[str]:
    lines = [f"\tset {item['name']} {{", f"\t\ttype {item['type']}"]
    lines += [f"\t\tflags {flag}" for flag in item.get("flags", [])]
    if item.get("elem"):
        lines.append(f"\t\telements = {_value({'set': item['elem']})}")
    return [*lines, "\t}"]


def _chain(item: Mapping[str, Any], rules: Iterable[Mapping[str, Any]]) -> list[str]:
    lines = [f"\tchain {item['name']} {{"]
    if "hook" in item:
        names = {number: word for word, number in PRIORITIES.items()}
        priority = names.get(item["prio"], item["prio"])
        policy = item.get("policy", "accept")
        lines.append(f"\t\ttype {item['type']} hook {item['hook']} priority {priority}; policy {policy};")
    for rule in rules:
        comment = f' comment "{rule["comment"]}"' if "comment" in rule else ""
        lines.append("\t\t" + " ".join(_statement(statement) for statement in rule["expr"]) + comment)
    return [*lines, "\t}"]


def _statement(statement: Mapping[str, Any]) -> str:
    (kind, value), *_ = statement.items()
    return _PRINTERS.get(kind, lambda _value: kind)(value)


def _match(value: Mapping[str, Any]) -> str:
    operator = "!= " if value["op"] == "!=" else ""
    left, right = value["left"], value["right"]
    if "&" in left:  # TCP flags under a mask
        return f"{_field(left['&'][0])} {_list(right)} / {_list(left['&'][1])}"
    return f"{_field(left)} {operator}{_list(right) if isinstance(right, list) else _value(right, left)}"


def _field(left: Mapping[str, Any]) -> str:
    (kind, value), *_ = left.items()
    if kind == "payload":
        return f"{value['protocol']} {value['field']}"
    return str(value["key"]) if value["key"] in {"iif", "oif", "iifname", "oifname"} else f"{kind} {value['key']}"


def _list(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _value(value: Any, left: Mapping[str, Any] | None = None) -> str:
    match value:
        case {"set": [*items]}:
            return "{ " + ", ".join(_value(item, left) for item in items) + " }"
        case {"range": [low, high]}:
            return f"{low}-{high}"
        case {"prefix": {"addr": address, "len": length}}:
            return f"{address}/{length}"
    quoted = left is not None and left.get("meta", {}).get("key") in {"iif", "oif", "iifname", "oifname"}
    return f'"{value}"' if quoted else str(value)


def _vmap(value: Mapping[str, Any]) -> str:
    pairs = ", ".join(f"{key} : {next(iter(verdict))}" for key, verdict in value["data"]["set"])
    return f"{_field(value['key'])} vmap {{ {pairs} }}"


def _log(value: Mapping[str, Any] | None) -> str:
    found = value or {}
    return (
        "log"
        + (f' prefix "{found["prefix"]}"' if "prefix" in found else "")
        + (f" level {found['level']}" if "level" in found else "")
    )


def _reject(value: Mapping[str, Any]) -> str:
    if value["type"] == "tcp reset":
        return "reject with tcp reset"
    return f"reject with {value['type']} type {value['expr']}" if "expr" in value else "reject"


_PRINTERS: dict[str, Callable[[Any], str]] = {
    "match": _match,
    "vmap": _vmap,
    "log": _log,
    "reject": _reject,
    "limit": lambda value: f"limit rate {value['rate']}/{value['per']} burst {value['burst']} packets",
    "jump": lambda value: f"jump {value['target']}",
    "goto": lambda value: f"goto {value['target']}",
}
