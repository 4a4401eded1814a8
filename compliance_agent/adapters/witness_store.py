"""What a witness has cosigned, on disk: one file for each origin, which is the cosigned checkpoint exactly as it is served.

Why not the SQLite of adapters.database: that one carries on after damage with the rows that can still be read, which is right
for evidence and wrong here, where a forgotten row lets a fork be cosigned. A note proves itself: a file is believed only if it
bears this witness's own cosignature. It is replaced as a whole, so no write can tear it, and anybody can read it.

    checkpoint/<SHA-256 of the origin>   the latest cosigned note
    marks                                size, root and time of each; written after the note, before anything is said
    contradiction/<...>                  signed notes that contradict one that was cosigned, proof against a log
    lock                                 one process at a time

A mark that is ahead of its note says that the note was put back to an older state (a copy restored, a file removed): the origin is
stopped for good. If the whole directory was put back, only the outside can tell: a log that holds a newer cosignature and shows it.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Collection
from pathlib import Path

import structlog

from compliance_agent.adapters.durable import create_file, make_directory, read_file, write_file
from compliance_agent.adapters.state_lock import taken
from compliance_agent.core.witness import NOTHING, Seen, origin_hash
from compliance_agent.errors import BadEvidence, LogStopped, StorageDamaged
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.fields import from_base64, from_decimal, to_base64
from compliance_agent.log.merkle import HASH_BYTES, RootHash
from compliance_agent.log.note import Note, VerifierKey

MAX_CONTRADICTIONS = 16  # kept for each origin: two notes are proof enough
_LIMIT_BYTES = 1_048_576
_MARKS_BYTES = 64 * 1_048_576

log = structlog.get_logger()


class WitnessStore:
    """The memory of a witness; `directory` was made by `WitnessKeys`.

    Args:
        directory: of the state.
        own: this witness's keys, by which its notes prove themselves.

    Raises:
        StateInUse: another process has it.
        StorageError: it cannot be read, or `marks` is gone: then what was cosigned is not known any more.
    """

    def __init__(self, directory: Path, own: Collection[VerifierKey]) -> None:
        self._directory = directory
        self._own = own
        self._mutex = threading.Lock()
        self._held: dict[str, tuple[Seen, bytes]] = {}  # durable, each of them
        make_directory(directory / "checkpoint")
        self._lock = taken(directory / "lock")
        try:
            self._marks = _read_marks(directory / "marks")
            _sweep(directory, directory / "checkpoint")
            self._look_at_all()
        except BaseException:
            self.close()
            raise

    def update(self, name: str, make: Callable[[Seen | None], bytes]) -> bytes:
        """Store what `make` returns for the latest, as one step; durable, note and mark, when this returns.

        Raises:
            LogStopped: the origin is stopped.
            StorageError: the old or the new note is held, and nothing may be said of the new one.
        """
        with self._mutex:
            latest = self._latest(name)
            note = make(latest[0] if latest else None)
            return self._store(name, note)

    def published(self, name: str) -> bytes | None:
        """The latest cosigned note of an origin; None before the first. Raises as `update`."""
        with self._mutex:
            latest = self._latest(name)
            return latest[1] if latest else None

    def condemn(self, name: str, seen: Seen) -> None:
        """Mark that more was cosigned than is held here, for good."""
        with self._mutex:
            self._held.pop(name, None)
            self._mark(name, seen)

    def keep(self, name: str, note: bytes) -> None:
        """Keep a note that contradicts the one held, with the one held; at most MAX_CONTRADICTIONS."""
        directory = self._directory / "contradiction" / name
        with self._mutex:
            latest = self._latest(name)
            for one in (note, latest[1] if latest else b""):
                made = len(list(directory.iterdir())) if directory.is_dir() else 0
                if one and made < 2 * MAX_CONTRADICTIONS:
                    create_file(directory / origin_hash(one.decode()), one)

    def close(self) -> None:
        """Let the state go. Safe to call twice."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _look_at_all(self) -> None:
        for name in self._marks:
            try:
                self._latest(name)
            except (LogStopped, StorageDamaged) as error:  # the others go on
                log.error("witness.stopped", origin_sha256=name, code=error.code)

    def _latest(self, name: str) -> tuple[Seen, bytes] | None:
        """What is held. What was not written by this process is written anew before it is believed to be durable."""
        if name in self._held:
            return self._held[name]
        path, mark = self._directory / "checkpoint" / name, self._marks.get(name)
        note = read_file(path, limit_bytes=_LIMIT_BYTES) if os.path.lexists(path) else None
        seen = self._read(name, note) if note is not None else NOTHING
        if mark is not None and (note is None or seen.contradicts(mark)):
            raise LogStopped(
                f"witness: of origin {name[:16]} size {seen.size} is held, and size {mark.size} was cosigned",
                code="rolled_back",
            )
        if note is not None:
            self._store(name, note)
        return self._held.get(name)

    def _store(self, name: str, note: bytes) -> bytes:
        seen = self._read(name, note)
        self._held.pop(name, None)  # until both are durable
        write_file(self._directory / "checkpoint" / name, note)
        if self._marks.get(name) != seen:
            self._mark(name, seen)
        self._held[name] = (seen, note)
        return note

    def _mark(self, name: str, seen: Seen) -> None:
        marks = {**self._marks, name: seen}
        lines = [f"{one} {mark.size} {to_base64(mark.root)} {mark.at}\n" for one, mark in sorted(marks.items())]
        write_file(self._directory / "marks", "".join(lines).encode())
        self._marks = marks

    def _read(self, name: str, raw: bytes) -> Seen:
        """What a note of ours says; a file that does not bear our cosignature is not one."""
        try:
            note = Note.parse(raw)
            found, times = Checkpoint.parse(note.text), note.verify(self._own)
        except BadEvidence as error:
            raise StorageDamaged(f"witness: the checkpoint of origin {name[:16]} is not one it cosigned") from error
        if origin_hash(found.origin) != name:
            raise StorageDamaged(f"witness: the checkpoint of origin {name[:16]} is of another origin")
        return Seen(found.size, found.root, max(at or 0 for _, at in times))


def _sweep(*directories: Path) -> None:
    """Remove what writes that were cut short left behind."""
    for directory in directories:
        for path in directory.glob(".*.tmp"):
            with contextlib.suppress(OSError):
                path.unlink()


def _read_marks(path: Path) -> dict[str, Seen]:
    if not os.path.lexists(path):
        raise StorageDamaged(
            f"witness: {path} is gone, so it is not known what was cosigned",
            hint="a witness that has lost its state begins again under a new name, with a new state directory",
        )
    text = read_file(path, limit_bytes=_MARKS_BYTES).decode("ascii", "replace")
    try:
        return dict(map(_read_mark, text.splitlines()))
    except (BadEvidence, ValueError) as error:
        raise StorageDamaged(f"witness: {path} is damaged") from error


def _read_mark(line: str) -> tuple[str, Seen]:
    name, size, root, at = line.split(" ")
    raw = from_base64(root, "root of a mark", "bad_mark")
    if len(name) != 64 or len(raw) != HASH_BYTES:
        raise BadEvidence("a mark is not of a hash, a size, a root and a time", code="bad_mark")
    times = [from_decimal(text, "number of a mark", "bad_mark") for text in (size, at)]
    return name, Seen(times[0], RootHash(raw), times[1])
