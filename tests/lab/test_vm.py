"""The pure parts of the virtual host: its table uses the product's words, names are chosen, its disk is named after its recipe."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
import tty
from pathlib import Path

import pytest

from compliance_agent.baseline import parse
from compliance_agent.checks import registry
from compliance_agent.errors import CANNOT_TELL_REASONS
from compliance_agent.healing import CODES
from compliance_agent.lab.real import matrix as host_rows
from compliance_agent.lab.real.install import baseline
from compliance_agent.lab.real.report import Progress
from compliance_agent.lab.real.row import Row
from compliance_agent.lab.vm import auditd, image, matrix, run, runner, virtual
from compliance_agent.lab.vm.disk import Loss
from compliance_agent.lab.vm.row import Cut, Outage, stand_in
from compliance_agent.models import Outcome
from compliance_agent.remedies import actions

ROWS = [found for row in matrix.ROWS for found in (row, *([row.then] if isinstance(row, Cut) and row.then else []))]
CUTS = [row for row in matrix.ROWS if isinstance(row, Cut)]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_table_uses_the_words_of_the_product(row: Row) -> None:
    spec = registry()[row.check].spec
    assert row.reason in {*spec.reasons, *CANNOT_TELL_REASONS, "as_expected"}
    assert row.outcome in {None, *(str(word) for word in Outcome)}
    codes = {code for action in actions().values() for code in action.codes}
    assert row.error in {None, "no_cure", "rejected_target", *CODES, *codes}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_machine_is_asked_by_other_means(row: Row) -> None:
    if row.outcome == "success" or row.result == "pass":
        assert row.truth != "true"
    if row.outcome in {"reverted", "failed", "rejected"}:
        assert row.former != "true"


def test_every_reason_of_encryption_is_seen_on_real_disks() -> None:
    assert {row.reason for row in matrix.ENCRYPTION.rows} == {
        *registry()["encryption"].spec.reasons,
        "as_expected",
        "tool_missing",
    }


def test_a_cut_says_where_it_is_made_and_what_it_must_leave() -> None:
    assert len(CUTS) >= 6
    assert all(row.held or row.dead_boot for row in CUTS)
    assert all(row.left != "true" for row in CUTS if row.fault not in {"cut_before_act"}), (
        "volatile state goes with the power"
    )
    assert {row.outcome for row in CUTS} == {"success", "reverted", "failed"}


def test_an_outage_is_over_when_what_it_held_up_came_through() -> None:
    outages = [row for row in matrix.ROWS if isinstance(row, Outage)]
    assert {row.fault for row in outages} == {"link_lost", "answers_lost_in_delivery"}
    assert all(row.through != "true" for row in outages)


def test_every_step_of_a_cure_of_auditd_fails_once_and_each_for_itself() -> None:
    """Two that failed at the same step would stand in each other's way as rejected."""
    failed = [row.error for row in auditd.TABLE.rows if row.outcome == "reverted"]
    assert sorted(map(str, failed)) == ["not_switched", "rules_refused", "unit_start_failed"]


@pytest.mark.parametrize(
    ("losses", "ok"), [([], True), ([Loss(9, 0), Loss(3, 2)], True), ([Loss(9, 0)], False), ([Loss(0, 0)], False)]
)
def test_cuts_that_lose_nothing_show_nothing(losses: list[Loss], ok: bool) -> None:
    told = {"host": "clinic-vm", "problems": [], "ok": True}
    said = io.StringIO()
    found = run.forgetful(losses, told, Progress(1, said))
    assert (found["ok"], bool(found["problems"])) == (ok, not ok)
    assert f"clinic-vm: {len(losses)} power cuts" in said.getvalue()


def test_no_line_of_a_report_stands_for_two_faults() -> None:
    names = [row.name for row in (*ROWS, *host_rows.ROWS)]
    assert sorted(names) == sorted(set(names))


def test_rows_are_chosen_by_name() -> None:
    assert matrix.chosen(()) == matrix.chosen(("vm",)) == (*matrix.TABLES, *matrix.LATER)
    assert {table.check for table in matrix.chosen(("vm:encryption",))} == {"encryption"}
    (table,) = matrix.chosen(("vm:time_sync:ahead",))
    assert [row.name for row in table.rows] == ["time_sync:ahead"]
    with pytest.raises(ValueError, match="no row 'vm:encryptio'"):
        matrix.chosen(("vm:encryptio",))


def test_the_host_is_held_against_the_shipped_baseline() -> None:
    entries = parse(baseline(matrix.TABLES).encode()).entries
    assert set(entries) == {table.check for table in matrix.TABLES}
    assert entries["encryption"].parameters.min_key_bits == 512
    assert entries["auditd"].parameters.log_actions == ("keep_logs", "syslog")
    for table in (matrix.GENERATION, matrix.BROKEN_GENERATION):
        assert parse(baseline([table]).encode()).entries["patching"].parameters.manager == "nixos"


def test_the_disk_is_kept_under_what_it_was_made_from(monkeypatch: pytest.MonkeyPatch) -> None:
    before = image.image_hash("bookworm")
    assert before != image.image_hash("trixie")
    monkeypatch.setitem(image._FILES, "etc/hostname", "other\n")
    assert image.image_hash("bookworm") != before


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda tool: None if tool.startswith("qemu") else tool)
    assert virtual.missing() == ["qemu-system-x86", "qemu-utils"]


def test_a_script_is_done_and_its_end_told() -> None:
    told = runner.done("echo out; echo err >&2; exit 3", 10.0)
    assert (told["status"], base64.b64decode(str(told["out"])), base64.b64decode(str(told["err"]))) == (
        3,
        b"out\n",
        b"err\n",
    )


def test_files_are_named_without_a_program(tmp_path: Path) -> None:
    for name in ("a/bundle.json", ".b/bundle.json", "c/other"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    told = runner.answered({"id": 4, "names": f"{tmp_path}/[!.]*/bundle.json"})
    assert (told["id"], base64.b64decode(str(told["out"])).decode().split()) == (4, [f"{tmp_path}/a/bundle.json"])


def test_what_a_script_leaves_behind_delays_nobody() -> None:
    assert runner.done("sleep 60 & echo on", 5.0)["status"] == 0
    assert runner.done("sleep 60", 0.1)["status"] == 124


def test_a_stand_in_holds_at_its_place_and_passes_everything_else_on(tmp_path: Path) -> None:
    """Run as it is on the host, with the mount left out."""
    program = tmp_path / "bin" / "tool"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "did $*"\n')
    program.chmod(0o755)
    script = stand_in(str(program), '[ "$1" != -f ] || echo held\nexec $real "$@"').replace(
        "/dev/shm/lab", str(tmp_path / "lab")
    )
    made, _, mounted = script.rpartition(" && ")
    assert mounted.startswith("mount --bind")
    subprocess.run(["/bin/sh", "-c", made], check=True, timeout=10)
    for words, said in ((["-f", "x"], "held\ndid -f x\n"), (["-c", "-f"], "did -c -f\n")):
        done = subprocess.run(
            [tmp_path / "lab" / "tool.sh", *words], capture_output=True, text=True, check=True, timeout=10
        )
        assert done.stdout == said


def test_half_a_request_does_not_stop_the_runner() -> None:
    """After a reset the line may begin with the end of an old one. A terminal stands in for the port."""
    ours, theirs = os.openpty()
    tty.setraw(theirs)
    program = (
        f"from pathlib import Path; import {runner.__name__} as r; r.PORT = Path({os.ttyname(theirs)!r}); r.main()"
    )
    serving = subprocess.Popen([sys.executable, "-c", program])
    try:
        os.write(ours, b'ipt": "true"}\n{"id": 2, "script": "echo hi", "timeout_s": 5}\n')
        answer = b""
        while not answer.endswith(b"\n"):
            answer += os.read(ours, 4096)
    finally:
        serving.kill()
        serving.wait(10)
        os.close(ours)
        os.close(theirs)
    told = json.loads(answer)
    assert (told["id"], base64.b64decode(told["out"])) == (2, b"hi\n")
