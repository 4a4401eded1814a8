"""An export that says anything else than the records is named, whoever signed it; and nothing but that export is."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import ANY

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compliance_agent.crypto import Ed25519Signer
from compliance_agent.evidence.alike import OWN
from compliance_agent.evidence.canonical import canonical
from compliance_agent.packet import dsse, ocsf, oscal, reading, retold, table, verify
from compliance_agent.packet.archive import Container
from compliance_agent.packet.content import Record, Scope, statements
from compliance_agent.packet.due import Due
from compliance_agent.packet.retold import Retold, Taken
from compliance_agent.packet.verify import records_of, verify_files
from tests.packet.scene import Files, Made

EXPORT, OCSF, CSV = "export/assessment-results.json", "export/ocsf.jsonl", "export/evidence.csv"
CITED = re.compile(rb'\{"description":"A signed record[^}]*\}\]\}')


def resigned(made: Made, path: str, content: bytes) -> Files:
    """Another export, with the envelope and the manifest over it that whoever holds the packet key can make."""
    files = {**made.files, path: content}
    if path == EXPORT:
        signer = Ed25519Signer(made.data_dir / "keys" / "packet.pem")
        said = dsse.statement("assessment-results.json", hashlib.sha256(content).hexdigest(), {})
        files["export/assessment-results.dsse.json"] = dsse.envelope(said, signer.public_bytes, signer.sign)
    return made.signed_again(files)


def named(made: Made, path: str, content: bytes) -> list[tuple[str, str]]:
    assert content != made.files[path]
    return [(problem.code, problem.where) for problem in verify_files(resigned(made, path, content)).problems]


def lines(change: Callable[[list[bytes]], Any]) -> Callable[[bytes], bytes]:
    def changed(content: bytes) -> bytes:
        found = content.splitlines(keepends=True)
        change(found)
        return b"".join(found)

    return changed


def swap(at: int) -> Callable[[list[bytes]], Any]:
    def change(found: list[bytes]) -> None:
        found[at], found[at + 1] = found[at + 1], found[at]

    return change


LINES: dict[str, Callable[[bytes], bytes]] = {
    "the first byte": lambda raw: bytes([raw[0] ^ 1]) + raw[1:],
    "the last byte": lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]),
    "a byte in the middle": lambda raw: raw[: len(raw) // 2] + b"~" + raw[len(raw) // 2 + 1 :],
    "a line less": lines(lambda found: found.pop(3)),
    "no last line": lines(lambda found: found.pop()),
    "a line twice": lines(lambda found: found.insert(3, found[3])),
    "a line more": lines(lambda found: found.append(found[-1])),
    "two lines changed about": lines(swap(2)),
    "two hosts changed about": lines(lambda found: found.append(found.pop(1))),
    "no line end": lambda raw: raw.rstrip(b"\r\n"),
    "nothing": lambda raw: b"",
    "one byte more": lambda raw: raw + b" ",
}


@pytest.mark.parametrize("path", [OCSF, CSV])
@pytest.mark.parametrize("name", LINES)
def test_an_export_of_lines_that_differs_is_named(made: Made, path: str, name: str) -> None:
    assert named(made, path, LINES[name](made.files[path])) == [("wrong_export", path)]


def cited(change: Callable[[list[bytes]], Any]) -> Callable[[bytes], bytes]:
    """A change of what the first observation that cites several records cites."""

    def changed(content: bytes) -> bytes:
        listed = next(
            part for part in re.findall(rb'"relevant-evidence":\[(.*?)\],"title"', content) if part.count(b"href") > 2
        )
        found = CITED.findall(listed)
        assert b",".join(found) == listed
        change(found)
        return content.replace(listed, b",".join(found), 1)

    return changed


DOCUMENT: dict[str, Callable[[bytes], bytes]] = {
    "the last byte": lambda raw: raw[:-1] + b" ",
    "a byte more": lambda raw: raw + b" ",
    "a byte less": lambda raw: raw[:-1],
    "a digest": cited(lambda found: found.__setitem__(1, found[1].replace(b'"value":"', b'"value":"0')[:-5] + found[1][-4:])),
    "a record less": cited(lambda found: found.pop(1)),
    "the first record less": cited(lambda found: found.pop(0)),
    "a record twice": cited(lambda found: found.insert(1, found[0])),
    "records changed about": cited(swap(0)),
    "a count": lambda raw: raw.replace(b'"name":"count-pass","ns":"urn:compliance-agent:oscal","value":"3"',
                                       b'"name":"count-pass","ns":"urn:compliance-agent:oscal","value":"4"', 1),
    "an observation less": lambda raw: document(raw, lambda result: result["observations"].pop()),
    "observations changed about": lambda raw: document(raw, lambda result: result["observations"].reverse()),
    "a finding that is satisfied": lambda raw: raw.replace(b'"state":"not-satisfied"', b'"state":"satisfied"', 1),
    "the end of the period": lambda raw: raw.replace(b'"end":"2026', b'"end":"2027', 1),
    "another spelling": lambda raw: raw.replace(b",", b", ", 1),
}  # fmt: skip


def document(raw: bytes, change: Callable[[Any], Any]) -> bytes:
    found = json.loads(raw)
    change(found["assessment-results"]["results"][0])
    return canonical(found)


@pytest.mark.parametrize("name", DOCUMENT)
def test_assessment_results_that_differ_are_named(made: Made, name: str) -> None:
    assert named(made, EXPORT, DOCUMENT[name](made.files[EXPORT])) == [("wrong_export", EXPORT)]


def test_the_first_byte_of_the_assessment_results(made: Made) -> None:
    """It is no document of this program any more, so nobody can say what it should be; the envelope still can."""
    raw = made.files[EXPORT]
    report = verify_files(made.signed_again({**made.files, EXPORT: b"[" + raw[1:]}))
    assert [(problem.code, problem.where) for problem in report.problems] == [
        ("bad_envelope", "export/assessment-results.dsse.json")
    ]


@pytest.mark.parametrize(
    ("check", "path"), [("csv", CSV), ("ocsf", OCSF), ("oscal", EXPORT)], ids=["table", "events", "results"]
)
def test_a_verifier_that_skips_an_export_is_caught(
    made: Made, monkeypatch: pytest.MonkeyPatch, check: str, path: str
) -> None:
    """With the check out of the way nothing is named; so the tables above fail without it."""
    damaged = LINES["a byte in the middle"] if path != EXPORT else DOCUMENT["a count"]
    monkeypatch.setattr(Retold, check, lambda *_: True)
    assert named(made, path, damaged(made.files[path])) == []


@pytest.mark.parametrize("other", LINES)
@pytest.mark.parametrize("name", LINES)
def test_of_two_files_that_differ_both_are_named(made: Made, name: str, other: str) -> None:
    """One digest is kept of what a record has in either."""
    changed = {CSV: LINES[name](made.files[CSV]), OCSF: LINES[other](made.files[OCSF])}
    report = verify_files(made.signed_again({**made.files, **changed}))
    wrong = sorted(path for path, content in changed.items() if content != made.files[path])
    assert sorted(problem.where for problem in report.problems) == wrong
    assert {problem.code for problem in report.problems} <= {"wrong_export"}


@pytest.mark.parametrize("path", [CSV, OCSF])
def test_it_is_the_digest_that_refuses_a_line(made: Made, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """Where it is another one both lines are made again, which tell the wrong file; nowhere else."""
    content, asked, right = LINES["a byte in the middle"](made.files[path]), list[int](), reading.lines_again

    def again(container: Container, line: int, due: Due) -> tuple[bytes, bytes]:
        asked.append(line)
        return right(container, line, due)

    monkeypatch.setattr(verify, "lines_again", again)
    assert verify_files(made.files).ok and asked == []
    assert named(made, path, content) == [("wrong_export", path)] and len(asked) == 1
    monkeypatch.setattr(retold, "sha256", lambda _: SimpleNamespace(digest=lambda: ANY))
    assert named(made, path, content) == []


@given(st.lists(st.binary(max_size=9), max_size=6), st.lists(st.integers(0, 20), max_size=9))
def test_bytes_are_taken_in_order_however_they_come(chunks: list[bytes], lengths: list[int]) -> None:
    file, whole = Taken(iter([chunk for chunk in chunks if chunk])), b"".join(chunks)
    at = 0
    for length in lengths:
        assert file.take(length) == whole[at : at + length]
        at += length
    assert file.ended == (at >= len(whole))


# --- written out, and as the library writes it ----------------------------------------------------------------------


def inside(made: Made) -> tuple[Scope, list[Record]]:
    scope = Scope.parse(made.files["packet.json"])
    return scope, [record for record in records_of(made.files) if scope.holds(record.document)]


def test_events_are_canonical(made: Made) -> None:
    """They are written out key by key; it is what a library would write."""
    _, records = inside(made)
    found = [line for record in records for line in ocsf.of(record).splitlines()]
    assert len(found) == 8
    assert [canonical(json.loads(line)) for line in found] == found


def test_the_document_is_canonical(made: Made) -> None:
    raw = oscal.assessment_results(*inside(made))
    assert raw == made.files[EXPORT]
    assert canonical(json.loads(raw)) == raw


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), min_size=2, max_size=19))
def test_plain_cells_of_the_table_are_what_the_library_writes(cells: list[str]) -> None:
    plain = table.plainly(cells)
    assert plain is None or f"{plain}\r\n".encode() == table._line(map(table.cell, cells))
    if not set("".join(cells)) & set(',"=+-@\t\r\n'):
        assert plain is not None


def test_the_line_of_a_record_is_what_the_library_writes(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """`pass=1` in a cell needs nothing; a million lines are written the short way."""
    scope, records = inside(made)
    said = [table._said(record.document) for record in records]
    assert any("=" in text for cells in said for text in cells)
    assert all(table.plainly(cells) for cells in said)
    shortly = table.table(scope, records)
    monkeypatch.setattr(table, "plainly", lambda cells: None)
    assert table.table(scope, records) == shortly


def test_lines_of_records_that_are_alike_differ_in_what_is_their_own(made: Made) -> None:
    """What writes the lines of one writes those of the next as that one's own writer does: everything of OWN is asked again."""
    scope, records = inside(made)
    due, own = Due(scope), [key for keys in OWN for key in keys]
    for record, other in itertools.permutations(records, 2):
        like = {**record.document, **{key: other.document[key] for key in own}}
        next_one = replace(other, document=like, at="")
        for once, again in (
            (table.writer(record.document, due), table.writer(like, due)),
            (ocsf.writer(record.document), ocsf.writer(like)),
        ):
            assert once(next_one) == again(next_one)


def test_what_records_say_does_not_depend_on_their_order(made: Made) -> None:
    """Workers see them in the order of their files, and each a part of them."""
    _, records = inside(made)
    whole, parts = oscal.Stated(), [oscal.Stated() for _ in range(3)]
    for at, record in enumerate(records):
        whole.take(record)
        parts[at * 7 % 3].take(record)
    for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
        joined = oscal.Stated()
        for at in order:
            joined.join(again(parts[at]))
        assert joined.said == whole.said


def test_what_heartbeats_say_is_counted_as_any_statement_is(made: Made) -> None:
    """They have a quicker way; each count and each citation is what `statements` says, from the last to the first too."""
    _, records = inside(made)
    beats = [record for record in records if record.document["states"]]
    assert beats
    for order in (beats, beats[::-1]):
        stated, counts = oscal.Stated(), Counter[tuple[str, str, str]]()
        for record in order:
            stated.take(record)
            counts.update((record.document["host"]["id"], *said[:2]) for said in statements(record.document))
        seen = {(*place, result): n for place, said in stated.said.items() for result, n in said.counts.items() if n}
        assert seen == counts
        for (host, check), said in stated.said.items():
            mine = sorted(
                record.place
                for record in beats
                if record.document["host"]["id"] == host and check in record.document["states"]
            )
            assert (said.first.place, said.last.place, said.own) == (mine[0], mine[-1], 0)


def again(stated: oscal.Stated) -> oscal.Stated:
    """A copy, as it comes from another process."""
    import pickle

    copy: oscal.Stated = pickle.loads(pickle.dumps(stated))
    return copy
