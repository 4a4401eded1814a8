"""Every command ends with a documented status and at most one line of complaint; nothing ever shows a traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from compliance_agent.cli import COMMANDS, WIDTH, group, help_text
from tests.cli.command import configured, environment, run


def test_help_names_every_command_and_imports_none() -> None:
    ended = run("--help")
    assert ended.status == 0
    for name, sentence in COMMANDS.items():
        assert name in ended.out and sentence.split(".", maxsplit=1)[0][:40] in ended.out


def test_help_is_what_the_parser_would_say() -> None:
    said = CliRunner().invoke(group, ["--help"], prog_name="compliance-agent", env={"COLUMNS": "80"})
    assert help_text() == said.output
    assert max(map(len, help_text().splitlines())) < WIDTH - 1


def test_help_costs_no_parser() -> None:
    words = (sys.executable, "-X", "importtime", "-m", "compliance_agent", "--help")
    done = subprocess.run(words, env=environment(COLUMNS="80"), capture_output=True, text=True, timeout=30, check=True)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "compliance_agent.cli" in loaded and done.stdout == help_text()
    assert not loaded & {"click", "typing", "re", "asyncio", "structlog"}


def test_a_narrow_terminal_has_help_in_its_width() -> None:
    ended = run("--help", env={"COLUMNS": "60"})
    assert ended.status == 0 and ended.out != help_text()
    assert max(map(len, ended.out.splitlines())) <= 60


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_its_help(command: str) -> None:
    ended = run(command, "--help")
    assert ended.status == 0 and "Usage: compliance-agent" in ended.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["chek"], 'did you mean "check"?'),
        (["staus"], 'did you mean "status"?'),
        (["config", "chek"], 'did you mean "check"?'),
        (["check", "--jason"], "--json"),
        (["why", "time_sink"], 'did you mean "time_sync"?'),
        (["check", "time_sink"], 'did you mean "time_sync"?'),
        (["plan", "time_sink"], 'did you mean "time_sync"?'),
        (["why"], "Missing argument 'CHECK'"),
    ],
)
def test_a_mistyped_word_is_a_usage_error_that_helps(words: list[str], said: str) -> None:
    ended = run(*words)
    assert ended.status == 2
    assert said in ended.err


@pytest.mark.parametrize("words", [["config", "check"], ["config", "show"], ["run"], ["status"], ["heal"]])
def test_a_command_that_needs_a_configuration_says_so(words: list[str]) -> None:
    ended = run(*words)
    assert ended.status == 78
    assert "no configuration" in ended.line and "--config" in ended.line


def test_bytes_that_are_no_text_are_only_a_wrong_word() -> None:
    done = subprocess.run(
        [sys.executable.encode(), b"-m", b"compliance_agent", b"\xff\xfe\x1b[31m"],
        capture_output=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr and b"\x1b" not in done.stderr


def parameters_of(command: click.Command) -> Iterator[click.Parameter]:
    yield from command.params
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            yield from parameters_of(below) if below is not None else ()


@pytest.mark.parametrize(
    "command", ["check", "config", "enrol", "heal", "lab", "plan", "run", "server", "status", "verify", "why"]
)
def test_a_file_that_may_not_be_read_is_no_wrong_usage(command: str) -> None:
    """Who reads the file says so in one line, with the status of a missing permission; click would show the usage."""
    found = group.get_command(click.Context(group), command)
    assert found is not None
    paths = [item for item in parameters_of(found) if isinstance(item.type, click.Path)]
    assert paths and all(not item.type.readable for item in paths if isinstance(item.type, click.Path))


def test_a_closed_pipe_is_141_and_silent(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "compliance_agent", "config", "show", "--config", str(configured(tmp_path))],
        stdout=writer, stderr=subprocess.PIPE, timeout=30, env=environment(), check=False,
    )  # fmt: skip
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_output_that_cannot_be_written_is_74(tmp_path: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "compliance_agent", "config", "show", "--config", str(configured(tmp_path))],
            stdout=full, stderr=subprocess.PIPE, timeout=30, env=environment(), check=False,
        )  # fmt: skip
    assert done.returncode == 74
    assert done.stderr.decode().splitlines() == ["compliance-agent: standard output cannot be written: ENOSPC"]


def test_control_c_is_130() -> None:
    """A command that waits (for a name server that never answers, say) ends at once and says nothing."""
    script = (
        "import asyncio, sys\n"
        "from compliance_agent import cli\n"
        "from compliance_agent.cli import check\n"
        "async def wait(*_, **__):\n    print('waiting', flush=True)\n    await asyncio.sleep(60)\n"
        "check.look_at = wait\n"
        "sys.argv = ['compliance-agent', 'check']\n"
        "cli.main()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"waiting\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=15)
    assert process.returncode == 130
    assert b"Traceback" not in err


def test_a_bug_is_one_line_with_its_place_and_no_text() -> None:
    script = (
        "import sys\n"
        "from compliance_agent import cli\n"
        "from compliance_agent.cli import check\n"
        "def broken(*_):\n    raise ValueError('patient jane')\n"
        "check.detector_for = broken\n"
        "sys.argv = ['compliance-agent', 'check']\n"
        "cli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 70
    assert len(done.stderr.splitlines()) == 1
    assert "ValueError at cli/check.py:" in done.stderr and "jane" not in done.stderr


@pytest.mark.parametrize(("words", "loads"), [(("--help",), False), (("status", "--help"), True)])
def test_as_a_module_it_loads_no_more_than_as_a_command(words: tuple[str, ...], loads: bool) -> None:
    """`python -m compliance_agent --help` has no use for a parser and a logger; a command has, and none for rich."""
    argv = [sys.executable, "-X", "importtime", "-m", "compliance_agent", *words]
    ran = subprocess.run(argv, env=environment(COLUMNS="80"), capture_output=True, text=True, check=True, timeout=60)
    loaded = {line.rpartition("|")[2].strip() for line in ran.stderr.splitlines()}
    assert ("click" in loaded, "structlog" in loaded, "rich.console" in loaded) == (loads, loads, False)
