"""What is generated from the checks is up to date, and the server's copy of the word lists is the agent's."""

from __future__ import annotations

from pathlib import Path

import pytest

from compliance_agent import checks, errors, facts
from compliance_agent.evidence.allowlist import read_registry, registry
from compliance_agent.lab import golden


def test_generated_files_are_up_to_date() -> None:
    """`./run golden` rewrites them."""
    stale = [path.name for path, text in golden.generated().items() if path.read_text("utf-8") != text]
    assert stale == []


def test_check_names_what_is_stale_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(golden, "ROOT", tmp_path)
    monkeypatch.setattr(golden, "generated", lambda: {tmp_path / "a.txt": "new"})
    (tmp_path / "a.txt").write_text("old")
    assert golden.main(["--check"]) == 1
    assert capsys.readouterr().out == "out of date: a.txt\n"
    assert (tmp_path / "a.txt").read_text() == "old"
    assert golden.main([]) == 0
    assert golden.main(["--check"]) == 0


def test_the_registry_gives_every_fact_its_type_back() -> None:
    for name, check in checks.registry().items():
        assert registry().facts_of[name] == facts.declared(check.spec.observation)


def test_the_registry_holds_every_code_an_error_may_carry() -> None:
    known = read_registry(golden.registry_json(checks.registry())).codes
    assert set(errors.CANNOT_TELL_REASONS) <= set(known)
    assert {"storage_full", "enospc", "eacces", "step_failed"} <= set(known)
    assert "package_manager_busy" in known, "a literal in a conditional argument"
    assert all(facts.TOKEN.fullmatch(code) for code in known)
