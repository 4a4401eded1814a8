"""Logs hold event names and typed keys; no exception text, secret or host string of any length gets in, and no log can fail."""

from __future__ import annotations

import ast
import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from compliance_agent import logs
from compliance_agent.mcp_client import Credentials
from compliance_agent.models import Result

PACKAGE = Path(logs.__file__).resolve().parent
SECRET = "patient-jane-doe-1970"
EVENT = re.compile(r"[a-z]+(_[a-z]+)*(\.[a-z]+(_[a-z]+)*)+")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def events(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_an_event_is_one_line_of_json_with_time_and_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    out = io.StringIO()
    logs.configure("INFO", out)
    structlog.get_logger().info("check.done", check_id="backup", result=Result.PASS, duration_ms=3)
    structlog.get_logger().debug("check.seen")
    (event,) = events(out)
    assert event.pop("timestamp").endswith("Z")
    assert event == {"event": "check.done", "level": "info", "check_id": "backup", "result": "pass", "duration_ms": 3}


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_a_planted_secret_never_reaches_the_log(stream: type[io.StringIO], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a caller does wrong: the exception itself, its traceback, bytes, objects with a telling `repr`."""
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    out = stream()
    logs.configure("DEBUG", out)
    log = structlog.get_logger()

    class Telling:
        def __repr__(self) -> str:
            return SECRET

    try:
        raise ValueError(SECRET)
    except ValueError as error:
        log.exception("check.crashed", error=error, inside=[error, {"deep": error}])
        log.error(
            "check.crashed", exc_info=True, stack_info=True, error_type=type(error).__name__, at=logs.where(error)
        )
    log.info("a.b", raw=SECRET.encode(), thing=Telling(), credentials=Credentials(SECRET, b"x" * 32), path=Path(SECRET))
    assert SECRET not in out.getvalue()
    assert "ValueError" in out.getvalue()
    assert "Traceback" not in out.getvalue()


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_text_is_one_bounded_printable_line(stream: type[io.StringIO], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    monkeypatch.setenv("NO_COLOR", "1")
    out = stream()
    logs.configure("INFO", out)
    structlog.get_logger().info("a.b", text="one\n<0>forged event\x1b[31m\u202e" + "x" * 10_000)
    (line,) = out.getvalue().splitlines()
    assert len(line) < 400
    assert "\x1b" not in line and "\u202e" not in line


def test_the_journal_is_told_the_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "8:1")
    out = io.StringIO()
    logs.configure("INFO", out)
    structlog.get_logger().error("a.b")
    structlog.get_logger().info("a.b")
    assert [line[:3] for line in out.getvalue().splitlines()] == ["<3>", "<6>"]


def test_a_log_that_cannot_be_written_stops_nobody() -> None:
    closed = io.StringIO()
    closed.close()

    class Full(io.StringIO):
        def write(self, _text: str) -> int:
            raise BrokenPipeError

    for out in (closed, Full()):
        logs._LineLogger(out).msg("a.b")


def test_a_signal_in_the_middle_of_a_log_line_may_log_too() -> None:
    """With a lock in the logger the handler would wait for the very line it interrupted, for ever."""
    script = """if True:
        import signal, sys, structlog
        from compliance_agent import logs
        logs.configure("INFO", open("/dev/null", "w"))
        log = structlog.get_logger()
        hits = 0
        def handler(*_):
            global hits
            hits += 1
            log.info("agent.signal", number=1)
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
        while hits < 300:
            log.info("a.b", x=1)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
    """
    subprocess.run([sys.executable, "-c", script], check=True, timeout=30)


def test_where_names_our_innermost_line_only() -> None:
    try:
        json.loads("{")
    except ValueError as error:
        assert logs.where(error) == "outside"
    try:
        logs.configure("LOUD")
    except KeyError as error:
        assert re.fullmatch(r"logs\.py:\d+", logs.where(error))


# --- every call in the package, read from its syntax tree -----------------------------------------


def log_calls() -> Iterator[tuple[str, ast.Call]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            match node:
                case ast.Call(
                    func=ast.Attribute(value=ast.Name(id="log"), attr="debug" | "info" | "warning" | "error")
                ):
                    yield f"{path.relative_to(PACKAGE)}:{node.lineno}", node


def objections(call: ast.Call) -> list[str]:
    """What is wrong with a call: the event's name is no constant, or a value may hold free text."""
    found = []
    match call.args:
        case [ast.Constant(value=str(name))] if EVENT.fullmatch(name):
            pass
        case _:
            found.append("the event is not one dotted constant")
    for keyword in call.keywords:
        value = keyword.value
        if keyword.arg in {"exc_info", "stack_info", "error", "message", "msg", "exception"} and not isinstance(
            value, ast.Attribute
        ):
            found.append(f"{keyword.arg} may hold an exception's text")
        for node in ast.walk(value):
            match node:
                case ast.JoinedStr():
                    found.append("an f-string may hold what the host calls its things")
                case ast.Call(func=ast.Name(id="str" | "repr"), args=[ast.Name(id="error" | "e" | "exc" | "failure")]):
                    found.append("an exception's text")
    return found


def test_every_log_call_is_a_constant_event_with_typed_keys() -> None:
    calls = list(log_calls())
    assert len(calls) > 20
    assert [f"{at}: {what}" for at, call in calls for what in objections(call)] == []


@pytest.mark.parametrize(
    "planted",
    [
        "log.error('failed')",
        "log.error(f'check.{name}')",
        "log.info('a.b', text=f'{path}')",
        "log.info('a.b', reason=str(error))",
        "log.error('a.b', exc_info=True)",
        "log.info('a.b %s', path)",
    ],
)
def test_the_reader_of_calls_sees_what_it_should(planted: str) -> None:
    statement = ast.parse(planted).body[0]
    assert isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call)
    assert objections(statement.value)
