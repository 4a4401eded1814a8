"""How the bytes of a record are kept: packed against a text that most records are like, a sixth of what they are.

A packed value is one byte, the number of the text, and a frame of Zstandard; a record itself begins with a brace, so both may stand
in one column, and what is not shorter packed is kept as it is. Nothing here needs this program:

    tail -c +2 VALUE | zstd -d -D compliance_agent/server/store/records-1.txt

A text is never changed, for what was packed with it would be lost: a better one gets the next number. What a record is, its digest
decides, after it was unpacked. A value that cannot be unpacked is handed on as it stands, so whoever checks finds the damage.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from importlib import resources
from typing import Any

import zstandard
from sqlalchemy import Dialect, LargeBinary, Table
from sqlalchemy.types import TypeDecorator

NUMBER = b"\x01"
LEVEL = 3
MOST_BYTES = 1 << 20  # of one record: more than any that is taken in
_SETTINGS = {"write_content_size": True, "write_checksum": False, "write_dict_id": False}

_own = threading.local()  # what packs serves one thread at a time


@functools.cache
def _text() -> bytes:
    return (resources.files("compliance_agent.server.store") / "records-1.txt").read_bytes()


@functools.cache
def _dictionary(*, precomputed: bool) -> zstandard.ZstdCompressionDict:
    made = zstandard.ZstdCompressionDict(_text(), dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    if precomputed:
        made.precompute_compress(level=LEVEL)
    return made


def _packer() -> zstandard.ZstdCompressor:
    found = getattr(_own, "packer", None)
    if found is None:
        settings = zstandard.ZstdCompressionParameters.from_level(LEVEL, **_SETTINGS)
        found = _own.packer = zstandard.ZstdCompressor(
            dict_data=_dictionary(precomputed=True), compression_params=settings
        )
    assert isinstance(found, zstandard.ZstdCompressor)  # noqa: S101  nobody else puts one there
    return found


def _unpacker() -> zstandard.ZstdDecompressor:
    found = getattr(_own, "unpacker", None)
    if found is None:
        found = _own.unpacker = zstandard.ZstdDecompressor(dict_data=_dictionary(precomputed=False))
    assert isinstance(found, zstandard.ZstdDecompressor)  # noqa: S101  nobody else puts one there
    return found


def packed(raw: bytes) -> bytes:
    """As it is kept: `unpacked` gives exactly these bytes again. What looks packed is a damaged value that was handed on."""
    if raw[:1] == NUMBER:
        return raw
    shorter = NUMBER + _packer().compress(raw)
    return shorter if len(shorter) < len(raw) else raw


def unpacked(kept: bytes) -> bytes:
    """The bytes that were given."""
    if kept[:1] != NUMBER:
        return kept
    try:
        if zstandard.frame_content_size(kept[1:]) > MOST_BYTES:
            return kept
        return _unpacker().decompress(kept[1:], max_output_size=MOST_BYTES, allow_extra_data=False)
    except zstandard.ZstdError:
        return kept


class Packed(TypeDecorator[bytes]):
    """A column of bytes that are kept packed."""

    impl = LargeBinary
    cache_ok = True

    @staticmethod
    def kept(value: bytes) -> bytes:
        """As it is kept."""
        return packed(value)

    def process_bind_param(self, value: bytes | None, dialect: Dialect) -> bytes | None:
        """As it goes in."""
        return None if value is None else self.kept(value)

    def process_result_value(self, value: bytes | None, dialect: Dialect) -> bytes | None:
        """As it comes out."""
        return None if value is None else unpacked(bytes(value))


def as_kept(table: Table, columns: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> Sequence[tuple[Any, ...]]:
    """Rows for a statement that no type looks at."""
    for place, name in enumerate(columns):
        kind = table.c[name].type
        if isinstance(kind, Packed):
            rows = [(*row[:place], kind.kept(row[place]), *row[place + 1 :]) for row in rows]
    return rows
