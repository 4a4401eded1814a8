"""A progress bar on the terminal, and nothing where nobody watches. It has no thread: a process with one must not be forked."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

_EVERY_S = 0.2


@contextlib.contextmanager
def progress(label: str, total: Callable[[], int | None]) -> Iterator[Callable[[int], None] | None]:
    """Something to tell how much is done; None when standard error is not a terminal. `total` is only asked on one."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, auto_refresh=False) as bar:
        task = bar.add_task(label, total=total())
        shown = 0.0

        def update(done: int) -> None:
            nonlocal shown
            if (now := time.monotonic()) - shown >= _EVERY_S:
                shown = now
                bar.update(task, completed=done, refresh=True)

        yield update
