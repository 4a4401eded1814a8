"""A packet is read where it stands: as much is found by several processes as by one, and nothing stands beside the files."""

from __future__ import annotations

import hashlib
import itertools
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compliance_agent import crypto
from compliance_agent.adapters.durable import opened_file
from compliance_agent.adapters.workers import in_order
from compliance_agent.errors import BadEvidence, NoInput
from compliance_agent.evidence.chains import Tagger
from compliance_agent.log.proof import Proof
from compliance_agent.packet import archive, look, manifest, near, reading, stretches, verify
from compliance_agent.packet.archive import Container, Entry
from compliance_agent.packet.build import build
from compliance_agent.packet.content import Scope
from compliance_agent.packet.kept import Rows
from compliance_agent.packet.verify import verify_file, verify_files
from tests.packet.scene import DAY, Files, Made, built, make
from tests.server.builder import START, Hands, serving


def both(work: Callable[[Any], Any], batches: Iterable[Any]) -> Iterator[Any]:
    return in_order(work, batches, count=2)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of several batches, with exports that no batch reads at once."""
    directory = tmp_path_factory.mktemp("large")
    make(directory / "server", more=90)
    return built(directory / "server", directory / "packet.zip").path


def test_several_processes_find_what_one_finds(large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stretches, "STRETCH", 1 << 13)
    raw = large.read_bytes()
    container = archive.opened(raw)
    assert len(list(stretches.batches(container))) > 8
    assert max(entry.size for entry in stretches.beside(container).values()) > reading.MAX_PART_BYTES
    assert verify_file(large).ok
    path = tmp_path / "packet.zip"
    for at in (0, *range(100, len(raw), len(raw) // 9)):
        path.write_bytes(raw[:at] + bytes([raw[at] ^ (1 if at else 0)]) + raw[at + 1 :])
        alone, spread = verify_file(path), verify_file(path, spread=both)
        assert alone.as_document() == spread.as_document(), at
        assert alone.ok == (at == 0), at


@pytest.mark.parametrize("name", [manifest.MANIFEST_SIGNATURE, "keys/packet.pem"])
def test_a_long_manifest_is_held_to_its_signature(large: Path, tmp_path: Path, name: str) -> None:
    """By whoever reads it; the key of another would do no better than another signature."""
    files, path = archive.unpack(large.read_bytes()), tmp_path / "packet.zip"
    assert len(files[manifest.MANIFEST]) > reading.MAX_PART_BYTES
    host = next(file for file in files if file.startswith("keys/") and len(file) > 60)
    other = files[host] if name.startswith("keys/") else bytes([files[name][0] ^ 1]) + files[name][1:]
    path.write_bytes(archive.pack({**files, name: other}))
    for spread in (map, both):
        found = [(problem.code, problem.where) for problem in verify_file(path, spread=spread).problems]
        assert ("bad_signature", manifest.MANIFEST_SIGNATURE) in found


def test_a_packet_in_many_parts_is_held_to_its_log(large: Path, tmp_path: Path) -> None:
    """The log is read between the parts, and what it says counts though all hosts were looked at before the last of these came."""
    files, path = archive.unpack(large.read_bytes()), tmp_path / "packet.zip"
    gone = sorted({above_of(file) for file in files if file.startswith("evidence/")})[40]
    path.write_bytes(archive.pack({name: files[name] for name in files if not name.startswith(f"{gone}/")}))
    for spread in (map, both):
        assert "missing_record" in {problem.code for problem in verify_file(path, spread=spread).problems}


def above_of(path: str) -> str:
    return path.rpartition("/")[0]


@pytest.mark.parametrize("length", [1, 60, 400, 5_000, 1 << 30])
def test_a_directory_in_stretches_is_the_directory(large: Path, monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    """Each line once and in order, and the files of a record in one of them."""
    monkeypatch.setattr(stretches, "STRETCH", length)
    monkeypatch.setattr(stretches, "TOGETHER", length)
    container = archive.opened(large.read_bytes())
    cut = [list(container.entries(batch.start, batch.end)) for batch in stretches.batches(container)]
    whole = list(archive.in_order(container))
    assert [entry for batch in cut for entry in batch] == whole
    for before, after in itertools.pairwise(cut):
        assert not before[-1].name.startswith("evidence/") or above(before[-1]) != above(after[0])
        assert len({entry.name.startswith("evidence/") for entry in before}) == 1
        if not before[0].name.startswith("evidence/"):  # a long file beside the records is alone
            assert len(before) == 1 or sum(entry.size for entry in before) <= length
    assert stretches.beside(container) == {e.name: e for e in whole if not e.name.startswith("evidence/")}


def above(entry: Entry) -> str:
    return above_of(entry.name)


def test_a_line_is_found_from_anywhere(large: Path) -> None:
    """By what it begins with, near and far; and nothing else looks like one."""
    container = archive.opened(large.read_bytes())
    starts = [entry.line for entry in archive.in_order(container)]
    for at in range(container.directory, container.end, 7):
        expected = next((line for line in starts if line >= at), container.end)
        assert container.line_at(at) == expected
    far = Entry("a", 1, 0x02014B50, 1 << 32, 0).listed + Entry("b", 0x02014B50, 0x02014B50, 1 << 33, 0).listed
    first = Entry("a", 1, 0, 1 << 32, 0)
    raw = far + archive.ending(2, 0, len(far))
    opened = archive.opened(raw)
    assert [opened.line_at(at) for at in (0, 1, first.line_length, first.line_length + 1)] == [
        0, first.line_length, first.line_length, len(far),
    ]  # fmt: skip


def read_by(path: Path, keys: dict[str, bytes]) -> tuple[Container, list[reading.Part]]:
    """The parts of a packet, without a log."""
    container = archive.opened(path.read_bytes())
    scope = Scope.parse(archive.unpack(path.read_bytes())["packet.json"])
    reader = reading.Reader(container, None, reading.Held(keys, scope, b"", None), Tagger())
    return container, [reader(batch) for batch in stretches.batches(container)]


def keys_of(path: Path) -> dict[str, bytes]:
    files = archive.unpack(path.read_bytes())
    found = [crypto.read_public_pem(files[name]) for name in files if name.startswith("keys/") and len(name) > 60]
    return {crypto.key_id(public): public for public in found}


def test_rows_of_all_batches_lead_back_to_their_records(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stretches, "STRETCH", 1 << 13)
    files = archive.unpack(large.read_bytes())
    container, parts = read_by(large, keys_of(large))
    lines = [line for part in parts for _, kept in part.rows.values() for line in reading.lines_of(kept)]
    assert len(lines) == len(set(lines)) > 180
    for line in lines:
        record = reading.read_record(container, line)
        assert record.body == files[f"{record.directory}/bundle.json"]
        assert record.index == Proof.parse(files[f"{record.directory}/bundle.tlog-proof"]).index


def test_a_file_beside_a_record_hides_nothing(made: Made) -> None:
    """It is named once, and the record it stands beside is read all the same, wherever its name sorts."""
    directory = made.pick("/bundle.json").rpartition("/")[0]
    for name in ("a", "bundle.json.bak", "leaf.jso", "z"):
        extra = f"{directory}/{name}"
        report = verify_files(made.signed_again({**made.files, extra: b"?"}))
        assert [(problem.code, problem.where) for problem in report.problems] == [("extra_file", extra)]
        assert report.verified == report.found == 12


# --- the container ----------------------------------------------------------------------------------------------


def written(files: list[tuple[str, bytes]], between: bytes = b"", after: bytes = b"", count: int = 0) -> bytes:
    """A zip file, every line of it right, of these files in this order."""
    whole, lines, at = list[bytes](), list[bytes](), 0
    for name, content in files:
        entry = Entry(name, len(content), zlib.crc32(content), at, 0)
        whole += [entry.before, content, between]
        lines.append(entry.listed)
        at = entry.end + len(between)
    end = archive.ending(count or len(files), at, sum(map(len, lines)))
    return b"".join([*whole, *lines, end, after])


PLAIN = [("a", b"1"), ("b/c", b"22"), ("b/d", b"")]


def beyond_the_end() -> bytes:
    """The last file is said to be longer than what stands before the directory."""
    raw = written(PLAIN)
    last = list(archive.opened(raw).entries())[-1]
    return raw.replace(last.listed, last._replace(size=1 << 20).listed)


def with_a_hole() -> bytes:
    """A line is left out; the file is there."""
    raw = written(PLAIN)
    entries = list(archive.opened(raw).entries())
    lines = entries[0].listed + entries[2].listed
    return raw[: entries[0].line] + lines + archive.ending(2, entries[0].line, len(lines))


SPOILT = {
    "a gap between": written(PLAIN, between=b"?"),
    "not in order": written(PLAIN[::-1]),
    "one name twice": written([PLAIN[0], *PLAIN]),
    "more said than there are": written(PLAIN, count=4),
    "fewer said than there are": written(PLAIN, count=2),
    "something after it": written(PLAIN, after=b"\0"),
    "something before it": b"\0" + written(PLAIN),
    "a path upwards": written([("../a", b"1")]),
    "a path from the root": written([("/a", b"1")]),
    "a file beyond the end": beyond_the_end(),
    "a hole in the directory": with_a_hole(),
    "a line cut short": written(PLAIN)[:-40] + written(PLAIN)[-22:],
    "no end": written(PLAIN)[:-22],
    "nothing": b"",
}


def test_what_is_written_so_is_what_pack_writes() -> None:
    assert written(PLAIN) == archive.pack(dict(PLAIN))
    assert archive.unpack(written(PLAIN)) == dict(PLAIN)


@pytest.mark.parametrize("name", SPOILT)
def test_a_container_of_another_spelling_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(BadEvidence) as refused:
        archive.unpack(SPOILT[name])
    assert refused.value.code == "bad_container"
    (tmp_path / "packet.zip").write_bytes(SPOILT[name])
    assert [problem.code for problem in verify_file(tmp_path / "packet.zip").problems] == ["bad_container"]


def test_every_flipped_bit_of_a_container_is_refused() -> None:
    raw = written(PLAIN)
    for at in range(len(raw) * 8):
        flipped = bytearray(raw)
        flipped[at // 8] ^= 1 << at % 8
        with pytest.raises(BadEvidence):
            archive.unpack(bytes(flipped))


def test_more_files_than_sixteen_bits_count() -> None:
    files = {f"f/{number:05}": b"" for number in range(65_600)}
    raw = archive.pack(files)
    assert raw.count(b"PK\6\6") == 1
    assert archive.unpack(raw) == files
    assert written(sorted(files.items())) == raw


def test_offsets_of_more_than_32_bits(tmp_path: Path) -> None:
    """A file that is mostly a hole: what stands after it is found all the same, as the standard library writes it."""
    path = tmp_path / "packet.zip"
    first = Entry("a", archive.MAX_FILE_BYTES, 0, 0, 0)
    second = Entry("b", archive.MAX_FILE_BYTES, 0, first.end, 0)
    third = Entry("c", 3, 0x352441C2, second.end, 0)
    with path.open("wb") as file:
        for entry in (first, second, third):
            file.seek(entry.offset)
            file.write(entry.before)
        file.write(b"abc")
        file.write(b"".join(entry.listed for entry in (first, second, third)))
        file.write(archive.ending(3, third.end, sum(len(entry.listed) for entry in (first, second, third))))
    with opened_file(path) as (read, size):
        container = Container(read, size)
        found = list(archive.in_order(container))
        assert [entry._replace(line=0) for entry in found] == [first, second, third]
        assert container.content(found[2]) == b"abc"
    with zipfile.ZipFile(path) as other:
        assert [(info.filename, info.header_offset) for info in other.infolist()] == [
            (entry.name, entry.offset) for entry in (first, second, third)
        ]
        assert other.read("c") == b"abc"


def test_a_local_header_that_differs_is_named(made: Made) -> None:
    """The directory at the end is right; a reader that goes by the headers would see another file."""
    entry = next(entry for entry in archive.opened(made.raw).entries() if entry.name == "packet.json")
    at = entry.start - len(entry.name)
    raw = made.raw[:at] + b"pocket.json" + made.raw[at + 11 :]
    report = verify.verify_bytes(raw)
    assert ("bad_container", "packet.json") in {(problem.code, problem.where) for problem in report.problems}


def test_a_packet_that_is_not_there_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.zip", tmp_path):
        with pytest.raises(NoInput):
            verify_file(path)


# --- the manifest, beside the files -------------------------------------------------------------------------------


def differences(text: bytes, files: Files, size: int) -> list[tuple[str, str]]:
    chunks = [text[at : at + size] for at in range(0, len(text), size)]
    digests = [(path, lambda path=path: hashlib.sha256(files[path]).hexdigest()) for path in sorted(files)]
    return list(manifest.differences(chunks, digests))


@pytest.mark.parametrize("size", [1, 7, 1_000_000])
def test_a_manifest_is_held_to_the_files_in_any_pieces(size: int) -> None:
    files = {"MANIFEST.sha256": b"", "MANIFEST.sig": b"", "a": b"1", "b/c": b"2", "z": b""}
    right = manifest.manifest(files)
    assert differences(right, files, size) == []
    assert differences(right, {**files, "a": b"2", "b/b": b"", "zz": b""}, size) == [
        ("changed_file", "a"), ("extra_file", "b/b"), ("extra_file", "zz"),
    ]  # fmt: skip
    assert differences(right, {"b/c": b"2"}, size) == [("missing_file", "a"), ("missing_file", "z")]
    lines = right.splitlines(keepends=True)
    for wrong in (b"", right[:-1], right + right, b"".join(lines[::-1]), right + b"x\n", b"x" * 9_000, right + b"\n"):
        with pytest.raises(BadEvidence) as refused:
            differences(wrong, files, size)
        assert refused.value.code == "bad_manifest"


# --- planted: a check that is gone ----------------------------------------------------------------------------------


def with_another_index(made: Made) -> Files:
    """A proof that says another place."""
    path = made.pick("bundle.tlog-proof", 3)
    proof = Proof.parse(made.files[path])
    return made.signed_again({**made.files, path: replace(proof, index=proof.index - 1).encode()})


def test_the_entry_at_the_index_is_looked_at_too(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were the way up the tree not climbed, the log that was read would still show another entry there."""
    files = with_another_index(made)
    assert "bad_inclusion_proof" in {problem.code for problem in verify_files(files).problems}
    monkeypatch.setattr(near, "verify_inclusion", lambda *_: None)
    assert "wrong_leaf" in {problem.code for problem in verify_files(files).problems}
    monkeypatch.setattr(look, "entry_problem", lambda *_: None)
    assert "wrong_leaf" not in {problem.code for problem in verify_files(files).problems}


@pytest.mark.parametrize("gone", ["crc", "before", "manifest"])
def test_a_reader_that_skips_a_check_is_caught(
    made: Made, monkeypatch: pytest.MonkeyPatch, gone: str, tmp_path: Path
) -> None:
    raw, text = made.raw, made.files["README.txt"]
    planted: tuple[Any, str, Any]
    at = raw.index(text)
    if gone == "crc":  # the checksum in both places says another thing than the file
        entry = next(entry for entry in archive.opened(raw).entries() if entry.name == "README.txt")
        other = entry._replace(crc=entry.crc ^ 1)
        damaged = raw.replace(entry.before, other.before).replace(entry.listed, other.listed)
        planted = (reading, "check_crc", lambda *_: None)
    elif gone == "before":
        damaged = raw[: at - 14] + b"?" + raw[at - 13 :]
        planted = (Entry, "before", property(lambda entry: raw_before(damaged, entry)))
    else:
        damaged = archive.pack({**made.files, "NOT-PROVEN.txt": b"?"})
        planted = (verify, "differences", lambda *_: iter(()))
    code = "changed_file" if gone == "manifest" else "bad_container"
    assert code in {problem.code for problem in verify.verify_bytes(damaged).problems}
    monkeypatch.setattr(*planted)
    assert code not in {problem.code for problem in verify.verify_bytes(damaged).problems}


def raw_before(raw: bytes, entry: Entry) -> bytes:
    return raw[entry.offset : entry.start]


def test_memory_does_not_grow_with_bodies(large: Path) -> None:
    """What is kept of a record is its row and what stands beside it; nothing of its files, and nothing where none verifies."""
    _, parts = read_by(large, {})
    assert not any(part.rows for part in parts)
    _, parts = read_by(large, keys_of(large))
    found = sum(part.found for part in parts)
    held = sum(len(rows) + len(kept) for part in parts for rows, kept in part.rows.values())
    assert found > 180 and held / found < 260


# --- the rows, host by host --------------------------------------------------------------------------------------


def part_of(*hosts: str) -> reading.Part:
    return reading.Part(rows={(host, "k", 0): (bytearray(), bytearray()) for host in hosts})


def test_a_host_is_let_go_of_when_it_is_whole_and_in_the_order_of_labels() -> None:
    """The files of "a-b" come before those of "a"."""
    rows = Rows(["a", "a-b", "c", "never-seen"])
    told: list[str] = []

    def ready() -> list[str]:
        told.clear()
        while (lines := rows.ready()) is not None:
            told.extend(line.host for line in lines)
        return told

    rows.add(part_of("a-b"))
    assert ready() == []
    rows.add(part_of("a-b", "a"))
    assert ready() == []  # "a" may go on
    rows.add(part_of("c"))
    assert ready() == ["a", "a-b"]
    rows.finish()
    assert ready() == ["c"] and rows.finished


async def test_hosts_whose_labels_begin_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stretches, "STRETCH", 1)
    async with serving(tmp_path / "server", clock=Hands(START)) as server:
        for label in ("ws-1-a", "ws-1", "ws-1.a", "ws"):
            host = await server.enrolled(label, "clinic-1")
            await server.deliver(host, *[host.next() for _ in range(3)])
    result = await build(tmp_path / "server", "clinic-1", DAY, DAY, tmp_path / "packet.zip")
    assert result.report.ok, result.report.problems
    assert verify_file(tmp_path / "packet.zip", spread=both).ok
