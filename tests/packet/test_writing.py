"""A packet that nobody holds in memory is the one that `archive.pack` makes of the same files."""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compliance_agent.errors import BadEvidence
from compliance_agent.packet import archive, writing
from compliance_agent.packet.four import NAMES
from compliance_agent.packet.manifest import MANIFEST, MANIFEST_SIGNATURE, manifest
from compliance_agent.packet.writing import Writing, listed_bytes

FILES = {"NOT-PROVEN.txt": b"no", "evidence/a/b": b"", "evidence/a/c": b"12", "export/x": b"3" * 5_000, "policy": b"\0"}


class Disk:
    """A file in memory, written in places."""

    def __init__(self) -> None:
        self.raw = bytearray()

    def put(self, content: bytes, at: int) -> None:
        self.raw += bytes(max(0, at + len(content) - len(self.raw)))
        self.raw[at : at + len(content)] = content

    def sign(self, start: int, end: int) -> bytes:
        """Stands for a signature: of as many bytes, and of exactly this stretch."""
        return hashlib.sha512(self.raw[start:end]).digest()


def written(files: dict[str, bytes], *, in_pieces: Callable[[str], bool] = lambda name: False) -> bytes:
    disk = Disk()
    work = Writing(disk.put, listed_bytes(files), io.BytesIO())
    for name, content in sorted(files.items()):
        if in_pieces(name):
            pieces = [content[at : at + 7] for at in range(0, len(content), 7)]
            assert work.add_pieces(name, pieces) == hashlib.sha256(content).hexdigest()
        else:
            work.add(name, content)
    assert work.finish(disk.sign) == len(disk.raw)
    return bytes(disk.raw)


def packed(files: dict[str, bytes]) -> bytes:
    listed = manifest(files)
    return archive.pack({**files, MANIFEST: listed, MANIFEST_SIGNATURE: hashlib.sha512(listed).digest()})


@given(
    st.dictionaries(
        st.from_regex(r"(evidence|export|z)/[a-c]{1,3}", fullmatch=True), st.binary(max_size=40), max_size=9
    ),
    st.sampled_from(["", "a", "b", "/"]),
)
def test_it_is_what_pack_makes(files: dict[str, bytes], odd: str) -> None:
    files = {**files, "README.txt": b"?"}
    assert written(files, in_pieces=lambda name: odd in name) == packed(files)


@given(st.lists(st.tuples(*[st.binary(max_size=40)] * 4), max_size=4), st.booleans())
def test_a_record_at_once_is_its_files_one_by_one(records: list[tuple[bytes, ...]], known: bool) -> None:
    above = [f"evidence/a/2026/01/0{at}/b" for at in range(len(records))]
    files = {
        f"{base}/{name}": raw
        for base, four in zip(above, records, strict=True)
        for name, raw in zip(NAMES, four, strict=True)
    }
    disk = Disk()
    work = Writing(disk.put, listed_bytes({**files, "README.txt": b"", "z": b""}), io.BytesIO())
    work.add("README.txt", b"?")
    for base, four in zip(above, records, strict=True):
        work.add_record(base, [(raw, hashlib.sha256(raw).hexdigest() if known else "") for raw in four])
    work.add("z", b"!")
    work.finish(disk.sign)
    assert bytes(disk.raw) == packed({**files, "README.txt": b"?", "z": b"!"})


@pytest.mark.parametrize("directories", [["evidence/b", "evidence/a"], ["evidence/a", "evidence/a"], ["../a"]], ids=str)
def test_records_that_do_not_belong_there_are_not_written(directories: list[str]) -> None:
    work = Writing(Disk().put, 10_000, io.BytesIO())
    with pytest.raises(BadEvidence):
        for directory in directories:
            work.add_record(directory, [(b"", "")] * 4)


@pytest.mark.parametrize("offset", [0, (1 << 31) - 1, 1 << 31, 1 << 33])
def test_a_line_of_the_directory_is_as_the_specification_has_it(offset: int) -> None:
    """APPNOTE.TXT, 4.3.12: beyond 2^31 the offset stands in the extra field (4.5.3)."""
    far = offset >= 1 << 31
    extra = struct.pack("<HHQ", 1, 8, offset) if far else b""
    version, where = (45, 0xFFFFFFFF) if far else (20, offset)
    fields = (version | 3 << 8, version, 0, 0, 0, 33, 7, 9, 9, 4, len(extra), 0, 0, 0, 0o100644 << 16, where)
    assert (
        archive.listed_of(b"name", 9, 7, offset) == b"PK\1\2" + struct.pack("<6HLLLHHHHHLL", *fields) + b"name" + extra
    )


def test_pieces_need_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    for length in (1, 64, 4_096):
        monkeypatch.setattr(writing, "_PIECE", length)
        assert written(FILES, in_pieces=lambda name: "e" in name) == packed(FILES)


@pytest.mark.parametrize("names", [["b", "a"], ["a", "a"], ["../a"], ["A"]], ids=str)
def test_what_is_no_packet_is_not_written(names: list[str]) -> None:
    work = Writing(Disk().put, listed_bytes(names), io.BytesIO())
    with pytest.raises(BadEvidence):
        for name in names:
            work.add(name, b"")


@pytest.mark.parametrize("announced", [["a"], ["a", "b", "c"], ["a", "bb"]], ids=str)
def test_files_that_were_not_announced_are_a_mistake(announced: list[str]) -> None:
    disk = Disk()
    work = Writing(disk.put, listed_bytes(announced), io.BytesIO())
    work.add("a", b"1")
    work.add("b", b"2")
    with pytest.raises(RuntimeError, match="announced"):
        work.finish(disk.sign)
