"""Figures as Prometheus reads them: the text format 0.0.4, or OpenMetrics 1.0 for who asks for that.

A family's name has its base unit (`_seconds`, `_bytes`) and never `_total`: that belongs to the sample of a counter, and `_info` to
the sample of an info. Labels are words of closed lists.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from compliance_agent.dataclass import dataclass

Kind = Literal["counter", "gauge", "info", "summary"]
PLAIN = "text/plain; version=0.0.4; charset=utf-8"
OPEN = "application/openmetrics-text; version=1.0.0; charset=utf-8"
_SUFFIX = {"counter": "_total", "gauge": "", "info": "_info"}


@dataclass(frozen=True)
class Family:
    """One figure, or one for each set of labels. The samples of a summary are its sum and its count."""

    name: str
    kind: Kind
    help: str
    samples: Sequence[tuple[Mapping[str, str], float]]


def one(name: str, kind: Kind, words: str, value: float) -> Family:
    """A family of a single figure."""
    return Family(name, kind, words, [({}, value)])


def media_type(accept: str) -> str:
    """The format that a request's `Accept` asks for; the plain one unless OpenMetrics is wanted at least as much."""
    wanted = {"application/openmetrics-text": 0.0, "text/plain": 0.0}
    for part in accept.lower().split(","):
        name, *parameters = (item.strip() for item in part.split(";"))
        if name in wanted:
            wanted[name] = max(wanted[name], _quality(parameters))
    ours, plain = wanted.values()
    return OPEN if ours > 0 and ours >= plain else PLAIN


def _quality(parameters: Iterable[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return min(1.0, max(0.0, float(value)))
            except ValueError:
                return 0.0
    return 1.0


def rendered(families: Iterable[Family], kind_of_text: str) -> bytes:
    """All of them in one of the two formats."""
    is_open = kind_of_text == OPEN
    lines = [line for family in families for line in _lines(family, is_open=is_open)]
    return "\n".join([*lines, *(["# EOF"] if is_open else []), ""]).encode()


def _lines(family: Family, *, is_open: bool) -> list[str]:
    if family.kind == "summary":
        names = [f"{family.name}_sum", f"{family.name}_count"]
    else:
        names = [family.name + _SUFFIX[family.kind]] * len(family.samples)
    headed, kind = (family.name, family.kind) if is_open or family.kind == "summary" else _plain(family)
    head = [f"# HELP {headed} {_escaped(family.help)}", f"# TYPE {headed} {kind}"]
    samples = zip(names, family.samples, strict=True)
    return head + [f"{name}{_labels(labels)} {_number(value)}" for name, (labels, value) in samples]


def _plain(family: Family) -> tuple[str, str]:
    return family.name + _SUFFIX[family.kind], "gauge" if family.kind == "info" else family.kind


def _labels(labels: Mapping[str, str]) -> str:
    inner = ",".join(f'{name}="{_escaped(value, quote=True)}"' for name, value in labels.items())
    return f"{{{inner}}}" if inner else ""


def _escaped(text: str, *, quote: bool = False) -> str:
    text = text.replace("\\", r"\\").replace("\n", r"\n")
    return text.replace('"', r"\"") if quote else text


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() and abs(value) < 2**53 else repr(float(value))
