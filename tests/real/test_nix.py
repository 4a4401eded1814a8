"""Patching on a NixOS-style host of real nix: generations in a real profile, switched, verified, rolled back when broken."""

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


@pytest.fixture(scope="module")
def scenes() -> dict[str, dict[str, Any]]:
    if os.geteuid() != 0 or not all(map(shutil.which, ("nix-env", "nix-build", "unshare"))):
        pytest.skip("needs root (a mount namespace of its own) and nix")
    argv = ["unshare", "--mount", "--propagation", "private", sys.executable, "-m", "tests.real.nix_scene"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False, timeout=110)
    assert done.returncode == 0, done.stderr[-2000:]
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {scene.pop("scene"): scene for scene in found}


def test_the_closure_is_the_system_with_what_it_needs(scenes: dict[str, dict[str, Any]]) -> None:
    closure, newest = scenes["paths"]["closure"], scenes["paths"]["paths"][-1]
    assert newest in closure
    assert any("kernel-3" in path for path in closure)


def test_the_selected_generation_runs_and_says_what_it_is_made_of(scenes: dict[str, dict[str, Any]]) -> None:
    seen = scenes["as it should be"]
    facts = seen["facts"]
    assert (seen["result"], facts["generation"], facts["generation_active"], facts["nixpkgs_age_d"]) == (
        "pass",
        3,
        True,
        7,
    )
    assert facts["nixos_revision"] == f"{3:040x}"
    other = scenes["an older one selected and running"]["facts"]
    assert len({facts["derivation_digest"], other["derivation_digest"]}) == 2, "each system has a digest of its own"
    assert (facts["reboot_needed"], other["reboot_needed"]) == (False, True), (
        "the kernel that was booted is the newest one's"
    )


def test_an_older_generation_is_drift_and_the_newest_is_switched_to(scenes: dict[str, dict[str, Any]]) -> None:
    assert scenes["an older one selected and running"]["reason"] == "generation_behind"
    healed = scenes["healed"]
    assert (healed["outcome"], healed["now"]["selected"]) == ("success", "system-3-link")
    assert healed["now"]["running"] == scenes["paths"]["paths"][2]
    assert scenes["after"]["result"] == "pass"
    assert scenes["after"]["facts"]["derivation_digest"] == scenes["as it should be"]["facts"]["derivation_digest"]


def test_a_generation_that_does_not_activate_is_rolled_back(scenes: dict[str, dict[str, Any]]) -> None:
    ended = scenes["the newest is broken"]
    assert (ended["outcome"], ended["error"]) == ("reverted", "activation_failed")
    assert ended["now"] == {"selected": "system-3-link", "running": scenes["paths"]["paths"][2]}


def test_a_newer_generation_than_asked_for_is_no_drift(scenes: dict[str, dict[str, Any]]) -> None:
    assert scenes["a newer one than asked for is no drift"]["result"] == "pass"
