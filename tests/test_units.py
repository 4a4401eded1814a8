"""The units that a package ships: systemd takes them as they are, they call what exists, and the timer keeps its promise."""

from __future__ import annotations

import configparser
import dataclasses
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import compliance_agent
from compliance_agent.cli import group
from compliance_agent.config import AgentConfig

UNITS = Path(compliance_agent.__file__).parent / "units"
SERVICE, TIMER = UNITS / "compliance-agent-drill.service", UNITS / "compliance-agent-drill.timer"
# Exposure by `systemd-analyze security`, 0 to 10, which none may exceed. The single service runs package managers itself.
MOST = {"run": 1.5, "uplink": 1.5, "heal": 1.9, "adopt": 0.7, "": 8.0}
OF_AGENT = {f"compliance-agent{'-' if part else ''}{part}.service": most for part, most in MOST.items()}


def read(path: Path) -> configparser.ConfigParser:
    found = configparser.ConfigParser(interpolation=None, strict=False)
    found.optionxform = str  # type: ignore[assignment, method-assign]
    found.read_string(path.read_text("ascii"))
    return found


def verified(directory: Path, *units: Path) -> str:
    """What `systemd-analyze verify` complains of, with a program in the place of the one that a package installs."""
    for unit in units:
        text = unit.read_text("ascii").replace("/usr/bin/compliance-agent", sys.executable)
        text = text.replace("/usr/lib/compliance-agent/bin/python3", sys.executable)
        (directory / unit.name).write_text(text, "ascii")
    names = [str(directory / unit.name) for unit in units]
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *names], capture_output=True, text=True, check=False, timeout=60
    )
    return done.stdout + done.stderr + ("" if done.returncode == 0 else f"ended with {done.returncode}")


needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here")


@needs_systemd
def test_systemd_takes_them_as_they_are(tmp_path: Path) -> None:
    assert verified(tmp_path, *sorted(UNITS.iterdir())) == ""


def exposure(unit: Path) -> float:
    """What systemd says of a unit's walls, 0 to 10."""
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", str(unit)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+) ", done.stdout)
    assert found, done.stderr
    return float(found[1])


@needs_systemd
@pytest.mark.parametrize("name", OF_AGENT)
def test_no_wall_of_a_service_was_taken_down(name: str) -> None:
    assert exposure(UNITS / name) <= OF_AGENT[name]


@needs_systemd
@pytest.mark.parametrize("wall", ["ProtectSystem=strict", "NoNewPrivileges=yes", "RestrictNamespaces=yes", "User="])
@pytest.mark.parametrize("part", ["run", "uplink", "heal", "adopt"])
def test_a_wall_that_was_taken_down_would_be_seen(part: str, wall: str, tmp_path: Path) -> None:
    """The planted fault."""
    if part in {"heal", "adopt"} and wall == "User=":
        wall = "CapabilityBoundingSet="  # it is root, with few capabilities or none
    name = f"compliance-agent-{part}.service"
    lines = (UNITS / name).read_text("ascii").splitlines(keepends=True)
    kept = [line for line in lines if not line.startswith(wall)]
    assert len(kept) == len(lines) - 1
    (tmp_path / name).write_text("".join(kept), "ascii")
    assert exposure(tmp_path / name) > exposure(UNITS / name)


def test_only_one_of_them_has_the_network_and_it_has_nothing_else() -> None:
    families = {name: read(UNITS / name)["Service"]["RestrictAddressFamilies"].split() for name in OF_AGENT}
    assert "AF_INET" not in families["compliance-agent-run.service"]
    uplink = read(UNITS / "compliance-agent-uplink.service")["Service"]
    assert uplink["CapabilityBoundingSet"] == uplink["AmbientCapabilities"] == ""
    assert uplink["User"] == AgentConfig.uplink_user
    # In a user namespace of its own it would see the agent as nobody (65534), and refuse it: it did, on a booted host.
    assert "PrivateUsers" not in uplink and AgentConfig.run_user != uplink["User"]
    assert read(UNITS / "compliance-agent-run.service")["Service"]["User"] == AgentConfig.run_user


@pytest.mark.parametrize("unit", sorted(path.name for path in UNITS.glob("*.s*")))
def test_what_they_start_exists(unit: str) -> None:
    """A command of the program, or a module of the package; and a socket is where the settings say."""
    parts = read(UNITS / unit)
    if unit.endswith(".socket"):
        assert (UNITS / unit.replace(".socket", ".service")).exists()
        assert unit != "compliance-agent-uplink.socket" or parts["Socket"]["ListenStream"] == str(
            AgentConfig.uplink_socket
        )
        return
    program, *words = parts["Service"]["ExecStart"].split()
    if program == "/usr/bin/compliance-agent":
        assert words[0] in group.list_commands(None)  # type: ignore[arg-type]
    else:
        part = unit.removeprefix("compliance-agent-").removesuffix(".service")
        started = ["-I", "-m", f"compliance_agent.{part}"]
        assert (program, words[:3], part in {"heal", "adopt"}) == (
            "/usr/lib/compliance-agent/bin/python3",
            started,
            True,
        )
        assert words[3:] == ["--user", str(AgentConfig.run_user)]


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


@pytest.mark.parametrize("part", ["heal", "adopt"])
def test_an_agent_in_several_processes_asks_the_root_side_where_its_unit_listens(part: str) -> None:
    listens = Path(read(UNITS / f"compliance-agent-{part}.socket")["Socket"]["ListenStream"])
    single, name = AgentConfig(client_id="msp", site_id="clinic-1", host_id="ws-01"), f"{part}_socket"
    assert getattr(single, name) is None
    split = dataclasses.replace(single, privileges="split")
    assert getattr(split, name) == listens
    other: dict[str, Any] = {"privileges": "split", name: Path("/run/other.sock")}
    assert getattr(dataclasses.replace(single, **other), name) == other[name]


def test_the_root_side_of_orders_has_no_capability_and_no_network_and_writes_two_directories() -> None:
    unit = read(UNITS / "compliance-agent-adopt.service")["Service"]
    assert (unit["CapabilityBoundingSet"], unit["AmbientCapabilities"], unit["RestrictAddressFamilies"]) == (
        "",
        "",
        "AF_UNIX",
    )
    assert (unit["PrivateNetwork"], unit["ProtectSystem"]) == ("yes", "strict")
    assert (unit["ReadWritePaths"], unit["StateDirectory"]) == ("/etc/msp", "compliance-agent-adopt")


@pytest.mark.parametrize("socket", sorted(UNITS.glob("*.socket")), ids=lambda path: path.stem)
def test_what_a_socket_starts_is_held_back_by_nothing_but_what_holds_back_who_asks(socket: Path) -> None:
    """A condition that is not met leaves the question in the queue and asks again, until systemd gives up the socket."""

    def conditions(unit: Path) -> set[tuple[str, str]]:
        return {(key, said) for key, said in read(unit)["Unit"].items() if key.startswith(("Condition", "Assert"))}

    assert conditions(socket.with_suffix(".service")) <= conditions(UNITS / "compliance-agent-run.service")
