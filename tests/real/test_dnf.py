"""Patching on a host of real dnf and rpm: seen, installed, refused and taken for nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.real, pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("dnf", "rpmbuild", "createrepo_c", "modifyrepo_c", "unshare")


@pytest.fixture(scope="module")
def scenes() -> dict[str, dict[str, Any]]:
    if os.geteuid() != 0 or not all(map(shutil.which, TOOLS)):
        pytest.skip("needs root (a mount namespace of its own), dnf, rpm and createrepo-c")
    argv = ["unshare", "--mount", "--propagation", "private", sys.executable, "-m", "tests.real.dnf_scene"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False, timeout=180)
    assert done.returncode == 0, done.stderr[-2000:]
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {scene.pop("scene"): scene for scene in found}


@pytest.mark.parametrize(
    ("scene", "result", "reason"),
    [
        ("up to date", "pass", "as_expected"),
        ("nobody looked for days", "fail", "lists_stale"),
        ("after that", "pass", "as_expected"),
        ("known", "fail", "security_pending"),
        ("another dnf reads", "unknown", "tool_failed"),
        ("after the update", "pass", "as_expected"),
        ("no cache", "unknown", "tool_failed"),
        ("no advisories announced", "fail", "no_security_source"),
    ],
)
def test_what_is_seen(scenes: dict[str, dict[str, Any]], scene: str, result: str, reason: str) -> None:
    assert (scenes[scene]["result"], scenes[scene]["reason"]) == (result, reason)


def test_a_look_that_found_no_news_counts_as_a_look(scenes: dict[str, dict[str, Any]]) -> None:
    """dnf then leaves `repomd.xml` with its old date."""
    assert scenes["nobody looked for days"]["facts"]["lists_age_h"] == 120
    assert scenes["looked again, no news"]["outcome"] == "success"
    assert scenes["after that"]["facts"]["lists_age_h"] == 0


def test_waiting_updates_are_named_by_a_digest(scenes: dict[str, dict[str, Any]]) -> None:
    before, after = scenes["known"]["facts"], scenes["after the update"]["facts"]
    assert (before["security_pending"], after["security_pending"]) == (1, 0)
    assert before["pending_sha256"] != after["pending_sha256"] == scenes["up to date"]["facts"]["pending_sha256"]


def test_the_security_update_is_installed_and_no_other(scenes: dict[str, dict[str, Any]]) -> None:
    assert (scenes["installed"]["outcome"], scenes["installed"]["installed"]) == (
        "success",
        ["gadget-1.0", "widget-1.1"],
    )


@pytest.mark.parametrize(
    ("scene", "outcome", "error", "widget"),
    [
        ("another dnf installs", "deferred", "package_manager_busy", "widget-1.0"),
        ("the repository does not answer", "reverted", "refresh_failed", "widget-1.0"),
        ("the package refuses", "reverted", "check_fail", "widget-1.1"),
    ],
)
def test_a_cure_that_cannot_be_says_so(
    scenes: dict[str, dict[str, Any]], scene: str, outcome: str, error: str, widget: str
) -> None:
    """dnf itself ends with 0 when a package's own script refused, so the check decides."""
    found = scenes[scene]
    assert (found["outcome"], found["error"], found["installed"]) == (outcome, error, ["gadget-1.0", widget])
