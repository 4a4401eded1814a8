"""`compliance-agent drill` as a person runs it: what cannot be proven here is said so, and recorded."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.command import configured, run

BASELINE = """version: "1"
checks:
  logging: {}
  av_health: {parameters: {socket: /nonexistent/clamd.ctl}}
"""


def test_a_scanner_that_is_not_there_was_not_proven_and_that_is_recorded(tmp_path: Path) -> None:
    config = configured(tmp_path, baseline=BASELINE)
    assert "never" in run("drill", "--list", "--config", config).out
    ended = run("drill", "eicar", "--config", config, "--json")
    document = json.loads(ended.out)
    assert ended.status == 1
    assert document["recorded"] is True
    (shown,) = document["drills"]
    assert (shown["drill"], shown["check"]) == ("eicar", "av_health")
    assert shown["result"] in {"unknown", "fail"}
    (bundle,) = (path for path in tmp_path.glob("state/evidence/*/*/*/*/bundle.json"))
    recorded = json.loads(bundle.read_bytes())
    assert (recorded["kind"], recorded["check"], recorded["result"]) == ("drill", "av_health", shown["result"])
    (tmp_path / "host.pub.pem").write_text(run("config", "public-key", "--config", config).out)
    assert run("verify", tmp_path / "state" / "evidence", "--key", tmp_path / "host.pub.pem").status == 0
    assert "eicar" in run("drill", "--list", "--config", config).out
    assert "proven     log_canary never, eicar never" in run("status", "--config", config).out


def test_what_no_baseline_lists_and_what_nobody_knows_is_refused(tmp_path: Path) -> None:
    config = configured(tmp_path, baseline=BASELINE)
    ended = run("drill", "restore", "--config", config)
    assert (ended.status, ended.out) == (78, "")
    assert "the baseline does not list backup" in ended.line
    ended = run("drill", "restor", "--config", config)
    assert ended.status == 2
    assert 'did you mean "restore"?' in ended.err
