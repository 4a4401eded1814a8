"""What has to be so of a host, one step after the other; each is a line of the report, with what was found where it was not so."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any


class NotSo(Exception):
    """A step found something else; the message says what."""


def lines(steps: Iterable[tuple[str, Callable[[], bool]]]) -> list[dict[str, Any]]:
    """Take the steps in their order. A step that is not so does not keep the next one from being taken."""
    return [_line(name, step) for name, step in steps]


def _line(name: str, step: Callable[[], bool]) -> dict[str, Any]:
    try:
        return {"step": name, "ok": step()}
    except NotSo as found:
        return {"step": name, "ok": False, "found": str(found)}
