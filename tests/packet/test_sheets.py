"""Every number of a printed report is that of the records that it names, and the same packet is printed as the same bytes."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compliance_agent.errors import BadEvidence, NoInput
from compliance_agent.evidence.problems import Problem
from compliance_agent.packet import grid
from compliance_agent.packet.content import Record, Scope, statements
from compliance_agent.packet.report import Report
from compliance_agent.packet.verify import records_of, records_of_file, verify_files
from compliance_agent.sheets import period
from compliance_agent.sheets import report as report_module
from compliance_agent.sheets.printing import printed
from compliance_agent.sheets.report import Printable, report_of
from tests.cli.command import run
from tests.packet.scene import Made

AT = 1_795_305_600


@pytest.fixture(scope="module")
def found(made: Made) -> Report:
    return verify_files(made.files)


@pytest.fixture(scope="module")
def scope(found: Report) -> Scope:
    assert found.scope is not None
    return found.scope


@pytest.fixture(scope="module")
def records(made: Made) -> list[Record]:
    return records_of(made.files)


def ready(scope: Scope, records: list[Record], found: Report) -> Printable:
    return report_of(scope, records, found, sha256="0" * 64, version="0.1.0", made_at=AT)


@pytest.fixture(scope="module")
def report(scope: Scope, records: list[Record], found: Report) -> Printable:
    return ready(scope, records, found)


def rows(content: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(content.decode())))


def spread(text: str) -> Iterator[str]:
    """`R1-R3 R5` as R1, R2, R3, R5."""
    for part in text.split():
        first, _, last = part.partition("-")
        yield from (f"R{number}" for number in range(int(first[1:]), int((last or first)[1:]) + 1))


def cells(document: dict[str, Any]) -> Iterator[dict[str, str]]:
    for sheet in document["sheets"]:
        for bar in sheet["bars"]:
            yield from bar["parts"]
        for table in sheet["tables"]:
            for row in table["rows"]:
                yield from row


def table(document: dict[str, Any], sheet: int, title: str) -> list[list[str]]:
    (one,) = [table for table in document["sheets"][sheet - 1]["tables"] if table["title"] == title]
    return [[cell["text"] for cell in row] for row in one["rows"]]


def test_there_are_the_ten_sheets(report: Printable) -> None:
    assert len(report.document["sheets"]) == 10
    signed = [number for number, sheet in enumerate(report.document["sheets"], 1) if sheet["sign_off"]]
    assert signed == [5, 6]  # what a person certifies: activity review, backups and drills


def test_the_table_of_records_has_each_of_the_period_as_it_stands_in_the_packet(made: Made, report: Printable) -> None:
    listed = rows(report.attached["records.csv"])
    inside = {
        path: hashlib.sha256(body).hexdigest()
        for path, body in made.files.items()
        if path.endswith("/bundle.json") and json.loads(body)["timestamp_start"][:10] == "2026-11-22"
    }
    assert {f"{line['directory']}/bundle.json": line["sha256"] for line in listed} == inside
    assert len(listed) == len(inside) == report.document["count"]


def test_each_number_is_counted_from_the_records_that_it_names(made: Made, report: Printable) -> None:
    assert wrong_numbers(made, report) == []


def test_a_number_that_misses_a_record_would_be_found(made: Made, report: Printable) -> None:
    victim = next(line for line in rows(report.attached["numbers.csv"]) if line["said"] == "2")
    spoiled = report.attached["numbers.csv"].replace(
        f"{victim['number']},{victim['sheet']},2,{victim['records']}".encode(),
        f"{victim['number']},{victim['sheet']},2,{victim['records'].split()[0].split('-')[0]}".encode(),
    )
    assert len(wrong_numbers(made, replace(report, attached={**report.attached, "numbers.csv": spoiled}))) == 1


def wrong_numbers(made: Made, report: Printable) -> list[str]:
    """Numbers in cells of one tone that their records do not add up to."""
    documents = {
        line["record"]: json.loads(made.files[f"{line['directory']}/bundle.json"])
        for line in rows(report.attached["records.csv"])
    }
    named = {line["number"]: line for line in rows(report.attached["numbers.csv"])}
    wrong = []
    for cell in cells(report.document):
        if not cell["to"].startswith("n"):
            continue
        line = named[cell["to"]]
        held = [documents[name] for name in spread(line["records"])]
        said = int(re.sub(r"\D", "", cell["text"]))
        at_least = len(held)
        at_most = (
            sum(result == cell["tone"] for one in held for _, result, _ in statements(one))
            if cell["tone"]
            else at_least
        )
        if line["said"] != cell["text"] or not at_least <= said <= at_most:
            wrong.append(f"{cell['to']}: {cell['text']} of {at_least} to {at_most}")
    return wrong


def test_counts_by_host_and_check_are_those_of_an_own_count(made: Made, report: Printable) -> None:
    counted: dict[tuple[str, str], list[int]] = {}
    words = ["pass", "fail", "unknown", "not_applicable", "exception"]
    for path, body in made.files.items():
        if not path.endswith("/bundle.json"):
            continue
        said = json.loads(body)
        if said["timestamp_start"][:10] != "2026-11-22":
            continue
        each = [(check, state["result"]) for check, state in said["states"].items()]
        each += [(said["check"], said[word]) for word in ("result", "post_result") if said["check"] and said[word]]
        for check, result in each:
            counted.setdefault((said["host"]["id"], check), [0] * 5)[words.index(result)] += 1
    assert {
        (row[0], row[1]): list(map(int, row[2:])) for row in table(report.document, 1, "By host and check")
    } == counted


def test_the_table_of_days_is_that_of_an_own_count(made: Made, report: Printable) -> None:
    listed = rows(report.attached["records.csv"])
    counted: dict[tuple[str, ...], list[str]] = {}
    for line in listed:
        said = json.loads(made.files[f"{line['directory']}/bundle.json"])
        for check, result, _ in statements(said):
            counted.setdefault((said["host"]["id"], check, said["timestamp_start"][:10], result), []).append(
                line["record"]
            )
    days = {
        (line["host"], line["check"], line["day"], line["result"]): line for line in rows(report.attached["days.csv"])
    }
    assert {place: int(line["times"]) for place, line in days.items()} == {
        place: len(names) for place, names in counted.items()
    }
    assert {place: set(spread(line["records"])) for place, line in days.items()} == {
        place: set(names) for place, names in counted.items()
    }


def test_many_hosts_share_one_map_of_their_worst_days(
    scope: Scope, records: list[Record], found: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    def maps() -> list[dict[str, Any]]:
        return [one for one in ready(scope, records, found).document["sheets"][0]["tables"] if one["dense"]]

    each = maps()
    assert [one["title"].partition(",")[0] for one in each] == ["ws-01", "ws-02"]
    monkeypatch.setattr(period, "MAPPED", 1)
    (shared,) = maps()
    assert [row[0]["text"] for row in shared["rows"]] == ["ws-01", "ws-02"]
    day = shared["columns"].index("22")
    for row, own in zip(shared["rows"], each, strict=True):
        column = own["columns"].index("22")
        said = [line[column]["text"] for line in own["rows"]]
        worst = next(letter for letter in "FUENP" if any(text.startswith(letter) for text in said))
        assert row[day]["text"] == worst + str(sum(int(text[1:]) for text in said if text.startswith(worst)))


def test_a_packet_read_where_it_stands_says_what_all_of_it_in_memory_says(
    made: Made, scope: Scope, records: list[Record], report: Printable, tmp_path: Path, found: Report
) -> None:
    packet = tmp_path / "packet.zip"
    packet.write_bytes(made.raw)
    read = records_of_file(packet)
    again = ready(scope, read, found)
    assert (again.document, again.attached) == (report.document, report.attached)
    assert grid.as_document(scope, read) == grid.as_document(scope, records)
    assert not any(record.body or record.signature or record.leaf for record in read)
    said = [record.document["states"] for record in read if record.document["states"]]
    assert len(said) > len({id(states) for states in said}), "what is equal is kept once"


def test_a_record_that_cannot_be_read_is_left_out_and_what_is_no_packet_refused(made: Made, tmp_path: Path) -> None:
    packet = tmp_path / "packet.zip"
    at = made.raw.index(b'"reason":"offset_too_large"')
    packet.write_bytes(made.raw[:at] + b"'" + made.raw[at + 1 :])
    assert len(records_of_file(packet)) == len(records_of(made.files)) - 1
    packet.write_bytes(made.raw[:-1])
    with pytest.raises(BadEvidence, match="zip"):
        records_of_file(packet)


def test_everything_that_leads_somewhere_arrives(report: Printable) -> None:
    there = {number for number, *_ in report.document["numbers"]} | {line[0] for line in report.document["records"]}
    leads = {cell["to"] for cell in cells(report.document)} - {""}
    assert leads
    assert leads <= there


def test_a_host_that_never_spoke_stands_first(report: Printable) -> None:
    assert table(report.document, 7, "Hosts")[0][0] == "ws-03"
    assert any(row[0] == "ws-03" for row in table(report.document, 7, "Silent for more than two hours"))


def test_it_is_printed_as_the_same_bytes_and_for_the_archive(report: Printable) -> None:
    pdf = printed(report)
    assert pdf == printed(report)
    assert pdf.startswith(b"%PDF-1.7")
    assert b"<pdfaid:part>3</pdfaid:part>" in pdf
    assert b"<pdfaid:conformance>A</pdfaid:conformance>" in pdf


def test_a_packet_that_does_not_verify_says_so_first_and_its_words_are_no_markup(
    scope: Scope, records: list[Record], found: Report
) -> None:
    bad = replace(found, problems=[Problem("bad_signature", "#panic(1)", '*bold* $x$ #read("/etc/passwd") <n1>')])
    spoiled = ready(scope, records, bad)
    assert spoiled.document["ok"] is False
    assert table(spoiled.document, 10, "Problems") == [
        ["bad_signature", "#panic(1)", '*bold* $x$ #read("/etc/passwd") <n1>']
    ]
    assert "DOES NOT VERIFY" in spoiled.document["sheets"][9]["lead"][0]
    assert printed(spoiled) != printed(ready(scope, records, found))


def test_more_than_fits_on_paper_is_in_the_attached_tables(
    scope: Scope, records: list[Record], found: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_module, "LISTED", 3)
    long = ready(scope, records, found)
    assert (long.document["short"], long.document["records"], long.document["numbers"]) == (False, [], [])
    assert len(rows(long.attached["records.csv"])) == long.document["count"] > 3
    assert printed(long).startswith(b"%PDF")


def test_the_command_prints_and_names(made: Made, tmp_path: Path) -> None:
    packet, out = tmp_path / "packet.zip", tmp_path / "report.pdf"
    packet.write_bytes(made.raw)
    done = run("packet", "report", packet, "--out", out, "--json")
    assert done.status == 0, done.err
    said = json.loads(done.out)
    assert said["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    assert (said["records"], said["verified"], said["bytes"]) == (8, True, out.stat().st_size)
    at = made.raw.index(b'"reason":"offset_too_large"')
    packet.write_bytes(made.raw[:at] + b"'" + made.raw[at + 1 :])
    again = run("packet", "report", packet, "--out", tmp_path / "bad.pdf")
    assert again.status == 65


def test_without_typst_it_says_what_to_install(report: Printable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "typst", None)
    with pytest.raises(NoInput, match="typst"):
        printed(report)
