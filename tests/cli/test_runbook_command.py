"""`compliance-agent runbook`: what is done about a finding, as people read it, and whose word it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from compliance_agent.runbook import shipped
from tests.cli.command import run

SHIPPED = Path(__file__).resolve().parent.parent.parent / "compliance_agent" / "runbooks"


def test_the_shipped_ones_have_nothing_wrong() -> None:
    ended = run("runbook", "lint")
    assert (ended.status, ended.out.splitlines()[-1]) == (0, f"{len(shipped())} runbooks, 0 remark(s)")


def test_show_says_who_does_what() -> None:
    out = run("runbook", "show", "patching").out
    assert "apply_security_updates: install the waiting security updates with <baseline manager>" in out
    assert "disruptive" in out
    assert "Restart the machine in its window. The agent restarts no machine." in out


def test_a_mistyped_id_is_helped() -> None:
    ended = run("runbook", "show", "patchin")
    assert ended.status == 2
    assert 'did you mean "patching"?' in ended.err


def test_a_directory_of_ones_own_is_held_to_the_table_and_to_its_signature(tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(SHIPPED, own)
    book, key = own / "time-sync.yaml", tmp_path / "key.pem"
    public = tmp_path / "key.pub.pem"
    for path in sorted(own.glob("*.yaml")):
        assert run("runbook", "sign", path, "--key", key).status == 0
    assert run("runbook", "lint", "--dir", own, "--key", public).status == 0

    book.write_text(book.read_text().replace("ensure_unit_active", "run_command"))
    changed = run("runbook", "lint", "--dir", own, "--key", public)
    assert (changed.status, "runbook time-sync.yaml: not what key" in changed.line) == (78, True)
    remarked = run("runbook", "lint", "--dir", own, "--json")
    assert remarked.status == 1
    codes = {item["code"] for item in json.loads(remarked.out)["remarks"]}
    assert {"unknown_action", "not_in_a_runbook"} <= codes

    (own / "time-sync.yaml.sig").unlink()
    assert "not signed" in run("runbook", "list", "--dir", own, "--key", public).line
    book.write_text("id: other\n")
    assert run("runbook", "list", "--dir", own).status == 78
    assert run("runbook", "list", "--dir", tmp_path / "nothing").status == 66
    assert run("runbook", "list", "--key", public).status == 2
