"""What runs inside the booted host of `BENCH=agent`: the same work by the agent and by its peers, one after the other.

    /usr/lib/compliance-agent/bin/python3 -I -m compliance_agent.lab.bench_probe FILE IDLE_S

W1 is 200 files of 4 KiB (content and mode), W2 20 active units, W3 one nftables ruleset. Seconds of processor time, programs that
were started included, go to FILE as one JSON object; `bench_peers` makes ratios of them. What a peer cannot do here is left out.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import resource
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from compliance_agent.adapters.nft_library import NftLibrary
from compliance_agent.adapters.subprocess_host import RealHost
from compliance_agent.agent import ComplianceAgent
from compliance_agent.checks.openscap import Parameters, command
from compliance_agent.config import AgentConfig
from compliance_agent.core import nftables
from compliance_agent.lab.bench_heal import put
from compliance_agent.lab.real.rows import openscap
from compliance_agent.logs import configure
from compliance_agent.transport.http import HttpTransport

W1, FILES, UNITS = Path("/srv/w1"), 200, 20
PLACE = Path("/root/bench")
SETTLED_S = 150.0  # more than adapters/undisturbed.py asks for
HEAP = {  # as the agent's unit has it
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "131072",
    "MALLOC_TRIM_THRESHOLD_": "131072",
}
MONIT_S, CYCLES, RUNS, UPLOADS = 15.0, 20, 5, 300
CF_POLICY = f"""
bundle agent main {{ files: "{W1}" depth_search => deep, changes => content, perms => readable; }}
body depth_search deep {{ depth => "inf"; }}
body changes content {{ hash => "md5"; report_changes => "content"; update_hashes => "no"; }}
body perms readable {{ mode => "644"; }}
"""
_RECORDED = "SELECT check_id, result, reason FROM recorded ORDER BY check_id"
ECHO = """
import http.server
class Echo(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200); self.send_header("content-length", "2"); self.end_headers(); self.wfile.write(b"{}")
    def log_message(self, *words): pass
http.server.HTTPServer(("127.0.0.1", 8099), Echo).serve_forever()
"""
HTTPX = f"""
import asyncio, httpx, time
async def main():
    async with httpx.AsyncClient() as client:
        await client.post("http://127.0.0.1:8099/", content=b"x" * 2048)
        before = time.process_time()
        for _ in range({UPLOADS}):
            await client.post("http://127.0.0.1:8099/", content=b"x" * 2048)
        print((time.process_time() - before) / {UPLOADS})
asyncio.run(main())
"""


def furnish() -> list[Path]:
    """W1, W2 and W3; the files."""
    for directory in (W1, PLACE):
        directory.mkdir(parents=True, exist_ok=True)
    files = [W1 / f"file-{number:03}" for number in range(FILES)]
    for number, path in enumerate(files):
        path.write_bytes(hashlib.sha256(str(number).encode()).digest() * 128)
        path.chmod(0o644)
    units = [f"w2-{number:02}.service" for number in range(UNITS)]
    for unit in units:
        Path("/etc/systemd/system", unit).write_text(
            "[Service]\nExecStart=/bin/sleep infinity\n[Install]\nWantedBy=multi-user.target\n", "ascii"
        )
    must("systemctl", "daemon-reload")
    must("systemctl", "enable", "--now", *units)
    subprocess.run(("nft", "-f", "-"), input=nftables.generate(("22", "443"), ("546",)).encode(), check=True)
    return files


def must(*words: str) -> str:
    """The output of a program that has to end with status 0."""
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def cpu_of(*words: str, runs: int = RUNS) -> float:
    """Least processor time of a few runs of a program."""
    found = []
    for _ in range(runs):
        before = _children_s()
        subprocess.run(words, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        found.append(_children_s() - before)
    return min(found)


async def cpu_here(work: Callable[[], Awaitable[Any]], runs: int = CYCLES, times: int = 1) -> float:
    """Median processor time of a piece of work in this process, with what it starts; the first one is not counted.

    Reading the clocks takes some microseconds: what takes no more is done so many `times` between two readings.
    """
    found = []
    for _ in range(runs + 1):
        before = time.process_time() + _children_s()
        for _ in range(times):
            await work()
        found.append((time.process_time() + _children_s() - before) / times)
    return statistics.median(found[1:])


def cpu_of_pid(pid: int) -> float:
    """Processor time of all threads of a process so far, and of the children it waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return own_cpu_of_pid(pid) + (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")


def own_cpu_of_pid(pid: int) -> float:
    """Processor time of all its threads that are there."""
    return sum(int(path.read_text("ascii").split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


def pss_of(pid: int) -> int:
    """Proportional share of memory, bytes."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def monit_config(name: str, every_s: int, files: Sequence[Path]) -> Path:
    """Monit's own file for these checks."""
    path = PLACE / name
    lines = [f"set daemon {every_s}", f"set idfile {path}.id", f"set statefile {path}.state", f"set pidfile {path}.pid"]
    for file in files:
        digest = hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()  # what monit compares by default
        lines.append(f"check file {file.name} with path {file}")
        lines.append(
            f'  if failed checksum and expect the sum "{digest}" then alert\n  if failed permission 644 then alert'
        )
    path.write_text("\n".join(lines) + "\n", "ascii")
    path.chmod(0o600)
    return path


def monit_cycle_s(files: Sequence[Path]) -> float:
    """Processor time of one cycle of a resident monit."""
    monit = subprocess.Popen(("monit", "-I", "-c", str(monit_config("w1.monit", 1, files))), stdout=subprocess.DEVNULL)
    try:
        time.sleep(3)  # it starts its first cycle
        before, started = cpu_of_pid(monit.pid), time.monotonic()
        time.sleep(MONIT_S)  # real time is what is measured
        return (cpu_of_pid(monit.pid) - before) / (time.monotonic() - started)  # a cycle a second
    finally:
        monit.terminate()
        monit.wait(15)


def cf_agent_s() -> float:
    """Processor time of cf-agent over W1; its first run, which takes the digests down, is not counted."""
    policy = PLACE / "w1.cf"
    policy.write_text(CF_POLICY, "ascii")
    policy.chmod(0o600)
    words = ("cf-agent", "--no-lock", "--file", str(policy))
    must(*words)
    return cpu_of(*words)


def agent_config(name: str, checks: dict[str, Any]) -> AgentConfig:
    """An agent without a server, and its baseline."""
    baseline = PLACE / f"{name}.yaml"
    baseline.write_text(yaml.safe_dump({"version": "2026.11.1", "mode": "audit", "checks": checks}), "utf-8")
    own = {"MSP_CLIENT_ID": "bench", "MSP_SITE_ID": "bench", "MSP_HOST_ID": "bench", "MSP_BASELINE_PATH": str(baseline)}
    os.environ.update(own | {"MSP_STATE_DIR": str(PLACE / name)})
    return AgentConfig.from_env()


def same_work(files: Sequence[Path]) -> dict[str, Any]:
    """W1, W2 and W3 as checks."""
    manifest = PLACE / "files.sha256"
    manifest.write_text(
        "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path}\n" for path in files), "ascii"
    )
    listed = {"manifest": str(manifest), "manifest_sha256": hashlib.sha256(manifest.read_bytes()).hexdigest()}
    return {
        "file_integrity": {"parameters": listed},
        "services": {"parameters": {"active": [f"w2-{number:02}.service" for number in range(UNITS)]}},
        "firewall": {"parameters": {"allow_tcp": ["22", "443"], "allow_udp": ["546"]}},
    }


async def ours_cycle(files: Sequence[Path], *, anew: bool) -> tuple[float, float, dict[str, str]]:
    """Median processor and wall time of a whole cycle with a signed, durable heartbeat, and the verdicts.

    `anew` has every byte re-read.
    """
    agent = ComplianceAgent(agent_config("cycle", same_work(files)))
    walls = []

    async def cycle() -> None:
        started = time.perf_counter()
        if anew:
            agent.drift_detector.host.read_anew()
        agent.drift_detector.due_again(agent.drift_detector.baseline.entries)
        agent._state._moments["heartbeat"] = datetime(2020, 1, 1, tzinfo=UTC)  # in memory: no agent writes that
        await agent._run_iteration()
        await agent._heartbeat_if_due()
        walls.append(time.perf_counter() - started)

    try:
        spent = await cpu_here(cycle)
        verdicts = {result.check: str(result.result) for result in agent.latest}
    finally:
        await agent.close()
    return spent, statistics.median(walls), verdicts


async def listed_anew(host: RealHost) -> None:
    """The ruleset, every rule of it."""
    host.read_anew()
    await host.ruleset()


async def run_all(words: Sequence[Sequence[str]]) -> None:
    """Programs by asyncio, the usual way, all at once."""

    async def one(argv: Sequence[str]) -> None:
        child = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)
        await child.communicate()

    await asyncio.gather(*(one(argv) for argv in words))


async def uploads(figures: dict[str, Any]) -> None:
    """P11: one request of 2 KB on a kept connection."""
    echo = await asyncio.create_subprocess_exec(sys.executable, "-I", "-c", ECHO)
    try:
        await asyncio.sleep(1)
        transport = HttpTransport("http://127.0.0.1:8099")
        await transport.request("POST", "/", body=b"x" * 2048)
        before = time.process_time()
        for _ in range(UPLOADS):
            await transport.request("POST", "/", body=b"x" * 2048)
        figures["upload_s"] = (time.process_time() - before) / UPLOADS
        await transport.close()
        figures["httpx_s"] = float(await asyncio.to_thread(must, "/usr/bin/python3", "-c", HTTPX))
    finally:
        echo.terminate()
        await echo.wait()


def seen_by(config: AgentConfig) -> dict[str, str]:
    """What an agent has recorded of each check: one that could not look costs less than one that did."""
    with contextlib.closing(sqlite3.connect(f"file:{config.database_path}?mode=ro", uri=True)) as connection:
        return {name: f"{result}: {reason}" for name, result, reason in connection.execute(_RECORDED)}


def every_check(root: Path = Path("/"), interval_s: int | None = 60) -> dict[str, Any]:
    """All 16 checks, none of which changes anything: those of the shipped baseline, and `openscap` with the content that stands
    below `root`. `interval_s`: None for each check's own.
    """
    import compliance_agent

    shipped = Path(compliance_agent.__file__).parent / "baselines" / "clinic-linux.yaml"
    entries = dict(yaml.safe_load(shipped.read_text("utf-8"))["checks"])
    given = openscap.TABLE.entry["parameters"]
    pin = hashlib.sha256((root / given["content"].lstrip("/")).read_bytes()).hexdigest()
    entries["openscap"] = {"deadline_s": 50, "parameters": {**given, "content_sha256": pin}}
    often = {} if interval_s is None else {"interval_s": interval_s}
    return {name: {**entry, **often, "mode": "audit"} for name, entry in entries.items()}


def oscap_s(parameters: Mapping[str, Any]) -> float:
    """Processor time of one evaluation, by the program alone."""
    return cpu_of(*command(Parameters(**parameters)), runs=2)


def idle(seconds: float, files: Sequence[Path]) -> dict[str, Any]:
    """Memory and processor time a minute of the agent with every check and of its peers, all idle, at once."""
    must("sh", "-c", openscap.TABLE.setup.rpartition("\n")[0])
    every = every_check()
    config = agent_config("idle", every)
    config.state_dir.mkdir(exist_ok=True)
    commands = {
        "run": (sys.executable, "-I", "-m", "compliance_agent", "run"),
        "monit": ("monit", "-I", "-c", str(monit_config("one.monit", 60, files[:1]))),
        "cf-execd": ("cf-execd", "--no-fork"),
        "puppet": ("puppet", "agent", "--no-daemonize", "--server", "localhost", "--waitforcert", "60"),
    }
    as_units = os.environ | HEAP
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    running = {
        name: subprocess.Popen(words, env=as_units if name == "run" else None, **quiet)
        for name, words in commands.items()
    }
    try:
        time.sleep(min(130.0, seconds))  # what they do at their start is not idle, nor is ours at its second look
        before = {name: cpu_of_pid(child.pid) for name, child in running.items() if child.poll() is None}
        own = own_cpu_of_pid(running["run"].pid) if "run" in before else 0.0
        time.sleep(seconds)  # real time is what is measured
        lived = {name: running[name].pid for name in before if running[name].poll() is None}
        return {
            name: {"pss": pss_of(pid), "cpu_s_a_minute": (cpu_of_pid(pid) - before[name]) * 60 / seconds}
            for name, pid in lived.items()
        } | {
            "checks": len(every),
            "seconds": seconds,
            "seen": seen_by(config),
            "own_cpu_s_a_minute": (own_cpu_of_pid(lived["run"]) - own) * 60 / seconds if "run" in lived else None,
            "oscap_s": oscap_s(every["openscap"]["parameters"]),
        }
    finally:
        for child in running.values():
            child.terminate()
        for child in running.values():
            child.wait(30)


class Kept(dict[str, Any]):
    """Figures that are in a file as soon as they are there."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._file = file

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, value)
        put(self._file, self)


async def measured(idle_s: float, file: Path) -> None:
    """Everything, in turn; what there is so far is in the file."""
    files = furnish()
    settled = time.monotonic() + SETTLED_S
    figures = Kept(file)
    figures["monit_w1_s"], figures["cf_agent_w1_s"] = monit_cycle_s(files), cf_agent_s()
    figures["cycle_s"], figures["cycle_wall_s"], figures["verdicts"] = await ours_cycle(files, anew=True)
    host, units = RealHost(nft=NftLibrary(PLACE / "nft.mark")), [f"w2-{number:02}.service" for number in range(UNITS)]
    figures["units_s"] = await cpu_here(lambda: host.units(units))
    figures["systemctl_s"] = await cpu_here(lambda: run_all([("systemctl", "is-active", unit) for unit in units]), RUNS)
    figures["ruleset_s"] = await cpu_here(lambda: listed_anew(host))
    figures["ruleset_same_s"] = await cpu_here(host.ruleset, times=100)
    figures["nft_s"] = await cpu_here(lambda: run_all([("nft", "list", "ruleset")]))
    await uploads(figures)
    python = (sys.executable, "-I")
    figures["python_s"] = cpu_of(*python, "-c", "pass")
    figures["import_s"] = cpu_of(*python, "-c", "import compliance_agent.agent") - figures["python_s"]
    figures["help_s"] = cpu_of(*python, "-m", "compliance_agent", "--help")
    plain = cpu_of("/usr/bin/python3", "-c", "pass")
    figures["peer_import_s"] = cpu_of("/usr/bin/python3", "-c", "import aiohttp, pydantic, cryptography.x509") - plain
    await asyncio.sleep(max(0.0, settled - time.monotonic()))  # what was touched just now is read at every look
    figures["unchanged_s"], figures["unchanged_wall_s"], _ = await ours_cycle(files, anew=False)
    figures["idle"] = await asyncio.to_thread(idle, idle_s, files) if idle_s else {}


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    configure("CRITICAL")
    for peer in ("monit", "cfengine3", "puppet"):  # none of them beside what is measured
        subprocess.run(("systemctl", "stop", peer), check=False, capture_output=True)
    asyncio.run(measured(float(sys.argv[2]), Path(sys.argv[1])))
