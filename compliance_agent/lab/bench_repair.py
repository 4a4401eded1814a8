"""P6, inside the booted host of `BENCH=agent`: ten of 200 files have drifted; find and repair them, by the agent and by cf-agent.

    /usr/lib/compliance-agent/bin/python3 -I -m compliance_agent.lab.bench_repair FILE PLACE

No check of ours puts a listed file's bytes back, so what drifts is the mode, for both: 200 private keys of `transmission` that
others may read. Ours looks at all of them, opens its transaction, sets each mode, re-reads it, looks at everything once more and
has the signed record durable in PLACE, a file system that syncs. Its check also asks a TLS server at each look, which
cf-agent does not; the server's own time is not counted. Seconds of processor time, programs that were started included.
"""

from __future__ import annotations

import asyncio
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from compliance_agent.agent import ComplianceAgent
from compliance_agent.config import AgentConfig
from compliance_agent.errors import Unavailable
from compliance_agent.lab.bench_heal import SETTINGS, put
from compliance_agent.logs import configure

KEYS, FILES, DRIFTED, RUNS = Path("/srv/keys"), 200, 10, 7
OPEN, CLOSED, PORT = 0o644, 0o640, 8443
POLICY = f"""
bundle agent main {{ files: "{KEYS}" depth_search => deep, perms => closed; }}
body depth_search deep {{ depth => "inf"; }}
body perms closed {{ mode => "{CLOSED:o}"; }}
"""


def furnish(place: Path) -> tuple[list[Path], subprocess.Popen[bytes]]:
    """The keys, and a server that shows a certificate of its own."""
    KEYS.mkdir(parents=True, exist_ok=True)
    files = [KEYS / f"key-{number:03}" for number in range(FILES)]
    for path in files:
        path.write_bytes(os.urandom(4096))
        path.chmod(CLOSED)
    certificate, key = place / "server.pem", place / "server.key"
    subprocess.run(
        ("/usr/bin/openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "90", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)),
        check=True, capture_output=True,
    )  # fmt: skip
    quiet: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    words = ("/usr/bin/openssl", "s_server", "-accept", str(PORT), "-cert", str(certificate), "-key", str(key), "-www")
    return files, subprocess.Popen(words, **quiet)


def drift(files: list[Path]) -> None:
    """Every twentieth key is open to all."""
    for path in files[:: FILES // DRIFTED]:
        path.chmod(OPEN)


def all_closed(files: list[Path]) -> bool:
    """Whether every key has its mode."""
    return all(path.stat().st_mode & 0o777 == CLOSED for path in files)


def programs_s() -> float:
    """Processor time of what this process started, so far."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return children.ru_utime + children.ru_stime


def cf_agent_s(place: Path, files: list[Path]) -> float:
    """Least processor time of a few repairs.

    Raises:
        Unavailable: it did not repair all.
    """
    policy = place / "keys.cf"
    policy.write_text(POLICY, "ascii")
    policy.chmod(0o600)
    found = []
    for _ in range(RUNS):
        drift(files)
        before = programs_s()
        subprocess.run(("/usr/bin/cf-agent", "--no-lock", "--file", str(policy)), check=True, capture_output=True)
        found.append(programs_s() - before)
        if not all_closed(files):
            raise Unavailable("bench agent: cf-agent did not repair every file, so nothing can be compared")
    return min(found)


def agent_of(place: Path, files: list[Path]) -> ComplianceAgent:
    """An agent without a server that may cure again and again."""
    certificate = str(place / "server.pem")
    listed: dict[str, Any] = {"endpoints": [f"localhost:{PORT}"], "certificates": [certificate], "ca_file": certificate}
    listed["keys"] = [str(path) for path in files]
    checks = {"transmission": {"mode": "enforce", "interval_s": 60, "parameters": listed}}
    baseline = place / "keys.yaml"
    baseline.write_text(yaml.safe_dump({"version": "2026.11.1", "mode": "enforce", "checks": checks}), "utf-8")
    own = SETTINGS | {"BASELINE_PATH": str(baseline), "STATE_DIR": str(place / "repair")}
    os.environ.update({f"MSP_{name}": value for name, value in own.items()})
    return ComplianceAgent(AgentConfig.from_env())


async def ours_s(place: Path, files: list[Path]) -> tuple[float, float]:
    """Median processor time of a resident agent's cycle that finds, repairs and records, and of the programs that it starts.

    The first cycle is not counted.

    Raises:
        Unavailable: it did not repair all.
    """
    agent = agent_of(place, files)
    own, programs = list[float](), list[float]()
    try:
        for _ in range(RUNS + 1):
            drift(files)
            agent.drift_detector.due_again(agent.drift_detector.baseline.entries)
            own_before, programs_before = time.process_time(), programs_s()
            await agent._run_iteration()
            own.append(time.process_time() - own_before)
            programs.append(programs_s() - programs_before)
            if not all_closed(files):
                raise Unavailable(f"bench agent: not every key was closed again: {agent.latest}")
    finally:
        await agent.close()
    return statistics.median(own[1:]), statistics.median(programs[1:])


def measured(place: Path) -> dict[str, float]:
    """Seconds of processor time: `agent`, `programs` that it started, `cf-agent`."""
    files, server = furnish(place)
    try:
        cf_agent, (agent, programs) = cf_agent_s(place, files), asyncio.run(ours_s(place, files))
        return {"cf-agent": cf_agent, "agent": agent, "programs": programs}
    finally:
        server.terminate()
        server.wait(10)


if __name__ == "__main__":
    configure("CRITICAL")
    put(Path(sys.argv[1]), measured(Path(sys.argv[2])))
