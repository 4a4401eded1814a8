"""flake.nix, package and NixOS module, evaluated by Nix with a stand-in for nixpkgs (stub.nix). Building them needs nixpkgs."""

from __future__ import annotations

import json
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

import compliance_agent
from compliance_agent.config import LOADED

ROOT = Path(__file__).resolve().parents[2]
STUB = Path(__file__).with_name("stub.nix")
FILES = [ROOT / "flake.nix", *sorted((ROOT / "release/nix").glob("*.nix"))]
GIVEN = """{
  enable = true;
  baseline = "/etc/baseline.yaml";
  settings = { host_id = "front-desk"; leases = false; mcp_poll_interval_sec = 60; };
  credentials.mcp_api_key = "/var/lib/compliance-agent/keys/api-key";
}"""

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(shutil.which("nix-instantiate") is None, reason="Nix is not installed here"),
]


def nix(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["nix-instantiate", *words], capture_output=True, text=True, check=False, timeout=60)


def value(expression: str) -> Any:
    """What an expression over the stand-in comes to."""
    done = nix("--eval", "--strict", "--json", "--expr", f"with import {STUB}; {expression}")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_nix_can_read_it(path: Path, tmp_path: Path) -> None:
    assert nix("--parse", str(path)).returncode == 0
    broken = tmp_path / path.name
    broken.write_text(path.read_text("utf-8").replace("}", "", 1), "utf-8")
    assert nix("--parse", str(broken)).returncode != 0, "a missing brace would not be seen"


def test_the_package_has_the_version_and_the_dependencies_of_this_tree() -> None:
    package = value("flake.packages.x86_64-linux.default")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert package["version"] == compliance_agent.__version__
    assert package["dependencies"] == sorted(Requirement(line).name.lower() for line in project["dependencies"])
    assert package["meta"]["license"] == project["license"]
    assert value("flake.packages.aarch64-linux.compliance-agent.version") == package["version"]


def test_its_units_are_those_of_the_debian_package() -> None:
    """By name, and every program that they start is put in its place."""
    script = value("flake.packages.x86_64-linux.default.postInstall")
    units = script.split("for unit in ")[1].split(";")[0].split()
    texts = [(ROOT / "compliance_agent/units" / unit).read_text("ascii") for unit in units]
    programs = {
        line.split("=", 1)[1].split()[0] for text in texts for line in text.splitlines() if line.startswith("Exec")
    }
    assert programs == {"/usr/bin/compliance-agent", "/bin/kill"}
    assert all(f"--replace-quiet {program} " in script for program in programs)


def test_a_host_gets_its_settings_baseline_credentials_and_service() -> None:
    made = value(f"host {GIVEN}")
    assert all(one["assertion"] for one in made["assertions"])
    etc = made["environment"]["etc"]
    settings = {"host_id": "front-desk", "leases": False, "mcp_poll_interval_sec": 60}
    assert etc["msp/agent.yaml"]["source"] == {"name": "agent.yaml", "value": settings}
    assert etc["msp/baseline.yaml"]["source"] == "/etc/baseline.yaml"
    assert made["systemd"]["packages"] == ["compliance-agent"]
    service = made["systemd"]["services"]["compliance-agent"]
    assert service["wantedBy"] == ["multi-user.target"]
    assert service["serviceConfig"] == {"LoadCredential": ["mcp_api_key:/var/lib/compliance-agent/keys/api-key"]}
    assert made["systemd"]["timers"]["compliance-agent-drill"] == {}


def test_a_host_without_it_gets_nothing() -> None:
    assert value("host { enable = false; }") == {}


def test_drills_are_weekly_where_they_are_wanted() -> None:
    made = value(f"host ({GIVEN} // {{ drills = true; }})")
    assert made["systemd"]["timers"]["compliance-agent-drill"] == {"wantedBy": ["timers.target"]}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ('{ mcp_api_kee = "/run/key"; }', "expected only"),
        ('{ mcp_api_key = builtins.storeDir + "/abc-key"; }', "everybody's to read"),
    ],
)
def test_a_credential_that_is_none_or_public_is_refused(wrong: str, said: str) -> None:
    made = value(f"host ({GIVEN} // {{ credentials = {wrong}; }})")
    refused = [one["message"] for one in made["assertions"] if not one["assertion"]]
    assert len(refused) == 1 and said in refused[0]


def test_the_credentials_are_those_that_the_agent_takes() -> None:
    for name in LOADED:
        made = value(f'host ({GIVEN} // {{ credentials.{name.removesuffix("_file")} = "/run/x"; }})')
        assert all(one["assertion"] for one in made["assertions"])
    text = (ROOT / "release/nix/module.nix").read_text("utf-8")
    assert text.split("credentials = [")[1].split("]")[0].split() == [
        f'"{name.removesuffix("_file")}"' for name in LOADED
    ]
