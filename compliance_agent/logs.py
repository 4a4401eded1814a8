"""Logging: events with a fixed dotted name and typed keys, one line each, to standard error.

Who logs an error logs its type and the line of ours it came from, never its text: that may hold what a host calls its files
or users. `_safe` keeps that rule for every event: an exception becomes its type, any other object its type, text one bounded
line. Under systemd each line begins with its syslog priority (`<3>`), so that the journal can filter.

A log that cannot be written (closed pipe, full disk) is lost and never stops the agent: evidence does not depend on it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, TextIO

import structlog

_PACKAGE = Path(__file__).parent
_PRIORITY = {"critical": 2, "error": 3, "warning": 4, "info": 6, "debug": 7}
_NEVER = ("exc_info", "stack_info", "exception", "stack")  # renderers would print tracebacks, with texts
LONGEST_TEXT = 200


def where(error: BaseException) -> str:
    """`drift.py:88`: the innermost line of this package that an error passed."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_relative_to(_PACKAGE):
            return f"{path.relative_to(_PACKAGE)}:{frame.lineno}"
    return "outside"


def configure(level: str = "INFO", stream: TextIO | None = None) -> None:
    """Send every event at `level` or above to `stream` (standard error when not given), JSON unless it is a terminal."""
    out = stream if stream is not None else sys.stderr
    processors: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _safe,
        _for_people("NO_COLOR" not in os.environ)
        if out.isatty()
        else structlog.processors.JSONRenderer(sort_keys=True),
    ]
    if "JOURNAL_STREAM" in os.environ:
        processors.append(_with_priority)
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
        logger_factory=lambda *_: _LineLogger(out),
        cache_logger_on_first_use=False,
    )


class _LineLogger:
    """Writes one line at a time. A file gets it by one `write`, without lock or buffer, because a signal handler may log while
    the loop is logging and threads log too.
    """

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._handle: int | None = None
        with contextlib.suppress(OSError, ValueError, AttributeError):  # in memory, or closed
            self._handle = out.fileno()

    def msg(self, line: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            if self._handle is not None:
                os.write(self._handle, f"{line}\n".encode("utf-8", "replace"))
            else:
                self._out.write(line + "\n")

    log = debug = info = warning = error = critical = fatal = msg


def _safe(_logger: Any, _method: str, event: dict[str, Any]) -> dict[str, Any]:
    return {key: _plain(value) for key, value in event.items() if key not in _NEVER}


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return _plain(value.value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        line = value if value.isprintable() else "".join(c if c.isprintable() else "?" for c in value)
        return line if len(line) <= LONGEST_TEXT else f"{line[:LONGEST_TEXT]}..."
    if isinstance(value, Mapping):
        return {str(_plain(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    return type(value).__name__


def _for_people(colours: bool) -> Callable[[Any, str, dict[str, Any]], str]:
    """A line for a terminal: time, level, event, keys."""
    shades = {"critical": 31, "error": 31, "warning": 33, "info": 32, "debug": 90}

    def render(_logger: Any, method: str, event: dict[str, Any]) -> str:
        at, level, name = (str(event.pop(key, "")) for key in ("timestamp", "level", "event"))
        shown = f"\x1b[{shades.get(method, 0)}m{level:<8}\x1b[0m" if colours else f"{level:<8}"
        return " ".join([at[11:19], shown, name, *(f"{key}={value}" for key, value in sorted(event.items()))])

    return render


def _with_priority(_logger: Any, method: str, line: str) -> str:
    return f"<{_PRIORITY.get(method, 6)}>{line}"
