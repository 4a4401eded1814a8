"""What the subcommands share: where the configuration comes from, and how results are shown."""

from __future__ import annotations

import json
import math
import socket
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click

from compliance_agent.config import LABEL, AgentConfig

# Whether a file may be read is said by who reads it, in one line and with its own exit status.
PATH = click.Path(path_type=Path, readable=False)
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
F = TypeVar("F", bound=Callable[..., Any])
STYLE = {
    "pass": "green",
    "fail": "red",
    "unknown": "yellow",
    "exception": "cyan",
    "not_applicable": "bright_black",
}


class Whole(click.IntRange):
    """A whole number of a range. What it says of anything else names the range and what to do next.

    Args:
        least, most: both allowed; no `most` is no end.
        next_step: what to give, or to leave out: `give --sample 25`.
    """

    def __init__(self, least: int, most: int | None = None, *, next_step: str) -> None:
        super().__init__(least, most)
        self._expected = (
            f"a whole number from {least} to {most}" if most is not None else f"a whole number from {least}"
        )
        self._next_step = next_step

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            self.fail(f"{value!r}: expected {self._expected}; {self._next_step}.", param, ctx)


class Bounded(click.FloatRange):
    """A number of a range, as `click.FloatRange`; what is no number at all (`nan`) is none of it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r}: expected a number.", param, ctx)
        return number


def config_option(function: F) -> F:
    """`--config FILE`; without it the environment, then the system's file."""
    return click.option("--config", "config_path", type=PATH, help="Configuration file.")(function)


def json_option(function: F) -> F:
    """`--json`: one stable, versioned object on standard output."""
    return click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")(function)


def shipped_baseline() -> Path:
    """The baseline that comes with the product, for a host that has none of its own yet."""
    from importlib import resources  # 1 MB that no daemon needs

    name = "clinic-nixos.yaml" if Path("/etc/NIXOS").exists() else "clinic-linux.yaml"
    return Path(str(resources.files("compliance_agent") / "baselines" / name))


def unconfigured(state_dir: Path) -> AgentConfig:
    """What a host without configuration is looked at with: the shipped baseline, nothing written, nothing sent."""
    name = socket.gethostname().split(".", maxsplit=1)[0]
    return AgentConfig(
        client_id="none",
        site_id="none",
        host_id=name if LABEL.fullmatch(name) else "this-host",
        state_dir=state_dir,
        baseline_path=shipped_baseline(),
    )


def utc(moment: datetime | None) -> str | None:
    """A time as every `--json` object writes it: RFC 3339, UTC, whole seconds."""
    return None if moment is None else moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parsed(text: str | None) -> datetime | None:
    """A stored time, None where there is none that can be read."""
    try:
        return datetime.fromisoformat(text) if text else None
    except ValueError:
        return None


def print_json(document: Any) -> None:
    """One object, sorted, on standard output."""
    click.echo(json.dumps(document, sort_keys=True, indent=2, default=str))


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, styled: int | None = None, title: str = "") -> None:
    """A table: in colour on a terminal, plain aligned text elsewhere.

    Args:
        columns: headings.
        rows: cells, as text.
        styled: the column that holds a result word and is coloured by it.
        title: a line above it.
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _rich_table(columns, rows, styled, title)
        return
    widths = [max(len(cell) for cell in column) for column in zip(columns, *rows, strict=True)]
    if title:
        click.echo(title)
    for cells in (columns, *rows):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())


def printable(text: str) -> str:
    """The text without control characters: what a host calls its things must not steer a terminal."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def _rich_table(columns: Sequence[str], rows: Sequence[Sequence[str]], styled: int | None, title: str) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(title=title or None, box=box.SIMPLE_HEAD, title_justify="left")
    for column in columns:
        shown.add_column(column, overflow="fold")
    for row in rows:
        shown.add_row(
            *(Text(cell, style=STYLE.get(cell, "") if number == styled else "") for number, cell in enumerate(row))
        )
    Console().print(shown)
