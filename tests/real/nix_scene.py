"""A NixOS-style host made of real nix, in a mount namespace of its own.

test_nix.py runs it as `unshare --mount python -m tests.real.nix_scene`. /nix and /run are empty tmpfs. Each system is a real
store path with a kernel in its closure and a `switch-to-configuration` that does what NixOS's does first: it points
/run/current-system at itself, unless it is told to fail. `systemd-run` and `nixos-version`, which need a booted NixOS, are two
small programs beside Debian's nix. Prints what was seen as one JSON object a line.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from compliance_agent.adapters.execute import DIRECTORIES
from compliance_agent.adapters.healing_store import HealingStore
from compliance_agent.adapters.open_databases import release, shared
from compliance_agent.adapters.subprocess_host import RealHost
from compliance_agent.baseline import Baseline, parse
from compliance_agent.config import AgentConfig
from compliance_agent.drift import DriftDetector
from compliance_agent.healing import HealingEngine
from compliance_agent.models import DriftResult

PROFILE = "/nix/var/nix/profiles/system"
RUNNING = Path("/run/current-system")
SWITCH = """#!/bin/sh
# `switch` and `test` make this system the running one; a system that is broken says so before it changes anything.
self=$(dirname "$(dirname "$(readlink -f "$0")")")
[ ! -e "$self/broken" ] || exit 1
ln -sfn "$self" /run/current-system
"""
SYSTEMD_RUN = '#!/bin/sh\nwhile [ "${1#-}" != "$1" ]; do shift; done\nexec "$@"\n'
NIXOS_VERSION = "#!/bin/sh\ncat /run/current-system/version.json\n"


def sh(*argv: str) -> str:
    done = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60)
    return done.stdout.strip()


def program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def system(root: Path, number: int, *, broken: bool = False) -> str:
    """A system in the store, whose closure holds a kernel of its own; selected as the newest generation."""
    kernel = root / f"kernel-{number}"
    kernel.write_text(f"kernel {number}")
    stored_kernel = sh("nix-store", "--add", str(kernel))
    tree = root / f"nixos-system-clinic-{number}"
    program(tree / "bin" / "switch-to-configuration", SWITCH)
    day = datetime.now(UTC) - timedelta(days=10 - number)
    document = {"nixosVersion": f"25.11.{day:%Y%m%d}.abc1234", "nixpkgsRevision": f"{number:040x}"}
    (tree / "version.json").write_text(json.dumps(document))
    (tree / "kernel").symlink_to(stored_kernel)
    if broken:
        (tree / "broken").touch()
    # A derivation, so that nix itself scans the result for references and registers the closure.
    expression = (
        f'derivation {{ name = "{tree.name}"; system = builtins.currentSystem; builder = "/bin/sh";'
        f' args = [ "-c" "/bin/cp -r {tree} $out" ]; kernel = builtins.storePath "{stored_kernel}"; }}'
    )
    path = sh(
        "nix-build",
        "--no-out-link",
        "--option",
        "sandbox",
        "false",
        "--option",
        "build-users-group",
        "",
        "-E",
        expression,
    )
    sh("nix-env", "-p", PROFILE, "--set", path)
    return path


class Host:
    """The real host and what the agent's stages make of it."""

    def __init__(self, root: Path) -> None:
        tools = root / "tools"
        program(tools / "systemd-run", SYSTEMD_RUN)
        program(tools / "nixos-version", NIXOS_VERSION)
        self.host = RealHost(directories=(str(tools), *DIRECTORIES))
        self.database = shared(root / "agent.db")
        self.config = AgentConfig(client_id="m", site_id="c", host_id="h", state_dir=root / "state")

    def baseline(self, **parameters: int) -> Baseline:
        inside = "".join(f", {name}: {value}" for name, value in parameters.items())
        return parse(
            f'version: "1"\nchecks:\n  patching: {{mode: enforce, parameters: {{manager: nixos{inside}}}}}\n'.encode()
        )

    async def look(self, baseline: Baseline) -> DriftResult:
        return await DriftDetector(self.config, host=self.host, baseline=baseline).check_one("patching")

    async def heal(self, baseline: Baseline) -> dict[str, Any]:
        """One cure at a time of day at which disruptive ones are allowed."""
        config = AgentConfig(
            client_id="m", site_id="c", host_id="h", state_dir=self.config.state_dir,
            maintenance_window_start="00:00", maintenance_window_end="23:59", healing_cooldown_sec=0,  # type: ignore[arg-type]
        )  # fmt: skip
        detector = DriftDetector(config, host=self.host, baseline=baseline)
        engine = HealingEngine(
            config, host=self.host, baseline=baseline, observe=detector.check_one, store=HealingStore(self.database)
        )
        result = await engine.remediate(await detector.check_one("patching"))
        return {"outcome": str(result.outcome), "reason": result.reason, "error": result.error, "now": where()}


def where() -> dict[str, str]:
    """What is selected and what runs."""
    return {"selected": str(Path(PROFILE).readlink()), "running": str(RUNNING.readlink())}


def say(name: str, what: Mapping[str, Any]) -> None:
    print(json.dumps({"scene": name, **what}))


def seen(result: DriftResult) -> dict[str, Any]:
    return {"result": str(result.result), "reason": result.reason, "facts": dict(result.pre_state)}


async def main() -> None:
    Path("/nix").mkdir(exist_ok=True)  # nix makes it where it runs first, which need not have been before
    for place in ("/nix", "/run"):
        subprocess.run(["mount", "-t", "tmpfs", "none", place], check=True)
    root = Path(tempfile.mkdtemp(dir="/run"))
    host = Host(root)
    paths = [system(root, number) for number in (1, 2, 3)]
    for name in ("current", "booted"):
        Path(f"/run/{name}-system").symlink_to(paths[2])
    say("paths", {"paths": paths, "closure": sh("nix-store", "--query", "--requisites", paths[2]).split()})
    say("as it should be", seen(await host.look(host.baseline())))

    sh("nix-env", "-p", PROFILE, "--switch-generation", "1")
    RUNNING.unlink()
    RUNNING.symlink_to(paths[0])
    say("an older one selected and running", seen(await host.look(host.baseline(min_generation=2))))
    say("healed", await host.heal(host.baseline(min_generation=2)))
    say("after", seen(await host.look(host.baseline(min_generation=2))))

    system(root, 4, broken=True)
    sh("nix-env", "-p", PROFILE, "--switch-generation", "3")
    say("the newest is broken", await host.heal(host.baseline(min_generation=4)))
    say("a newer one than asked for is no drift", seen(await host.look(host.baseline(min_generation=1))))
    release(host.database)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
