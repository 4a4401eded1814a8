"""The unit of the server: systemd takes it as it is, it is closed, and it starts what exists where the settings say."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from compliance_agent.cli.server import command as server
from compliance_agent.cli.server_common import SYSTEM_CONFIG
from compliance_agent.server.settings import ServerSettings
from tests.deploy.product import DEPLOY

UNIT = DEPLOY / "compliance-agent-server.service"
PROGRAM = "/opt/compliance-agent/bin/compliance-agent"
MOST = 1.2  # by `systemd-analyze security`, 0 to 10
needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here")


def analysed(*words: str) -> str:
    done = subprocess.run(["systemd-analyze", *words], capture_output=True, text=True, check=False, timeout=60)
    return done.stdout + done.stderr


def exposure(unit: Path) -> float:
    """What systemd says of its walls."""
    said = analysed("security", "--offline=true", "--no-pager", str(unit))
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+) ", said)
    assert found, said
    return float(found[1])


@needs_systemd
@pytest.mark.parametrize(("right", "wrong"), [("", ""), ("Type=exec", "Type=exce"), ("TasksMax", "TaskMax")])
def test_systemd_takes_it_as_it_is_and_would_name_a_mistake(right: str, wrong: str, tmp_path: Path) -> None:
    text = UNIT.read_text("ascii").replace(PROGRAM, sys.executable)
    assert right in text
    (tmp_path / UNIT.name).write_text(text.replace(right, wrong) if right else text, "ascii")
    said = analysed("verify", "--man=no", str(tmp_path / UNIT.name))
    assert wrong.rsplit("=", maxsplit=1)[-1] in said if wrong else said == ""


@needs_systemd
def test_it_is_no_more_open_than_is_said() -> None:
    assert exposure(UNIT) <= MOST


@needs_systemd
@pytest.mark.parametrize(
    "wall", ["CapabilityBoundingSet=", "PrivateUsers=", "RestrictNamespaces=", "ProtectProc=", "SystemCallFilter=@"]
)
def test_a_wall_that_was_taken_down_would_be_seen(wall: str, tmp_path: Path) -> None:
    """The planted fault."""
    lines = UNIT.read_text("ascii").splitlines(keepends=True)
    kept = [line for line in lines if not line.startswith(wall)]
    assert len(kept) == len(lines) - 1
    (tmp_path / UNIT.name).write_text("".join(kept), "ascii")
    assert exposure(tmp_path / UNIT.name) > MOST


def test_it_starts_the_server_on_the_systems_settings_and_its_state_is_where_they_say() -> None:
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(UNIT.read_text("ascii"))
    program, name, *words = unit["Service"]["ExecStart"].split()
    assert (program, name) == (PROGRAM, "server")
    assert server.make_context("server", words).params["config_path"] == SYSTEM_CONFIG
    assert unit["Unit"]["ConditionPathExists"] == str(SYSTEM_CONFIG)
    assert f"/var/lib/{unit['Service']['StateDirectory']}" == str(ServerSettings().data_dir)
