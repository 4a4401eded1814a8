"""The zip file, pure: one spelling for each set of files, so that a changed bit outside the files shows as well.

Nothing is compressed: digests and signatures would not shrink, and two versions of zlib write different bytes. So every byte
between the files follows from their names, lengths and checksums: a reader walks the directory at the end in order, and whoever
reads a file holds what stands before it to that. Nothing of a file stays in memory, and of the directory what the caller keeps.
The directory need not be walked from its start: a line of it begins with bytes that stand nowhere else (`Container.line_at`).
"""

from __future__ import annotations

import io
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from compliance_agent.errors import BadEvidence

MAX_FILE_BYTES = 2_000_000_000  # of one file in it: beyond, a zip file spells lengths in another way
_LONG_AGO = (1980, 1, 1, 0, 0, 0)  # the first moment a zip file can name
_REGULAR_0644 = 0o100644 << 16
_UNIX = 3
PARTS = ("bundle.json", "bundle.sig", "leaf.json", "bundle.tlog-proof")  # names of a record's files
_NAME = re.compile(r"(?!.*(?:^|/)\.{1,2}(?:/|$))[A-Za-z0-9._-]+(?:/[A-Za-z0-9._-]+)*")
_LAST = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")  # of a plain path: what is in such a directory
_CHUNK = 1 << 20
_LOOK = 4_096
_TOGETHER = 4_096  # lines of the directory that are written at once

# As APPNOTE.TXT has them (4.3.7, 4.3.12, 4.3.14 to 4.3.16): version 20, or 45 where an offset needs 64 bits; stored; 1980.
_LOCAL = struct.Struct("<4s5HLLLHH")
_AFTER = struct.Struct("<3L2H")
_LINE = struct.Struct("<16s3L2H10sL")  # of the directory, with what is always the same in one piece
_END = struct.Struct("<4s4HLLH")
_END64 = struct.Struct("<4sQHHLL4Q")
_LOCATOR = struct.Struct("<4sLQL")
_OFFSET64 = struct.Struct("<HHQ")
_FEW, _SMALL, _UNSAID = 2**16 - 1, 2**31 - 1, 2**32 - 1
_VERSION, _VERSION64, _DATE = 20, 45, 33
_NEAR = struct.pack("<4s6H", b"PK\1\2", _VERSION | _UNIX << 8, _VERSION, 0, 0, 0, _DATE)
_FAR = struct.pack("<4s6H", b"PK\1\2", _VERSION64 | _UNIX << 8, _VERSION64, 0, 0, 0, _DATE)
_BEGINS = re.compile(b"|".join(map(re.escape, (_NEAR, _FAR))))
_BETWEEN = struct.pack("<3HL", 0, 0, 0, _REGULAR_0644)
_BEFORE = struct.pack("<4s5H", b"PK\3\4", _VERSION, 0, 0, 0, _DATE)


class Layout:
    """Of a line of the directory, and of what stands before a file, for who reads many at once."""

    LINE, LOCAL = _LINE.size, _LOCAL.size
    NAME_LENGTH = 28  # where a line has it
    NEAR, FAR, BETWEEN = _NEAR, _FAR, _BETWEEN
    SMALL, UNSAID, EXTRA = _SMALL, _UNSAID, _OFFSET64.size


Read = Callable[[int, int], bytes]  # (offset, length) -> bytes, fewer where the file ends


class Entry(NamedTuple):
    """A file of the packet: where it begins (with what stands before it), and where the directory's line about it does."""

    name: str
    size: int
    crc: int
    offset: int
    line: int

    @property
    def above(self) -> str:
        """The directory it stands in."""
        return self.name.rpartition("/")[0]

    @property
    def start(self) -> int:
        """Of its bytes."""
        return self.offset + _LOCAL.size + len(self.name)

    @property
    def end(self) -> int:
        """Of its bytes."""
        return self.start + self.size

    @property
    def before(self) -> bytes:
        """What stands before its bytes."""
        return before(self.name.encode("ascii"), self.size, self.crc)

    @property
    def line_length(self) -> int:
        """Of its line of the directory."""
        return _LINE.size + len(self.name) + (_OFFSET64.size if self.offset > _SMALL else 0)

    @property
    def listed(self) -> bytes:
        """Its line of the directory."""
        return listed_of(self.name.encode("ascii"), self.size, self.crc, self.offset)


def before(name: bytes, size: int, crc: int, pack: Callable[..., bytes] = _AFTER.pack) -> bytes:
    """What stands before the bytes of a file."""
    return _BEFORE + pack(crc, size, size, len(name), 0) + name


def listed_of(name: bytes, size: int, crc: int, offset: int, pack: Callable[..., bytes] = _LINE.pack) -> bytes:
    """The directory's line about a file."""
    if offset > _SMALL:
        line = pack(_FAR, crc, size, size, len(name), _OFFSET64.size, _BETWEEN, _UNSAID)
        return line + name + _OFFSET64.pack(1, 8, offset)
    return pack(_NEAR, crc, size, size, len(name), 0, _BETWEEN, offset) + name


class Container:
    """The files of a packet, read where they stand.

    Args:
        read: gives bytes of the file.
        size: of the file.

    Raises:
        BadEvidence: code `bad_container`; it does not end as a packet does.
    """

    def __init__(self, read: Read, size: int) -> None:
        self.read = read
        end = read(max(0, size - _END.size), _END.size)
        if len(end) < _END.size or not end.startswith(b"PK\5\6"):
            raise _bad("it does not end as a zip file")
        _, _, _, _, self.count, length, self.directory, _ = _END.unpack(end)
        at = size - _END.size
        tail = at - _LOCATOR.size - _END64.size
        if tail >= 0 and (far := read(tail, _END64.size)).startswith(b"PK\6\6"):
            *_, self.count, length, self.directory = _END64.unpack(far)
            at = tail
        self.end: int = self.directory + length
        if self.end != at or read(at, size - at) != ending(self.count, self.directory, length):
            raise _bad("its end is not as a packet is written")

    def entries(self, start: int | None = None, end: int | None = None, *, together: int = _CHUNK) -> Iterator[Entry]:
        """The files by the lines of the directory from `start` to `end`, in order, so many bytes of it read together.

        Raises:
            BadEvidence: a line is not as a packet is written.
        """
        at, stop = self.directory if start is None else start, self.end if end is None else end
        held, base = b"", at
        while at < stop:
            entry = _entry(held, at - base, at)
            if entry is None:
                base, held = at, self.read(at, min(together, stop - at))
                entry = _entry(held, 0, at)
            if entry is None and len(held) < min(_CHUNK, stop - at):
                held = self.read(at, min(_CHUNK, stop - at))
                entry = _entry(held, 0, at)
            if entry is None:
                raise _bad("a line of its directory is not as a packet is written")
            yield entry
            at += entry.line_length

    def line_at(self, at: int) -> int:
        """Where the first line of the directory begins that begins at a place or after it; the directory's end where none does.

        What a line begins with cannot stand within one: checksum, length and the same length again, and two lengths below 2^16,
        leave no room for it, and a name has no such bytes.
        """
        while at < self.end:
            held = self.read(at, min(_LOOK, self.end - at))
            if found := _BEGINS.search(held):
                return at + found.start()
            at += max(1, len(held) - len(_NEAR) + 1)
        return self.end

    def chunks(self, entry: Entry) -> Iterator[bytes]:
        """The bytes of a file, in pieces."""
        for at in range(entry.start, entry.end, _CHUNK):
            yield self.read(at, min(_CHUNK, entry.end - at))

    def content(self, entry: Entry) -> bytes:
        """The bytes of a file."""
        return self.read(entry.start, entry.size)


def _entry(held: bytes, at: int, line: int) -> Entry | None:
    """The line at a place, None where it is not whole or not as it is written."""
    if len(held) < at + _LINE.size:
        return None
    fixed, crc, size, size_too, name, extra, between, offset = _LINE.unpack_from(held, at)
    length = _LINE.size + name + extra
    if len(held) < at + length or size != size_too or between != _BETWEEN:
        return None
    named = held[at + _LINE.size : at + _LINE.size + name]
    if not named.isascii():
        return None
    if fixed == _NEAR and not extra and offset <= _SMALL:
        return Entry(named.decode("ascii"), size, crc, offset, line)
    if extra != _OFFSET64.size:
        return None
    entry = Entry(named.decode("ascii"), size, crc, _OFFSET64.unpack_from(held, at + length - extra)[2], line)
    return entry if entry.offset > _SMALL and held[at : at + length] == entry.listed else None


def ending(count: int, directory: int, length: int) -> bytes:
    """What stands after the directory."""
    far = b""
    if count > _FEW or directory > _SMALL or length > _SMALL:
        far = _END64.pack(b"PK\6\6", 44, _VERSION64, _VERSION64, 0, 0, count, count, length, directory)
        far += _LOCATOR.pack(b"PK\6\7", 0, directory + length, 1)
    few = min(count, _FEW)
    return far + _END.pack(b"PK\5\6", 0, 0, few, few, min(length, _UNSAID), min(directory, _UNSAID), 0)


class InOrder:
    """Holds a container's files, or a stretch of them, to the only spelling: plain names in order, and nothing between the files.

    What stands before each file, and its checksum, are for whoever reads it.

    Attributes:
        first, last: names of the first file that was seen and of the last.
        begins, ends: where the bytes of these begin and end.
    """

    first = last = ""
    begins = ends = -1
    count = 0
    _above: str | None = None  # a directory with a plain path
    _plain: str | None = None  # the directory that a record with a plain path stands in

    def follow(self, entry: Entry) -> str:
        """The next file; the directory it stands in. BadEvidence, code `bad_container`."""
        name, size = entry.name, entry.size
        if name <= self.last:
            raise _bad("it holds a name twice, or names that are not in order")
        above, _, below = name.rpartition("/")
        if above != self._above or below not in PARTS:
            if not _NAME.fullmatch(name):
                raise _bad("a file's name is not a plain relative path")
            self._above = above
        if size > MAX_FILE_BYTES:
            raise _bad("a file is too long")
        if entry.offset != self.ends or self.count == 0:
            self._goes_on(name, entry.offset)
        self.last, self.ends, self.count = name, entry.offset + _LOCAL.size + len(name) + size, self.count + 1
        return above

    def follow_record(self, directory: str, first: str, last: str, files: tuple[int, int, int]) -> None:
        """The next files, those of one record; BadEvidence, code `bad_container`.

        Args:
            directory: that they stand in.
            first, last: their names, which are in order and plain where the directory is.
            files: how many they are, and where they begin and end, adjoining each other; none is too long.
        """
        count, begins, ends = files
        if f"{directory}/{first}" <= self.last:
            raise _bad("it holds a name twice, or names that are not in order")
        above, _, name = directory.rpartition("/")
        if above != self._plain or not _LAST.fullmatch(name):
            if not _NAME.fullmatch(directory):
                raise _bad("a file's name is not a plain relative path")
            self._plain = above or None
        if begins != self.ends or self.count == 0:
            self._goes_on(f"{directory}/{first}", begins)
        self.last, self.ends, self.count = f"{directory}/{last}", ends, self.count + count

    def join(self, other: InOrder) -> None:
        """The next stretch; BadEvidence, code `bad_container`."""
        if other.count == 0:
            return
        if other.first <= self.last:
            raise _bad("it holds a name twice, or names that are not in order")
        self._goes_on(other.first, other.begins)
        self.last, self.ends, self.count = other.last, other.ends, self.count + other.count

    def _goes_on(self, name: str, offset: int) -> None:
        if self.count == 0:
            self.first, self.begins = name, offset
        elif offset != self.ends:
            raise _bad("something stands between its files")

    def finish(self, container: Container) -> None:
        """After the last file of all; BadEvidence, code `bad_container`."""
        nothing = (0, 0) if self.count == 0 else (self.begins, self.ends)
        if (*nothing, self.count) != (0, container.directory, container.count):
            raise _bad("something stands between its files, or it holds more or fewer than it says")


def in_order(container: Container) -> Iterator[Entry]:
    """Every file, with the container held to its only spelling; BadEvidence, code `bad_container`."""
    seen = InOrder()
    for entry in container.entries():
        seen.follow(entry)
        yield entry
    seen.finish(container)


def check_crc(entry: Entry, content: bytes | Iterator[bytes]) -> None:
    """Hold a file's bytes to the checksum; BadEvidence."""
    crc = 0
    for chunk in [content] if isinstance(content, bytes) else content:
        crc = zlib.crc32(chunk, crc)
    if crc != entry.crc:
        raise _bad("a file is not what its checksum is of")


def opened(raw: bytes) -> Container:
    """A packet that is in memory."""
    return Container(lambda at, length: raw[at : at + length], len(raw))


def pack(files: Mapping[str, bytes]) -> bytes:
    """The packet of these files by path; code `bad_container` for a path that does not belong into one."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            if not _NAME.fullmatch(name):
                raise _bad("a file's name is not a plain relative path")
            entry = zipfile.ZipInfo(name, _LONG_AGO)
            entry.create_system, entry.external_attr = _UNIX, _REGULAR_0644
            archive.writestr(entry, files[name])
    return packed.getvalue()


def write(names: Iterable[str], content: Callable[[str], bytes], out: Callable[[bytes], object]) -> int:
    """As `pack`, with a file at a time in memory; its length.

    Args:
        names: paths, each once.
        content: gives the bytes of a file.
        out: takes the packet's bytes, in order.
    """
    at, lines = 0, list[bytes]()
    for name in sorted(names):
        raw = content(name)
        if not _NAME.fullmatch(name) or len(raw) > MAX_FILE_BYTES:
            raise _bad("a file's name is not a plain relative path, or it is too long")
        entry = Entry(name, len(raw), zlib.crc32(raw), at, 0)
        out(entry.before + raw)
        lines.append(entry.listed)
        at = entry.end
    length = sum(map(len, lines))
    end = ending(len(lines), at, length)
    for first in range(0, len(lines), _TOGETHER):
        out(b"".join(lines[first : first + _TOGETHER]))
    out(end)
    return at + length + len(end)


def unpack(raw: bytes) -> dict[str, bytes]:
    """The files of a packet; code `bad_container` for what is not written as one."""
    container = opened(raw)
    files = {}
    for entry in in_order(container):
        content = container.content(entry)
        check_crc(entry, content)
        if container.read(entry.offset, entry.start - entry.offset) != entry.before:
            raise _bad("something stands before a file")
        files[entry.name] = content
    return files


def _bad(problem: str) -> BadEvidence:
    return BadEvidence(f"packet: {problem}", code="bad_container")
