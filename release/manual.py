"""Manual pages and completions, read off the program: they cannot say anything else than it does."""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
import typing
from collections.abc import Iterator
from datetime import UTC, datetime, time
from pathlib import Path
from typing import Any

import click
from click.shell_completion import get_completion_class

from compliance_agent import __version__, config
from compliance_agent.cli import COMMANDS, group

NAME = "compliance-agent"
NOT_HERE = {"server", "demo", "lab"}  # they need more than the agent's package brings
SHELLS = {
    "bash": f"usr/share/bash-completion/completions/{NAME}",
    "zsh": f"usr/share/zsh/vendor-completions/_{NAME}",
    "fish": f"usr/share/fish/vendor_completions.d/{NAME}.fish",
}
STATUSES = Path(__file__).resolve().parents[1] / "docs" / "exit-codes.md"
_ROW = re.compile(r"\| (\d+) \| (.+) \|")


def pages(when: int) -> dict[str, str]:
    """Every page: its place in the package, and its text.

    Args:
        when: seconds since 1970 that stand in the footer as a date.
    """
    day = datetime.fromtimestamp(when, UTC).date().isoformat()
    return {
        f"usr/share/man/man1/{NAME}.1": _joined(_head(NAME, 1, day), _program()),
        "usr/share/man/man5/agent.yaml.5": _joined(_head("agent.yaml", 5, day), _settings()),
    }


def completions() -> dict[str, str]:
    """Every shell's script: its place in the package, and its text."""
    return {place: _script(shell) for shell, place in SHELLS.items()}


def _script(shell: str) -> str:
    kind = get_completion_class(shell)
    if kind is None:
        raise RuntimeError(f"click knows no {shell}")
    made = kind(group, {}, NAME, "_COMPLIANCE_AGENT_COMPLETE")
    return made.source_template % made.source_vars()


def _joined(*parts: Iterator[str]) -> str:
    return "".join(f"{line}\n" for part in parts for line in part)


def _head(title: str, section: int, day: str) -> Iterator[str]:
    yield f'.TH "{title.upper()}" "{section}" "{day}" "{NAME} {__version__}"'
    yield ".nh"  # a broken option cannot be copied


def _program() -> Iterator[str]:
    yield from (".SH NAME", rf"{_escaped(NAME)} \- compliance evidence for clinic hosts")
    yield from (".SH SYNOPSIS", rf".B {_escaped(NAME)}", r"[\fIOPTIONS\fR] \fICOMMAND\fR [\fIARGS\fR]...")
    yield from (".SH DESCRIPTION", *_text(str(group.help)))
    yield from _text("Each command that prints something for people also takes --json for programs.")
    yield ".SH COMMANDS"
    for name in COMMANDS:
        command = group.get_command(click.Context(group), name)
        if command is not None and name not in NOT_HERE:
            yield from _command(command, name)
    yield ".SH EXIT STATUS"
    for status, meaning in _ROW.findall(STATUSES.read_text("utf-8")):
        yield from (".TP", rf".B {status}", _escaped(meaning))
    yield ".SH FILES"
    for place, meaning in (
        ("/etc/msp/agent.yaml", "settings; agent.yaml(5)"),
        ("/etc/msp/baseline.yaml", "what this host should be"),
        ("/var/lib/compliance-agent", "evidence, keys and the queue"),
    ):
        yield from (".TP", rf".I {_escaped(place)}", _escaped(meaning))
    yield from (".SH SEE ALSO", r".BR agent.yaml (5),", r".BR systemctl (1)")


def _command(command: click.Command, path: str) -> Iterator[str]:
    context = click.Context(command, info_name=path)
    pieces = " ".join(command.collect_usage_pieces(context))
    yield from (".SS " + _escaped(path), rf"\fB{_escaped(f'{NAME} {path}')}\fR {_escaped(pieces)}", ".PP")
    yield from _text(inspect.cleandoc(command.help or ""))
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None and record[1] and "--help" not in parameter.opts:
            yield from (".TP", rf"\fB{_escaped(record[0])}\fR", _escaped(" ".join(record[1].split())))
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            if below is not None and not below.hidden:
                yield from _command(below, f"{path} {name}")


def _settings() -> Iterator[str]:
    yield from (".SH NAME", rf"agent.yaml \- settings of {_escaped(NAME)}")
    yield from (".SH SYNOPSIS", r".I /etc/msp/agent.yaml")
    yield ".SH DESCRIPTION"
    yield from _text(
        "One YAML mapping. A variable of the environment wins over the file: its name is the setting's in capitals, after"
        f" {config.PREFIX}. An unknown key or variable is refused. Relative paths start at the file's directory."
        " `compliance-agent config check` says what cannot be used, and `config show --effective` what counts."
    )
    yield ".SH SETTINGS"
    hints = typing.get_type_hints(config.AgentConfig)
    for item in dataclasses.fields(config.AgentConfig):
        yield from (".TP", rf"\fB{_escaped(item.name)}\fR \- {_escaped(_value(item, hints[item.name]))}")
        yield _escaped(item.metadata["doc"])
    yield from (".SH SEE ALSO", rf".BR {_escaped(NAME)} (1)")


def _value(item: dataclasses.Field[Any], hint: Any) -> str:
    kinds = {str: "text", int: "whole number", bool: "true or false", Path: "path", time: "time of day, HH:MM"}
    options = [option for option in typing.get_args(hint) if option is not type(None)] or [hint]
    said = " or ".join(item.metadata["words"]) or kinds[options[0]]
    if item.metadata["low"] is not None:
        said += f" from {item.metadata['low']} to {item.metadata['high']}"
    if item.default is dataclasses.MISSING:
        return f"{said}; required"
    if item.default is None:
        return said
    default = item.default
    shown = f"{default:%H:%M}" if isinstance(default, time) else default
    return f"{said}; {str(shown).lower() if isinstance(shown, bool) else os.fspath(shown) if isinstance(shown, Path) else shown}"


def _text(text: str) -> Iterator[str]:
    """Paragraphs; click's mark for lines that stay as they are goes."""
    for number, paragraph in enumerate(text.replace("\b", "").split("\n\n")):
        if number:
            yield ".PP"
        yield _escaped(" ".join(paragraph.split()))


def _escaped(text: str) -> str:
    """As it is to be read: no backslash, dash or leading dot means anything to the formatter."""
    plain = text.replace("\\", r"\e").replace("-", r"\-")
    return rf"\&{plain}" if plain.startswith((".", "'")) else plain
