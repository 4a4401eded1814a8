"""A packet for somebody who waits in the viewer: built, verified and printed in a process of its own, which the server may end.

    python -m compliance_agent.packet.work < work.json

What to do comes as one JSON object on standard input; how far it is goes out as one JSON object a line: `{"stage", "at", "total"}`,
and last `{"done": {...}}` or `{"failed": CODE}`. So neither its memory nor its time is the server's, and ending it leaves nothing
behind but files in the directory that it was given.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, TypeVar

from compliance_agent import __version__
from compliance_agent.adapters.durable import write_file
from compliance_agent.adapters.workers import cores, in_order
from compliance_agent.errors import AgentError
from compliance_agent.logs import configure
from compliance_agent.packet.build import Places, checked, write
from compliance_agent.packet.choosing import Wanted
from compliance_agent.packet.content import Scope, moment
from compliance_agent.packet.report import Report
from compliance_agent.packet.sampled import Drawing
from compliance_agent.packet.source import Apart, apart
from compliance_agent.packet.verify import records_of_file
from compliance_agent.server.log_places import log_places
from compliance_agent.server.opening import database
from compliance_agent.server.records import Dates, SiteReader
from compliance_agent.server.settings import ServerSettings, parse
from compliance_agent.server.store import SqlStore

T = TypeVar("T")
R = TypeVar("R")
PACKET, REPORT = "packet.zip", "report.pdf"
MOST_PRINTED = 100_000  # records of a report that is printed for somebody who waits, in about 1 GB: beyond, `packet report` does it
SAY_S = 0.5
NICE = 10  # requests come first


@dataclass(frozen=True)
class Work:
    """What is asked of this process. `dates` are the days that the person may see; `directory` is where the files go."""

    settings: Mapping[str, Any]
    wanted: Wanted
    dates: Dates | None
    directory: Path

    @classmethod
    def parse(cls, raw: bytes) -> Work:
        """From what stands on standard input."""
        said = json.loads(raw)
        since, until = map(date.fromisoformat, said["days"])
        dates = Dates(*map(date.fromisoformat, said["dates"])) if said["dates"] else None
        drawing = Drawing.parse(said["sample"]) if said.get("sample") else None
        wanted = Wanted(said["site"], since, until, said["control"], said["host"], drawing=drawing)
        return cls(said["settings"], wanted, dates, Path(said["directory"]))


def main() -> None:
    """Do it."""
    configure("ERROR")
    os.nice(NICE)
    try:
        work = Work.parse(sys.stdin.buffer.read())
        with apart(lambda: _reading(work), work.directory) as teller:
            scope, size = asyncio.run(_written(work, teller))
        _say(stage="checking", at=0, total=0)
        built = checked(work.directory / PACKET, scope, size, _spread)
        done: dict[str, Any] = {
            "records": built.records,
            "problems": len(built.report.problems),
            "packet": _described(built.path),
        }
        _say(stage="printing", at=0, total=0)
        done["report"] = _printed(work, scope, built.report, done["packet"]["sha256"])
        _say(done=done)
    except AgentError as error:
        _say(failed=error.code)


async def _written(work: Work, teller: Apart | None) -> tuple[Scope, int]:
    settings = _settings(work)
    files, _ = await asyncio.to_thread(log_places, settings, lambda: datetime.now(UTC))
    places = Places(files, settings.data_dir / "keys")
    async with _reading(work) as reader:
        out, told = work.directory / PACKET, _seldom(time.monotonic)
        return await write(reader, places, work.wanted, out, told=told, teller=teller)


def _settings(work: Work) -> ServerSettings:
    return parse(json.dumps(work.settings).encode(), {})


@contextlib.asynccontextmanager
async def _reading(work: Work) -> AsyncIterator[SiteReader]:
    """What the person may see."""
    store = await SqlStore.open(database(_settings(work)))
    try:
        yield store.for_sites({work.wanted.site_id}, work.dates)
    finally:
        await store.close()


def _printed(work: Work, scope: Scope, found: Report, sha256: str) -> dict[str, Any] | None:
    """The report beside it; none of more records than are printed while somebody waits, and where typst is not installed."""
    if found.found > MOST_PRINTED:
        return None
    try:
        import typst  # noqa: F401  the extra `pdf`
    except ImportError:
        return None
    from compliance_agent.sheets.printing import printed
    from compliance_agent.sheets.report import report_of

    records = records_of_file(work.directory / PACKET)
    made_at = int(moment(scope.signed_at).timestamp())
    ready = report_of(scope, records, found, sha256=sha256, version=__version__, made_at=made_at)
    write_file(work.directory / REPORT, printed(ready), 0o600)
    return _described(work.directory / REPORT)


def _described(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _spread(work: Callable[[T], R], batches: Iterable[T]) -> Iterable[R]:
    return in_order(work, batches, count=min(cores(), 4))


def _seldom(clock: Callable[[], float]) -> Callable[[str, int, int], None]:
    """Says how far it is: each beginning of a stage, and now and then."""
    last, since = "", -SAY_S

    def told(stage: str, at: int, total: int) -> None:
        nonlocal last, since
        now = clock()
        if stage != last or now - since >= SAY_S:
            last, since = stage, now
            _say(stage=stage, at=at, total=total)

    return told


def _say(**what: Any) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
