"""A check that hangs, in whatever way and whatever it reads, keeps no other check waiting: the figure of R13, 2 s.

Every check of the shipped baseline, with each kind of call that it makes of its host hanging in turn, on a loop whose time passes
by itself; then the ways that only a kernel has, with real programs.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import inspect
import os
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from compliance_agent import rounds
from compliance_agent.adapters.subprocess_host import RealHost
from compliance_agent.baseline import Baseline, Entry, load
from compliance_agent.checks import registry
from compliance_agent.cli.common import shipped_baseline
from compliance_agent.config import AgentConfig
from compliance_agent.drift import DriftDetector
from compliance_agent.lab.clinic import healthy_host
from compliance_agent.lab.clock import START, FakeClock
from compliance_agent.models import DriftResult, Mode, Result
from compliance_agent.ports import Host
from tests.contract.test_real_host import bin_dir, frozen, real, script  # noqa: F401  fixtures
from tests.test_drift import Parameters, Seen, toy

MOST_S = 2.0  # of delay for others, and beyond its deadline for the one that hangs
ASKED = {name for name, way in vars(Host).items() if inspect.iscoroutinefunction(way)}  # the port's ways to look
CONFIG = AgentConfig(client_id="c", site_id="s", host_id="h", state_dir=Path("/nonexistent"))
Way = Callable[[asyncio.Event], Awaitable[None]]


class Loop(asyncio.SelectorEventLoop):
    """A loop in which nobody waits: when all sleep, it is the next one's time."""

    passed = 0.0

    def time(self) -> float:
        return self.passed

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]
            self.passed = max(self.passed, self._scheduled[0].when())  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]


class LoopClock(FakeClock):
    """The same time for those who ask a clock."""

    def __init__(self, loop: Loop) -> None:
        super().__init__()
        self._loop = loop

    def now(self) -> datetime:
        return START + timedelta(seconds=self._loop.passed)

    def monotonic(self) -> float:
        return 1_000.0 + self._loop.passed

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


async def never(_over: asyncio.Event) -> None:
    """It takes its cancellation, as a read in a thread that is given up does."""
    await asyncio.Event().wait()


async def deaf(over: asyncio.Event) -> None:
    """It does not take it, as what sleeps in the kernel does not."""
    while not over.is_set():
        with contextlib.suppress(asyncio.CancelledError):
            await over.wait()


@dataclass(eq=False)
class Hung:
    """A host of which one kind of call hangs; the kinds that were asked are noted."""

    host: Any
    kind: str
    way: Way
    over: asyncio.Event
    asked: set[str] = dataclasses.field(default_factory=set)

    def __getattr__(self, name: str) -> Any:
        if name in ASKED:
            self.asked.add(name)
        if name != self.kind:
            return getattr(self.host, name)

        async def hangs(*_: Any, **__: Any) -> Any:
            await self.way(self.over)
            raise OSError("given up")

        return hangs


@dataclass
class Run:
    """One detector over the shipped baseline, one check of which has a host of its own."""

    check: str
    kind: str
    way: Way
    deadline_s: float | None = None  # planted: instead of its own

    def run(self) -> tuple[list[dict[str, float]], dict[str, DriftResult], set[str], int]:
        """For each of two turns when each result came; the last results; what the check asked; looks that are left."""
        loop = Loop()
        try:
            return loop.run_until_complete(self._turns(loop))
        finally:
            for task in asyncio.all_tasks(loop):
                task.cancel()
            loop.run_until_complete(asyncio.sleep(0))
            loop.close()

    async def _turns(self, loop: Loop) -> tuple[list[dict[str, float]], dict[str, DriftResult], set[str], int]:
        clock, over = LoopClock(loop), asyncio.Event()
        hung = Hung(healthy_host(1, clock), self.kind, self.way, over)
        detector = DriftDetector(CONFIG, host=hung.host, baseline=self._baseline(hung), clock=clock)
        limit = detector.baseline.entries[self.check].deadline_s + MOST_S + 60 if self.deadline_s is None else 700.0
        times, results = [], dict[str, DriftResult]()
        for _ in range(2):
            detector.due_again(detector.baseline.entries)
            began, came = loop.time(), dict[str, float]()
            found = await detector.check_due()
            while True:
                came |= {result.check: loop.time() - began for result in found}
                results |= {result.check: result for result in found}
                if len(came) == len(detector.baseline.entries) or loop.time() - began > limit:
                    break
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(detector.late(), limit)
                found = detector.came_back()
            times.append(came)
        left = sum(not task.done() for task in detector._looks.values())
        over.set()
        await detector.close()
        return times, results, hung.asked, left

    def _baseline(self, hung: Hung) -> Baseline:
        whole = load(shipped_baseline())
        entry = whole.entries[self.check]
        observe = entry.check.observe

        async def own(_host: Any, parameters: Any) -> Any:
            return await observe(hung, parameters)

        mine = dataclasses.replace(entry, check=dataclasses.replace(entry.check, observe=own))
        if self.deadline_s is not None:
            mine = dataclasses.replace(mine, deadline_s=self.deadline_s)
        return dataclasses.replace(whole, entries={**whole.entries, self.check: mine})


@functools.cache
def usual() -> tuple[dict[str, float], ...]:
    """When results come where nothing hangs."""
    return tuple(Run("time_sync", "", never).run()[0])


def troubles(run: Run) -> list[str]:
    """What is not as it must be when a check hangs so."""
    times, results, _, left = run.run()
    deadline_s = load(shipped_baseline()).entries[run.check].deadline_s
    found = []
    for before, came in zip(usual(), times, strict=True):
        late = {name for name, at in before.items() if name != run.check and came.get(name, 1e9) - at >= MOST_S}
        found += [f"{name} waited" for name in sorted(late)]
        if came.get(run.check, 1e9) > deadline_s + MOST_S:
            found.append("no verdict in time")
    verdict = results.get(run.check)
    if verdict is None or (verdict.result, verdict.reason) != (Result.UNKNOWN, "timed_out"):
        found.append("the verdict is not unknown: timed_out")
    if left > 1:
        found.append("more than one look is left")
    return found


@pytest.mark.parametrize("check", sorted(load(shipped_baseline()).entries))
def test_whatever_a_check_hangs_in_no_other_waits(check: str) -> None:
    kinds = Run(check, "", never).run()[2]
    assert kinds, "a check that asks nothing"
    for kind in sorted(kinds):
        for way in (never, deaf):
            assert troubles(Run(check, kind, way)) == [], (kind, way.__name__)


def test_the_shipped_baseline_has_every_check() -> None:
    assert set(load(shipped_baseline()).entries) <= set(registry())
    assert len(load(shipped_baseline()).entries) >= 12


def test_planted_no_limit_to_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn that waits for every look: all others wait for the one that hangs."""
    usual()
    monkeypatch.setattr(rounds, "PATIENCE_S", 3_600.0)
    found = troubles(Run("time_sync", "run", never))
    assert "firewall waited" in found and "backup waited" in found


def test_planted_no_deadline() -> None:
    assert "no verdict in time" in troubles(Run("time_sync", "run", never, deadline_s=1e6))


# --- what only a kernel does ----------------------------------------------------------------------

TOOLS = {
    "opens_a_fifo": "exec cat {fifo}",
    "is_stopped": "kill -STOP $$; sleep 31.7",
    "ignores_term": "trap '' TERM INT HUP; while :; do sleep 0.05; done",
    "leaves_the_pipe": "sleep 31.7 & exit 0",
    "leaves_it_in_a_session": "setsid sleep 31.8 & exec sleep 31.7",
    "says_without_end": "exec cat /dev/zero",
    "forks_and_forks": "i=0; while [ $i -lt 60 ]; do sleep 31.7 & i=$((i+1)); done; wait",
    "sleeps_in_the_kernel": "echo x > {frozen}/file",
}
DEADLINE_S = 0.6
ENDS = {  # what comes to an end by itself, or is no thing to wait for
    "leaves_the_pipe": (Result.PASS, "as_expected"),
    "says_without_end": (Result.UNKNOWN, "output_too_large"),
    "reads_a_fifo": (Result.UNKNOWN, "io_error"),
}


def _runs(tool: str) -> Callable[[Any, Any], Coroutine[Any, Any, Any]]:
    async def observe(host: Any, _: Any) -> Any:
        ran = await host.run([tool], timeout_s=30.0)
        return Seen(value=3 if ran.exit_status == 0 else None)

    return observe


async def _reads_a_fifo(host: Any, _: Any) -> Any:
    await host.read(os.environ["HANGING_FIFO"])
    return Seen(value=None)


def sleepers(*arguments: str) -> list[int]:
    """Programs of this test that still run."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit():
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if words[0].endswith(b"sleep") and words[1].decode() in arguments:
                    found.append(int(entry.name))
    return found


async def until(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    """Whether it comes true."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        await asyncio.sleep(0.02)
    return condition()


@pytest.mark.real
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for what sleeps in the kernel")
@pytest.mark.anyio
async def test_real_programs_that_hang_keep_no_other_check_waiting(
    real: RealHost,  # noqa: F811  a fixture
    bin_dir: Path,  # noqa: F811
    frozen: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    monkeypatch.setenv("HANGING_FIFO", str(fifo))
    for name, text in TOOLS.items():
        script(bin_dir, name, text.format(fifo=fifo, frozen=frozen))
    script(bin_dir, "fine", "exit 0")
    good = [toy("a_good", _runs("fine")), toy("z_good", _runs("fine"))]
    bad = [toy(name, _runs(name)) for name in TOOLS] + [toy("reads_a_fifo", _reads_a_fifo)]
    entries = {
        check.id: Entry(check, Mode.AUDIT, 60, DEADLINE_S, Parameters(), {})
        for check in sorted([*good, *bad], key=lambda check: check.id)
    }
    detector = DriftDetector(CONFIG, host=real, baseline=Baseline("1", "0" * 64, Mode.AUDIT, entries))
    try:
        for _ in range(2):
            detector.due_again(entries)
            began, came = time.monotonic(), dict[str, tuple[float, DriftResult]]()
            found = await detector.check_due()
            while True:
                came |= {result.check: (time.monotonic() - began, result) for result in found}
                if len(came) == len(entries):
                    break
                await asyncio.wait_for(detector.late(), 5)
                found = detector.came_back()
            for check in good:
                assert came[check.id][1].result is Result.PASS
                assert came[check.id][0] < MOST_S, "others wait for what hangs"
            for check in bad:
                at, result = came[check.id]
                assert at < DEADLINE_S + MOST_S, check.id
                if check.id in ENDS:
                    assert (result.result, result.reason) == ENDS[check.id]
                else:
                    assert (result.result, result.reason) == (Result.UNKNOWN, "timed_out"), check.id
        assert await until(lambda: real.left_behind <= 1), "only what sleeps in the kernel cannot be killed"
        assert await until(lambda: sleepers("31.7") == [])
    finally:
        await detector.close()
        subprocess.run(["fsfreeze", "-u", str(frozen)], check=True)
        await until(lambda: real.left_behind == 0)
        for pid in sleepers("31.7", "31.8"):
            os.kill(pid, signal.SIGKILL)
