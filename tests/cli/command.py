"""Runs the command as a person does: its own process, a clean environment, a deadline."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cli.warm import Warm

WARM = Warm()
DEADLINE_S = 30.0
WHOLE_HOST_S = 300.0  # of a look at all of this machine, for which dpkg reads every file: file_integrity's own deadline
_TRACE = re.compile(r"Traceback|File \"|^\s+at ", re.MULTILINE)


@dataclass(frozen=True)
class Ended:
    """What a command left."""

    status: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The one line of a refusal."""
        (line,) = self.err.splitlines()
        return line


def environment(**more: str) -> dict[str, str]:
    """This process's own, without anything that steers the agent."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("MSP_") and key != "NO_COLOR"}
    return {**kept, **more}


def run(*words: str | Path, env: dict[str, str] | None = None, deadline_s: float = DEADLINE_S, **options: Any) -> Ended:
    """`compliance-agent WORDS`; a traceback anywhere is a failure of the test."""
    done = None
    if words[0] == "server" and not env and not options:
        done = WARM.run([*map(str, words)], environment(), deadline_s)
    if done is None:
        done = subprocess.run(
            [sys.executable, "-m", "compliance_agent", *map(str, words)],
            capture_output=True,
            timeout=deadline_s,
            env=environment(**(env or {})),
            check=False,
            **options,
        )
    ended = Ended(done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace"))
    assert not _TRACE.search(ended.out + ended.err), ended.out + ended.err
    return ended


def configured(root: Path, *, baseline: str | None = None, **settings: Any) -> Path:
    """A configuration file with its baseline, of a host without a server."""
    (root / "baseline.yaml").write_text(baseline or 'version: "1"\nchecks:\n  time_sync: {mode: audit}\n')
    (root / "baseline.yaml").chmod(0o600)
    values = {
        "client_id": "msp-1",
        "site_id": "clinic-1",
        "host_id": "srv-1",
        "state_dir": "state",
        "baseline_path": "baseline.yaml",
        **settings,
    }
    path = root / "agent.yaml"
    path.write_text("".join(f"{key}: {value}\n" for key, value in values.items()))
    path.chmod(0o600)
    return path
