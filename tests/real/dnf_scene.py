"""A host of real dnf and rpm, in a mount namespace of its own, with a repository that holds a security update.

test_dnf.py runs it as `unshare --mount python -m tests.real.dnf_scene`. dnf's and rpm's own places are empty tmpfs, so the machine
is left as it is. Prints what was seen as one JSON object a line.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from compliance_agent.adapters.healing_store import HealingStore
from compliance_agent.adapters.open_databases import release, shared
from compliance_agent.adapters.subprocess_host import RealHost
from compliance_agent.baseline import parse
from compliance_agent.config import AgentConfig
from compliance_agent.drift import DriftDetector
from compliance_agent.healing import HealingEngine

OWN = ("/etc/yum.repos.d", "/etc/dnf", "/etc/rpm", "/var/cache/dnf", "/var/lib/dnf", "/var/lib/rpm", "/run")
CACHE = Path("/var/cache/dnf")
REPOSITORY = Path("/run/repository")
LOCKS = {"reads": CACHE / "metadata_lock.pid", "installs": Path("/var/lib/dnf/rpmdb_lock.pid")}
RECIPE = """Name: {name}
Version: {version}
Release: 1
Summary: made for a test
License: none
BuildArch: noarch
%description
made for a test
%install
mkdir -p %{{buildroot}}/run/installed
echo {version} >%{{buildroot}}/run/installed/{name}
{script}
%files
/run/installed/{name}
"""
ADVISORY = """<update from="lab" status="final" type="security" version="1"><id>{id}</id><title>t</title>
<issued date="2026-11-01 00:00:00"/><severity>Important</severity><description>d</description>
<pkglist><collection short="lab"><name>lab</name>
<package name="{name}" version="{version}" release="1" epoch="0" arch="noarch" src="{name}-{version}-1.src.rpm">
<filename>{name}-{version}.rpm</filename></package></collection></pkglist></update>"""
BASELINE = parse(b'version: "1"\nchecks:\n  patching: {mode: enforce, parameters: {manager: dnf}}\n')


def sh(*argv: str) -> str:
    done = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60)
    return done.stdout.strip()


def package(name: str, version: str, *, script: str = "") -> None:
    recipe = Path(f"/run/{name}.spec")
    recipe.write_text(RECIPE.format(name=name, version=version, script=script))
    sh(
        "rpmbuild", "-bb", "--quiet", "--define", "_topdir /run/build", "--define", f"_rpmdir {REPOSITORY}",
        "--define", "_rpmfilename %{NAME}-%{VERSION}.rpm", str(recipe),
    )  # fmt: skip


def publish(*advisories: tuple[str, str, str]) -> None:
    """The repository as it now is, with these advisories (id, package, version) and one that nobody here needs."""
    notes = [ADVISORY.format(id=id_, name=name, version=version) for id_, name, version in advisories]
    notes.append(ADVISORY.format(id="LABSA-2026:0000", name="absent", version="9"))
    Path("/run/updateinfo.xml").write_text(f'<?xml version="1.0"?>\n<updates>{"".join(notes)}</updates>\n')
    sh("createrepo_c", "-q", str(REPOSITORY))
    sh("modifyrepo_c", "/run/updateinfo.xml", str(REPOSITORY / "repodata"))


def aged(days: int) -> None:
    """Every file of dnf's cache as if the last look had been so long ago."""
    then = (datetime.now(UTC) - timedelta(days=days)).timestamp()
    for path in CACHE.rglob("*"):
        os.utime(path, (then, then))


class Clinic:
    """The real host and what the agent's stages make of it; each cure as if no other had been tried."""

    def __init__(self, root: Path) -> None:
        self.host, self.root, self.cures = RealHost(), root, 0
        self.config = AgentConfig(
            client_id="m", site_id="c", host_id="h", state_dir=root / "state",
            maintenance_window_start="00:00", maintenance_window_end="23:59", healing_cooldown_sec=0,  # type: ignore[arg-type]
        )  # fmt: skip
        self.detector = DriftDetector(self.config, host=self.host, baseline=BASELINE)

    async def look(self, name: str) -> None:
        result = await self.detector.check_one("patching")
        say(name, {"result": str(result.result), "reason": result.reason, "facts": dict(result.pre_state)})

    async def heal(self, name: str) -> None:
        self.cures += 1
        database = shared(self.root / f"agent-{self.cures}.db")
        engine = HealingEngine(
            self.config, host=self.host, baseline=BASELINE, observe=self.detector.check_one, store=HealingStore(database)
        )  # fmt: skip
        found = await engine.remediate(await self.detector.check_one("patching"))
        release(database)
        installed = sorted(sh("rpm", "-qa", "--qf", "%{NAME}-%{VERSION}\n").split())
        say(name, {"outcome": str(found.outcome), "reason": found.reason, "error": found.error, "installed": installed})


def say(name: str, what: Mapping[str, Any]) -> None:
    print(json.dumps({"scene": name, **what}))


def prepare() -> Path:
    for place in OWN:
        Path(place).mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "none", place], check=True)
    Path("/etc/rpm/macros").write_text("%_dbpath /var/lib/rpm\n")  # where Red Hat has it; Debian's rpm keeps it at home
    Path("/etc/dnf/dnf.conf").write_text("[main]\nplugins=0\n")
    Path("/etc/yum.repos.d/lab.repo").write_text(f"[lab]\nname=lab\nbaseurl=file://{REPOSITORY}\ngpgcheck=0\n")
    REPOSITORY.mkdir()
    return Path(tempfile.mkdtemp(dir="/run"))


async def main() -> None:
    clinic = Clinic(prepare())
    for name in ("widget", "gadget"):
        package(name, "1.0")
    publish()
    sh("dnf", "-q", "-y", "install", "widget", "gadget")
    await clinic.look("up to date")

    aged(5)
    await clinic.look("nobody looked for days")
    await clinic.heal("looked again, no news")
    await clinic.look("after that")

    for name in ("widget", "gadget"):
        package(name, "1.1")
    publish(("LABSA-2026:0001", "widget", "1.1"))
    await clinic.look("published, and not yet known")
    sh("dnf", "-q", "makecache", "--refresh")
    await clinic.look("known")
    LOCKS["reads"].write_text(str(os.getpid()))
    await clinic.look("another dnf reads")
    LOCKS["reads"].unlink()
    LOCKS["installs"].write_text(str(os.getpid()))
    await clinic.heal("another dnf installs")
    LOCKS["installs"].unlink()
    moved = REPOSITORY.rename("/run/away")
    await clinic.heal("the repository does not answer")
    moved.rename(REPOSITORY)
    await clinic.heal("installed")
    await clinic.look("after the update")

    package("widget", "1.2", script="%pre\nexit 1")
    publish(("LABSA-2026:0001", "widget", "1.1"), ("LABSA-2026:0002", "widget", "1.2"))
    sh("dnf", "-q", "makecache", "--refresh")
    await clinic.heal("the package refuses")

    for path in CACHE.iterdir():
        subprocess.run(["rm", "-r", str(path)], check=True)
    await clinic.look("no cache")
    sh("createrepo_c", "-q", str(REPOSITORY))
    sh("dnf", "-q", "makecache")
    await clinic.look("no advisories announced")


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
