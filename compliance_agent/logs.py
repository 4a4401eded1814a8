"""Logging: events with a fixed dotted name and typed keys, one line each, to standard error.

Who logs an error logs its type and the line of ours it came from, never its text: that may hold what a host calls its files
or users. Under systemd each line begins with its syslog priority (`<3>`), so that the journal can filter.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from pathlib import Path
from typing import Any, TextIO

import structlog

_PACKAGE = Path(__file__).parent
_PRIORITY = {"critical": 2, "error": 3, "warning": 4, "info": 6, "debug": 7}


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
    renderer: Any = structlog.processors.JSONRenderer(sort_keys=True)
    if out.isatty():
        renderer = structlog.dev.ConsoleRenderer(colors="NO_COLOR" not in os.environ, exception_formatter=_no_text)
    processors: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        renderer,
    ]
    if "JOURNAL_STREAM" in os.environ:
        processors.append(_with_priority)
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
        logger_factory=structlog.PrintLoggerFactory(out),
        cache_logger_on_first_use=False,
    )


def _no_text(_stream: TextIO, _error: Any) -> None:
    return None


def _with_priority(_logger: Any, method: str, line: str) -> str:
    return f"<{_PRIORITY.get(method, 6)}>{line}"
