"""A day of an agent's life, 1,440 minutes of it, in seconds: what it holds at the end is what it held in the morning.

The agent, its loop, checks, healing, chain, queue and delivery are the real ones, on a real database; the host, the clock and the
server are the lab's. Faults come all day and are healed; for eight hours the server is away, and then takes what waited.
"""

from __future__ import annotations

import dataclasses
import gc
import itertools
import os
import sqlite3
import sys
import threading
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from compliance_agent.agent import ComplianceAgent
from compliance_agent.baseline import Baseline, load
from compliance_agent.cli.common import shipped_baseline
from compliance_agent.config import AgentConfig
from compliance_agent.crypto import Ed25519Signer
from compliance_agent.drift import DriftDetector
from compliance_agent.lab.clinic import healthy_host
from compliance_agent.lab.clock import FakeClock
from compliance_agent.lab.drift import FAULTS
from compliance_agent.lab.host import FakeHost
from compliance_agent.lab.server import FakeServer
from compliance_agent.mcp_client import MCPClient

pytestmark = pytest.mark.anyio
SEEN = ("time_sync", "firewall", "services", "auto_logoff")
DAY_S, HOUR_S = 86_400, 3_600
AWAY = range(6, 14)  # hours in which the server is not there
MOST_HELD_BYTES, MOST_WAL_BYTES = 128 * 1024, 8 * 1024 * 1024
OUTSIDE = (FakeServer, FakeHost, FakeClock, types.ModuleType, type, types.FrameType)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def _some(checks: tuple[str, ...]) -> Baseline:
    """The shipped baseline with these checks alone: a day of all sixteen costs four times as long and shows no more."""
    whole = load(shipped_baseline())
    return dataclasses.replace(whole, entries={name: whole.entries[name] for name in checks})


def held_bytes(agent: ComplianceAgent) -> int:
    """Size of all that can be reached from an agent and from the modules that it runs; the lab around it is not counted."""
    ours = [
        vars(module)
        for name, module in tuple(sys.modules.items())
        if name.startswith("compliance_agent")
        and not name.startswith(("compliance_agent.lab", "compliance_agent.server"))
    ]
    seen: set[int] = set()
    left: list[Any] = [agent, *ours]
    total = 0
    while left:
        item = left.pop()
        if id(item) in seen or isinstance(item, OUTSIDE):
            continue
        seen.add(id(item))
        total += sys.getsizeof(item)
        if isinstance(item, types.FunctionType):
            left.extend(item.__closure__ or ())
        else:
            left.extend(gc.get_referents(item))
    return total


@dataclass(frozen=True)
class Sample:
    """What an agent holds at one hour."""

    hour: int
    held: int
    descriptors: int
    threads: int
    wal: int


@dataclass
class Day:
    """One host, from midnight to midnight."""

    root: Path
    planted: Callable[[ComplianceAgent], None] = lambda _: None  # done in every iteration
    samples: list[Sample] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.clock, self.server = FakeClock(), FakeServer()
        self.host = healthy_host(1, self.clock)
        config = AgentConfig(
            client_id="msp-1", site_id="clinic-1", host_id="srv-1", state_dir=self.root / "state",
            baseline_path=self.root / "baseline.yaml", mcp_url="https://mcp.example.com", mcp_poll_interval_sec=60, events=False,
        )  # fmt: skip
        signer = Ed25519Signer(config.signing_key_file)
        self.config = self.server.enrolled(config, signer)
        detector = DriftDetector(self.config, host=self.host, baseline=_some(SEEN), clock=self.clock)
        self.agent = ComplianceAgent(
            self.config, signer=signer, drift_detector=detector, clock=self.clock, mcp_client=None
        )
        self.agent.mcp_client = MCPClient(
            self.config, signer.key_id, transport=self.server, clock=self.clock, on_ack=self.agent.delivery.keep_ack
        )
        by_check = [[fault for fault in FAULTS.values() if fault.heals and fault.check == name] for name in SEEN]
        self.faults = [fault for several in itertools.zip_longest(*by_check) for fault in several if fault is not None]

    async def lived(self, hours: int = 24) -> None:
        """The agent's own loop, through so many hours."""
        began, iterate, due = self.clock.monotonic(), self.agent._run_iteration, 0

        async def minute() -> None:
            nonlocal due
            passed = self.clock.monotonic() - began
            hour = int(passed // HOUR_S)
            self.server.down = hour in AWAY
            if passed // 2_400 >= due:  # something goes wrong every 40 minutes, where nothing is wrong already
                well = {drift.check for drift in self.agent.latest if not drift.drifted}
                fault = self.faults[due % len(self.faults)]
                if fault.check in well:
                    fault.inject(self.host)
                due += 1
            try:
                await iterate()
            finally:
                if passed >= hours * HOUR_S:
                    self.agent.shutdown_event.set()
            self.planted(self.agent)
            if hour > len(self.samples):
                self._sample(hour)

        self.agent._run_iteration = minute  # type: ignore[method-assign]
        await self.agent.start(handle_signals=False)

    def _sample(self, hour: int) -> None:
        gc.collect()
        wal = self.config.database_path.with_name("agent.db-wal")
        descriptors = len(list(Path("/proc/self/fd").iterdir()))
        size = wal.stat().st_size if wal.exists() else 0
        self.samples.append(Sample(hour, held_bytes(self.agent), descriptors, threading.active_count(), size))


def grown(samples: list[Sample]) -> list[str]:
    """What became more between the first hours, when all has been seen once, and the end."""
    early, late = samples[1:4], samples[-3:]
    found = []
    if min(one.held for one in late) - max(one.held for one in early) > MOST_HELD_BYTES:
        found.append("memory")
    if min(one.descriptors for one in late) > max(one.descriptors for one in early):
        found.append("descriptors")
    if min(one.threads for one in late) > max(one.threads for one in early):
        found.append("threads")
    if max(one.wal for one in samples) > MOST_WAL_BYTES:
        found.append("wal")
    return found


async def test_a_day_leaves_nothing_behind(tmp_path: Path) -> None:
    day = Day(tmp_path)
    await day.lived()
    assert len(day.samples) == 24
    assert grown(day.samples) == [], day.samples
    assert day.agent.stats["loops_completed"] >= 1_300, "a day has 1,440 minutes"
    outcomes = [held.document["outcome"] for held in day.server.stored() if held.document["kind"] == "remediation"]
    assert outcomes.count("success") >= 20, outcomes
    assert day.agent.stats["evidence_generated"] == len(day.server.stored()), "what waited for the server has arrived"


async def test_planted_leaks_are_seen(tmp_path: Path) -> None:
    """A thing kept for each minute, a descriptor that is not closed, and a reader that keeps the WAL from starting anew."""
    kept: list[bytes] = []
    opened: list[int] = []
    reader: list[sqlite3.Connection] = []

    def plant(agent: ComplianceAgent) -> None:
        agent.stray = kept  # type: ignore[attr-defined]
        kept.append(bytes(1_024))
        if len(kept) % 10 == 0:
            opened.append(os.open(os.devnull, os.O_RDONLY))
        if not reader:
            reader.append(sqlite3.connect(agent.config.database_path, isolation_level=None))
            reader[0].execute("BEGIN")
            reader[0].execute("SELECT count(*) FROM evidence").fetchone()

    day = Day(tmp_path, plant)
    try:
        await day.lived(hours=9)
    finally:
        for descriptor in opened:
            os.close(descriptor)
        for connection in reader:
            connection.close()
    assert grown(day.samples) == ["memory", "descriptors", "wal"], day.samples
