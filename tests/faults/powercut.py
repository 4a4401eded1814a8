"""Every state a power cut can leave: a recording of the driver's writes, replayed with what the disk may have forgotten.

Model: a write, truncation or change of a directory is pending until its file or directory was fsynced. A cut keeps what is
not pending and any part of the rest: any subset of a file's writes, the last of them torn at a sector, and of a directory's
changes either a prefix (a journalling file system) or any subset (what POSIX allows).
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
TRACED = "pwrite64,write,fdatasync,fsync,rename,openat,unlink,unlinkat,rmdir,ftruncate,mkdir,linkat,close"
SECTOR = 512
_LINE = re.compile(r"\d+ +(\w+)\((.*)\) += (-?\d+)")
_TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')


@dataclass(frozen=True)
class Operation:
    """One call that succeeded: its name, the strings and the numbers among its arguments, and what it returned."""

    name: str
    texts: tuple[bytes, ...]
    numbers: tuple[int, ...]
    returned: int
    flags: str


def changing(done: Sequence[Operation], root: Path) -> list[int]:
    """The positions after which the tree at `root` may have changed: where a cut is worth trying."""
    handles: set[int] = set()
    found = []
    for position, operation in enumerate(done, start=1):
        ours = bool(operation.texts) and operation.texts[0].startswith(bytes(root))
        if operation.name == "openat" and ours:
            handles.add(operation.returned)
        elif operation.name == "close":
            handles -= set(operation.numbers[:1])
        if (ours and operation.name != "openat") or (
            operation.name != "openat" and set(operation.numbers[:1]) & handles
        ):
            found.append(position)
    return found


def operations(log: Path) -> Iterator[Operation]:
    """The calls of a recording made with `strace -xx -s 100000`."""
    for line in log.read_text("ascii").splitlines():
        matched = _LINE.match(line)
        if matched is None or int(matched[3]) < 0:
            continue
        texts = tuple(bytes.fromhex(text.replace("\\x", "")) for text in _TEXT.findall(matched[2]))
        rest = _TEXT.sub("", matched[2])
        numbers = tuple(int(number) for number in re.findall(r"(?<![\w.])\d+(?![\w.])", rest))
        yield Operation(matched[1], texts, numbers, int(matched[3]), rest)


@dataclass
class File:
    """Durable bytes and pending changes: `(offset, bytes)`, or `(size, None)` for a truncation."""

    durable: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)
    size: int = 0


@dataclass
class Directory:
    """Durable names and pending changes: each sets some names, to None when they go."""

    durable: dict[str, File | Directory] = field(default_factory=dict)
    pending: list[dict[str, File | Directory | None]] = field(default_factory=list)

    def now(self) -> dict[str, File | Directory]:
        """As the running system sees it."""
        return _named(self.durable, self.pending)


def _named(
    names: dict[str, File | Directory], changes: Sequence[dict[str, File | Directory | None]]
) -> dict[str, File | Directory]:
    seen: dict[str, File | Directory | None] = dict(names)
    for change in changes:
        seen.update(change)
    return {name: node for name, node in seen.items() if node is not None}


def _apply(durable: bytearray, change: tuple[int, bytes | None]) -> None:
    offset, content = change
    if content is None:
        del durable[offset:]
        durable.extend(bytes(offset - len(durable)))
        return
    durable.extend(bytes(max(0, offset - len(durable))))
    durable[offset : offset + len(content)] = content


class Disk:
    """What a run did to one directory tree, call by call."""

    def __init__(self, root: Path) -> None:
        self.root = Directory()
        self._at = str(root)
        self._open: dict[int, tuple[File | Directory | None, int]] = {}
        self.promised: list[str] = []

    def _find(self, path: str) -> tuple[Directory, str] | None:
        if path != self._at and not path.startswith(self._at + "/"):
            return None
        parts = path[len(self._at) :].strip("/").split("/")
        node: File | Directory | None = self.root
        for part in parts[:-1]:
            node = node.now().get(part) if isinstance(node, Directory) else None
        return (node, parts[-1]) if isinstance(node, Directory) else None

    def do(self, operation: Operation) -> None:
        """Follow one call."""
        name, texts, numbers = (
            operation.name,
            [text.decode("utf-8", "replace") for text in operation.texts],
            operation.numbers,
        )
        if name == "openat":
            self._do_open(texts[0], operation)
        elif name == "close":
            self._open.pop(numbers[0], None)
        elif name in {"write", "pwrite64"}:
            self._do_write(operation)
        elif name == "ftruncate":
            node = self._open.get(numbers[0], (None, 0))[0]
            if isinstance(node, File):
                node.pending.append((numbers[1], None))
                node.size = numbers[1]
        elif name in {"fsync", "fdatasync"}:
            self._do_sync(self._open.get(numbers[0], (None, 0))[0])
        elif name == "mkdir":
            self._change(texts[0], Directory())
        elif name in {"unlink", "rmdir", "unlinkat"}:
            self._change(texts[0], None)
        elif name in {"rename", "linkat"}:
            self._do_move(texts[0], texts[1], keep=name == "linkat")

    def _change(self, path: str, node: File | Directory | None) -> None:
        found = self._find(path)
        if found is not None and found[1]:
            found[0].pending.append({found[1]: node})
        elif path == self._at and isinstance(node, Directory):
            self.root = node

    def _do_open(self, path: str, operation: Operation) -> None:
        found = self._find(path)
        if found is None:
            self._open[operation.returned] = (None, 0)
            return
        parent, name = found
        node = self.root if not name else parent.now().get(name)
        if node is None and "O_CREAT" in operation.flags:
            node = File()
            parent.pending.append({name: node})
        if isinstance(node, File) and "O_TRUNC" in operation.flags and node.size:
            node.pending.append((0, None))
            node.size = 0
        self._open[operation.returned] = (node, 0)

    def _do_write(self, operation: Operation) -> None:
        handle = operation.numbers[0]
        content = operation.texts[0][: operation.returned]
        if handle == 1 and content.startswith(b"P "):
            self.promised.append(content.decode().strip().partition(":")[2])
        node, position = self._open.get(handle, (None, 0))
        if not isinstance(node, File):
            return
        offset = operation.numbers[-1] if operation.name == "pwrite64" else position
        node.pending.append((offset, content))
        node.size = max(node.size, offset + len(content))
        self._open[handle] = (node, offset + len(content))

    def _do_sync(self, node: File | Directory | None) -> None:
        if isinstance(node, File):
            for change in node.pending:
                _apply(node.durable, change)
            node.pending.clear()
        elif isinstance(node, Directory):
            node.durable = node.now()
            node.pending.clear()

    def _do_move(self, old: str, new: str, *, keep: bool) -> None:
        source, target = self._find(old), self._find(new)
        if source is None or target is None:
            return
        node = source[0].now()[source[1]]
        if keep:
            target[0].pending.append({target[1]: node})
        elif source[0] is target[0]:
            source[0].pending.append({source[1]: None, target[1]: node})  # a rename in one directory is one change
        else:
            target[0].pending.append({target[1]: node})
            source[0].pending.append({source[1]: None})

    # After the cut

    def survive(self, target: Path, rng: random.Random) -> str:
        """Write one state that a power cut now may leave into `target`; returns its digest.

        SQLite's -shm is memory and never survives.
        """
        digest = hashlib.sha256()
        self._survive(self.root, target, rng, digest)
        return digest.hexdigest()

    def _survive(self, node: Directory, target: Path, rng: random.Random, digest: hashlib._Hash) -> None:
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, child in _named(node.durable, _kept(node.pending, rng, ordered=rng.random() < 0.5)).items():
            digest.update(f"{target}/{name}\n".encode())
            if isinstance(child, Directory):
                self._survive(child, target / name, rng, digest)
            elif not name.endswith("-shm"):
                content = bytearray(child.durable)
                for change in _torn(_kept(child.pending, rng, ordered=rng.random() < 0.2), rng):
                    _apply(content, change)
                digest.update(content)
                (target / name).write_bytes(content)
                (target / name).chmod(0o600)


def _kept(changes: Sequence[T], rng: random.Random, *, ordered: bool) -> list[T]:
    if ordered:
        return list(changes[: rng.randint(0, len(changes))])
    share = rng.choice((0.0, 0.2, 0.5, 0.8, 1.0))
    return [change for change in changes if rng.random() < share]


def _torn(changes: list[tuple[int, bytes | None]], rng: random.Random) -> list[tuple[int, bytes | None]]:
    if changes and rng.random() < 0.3:
        offset, content = changes[-1]
        if content is not None and len(content) > SECTOR:
            changes[-1] = (offset, content[: SECTOR * rng.randint(1, len(content) // SECTOR)])
    return changes
