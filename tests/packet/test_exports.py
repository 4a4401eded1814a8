"""The exports say what the records say, in the forms other tools read, and no more than that."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from hypothesis import given
from hypothesis import strategies as st
from securesystemslib.dsse import Envelope
from securesystemslib.signer import SSlibKey  # type: ignore[attr-defined]

from compliance_agent import crypto
from compliance_agent.core.citations import SECTIONS
from compliance_agent.crypto import read_public_pem
from compliance_agent.errors import BadEvidence
from compliance_agent.packet import archive, dsse, grid, ocsf, oscal, table
from compliance_agent.packet.content import PacketHost, Record, Scope, control_id, moment, section
from compliance_agent.packet.verify import records_of
from tests.packet.scene import Made, built

TOKEN = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")  # OSCAL's token, ASCII
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-5[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
REQUIRED: dict[str, set[str]] = {
    "assessment-results": {"uuid", "metadata", "import-ap", "results"},
    "metadata": {"title", "last-modified", "version", "oscal-version"},
    "import-ap": {"href"},
    "results": {"uuid", "title", "description", "start", "reviewed-controls"},
    "reviewed-controls": {"control-selections"},
    "observations": {"uuid", "description", "methods", "collected"},
    "findings": {"uuid", "title", "description", "target"},
    "target": {"type", "target-id", "status"},
    "status": {"state"},
    "resources": {"uuid"},
    "props": {"name", "value"},
    "related-observations": {"observation-uuid"},
    "include-controls": {"control-id"},
    "relevant-evidence": {"description"},
}


def objects(value: Any, name: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object below, under the name of its field."""
    if isinstance(value, dict):
        yield name, value
        for key, item in value.items():
            yield from objects(item, key)
    elif isinstance(value, list):
        assert value, f"{name}: OSCAL has no empty lists"
        for item in value:
            yield from objects(item, name)


def problems(document: Any) -> list[str]:
    """What is wrong with the form of an assessment-results document: fields, ids, tokens, references."""
    wrong, here, used = [], Counter[str](), []
    for name, found in objects(document):
        wrong += [f"{name}: no {field}" for field in REQUIRED.get(name, set()) - found.keys()]
        here.update([found["uuid"]] if "uuid" in found else [])
        used += [found["observation-uuid"]] if "observation-uuid" in found else []
        used += [found["href"][1:]] if str(found.get("href", "")).startswith("#") else []
        tokens = [found[key] for key in ("control-id", "target-id") if key in found] + [found.get("name", "x")]
        wrong += [f"{name}: {token}" for token in tokens if not TOKEN.fullmatch(token)]
        if name == "status" and found["state"] not in {"satisfied", "not-satisfied"}:
            wrong.append(f"state {found['state']}")
    wrong += [f"twice: {uuid}" for uuid, count in here.items() if count > 1 or not UUID.fullmatch(uuid)]
    return wrong + [f"dangling: {uuid}" for uuid in used if uuid not in here]


def results(made: Made) -> dict[str, Any]:
    found = json.loads(made.files["export/assessment-results.json"])["assessment-results"]
    assert isinstance(found, dict)
    return found


def test_oscal_is_whole(made: Made) -> None:
    document = json.loads(made.files["export/assessment-results.json"])
    assert problems(document) == []
    assert results(made)["metadata"]["oscal-version"] == "1.2.1"
    assert "no assessment plan" in results(made)["back-matter"]["resources"][0]["description"]


@pytest.mark.parametrize("at", ["observation-uuid", "control-id", "state", "uuid", "collected"])
def test_oscal_that_is_not_whole_would_be_seen(made: Made, at: str) -> None:
    text = made.files["export/assessment-results.json"].decode()
    document = json.loads(re.sub(rf'"{at}":"[^"]*"', f'"{at}":"164.312(b)"', text, count=1))
    assert problems(document) or at == "collected"
    if at == "collected":
        assert problems(json.loads(text.replace('"collected":', '"when":')))


def test_oscal_names_records_that_are_here(made: Made) -> None:
    (result,) = results(made)["results"]
    for observation in result["observations"]:
        for item in observation["relevant-evidence"]:
            path = item["href"].removeprefix("../")
            digest = item["props"][0]["value"]
            assert f"{digest}  {path}" in made.files["MANIFEST.sha256"].decode()


def test_oscal_never_says_more_than_the_records(made: Made) -> None:
    (result,) = results(made)["results"]
    found = {item["target"]["target-id"]: item["target"]["status"] for item in result["findings"]}
    assert {status["state"] for status in found.values()} == {"not-satisfied"}  # ws-03 never spoke
    counts = {prop["name"]: prop["value"] for prop in result["observations"][-1]["props"]}
    assert counts["check"] == "time_sync"
    assert (counts["count-pass"], counts["count-fail"], counts["count-unknown"]) == ("3", "2", "0")


def scene_of(made: Made, **changes: str) -> tuple[Scope, list[Record]]:
    """One host whose heartbeat says these results."""
    scope = Scope.parse(made.files["packet.json"])
    record = next(
        item for item in records_of(made.files) if item.document["kind"] == "heartbeat" and scope.holds(item.document)
    )
    states = {check.replace("-", "_"): {"result": result, "reason": "x"} for check, result in changes.items()}
    host = next(item for item in scope.hosts if item.key_id == record.place[0])
    return replace(scope, hosts=(host,)), [replace(record, document={**record.document, "states": states})]


@pytest.mark.parametrize(
    ("states", "name", "state"),
    [
        ({"encryption": "pass"}, "164.312(a)(2)(iv)", "satisfied"),
        ({"encryption": "fail"}, "164.312(a)(2)(iv)", "not-satisfied"),
        ({"encryption": "unknown"}, "164.312(a)(2)(iv)", "not-satisfied"),
        ({"encryption": "exception"}, "164.312(a)(2)(iv)", "not-satisfied"),
        ({"encryption": "not_applicable"}, "164.312(a)(2)(iv)", "not-satisfied"),
        ({"time_sync": "pass"}, "164.312(b)", "not-satisfied"),  # others cite it too, and nobody spoke of them
        ({"time_sync": "pass", "logging": "pass"}, "164.312(b)", "not-satisfied"),
        ({"time_sync": "pass", "logging": "pass", "auditd": "pass"}, "164.312(b)", "satisfied"),
        ({"firewall": "pass"}, "164.312(e)(1)", "not-satisfied"),  # a human record is needed as well
    ],
)
def test_what_satisfies(made: Made, states: dict[str, str], name: str, state: str) -> None:
    (result,) = json.loads(oscal.assessment_results(*scene_of(made, **states)))["assessment-results"]["results"]
    found = {item["target"]["target-id"]: item["target"]["status"]["state"] for item in result["findings"]}
    assert found[control_id(name)] == state


def test_control_ids_are_tokens_and_read_back() -> None:
    assert control_id("164.312(a)(2)(iv)") == "hipaa-164.312.a.2.iv"
    for name in SECTIONS:
        assert TOKEN.fullmatch(control_id(name))
        assert section(control_id(name)) == section(name) == name


# --- OCSF -----------------------------------------------------------------------------------------------

BASE = {"class_uid", "category_uid", "type_uid", "activity_id", "time", "severity_id", "metadata"}
OWN = {2003: {"compliance", "finding_info"}, 7001: {"command_uid"}}


def ocsf_lines(made: Made) -> list[dict[str, Any]]:
    return [json.loads(line) for line in made.files["export/ocsf.jsonl"].splitlines()]


def test_ocsf_has_what_its_classes_require(made: Made) -> None:
    lines = ocsf_lines(made)
    assert Counter(line["class_uid"] for line in lines) == {2003: 6, 7001: 2}
    for line in lines:
        kind = line["class_uid"]
        assert BASE | OWN[kind] <= line.keys()
        assert line["type_uid"] == kind * 100 + line["activity_id"]
        assert line["category_uid"] == kind // 1000
        assert line["metadata"].keys() >= {"version", "product"}
        assert 1_700_000_000_000 < line["time"] < 2_000_000_000_000  # milliseconds
        if kind == 2003:
            assert line["compliance"].keys() >= {"standards", "control", "requirements", "status_id"}
            assert line["finding_info"].keys() >= {"uid", "title"}


def test_ocsf_joins_a_cure_to_its_finding(made: Made) -> None:
    ids = {record.document["bundle_id"] for record in records_of(made.files)}
    found = {line["finding_info"]["uid"] for line in ocsf_lines(made) if line["class_uid"] == 2003}
    cured = {line["command_uid"] for line in ocsf_lines(made) if line["class_uid"] == 7001}
    assert len(cured) == 2
    assert cured < found <= ids
    assert {line["activity_id"] for line in ocsf_lines(made) if line["class_uid"] == 7001} == {ocsf.RESTORE}


@pytest.mark.parametrize(
    ("result", "status"), [("pass", 1), ("unknown", 2), ("fail", 3), ("exception", 99), ("not_applicable", 99)]
)
def test_ocsf_never_passes_what_nobody_could_tell(made: Made, result: str, status: int) -> None:
    scope = Scope.parse(made.files["packet.json"])
    record = next(item for item in records_of(made.files) if item.document["check"] and scope.holds(item.document))
    changed = replace(record, document={**record.document, "kind": "drift", "result": result})
    (line,) = [json.loads(line) for line in ocsf.lines(scope, [changed]).splitlines()]
    assert line["compliance"]["status_id"] == status
    assert (line["severity_id"] == 1) == (result == "pass")


# --- CSV ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", '=HYPERLINK("x")'])
def test_no_cell_is_a_formula(text: str) -> None:
    assert table.cell(text) == f"'{text}"


@given(st.text(max_size=8))
def test_every_cell_begins_harmlessly_and_nothing_else_changes(text: str) -> None:
    shown = table.cell(text)
    assert not shown.startswith(("=", "+", "-", "@", "\t", "\r"))
    assert shown.removeprefix("'") == text.removeprefix("'")


def test_the_table_has_a_line_for_each_record(made: Made) -> None:
    lines = list(csv.DictReader(io.StringIO(made.files["export/evidence.csv"].decode(), newline="")))
    assert len(lines) == 8
    for line in lines:
        assert f"{line['bundle_sha256']}  {line['directory']}/bundle.json" in made.files["MANIFEST.sha256"].decode()
    assert [line["statements"] for line in lines[:3]] == ["pass=1 unknown=1", "fail=1", "pass=1 fail=1"]


def test_a_hostile_label_is_quoted_in_the_table(made: Made) -> None:
    scope = Scope.parse(made.files["packet.json"])
    record = next(item for item in records_of(made.files) if scope.holds(item.document))
    hostile = {**record.document, "reason": '=cmd|" /C calc"!A0', "error": "-2+3\r\n=1"}
    (line,) = csv.DictReader(io.StringIO(table.table(scope, [replace(record, document=hostile)]).decode(), newline=""))
    assert (line["reason"], line["error"]) == ('\'=cmd|" /C calc"!A0', "'-2+3\r\n=1")


# --- DSSE -----------------------------------------------------------------------------------------------


def test_the_envelope_verifies_elsewhere(made: Made) -> None:
    envelope = json.loads(made.files["export/assessment-results.dsse.json"])
    key = SSlibKey.from_crypto(load_pem_public_key(made.files["keys/packet.pem"]))
    assert Envelope.from_dict(envelope).verify([key], 1).keys() == {
        dsse.keyid(read_public_pem(made.files["keys/packet.pem"]))
    }
    said = json.loads(base64.b64decode(envelope["payload"]))
    assert said["_type"] == "https://in-toto.io/Statement/v1"
    (subject,) = said["subject"]
    assert f"{subject['digest']['sha256']}  export/{subject['name']}" in made.files["MANIFEST.sha256"].decode()


def test_pae_is_that_of_the_protocol() -> None:
    """The example of protocol.md."""
    assert crypto.pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def test_an_envelope_about_another_file_is_refused(made: Made) -> None:
    public, raw = read_public_pem(made.files["keys/packet.pem"]), made.files["export/assessment-results.dsse.json"]
    content = made.files["export/assessment-results.json"]
    digest = hashlib.sha256(content).hexdigest()
    dsse.verify(raw, public, "assessment-results.json", digest)
    for name, held in (("other.json", digest), ("assessment-results.json", digest[::-1])):
        with pytest.raises(BadEvidence, match="is not about"):
            dsse.verify(raw, public, name, held)
    with pytest.raises(BadEvidence, match="is not signed"):
        dsse.verify(raw, bytes(32), "assessment-results.json", digest)


# --- the page of counts ---------------------------------------------------------------------------------


def test_the_grid_counts_every_result_of_every_day(made: Made, tmp_path: Path) -> None:
    whole = built(made.data_dir, tmp_path / "whole.zip", moment("2026-11-21T00:00:00Z").date())
    records = records_of(archive.unpack(whole.path.read_bytes()))
    rows = {(row.host_id, row.check, row.day): row.counts for row in grid.rows(whole.scope, records)}
    assert len(rows) == 2 * 2 * 2
    expected = {"pass": 3, "fail": 2, "unknown": 0, "not_applicable": 0, "exception": 0}
    assert rows["ws-01", "time_sync", "2026-11-22"] == expected
    assert rows["ws-02", "logging", "2026-11-21"]["unknown"] == 1


def test_coverage_is_hours_with_a_record_out_of_hours_due(made: Made) -> None:
    page = {
        item.host_id: item for item in grid.coverage(Scope.parse(made.files["packet.json"]), records_of(made.files))
    }
    spoke, silent = page["ws-01"], page["ws-03"]
    assert (spoke.hours_due, spoke.hours_covered, spoke.percent, len(spoke.silent)) == (24, 1, 4, 2)
    assert (silent.hours_due, silent.hours_covered, silent.percent, len(silent.silent)) == (24, 0, 0, 1)


@pytest.mark.parametrize(
    ("enrolled", "revoked", "signed", "due"),
    [
        ("2026-11-22T22:30:00Z", None, "2026-11-30T00:00:00Z", 2),
        ("2026-11-01T00:00:00Z", "2026-11-22T03:00:00Z", "2026-11-30T00:00:00Z", 3),
        ("2026-11-01T00:00:00Z", None, "2026-11-22T01:00:01Z", 2),
        ("2026-11-23T00:00:00Z", None, "2026-11-30T00:00:00Z", 0),
    ],
)
def test_hours_are_due_while_a_host_is_enrolled_and_until_the_checkpoint(
    made: Made, enrolled: str, revoked: str | None, signed: str, due: int
) -> None:
    host = PacketHost("ws-01", "0" * 64, enrolled, revoked)
    scope = replace(Scope.parse(made.files["packet.json"]), hosts=(host,), signed_at=signed)
    (item,) = grid.coverage(scope, [])
    assert item.hours_due == due
