"""The records of a packet, read again from the database in pages: once as files, and once to tell of them in the exports.

    with apart(lambda: build.reading(data_dir, site_id), out.parent) as teller:  # before anything starts a thread
        asyncio.run(build.write(reader, places, wanted, out, teller=teller))

Both go through all records, in another order, and neither needs the other. So telling is done in a process of its own where that
is possible, with a handle of its own to the same rows. What it made stays in files of its own until it is asked for; they have no
names, so nothing of them is left when a process ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import itertools
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import orjson

from compliance_agent.adapters.workers import Beside, beside
from compliance_agent.log.proof import Proof
from compliance_agent.log.tiles import Tile
from compliance_agent.log.tree import TileTree
from compliance_agent.packet.choosing import Choice, Chosen, going
from compliance_agent.packet.content import Record, Scope
from compliance_agent.packet.opening import Log
from compliance_agent.packet.packing import Exports, Stored
from compliance_agent.packet.readme import Shown
from compliance_agent.packet.telling import Telling
from compliance_agent.server.records import Kept, SiteReader

PAGE = 500  # bundles that are read together; two such pages are in memory at once
Told = Callable[[str, int, int], object]  # what is being done, how much of it is done, and of how much
Reading = Callable[[], AbstractAsyncContextManager[SiteReader]]


def nobody(_stage: str, _at: int, _total: int) -> None:
    """Who does not ask how far it is."""


class Source:
    """The records that were chosen, read again: from another thread than the one that the database belongs to."""

    def __init__(
        self,
        reader: SiteReader,
        site_id: str,
        log: Log,
        choice: Choice,
        loop: asyncio.AbstractEventLoop,
        said: Told = nobody,
        teller: Apart | None = None,
    ) -> None:
        self._reader, self._site_id, self._loop, self._said = reader, site_id, loop, said
        self.log, self.choice, self._teller = log, choice, teller

    def begin(self, scope: Scope) -> None:
        """Let the other process tell, if there is one."""
        if self._teller is not None:
            self._teller.begin(_Asked(scope, self._site_id, self.log.shard.origin, self.choice))

    @property
    def elsewhere(self) -> Exports | None:
        """The exports, where somebody else makes them."""
        return self._teller

    def told(self) -> Iterator[Record]:
        """Those of the period, in the order of the exports."""
        origin = self.log.shard.origin
        return (record_of(kept, one, origin) for one, kept in self._records(self.choice.told(), "telling"))

    def stored(self) -> Iterator[Stored]:
        """All of them with their receipts, in the order of their files."""
        log = self.log
        tree = TileTree(log.size, lambda *tile: log.hashes[Tile(*tile)])
        for one, kept in self._records(self.choice.stored(), "writing"):
            index = _index(kept, log.shard.origin)
            receipt = Proof(index, tuple(tree.inclusion(index)), log.note).encode()
            digest = hashlib.sha256(kept.body).hexdigest()
            yield Stored(one.directory, kept.body, digest, kept.sig, log.entry(index), receipt)
        self._said("telling", 0, 0)

    def shown(self) -> Shown:
        """What the page about them says."""
        count, origin = sum(1 for _ in self.choice.told()), self.log.shard.origin
        first = next(self._records(self.choice.told()), None) or next(self._records(self.choice.stored()))
        return Shown(count, self.choice.count - count, record_of(first[1], first[0], origin, self.log.entry))

    def _records(self, chosen: Iterator[Chosen], stage: str = "") -> Iterator[tuple[Chosen, Kept]]:
        at, pages = 0, self._pages(chosen)
        now = next(pages, None)
        while now is not None:
            page, found = now[0], {kept.number: kept for kept in now[1].result()}
            now = next(pages, None)  # which is read while this one is written
            for one in page:
                yield one, found[one.number]
            at += len(page)
            if stage:
                self._said(stage, at, self.choice.count)

    def _pages(self, chosen: Iterator[Chosen]) -> Iterator[tuple[list[Chosen], Future[list[Kept]]]]:
        """What was chosen, a page at a time, with its rows once they are read."""
        for page in _paged(chosen):
            asked = self._reader.kept_of(self._site_id, [one.number for one in page])
            yield page, asyncio.run_coroutine_threadsafe(asked, self._loop)


def _paged(chosen: Iterator[Chosen]) -> Iterator[list[Chosen]]:
    return iter(lambda: list(itertools.islice(chosen, PAGE)), [])


def _index(kept: Kept, origin: str) -> int:
    """Of a record that is there."""
    if kept.index is None:
        raise RuntimeError("a record without an index was taken")
    if not kept.body:
        raise going(origin)
    return kept.index


def record_of(kept: Kept, one: Chosen, origin: str, entry: Callable[[int], bytes] = lambda _: b"") -> Record:
    """The record; without its entry in the log where nobody gives that, as to tell of it needs none."""
    index, digest = _index(kept, origin), hashlib.sha256(kept.body).hexdigest()
    return Record(orjson.loads(kept.body), kept.body, kept.sig, entry(index), index, digest, one.directory)


# --- in a process of its own ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Asked:
    """What is to be told of."""

    scope: Scope
    site_id: str
    origin: str
    choice: Choice


class Apart:
    """The exports, made in another process."""

    def __init__(self, other: Beside) -> None:
        self._other, self._begun = other, False

    def begin(self, asked: _Asked) -> None:
        """Tell of these, and let us go on."""
        self._other.ask(asked)
        self._begun = True

    def document(self) -> Iterator[bytes]:
        """The assessment results."""
        return self._asked("document")

    def csv(self) -> Iterator[bytes]:
        """The table."""
        return self._asked("csv")

    def ocsf(self) -> Iterator[bytes]:
        """The events."""
        return self._asked("ocsf")

    def _asked(self, name: str) -> Iterator[bytes]:
        if self._begun:
            for _ in self._other.answer():  # signs of life, until all is told
                pass
            self._begun = False
        self._other.ask(name)
        return self._other.answer()


@contextlib.contextmanager
def apart(reading: Reading, directory: Path) -> Iterator[Apart | None]:
    """A process that tells; None where none is made. It is gone when the block ends.

    Args:
        reading: opens a handle of its own to what the packet is made of; called in that process.
        directory: where it keeps its lines.
    """
    with beside(_Teller(reading, directory).answer) as other:
        yield None if other is None else Apart(other)


class _Teller:
    """In that process."""

    def __init__(self, reading: Reading, directory: Path) -> None:
        self._reading, self._directory = reading, directory
        self._telling: Telling

    def answer(self, asked: _Asked | str) -> Iterator[bytes]:
        """All is told when the answer to what is to be told ends; before that come signs of life, which say nothing."""
        if isinstance(asked, str):
            return {"document": self._telling.document, "csv": self._telling.csv, "ocsf": self._telling.ocsf}[asked]()
        return self._told(asked)

    def _told(self, asked: _Asked) -> Iterator[bytes]:
        self._telling = Telling(asked.scope, functools.partial(aside, self._directory))
        with asyncio.Runner() as runner, contextlib.ExitStack() as ending:
            opened = self._reading()
            reader = runner.run(opened.__aenter__())
            ending.callback(lambda: runner.run(opened.__aexit__(None, None, None)))
            for page in _paged(asked.choice.told()):
                rows = runner.run(reader.kept_of(asked.site_id, [one.number for one in page]))
                found = {kept.number: kept for kept in rows}
                for one in page:
                    self._telling.take(record_of(found[one.number], one, asked.origin))
                yield b""


def aside(directory: Path) -> BinaryIO:
    """A file without a name."""
    return cast(BinaryIO, tempfile.TemporaryFile(dir=directory))
