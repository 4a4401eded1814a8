"""`MANIFEST.sha256`: the digest of every file, in the form that `sha256sum -c` reads; `MANIFEST.sig` signs it. Pure.

Its lines are in the order of the files in the packet, so both are read side by side and neither is held.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping

from compliance_agent.errors import BadEvidence

MANIFEST, MANIFEST_SIGNATURE = "MANIFEST.sha256", "MANIFEST.sig"
_LINE = re.compile(rb"([0-9a-f]{64})  ([!-~]{1,4000})")
_LONGEST, _NEAR = 4_096, 256
DIGEST_BYTES = 66  # and two spaces, which stand before a path


def line(digest: str, path: str) -> bytes:
    """Of one file."""
    return f"{digest}  {path}\n".encode()


def manifest(files: Mapping[str, bytes]) -> bytes:
    """The manifest of these files, by path; itself and its signature are not in it."""
    listed = sorted(path for path in files if path not in {MANIFEST, MANIFEST_SIGNATURE})
    return b"".join(line(hashlib.sha256(files[path]).hexdigest(), path) for path in listed)


def line_of(read: Callable[[int, int], bytes], start: int, end: int, path: bytes) -> int:
    """Where a manifest that stands from `start` to `end` has its first line of this path or one after it, if it is in order."""
    low, high = start, end
    while low < high:
        middle = (low + high) // 2
        begins = start if middle == start else _after(read, middle - 1, end)
        line = read(begins, min(_NEAR, end - begins))
        if b"\n" not in line:
            line = read(begins, min(_LONGEST, end - begins))
        if begins < high and line[DIGEST_BYTES : line.find(b"\n")] < path:
            low = begins + 1
        else:
            high = middle
    return start if low == start else _after(read, low - 1, end)


def _after(read: Callable[[int, int], bytes], at: int, end: int) -> int:
    """What follows the first line's end from a place on."""
    found = read(at, min(_NEAR, end - at)).find(b"\n")
    if found < 0:
        found = read(at, min(_LONGEST, end - at)).find(b"\n")
    return end if found < 0 else at + found + 1


def differences(chunks: Iterable[bytes], files: Iterable[tuple[str, Callable[[], str]]]) -> Iterator[tuple[str, str]]:
    """(code, path) for each file that is missing, changed or not listed.

    Args:
        chunks: the manifest, in pieces.
        files: path and digest of every file, in order of their paths; the manifest and its signature are left out here.

    Raises:
        BadEvidence: code `bad_manifest`; it has another form, or a path twice.
    """
    lines = _lines(chunks)
    listed = next(lines, None)
    for path, digest in files:
        if path in {MANIFEST, MANIFEST_SIGNATURE}:
            continue
        while listed is not None and listed[0] < path:
            yield "missing_file", listed[0]
            listed = next(lines, None)
        if listed is None or listed[0] != path:
            yield "extra_file", path
            continue
        if listed[1] != digest():
            yield "changed_file", path
        listed = next(lines, None)
    while listed is not None:
        yield "missing_file", listed[0]
        listed = next(lines, None)


def _lines(chunks: Iterable[bytes]) -> Iterator[tuple[str, str]]:
    rest, before = b"", ""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        for text in whole:
            found = _LINE.fullmatch(text)
            if found is None or (path := found[2].decode("ascii")) <= before:
                raise _bad()
            before = path
            yield path, found[1].decode("ascii")
        if len(rest) > _LONGEST:
            raise _bad()
    if rest or not before:
        raise _bad()


def _bad() -> BadEvidence:
    return BadEvidence("manifest is not lines of a digest and a path, in order, each path once", code="bad_manifest")
