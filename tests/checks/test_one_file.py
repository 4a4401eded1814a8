"""A check is one file: put into the package it is found, held to the whole contract, healed on a simulated host and documented."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
NEW = "psacct"
GENERATED = ("compliance_agent/evidence/registry.json", "docs/checks.md", "tests/golden/registry.txt")
BODY = '''"""The accounting daemon runs: without it, the kernel's records of processes are kept nowhere."""

from dataclasses import dataclass, field

from compliance_agent.checks.spec import UNREADABLE, Case, CheckSpec, Citation, failed, passed, unknown
from compliance_agent.checks.units import UNIT, unit_word
from compliance_agent.facts import fact
from compliance_agent.models import Plan, Result, Severity, Step, Verdict
from compliance_agent.ports import Host


@dataclass(frozen=True)
class Parameters:
    unit: str = field(default="psacct.service", metadata={"doc": "The daemon's unit."})


@dataclass(frozen=True)
class Observation:
    unit: str | None = fact(UNIT, "State of the daemon's unit.")


CHECK = CheckSpec(
    id="psacct",
    title="The accounting daemon runs",
    severity=Severity.HIGH,
    rationale="The kernel's records of processes are kept only while the daemon runs.",
    citations=(
        Citation(
            "164.312(b)", "Activity that is not recorded cannot be examined.", "That anyone examines the records.", primary=True
        ),
    ),
    parameters=Parameters,
    observation=Observation,
    reasons={"daemon_down": "The accounting daemon is not active.", "daemon_missing": "There is no such unit on this host."},
    needs=("systemd",),
    reads=("unit:{unit}",),
)


async def observe(host: Host, baseline: Parameters) -> Observation:
    return Observation(unit_word((await host.units((baseline.unit,)))[baseline.unit]))


def judge(baseline: Parameters, seen: Observation) -> Verdict:
    if seen.unit is None:
        return unknown("unparsable", "whether the accounting daemon runs could not be told")
    if seen.unit == "missing":
        return failed("daemon_missing", f"expected {baseline.unit}, found no such unit")
    if seen.unit != "active":
        return failed("daemon_down", f"expected {baseline.unit} active, found it {seen.unit}")
    return passed(f"{baseline.unit} is active")


def plan(baseline: Parameters, seen: Observation) -> Plan | None:
    if judge(baseline, seen).reason != "daemon_down":
        return None
    return Plan(CHECK.id, (Step("ensure_unit_active", {"unit": baseline.unit}),))


CASES = (
    Case("running", Observation("active"), Result.PASS, scene=lambda host: host.service("psacct.service")),
    Case(
        "stopped",
        Observation("stopped"),
        Result.FAIL,
        "daemon_down",
        heals=True,
        scene=lambda host: host.service("psacct.service", active=False),
    ),
    Case("not installed", Observation("missing"), Result.FAIL, "daemon_missing"),
    Case("nothing was seen", Observation(), Result.UNKNOWN),
    Case("could not look", UNREADABLE, Result.UNKNOWN, "tool_failed"),
)
'''


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what a contributor has, without what was installed."""
    for name in ("compliance_agent", "tests", "docs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "fixtures"))
    for name in ("pyproject.toml", "README.md", "run"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def call(tree: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=tree,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def contract_of(tree: Path) -> subprocess.CompletedProcess[str]:
    options = ("-q", "-n", "0", "-p", "no:cacheprovider", "-k", f"{NEW} or shipped")
    return call(tree, "pytest", *options, "tests/checks/test_contract.py", "tests/checks/test_shipped_baselines.py")


def test_a_check_is_one_file(tree: Path) -> None:
    (tree / "compliance_agent" / "checks" / f"{NEW}.py").write_text(BODY, "utf-8")
    kept = contract_of(tree)
    assert kept.returncode == 0, kept.stdout[-3000:]
    assert f"test_heals_what_drifted[{NEW}-stopped]" in call(
        tree, "pytest", "--collect-only", "-q", "-n", "0", "tests/checks/test_contract.py"
    ).stdout.replace("asyncio-", "")
    written = call(tree, "compliance_agent.lab.golden")
    assert set(GENERATED) <= set(written.stdout.split()), written
    assert "The accounting daemon is not active." in (tree / "docs" / "checks.md").read_text("utf-8")


def test_without_its_scenes_the_contract_says_what_is_missing(tree: Path) -> None:
    bare = BODY.replace(', scene=lambda host: host.service("psacct.service"))', ")")
    (tree / "compliance_agent" / "checks" / f"{NEW}.py").write_text(bare, "utf-8")
    broken = contract_of(tree)
    assert broken.returncode == 1
    assert "give a passing case a scene" in broken.stdout
