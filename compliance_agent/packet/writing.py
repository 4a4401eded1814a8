"""Writes a packet whose files nobody holds: one after the other, with what must come before them filled in at the end. Pure.

    writing = Writing(put, listed_bytes(names), aside())
    writing.add("README.txt", content)              # in the order of names, each once
    digest = writing.add_pieces("export/evidence.csv", pieces)
    size = writing.finish(sign)

The manifest names every file and yet stands first, so room is left for it: its length follows from the names. What stands before a
file names its checksum, so that is written after it. The directory is kept aside until its place is known.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import BinaryIO
from zlib import crc32

from compliance_agent.crypto import SIGNATURE_BYTES
from compliance_agent.errors import BadEvidence
from compliance_agent.packet.archive import MAX_FILE_BYTES, Entry, InOrder, before, ending, listed_of
from compliance_agent.packet.four import BELOW, NAMES
from compliance_agent.packet.manifest import MANIFEST, MANIFEST_SIGNATURE, line

Put = Callable[[bytes, int], object]  # (content, where)
_PIECE = 1 << 20


def listed_bytes(names: Iterable[str]) -> int:
    """How long the lines of a manifest about these files are."""
    return sum(len(line("0" * 64, name)) for name in names)


class _Head:
    """Writes on from a place, many pieces at once."""

    def __init__(self, put: Put, at: int) -> None:
        self._put, self.at, self._held = put, at, bytearray()

    def write(self, content: bytes) -> None:
        self._held += content
        if len(self._held) >= _PIECE:
            self.flush()

    def flush(self) -> None:
        self._put(bytes(self._held), self.at)
        self.at += len(self._held)
        self._held.clear()


class Writing:
    """A packet while it is written.

    Args:
        put: writes bytes at a place of the file.
        listed: how long the manifest will be (`listed_bytes`).
        aside: an empty file for the directory.
    """

    def __init__(self, put: Put, listed: int, aside: BinaryIO) -> None:
        self._put, self._aside = put, aside
        self._manifest = Entry(MANIFEST, listed, 0, 0, 0)
        self._lines, self._crc = _Head(put, self._manifest.start), 0
        self._signature = Entry(MANIFEST_SIGNATURE, SIGNATURE_BYTES, 0, self._manifest.end, 0)
        self._order = InOrder()
        self._order.follow(self._manifest)
        self._order.follow(self._signature)
        self._body = _Head(put, self._signature.end)

    def add(self, name: str, content: bytes, digest: str = "") -> None:
        """The next file; `digest` is its SHA-256 where somebody has computed it already."""
        entry = Entry(name, len(content), crc32(content), self._order.ends, 0)
        self._body.write(entry.before + content)
        self._note(entry, digest or hashlib.sha256(content).hexdigest())

    def add_record(self, directory: str, files: Sequence[tuple[bytes, str]]) -> None:
        """As `add` for each file of a record, in the order of `NAMES`: its bytes, and their SHA-256 where that is known."""
        above, at = directory.encode("ascii"), self._order.ends
        begins, crc, body, listed, lines = at, self._crc, list[bytes](), list[bytes](), list[bytes]()
        if max(len(content) for content, _ in files) > MAX_FILE_BYTES:
            raise BadEvidence(f"packet: {directory} has a file that is too long", code="bad_container")
        for below, (content, digest) in zip(BELOW, files, strict=True):
            name, size, of_content = above + below, len(content), crc32(content)
            local = before(name, size, of_content)
            body += (local, content)
            listed.append(listed_of(name, size, of_content, at))
            lines.append(b"%b  %b\n" % ((digest or hashlib.sha256(content).hexdigest()).encode("ascii"), name))
            at += len(local) + size
        self._order.follow_record(directory, NAMES[0], NAMES[-1], (len(NAMES), begins, at))
        said = b"".join(lines)
        self._crc = crc32(said, crc)
        self._lines.write(said)
        self._aside.write(b"".join(listed))
        self._body.write(b"".join(body))

    def add_pieces(self, name: str, pieces: Iterable[bytes]) -> str:
        """The next file, of which nobody knows the length yet; its digest."""
        begins, digest, crc, length = self._order.ends, hashlib.sha256(), 0, 0
        room = before(name.encode("ascii"), 0, 0)
        self._body.write(room)
        for piece in pieces:
            digest.update(piece)
            crc, length = crc32(piece, crc), length + len(piece)
            self._body.write(piece)
        self._body.flush()
        entry = Entry(name, length, crc, begins, 0)
        self._put(entry.before, begins)
        self._note(entry, digest.hexdigest())
        return digest.hexdigest()

    def _note(self, entry: Entry, digest: str) -> None:
        self._order.follow(entry)
        self._aside.write(entry.listed)
        listed = line(digest, entry.name)
        self._crc = crc32(listed, self._crc)
        self._lines.write(listed)

    def finish(self, sign: Callable[[int, int], bytes]) -> int:
        """After the last file; the length of the packet.

        Args:
            sign: gives the signature over the file from one place to another.
        """
        self._lines.flush()
        self._body.flush()
        manifest = self._manifest._replace(crc=self._crc)
        if self._lines.at != manifest.end:
            raise RuntimeError("the manifest is of other files than those that were announced")
        signed = sign(manifest.start, manifest.end)
        signature = self._signature._replace(crc=crc32(signed))
        self._put(manifest.before, 0)
        self._put(signature.before + signed, signature.offset)
        directory = _Head(self._put, self._order.ends)
        directory.write(manifest.listed + signature.listed)
        self._aside.seek(0)
        while piece := self._aside.read(_PIECE):
            directory.write(piece)
        directory.flush()
        end = ending(self._order.count, self._order.ends, directory.at - self._order.ends)
        self._put(end, directory.at)
        return directory.at + len(end)
