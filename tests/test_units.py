"""The units that a package ships: systemd takes them as they are, they call what exists, and the timer keeps its promise."""

from __future__ import annotations

import configparser
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import compliance_agent
from compliance_agent.cli import group

UNITS = Path(compliance_agent.__file__).parent / "units"
SERVICE, TIMER = UNITS / "compliance-agent-drill.service", UNITS / "compliance-agent-drill.timer"


def read(path: Path) -> configparser.ConfigParser:
    found = configparser.ConfigParser(interpolation=None)
    found.optionxform = str  # type: ignore[assignment, method-assign]
    found.read_string(path.read_text("ascii"))
    return found


def verified(directory: Path, *units: Path) -> str:
    """What `systemd-analyze verify` complains of, with a program in the place of the one that a package installs."""
    for unit in units:
        text = unit.read_text("ascii").replace("/usr/bin/compliance-agent", sys.executable)
        (directory / unit.name).write_text(text, "ascii")
    names = [str(directory / unit.name) for unit in units]
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *names], capture_output=True, text=True, check=False, timeout=60
    )
    return done.stdout + done.stderr + ("" if done.returncode == 0 else f"ended with {done.returncode}")


needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here")


@needs_systemd
def test_systemd_takes_them_as_they_are(tmp_path: Path) -> None:
    assert verified(tmp_path, SERVICE, TIMER) == ""


@needs_systemd
@pytest.mark.parametrize(("right", "wrong"), [("oneshot", "onshot"), ("ProtectClock", "ProtectClocks")])
def test_a_mistake_in_them_would_be_named(tmp_path: Path, right: str, wrong: str) -> None:
    """The planted fault."""
    (tmp_path / "units").mkdir()
    broken = tmp_path / "units" / SERVICE.name
    broken.write_text(SERVICE.read_text("ascii").replace(right, wrong), "ascii")
    assert wrong in verified(tmp_path, broken)


def test_the_service_calls_a_command_that_exists_and_does_every_drill() -> None:
    program, *words = read(SERVICE)["Service"]["ExecStart"].split()
    assert program == "/usr/bin/compliance-agent"
    assert words == ["drill"] and "drill" in group.list_commands(None)  # type: ignore[arg-type]


def test_the_timer_belongs_to_the_service_and_catches_up() -> None:
    timer = read(TIMER)
    assert TIMER.stem == SERVICE.stem, "a timer starts the service of its own name"
    assert timer["Timer"]["OnCalendar"] == "weekly" and timer["Timer"]["Persistent"] == "yes"
    assert timer["Install"]["WantedBy"] == "timers.target"
