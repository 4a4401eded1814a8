"""The zip file, pure: one spelling for each set of files, so that a changed bit outside the files shows as well.

Nothing is compressed: digests and signatures would not shrink, and two versions of zlib write different bytes.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Mapping

from compliance_agent.errors import BadEvidence

MAX_PACKET_BYTES = 2**31
MAX_FILES = 2_000_000
_LONG_AGO = (1980, 1, 1, 0, 0, 0)  # the first moment a zip file can name
_REGULAR_0644 = 0o100644 << 16
_UNIX = 3
_NAME = re.compile(r"(?!.*(?:^|/)\.{1,2}(?:/|$))[A-Za-z0-9._-]+(?:/[A-Za-z0-9._-]+)*")


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


def unpack(raw: bytes) -> dict[str, bytes]:
    """The files of a packet; code `bad_container` for every zip file that could not be read or unpacked plainly.

    Whether it is the only spelling is for the caller: `pack(unpack(raw)) == raw`.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            entries = archive.infolist()
            _check(entries, len(raw))
            return {entry.filename: archive.read(entry) for entry in entries}
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        raise _bad("it cannot be read as a zip file") from error


def _check(entries: list[zipfile.ZipInfo], length: int) -> None:
    """Refuse what unpacks to more than it seems, to elsewhere, or to one name twice."""
    names = [entry.filename for entry in entries]
    if len(names) > MAX_FILES or len(set(names)) < len(names):
        raise _bad("it holds a name twice, or too many")
    if not all(_NAME.fullmatch(name) for name in names):
        raise _bad("a file's name is not a plain relative path")
    if any(entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 for entry in entries):
        raise _bad("a file is compressed or encrypted")
    if sum(entry.file_size for entry in entries) > length:
        raise _bad("its files overlap")


def _bad(problem: str) -> BadEvidence:
    return BadEvidence(f"packet: {problem}", code="bad_container")
