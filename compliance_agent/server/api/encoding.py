"""Compressed bodies: gzip and zstd, unpacked only once the caller is known, and never into more than a plain body may have.

An honest batch shrinks to a tenth; what grows by more than twenty times is made to. Both limits hold before the memory is taken:
gzip gives no more than it is asked for, and zstd says or is told the most that it may give.
"""

from __future__ import annotations

import zlib

import zstandard

from compliance_agent.errors import Refusal

MOST_RATIO = 20
SMALL_BYTES = 65_536  # up to here the ratio does not matter
ENCODINGS = ("gzip", "zstd")
_WINDOW = 1 << 23  # what RFC 8878 asks every decoder for, and the most that a frame may make us take


def unpacked(raw: bytes, encoding: str, most_bytes: int) -> bytes:
    """The body that `raw` stands for.

    Raises:
        Refusal: 400, it is not what its header says; 413, it would be larger than a body may be, or grows as no text does.
    """
    most = min(most_bytes, max(SMALL_BYTES, MOST_RATIO * len(raw)))
    return _gunzipped(raw, most) if encoding == "gzip" else _unzstd(raw, most)


def _gunzipped(raw: bytes, most: int) -> bytes:
    reader = zlib.decompressobj(wbits=31)
    try:
        body = reader.decompress(raw, most + 1)
    except zlib.error as error:
        raise _not_of("gzip") from error
    if len(body) > most:
        raise _too_large(most)
    if not reader.eof or reader.unused_data:
        raise _not_of("gzip")
    return body


def _unzstd(raw: bytes, most: int) -> bytes:
    try:
        head = zstandard.get_frame_parameters(raw)
        if head.content_size not in {zstandard.CONTENTSIZE_UNKNOWN, zstandard.CONTENTSIZE_ERROR}:
            if head.content_size > most:
                raise _too_large(most)
        elif _more_than(raw, most):
            raise _too_large(most)
        reader = zstandard.ZstdDecompressor(max_window_size=_WINDOW)
        return reader.decompress(raw, max_output_size=most, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise _not_of("zstd") from error


def _more_than(raw: bytes, most: int) -> bool:
    """Whether a frame that does not say its size is larger."""
    with zstandard.ZstdDecompressor(max_window_size=_WINDOW).stream_reader(raw) as reader:
        left = most + 1
        while left > 0 and (piece := reader.read(min(left, SMALL_BYTES))):
            left -= len(piece)
        return left <= 0


def _too_large(most: int) -> Refusal:
    return Refusal(f"body: unpacks to more than {most} bytes", code="too_large", status=413)


def _not_of(encoding: str) -> Refusal:
    return Refusal(f"body: is not one whole {encoding} stream", code="bad_encoding", status=400)
