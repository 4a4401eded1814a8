"""`compliance-agent check` and `plan`: an honest table of this machine, a stable object, an exit status that means something."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from compliance_agent.baseline import load
from compliance_agent.cli import check
from compliance_agent.cli.check import look_at
from compliance_agent.cli.common import shipped_baseline
from compliance_agent.core.gates import Context, Moment, decide
from compliance_agent.healing import Preview
from compliance_agent.models import DriftResult, Result, Verdict
from tests.cli.command import configured, environment, run

WORDS = {str(word) for word in Result}
KEYS = {
    "check", "result", "reason", "sentence", "severity", "mode", "citations", "facts", "cure", "exception_id", "duration_ms",
}  # fmt: skip


@pytest.mark.real
def test_without_configuration_this_machine_is_held_against_the_shipped_baseline() -> None:
    began = time.monotonic()
    ended = run("check")
    spent = time.monotonic() - began
    assert ended.status == 1, "this machine is no compliant clinic host"
    lines = ended.out.splitlines()
    shipped = load(shipped_baseline()).entries
    assert [line.split()[0] for line in lines[1:]] == sorted(name for name in shipped if name != "file_integrity")
    assert "not looked at: file_integrity" in ended.err
    assert all(line.split()[1] in WORDS for line in lines[1:])
    assert "baseline" in ended.err
    assert spent < 10


@pytest.mark.real
def test_json_is_one_versioned_object_with_everything() -> None:
    ended = run("check", "--json")
    document = json.loads(ended.out)
    assert set(document) == {"schema", "baseline", "compliant", "counts", "skipped", "results"}
    assert document["schema"] == "compliance-agent/check/v1"
    assert set(document["counts"]) == WORDS and sum(document["counts"].values()) == len(document["results"])
    assert document["compliant"] is (ended.status == 0)
    for item in document["results"]:
        assert set(item) == KEYS
        assert item["citations"] and all(citation.startswith("164.") for citation in item["citations"])
    assert ended.err == ""


SLOW = """
version: "1"
checks:
  file_integrity: {parameters: {files: [/etc/hostname], digests: ["%s"]}}
  auto_logoff: {deadline_s: 61}
  encryption: {deadline_s: 60, parameters: {mounts: [/srv]}}
"""


def test_what_may_take_minutes_is_named_and_looked_at_when_wanted(tmp_path: Path) -> None:
    path = configured(tmp_path, baseline=SLOW % ("0" * 64))
    for words, looked_at, skipped in (
        ((), {"encryption"}, ["auto_logoff", "file_integrity"]),
        (("--all",), {"auto_logoff", "encryption", "file_integrity"}, []),
        (("file_integrity",), {"file_integrity"}, []),
    ):
        document = json.loads(run("check", *words, "--json", "--config", path).out)
        assert ({result["check"] for result in document["results"]}, document["skipped"]) == (looked_at, skipped)
    assert "not looked at: file_integrity" in run("plan", "--config", path).err


def test_an_unknown_is_a_finding(tmp_path: Path) -> None:
    """A host that cannot be looked at is not compliant."""
    baseline = 'version: "1"\nchecks:\n  backup: {parameters: {repository: /no, password_file: /no, paths: [/no]}}\n'
    ended = run("check", "backup", "--json", "--config", configured(tmp_path, baseline=baseline))
    assert json.loads(ended.out)["results"][0]["result"] in {"unknown", "fail"}
    assert ended.status == 1


def test_quiet_says_nothing_and_the_same_status(tmp_path: Path) -> None:
    path = configured(tmp_path)
    loud, quiet = run("check", "--config", path), run("check", "--quiet", "--config", path)
    assert (quiet.out, quiet.err, quiet.status) == ("", "", loud.status)


def test_a_check_changes_and_leaves_nothing(tmp_path: Path) -> None:
    path = configured(tmp_path)
    run("check", "--config", path)
    run("plan", "--config", path)
    run("heal", "--dry-run", "--config", path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["agent.yaml", "baseline.yaml"]


def test_a_bad_baseline_is_78_and_names_the_field(tmp_path: Path) -> None:
    path = configured(tmp_path, baseline='version: "1"\nchecks:\n  time_sync: {mode: sometimes}\n')
    for words in (["check"], ["plan"], ["config", "check"], ["run"]):
        ended = run(*words, "--config", path)
        assert ended.status == 78, words
        assert "baseline.yaml: checks.time_sync.mode" in ended.line


def test_a_baseline_can_be_named(tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text('version: "other-1"\nchecks:\n  time_sync: {}\n')
    other.chmod(0o600)
    assert json.loads(run("check", "--json", "--baseline", other).out)["baseline"]["version"] == "other-1"
    assert run("check", "--baseline", tmp_path / "none.yaml").status == 78


def test_plan_has_a_stable_object() -> None:
    ended = run("plan", "--json")
    document = json.loads(ended.out)
    assert document["schema"] == "compliance-agent/plan/v1"
    assert ended.status == (1 if document["plans"] else 0)
    for plan in document["plans"]:
        assert {"check", "allowed", "reason", "not_before", "steps"} <= set(plan)


NOT_HERE = 'version: "1"\nchecks:\n  patching: {mode: enforce, parameters: {manager: nixos}}\n'


@pytest.mark.parametrize("words", [("plan",), ("heal", "--dry-run"), ("heal",)])
def test_what_could_not_be_told_is_not_said_to_be_fine(tmp_path: Path, words: tuple[str, ...]) -> None:
    path = configured(tmp_path, baseline=NOT_HERE)
    ended = run(*words, "--config", path)
    assert ended.status == 1
    assert "patching: could not tell (tool_missing)" in ended.out
    assert "nothing has drifted" not in ended.out
    document = json.loads(run(*words, "--json", "--config", path).out)
    assert document["unknown"] == [{"check": "patching", "reason": "tool_missing"}]


@pytest.mark.parametrize(("words", "kept"), [((), 1), (("--again",), 0), (("--again", "patching"), 0)])
def test_a_cure_that_was_rolled_back_is_tried_again_when_a_person_says_so(
    tmp_path: Path, words: tuple[str, ...], kept: int
) -> None:
    path = configured(tmp_path, baseline=NOT_HERE)
    run("heal", "--config", path)
    (database,) = tmp_path.rglob("agent.db")
    with closing(sqlite3.connect(database)) as remembered, remembered:
        remembered.execute("INSERT INTO heal_rejected VALUES ('patching', 'steps-1', 'b'), ('logging', 'steps-2', 'b')")
    run("heal", *words, "--config", path)
    with closing(sqlite3.connect(database)) as remembered:
        left = [name for (name,) in remembered.execute("SELECT check_id FROM heal_rejected ORDER BY 1")]
    assert left == ["logging", "patching"][: 1 + kept]


def test_only_showing_forgets_nothing(tmp_path: Path) -> None:
    assert run("heal", "--again", "--dry-run", "--config", configured(tmp_path, baseline=NOT_HERE)).status == 2


def test_plan_says_what_holds_a_cure_back_in_words() -> None:
    drift = DriftResult("toy", True, verdict=Verdict(Result.FAIL, "down"))
    assert "a person has to act" in Preview("toy", decide(drift, Context(Moment(datetime.now(UTC), 0.0, "")))).text()


def on_a_terminal(*words: str, **env: str) -> str:
    """What a person sees."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "compliance_agent", *words],
        stdin=follower, stdout=follower, stderr=follower, env=environment(TERM="xterm-256color", COLUMNS="120", **env),
    )  # fmt: skip
    os.close(follower)
    seen = b""
    while True:
        try:
            data = os.read(leader, 65_536)
        except OSError:  # the other side is closed
            break
        if not data:
            break
        seen += data
    process.wait(timeout=30)
    os.close(leader)
    return seen.decode("utf-8", "replace")


def test_who_waits_is_told_what_for(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """And what was asked for is given in its order, each once."""
    go_on = asyncio.Event()

    class Slow:
        baseline = load(shipped_baseline())

        async def check_one(self, check_id: str) -> DriftResult:
            if check_id == "firewall":
                await go_on.wait()
            return DriftResult(check_id, drifted=False)

    async def asked() -> list[str]:
        looking = asyncio.ensure_future(look_at(Slow(), ("time_sync", "firewall", "time_sync")))  # type: ignore[arg-type]
        while "still" not in capsys.readouterr().err:
            await asyncio.sleep(0.005)
        go_on.set()
        return [result.check for result in await looking]

    monkeypatch.setattr(check, "PATIENCE_S", 0.01)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert asyncio.run(asyncio.wait_for(asked(), timeout=5)) == ["time_sync", "firewall"]


def test_colour_is_for_terminals_and_for_those_who_want_it(tmp_path: Path) -> None:
    path = str(configured(tmp_path))
    assert "\x1b[3" in on_a_terminal("check", "--config", path)
    assert "\x1b[3" not in on_a_terminal("check", "--config", path, NO_COLOR="1")
    assert "\x1b" not in run("check", "--config", path).out
