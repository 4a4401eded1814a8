"""Compressed bodies: taken when they are what they say, refused before they are large."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import zlib

import pytest
import zstandard

from compliance_agent.errors import Refusal
from compliance_agent.evidence.canonical import canonical
from compliance_agent.server.api import encoding
from compliance_agent.server.api.edge import MOST_BODY_BYTES
from tests.server.builder import Server, acknowledged

pytestmark = pytest.mark.anyio
MEBIBYTE = 1 << 20


def zstd(raw: bytes, *, sized: bool = True) -> bytes:
    return zstandard.ZstdCompressor(write_content_size=sized).compress(raw)


def gz(raw: bytes) -> bytes:
    return gzip.compress(raw, 6, mtime=0)


@pytest.mark.parametrize("name", ["gzip", "zstd", "GZIP"])
async def test_a_batch_may_be_compressed(server: Server, name: str) -> None:
    host = await server.enrolled()
    sent = [host.next() for _ in range(100)]
    raw = canonical({"protocol": 1, "bundles": [bundle.item for bundle in sent], "gaps": []})
    packed = zstd(raw) if name == "zstd" else gz(raw)
    assert len(raw) > 5 * len(packed) / 2
    reply = await server.client.post(
        "/api/v1/evidence", content=packed, headers={**host.headers, "content-encoding": name}
    )
    assert acknowledged(reply, host, sent) == ["stored"] * 100


BOMBS = {
    "gzip": (gz(b"0" * 40 * MEBIBYTE), "gzip"),
    "gzip, a little": (gz(b"0" * 100_000), "gzip"),
    "zstd that says so": (zstd(b"0" * 40 * MEBIBYTE), "zstd"),
    "zstd that does not": (zstd(b"0" * 40 * MEBIBYTE, sized=False), "zstd"),
    "zstd, a little": (zstd(b"0" * 100_000, sized=False), "zstd"),
    "gzip, by ratio alone": (gz(b"0" * 900_000), "gzip"),
}


@pytest.mark.parametrize("name", BOMBS)
async def test_a_bomb_is_refused(server: Server, name: str) -> None:
    host = await server.enrolled()
    raw, kind = BOMBS[name]
    headers = {**host.headers, "content-encoding": kind}
    for route in ("/api/v1/evidence", "/api/v1/checkin", "/api/v1/enrol"):
        reply = await server.client.post(route, content=raw, headers=headers)
        assert (reply.status_code, reply.json()["code"]) == (413, "too_large"), route
        assert reply.headers["content-type"] == "application/problem+json"


async def test_nothing_is_unpacked_for_a_stranger(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_arguments: object) -> bytes:
        raise AssertionError("unpacked")

    monkeypatch.setattr("compliance_agent.server.api.edge.unpacked", never)
    headers = {"content-encoding": "gzip", "authorization": "Bearer cak1.nobody"}
    for route in ("/api/v1/evidence", "/api/v1/checkin", "/api/v1/receipts"):
        assert (await server.client.post(route, content=BOMBS["gzip"][0], headers=headers)).status_code == 401


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        (b"", "gzip"),
        (b"{}", "gzip"),
        (gz(b"{}")[:-1], "gzip"),
        (gz(b"{}") + b"x", "gzip"),
        (gz(b"{}") * 2, "gzip"),
        (zlib.compress(b"{}"), "gzip"),
        (b"", "zstd"),
        (b"{}", "zstd"),
        (zstd(b"{}" * 50)[:-1], "zstd"),
        (zstd(b"{}" * 50, sized=False)[:-1], "zstd"),
        (zstd(b"{}") + b"x", "zstd"),
        (gz(b"{}"), "zstd"),
    ],
)
def test_what_is_not_one_whole_stream_is_refused(raw: bytes, kind: str) -> None:
    with pytest.raises(Refusal) as caught:
        encoding.unpacked(raw, kind, MOST_BODY_BYTES)
    assert (caught.value.status, caught.value.code) == (400, "bad_encoding")


@pytest.mark.parametrize("kind", ["br", "deflate", "gzip, zstd", "x-gzip", "compress"])
async def test_other_encodings_are_not_known(server: Server, kind: str) -> None:
    reply = await server.client.post("/api/v1/enrol/challenge", content=b"{}", headers={"content-encoding": kind})
    assert (reply.status_code, reply.json()["code"]) == (415, "bad_encoding")


_MEASURE = """
import json, sys, zlib
from pathlib import Path
import zstandard
from compliance_agent.errors import Refusal
from compliance_agent.server.api import encoding
def most_kib():
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1])
kind, bounded = sys.argv[1], sys.argv[2] == "bounded"
raw = sys.stdin.buffer.read()
before = most_kib()
try:
    if bounded:
        encoding.unpacked(raw, kind, 1 << 20)
    else:
        zlib.decompress(raw, 31) if kind == "gzip" else zstandard.ZstdDecompressor().decompress(raw, max_output_size=1 << 28)
    code = "taken"
except Refusal as refusal:
    code = refusal.code
print(json.dumps([code, most_kib() - before]))
"""


def measured(raw: bytes, kind: str, how: str) -> tuple[str, int]:
    """What became of it, and how many KiB the process grew by."""
    done = subprocess.run([sys.executable, "-c", _MEASURE, kind, how], input=raw, capture_output=True, check=True)
    code, kib = json.loads(done.stdout)
    return code, kib


@pytest.mark.parametrize("sized", [True, False])
@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_a_bomb_costs_little_memory(kind: str, sized: bool) -> None:
    """200 MB in a few kilobytes: refused with 12 MB at the most, the 8 MB window of zstd among them; planted, it takes all."""
    plain = b"0" * 200 * MEBIBYTE
    raw = gz(plain) if kind == "gzip" else zstd(plain, sized=sized)
    code, kib = measured(raw, kind, "bounded")
    assert (code, kib < 12 * 1024) == ("too_large", True), kib
    code, kib = measured(raw, kind, "unbounded")
    assert (code, kib > 150 * 1024) == ("taken", True), kib
