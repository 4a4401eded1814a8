"""An event between two rounds: drift is found, healed and recorded at once, by the same gates; and nobody can make a load of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import pytest

from compliance_agent.adapters.agent_view import looking
from compliance_agent.agent import ComplianceAgent
from compliance_agent.baseline import Baseline, load
from compliance_agent.checks import registry
from compliance_agent.cli.common import shipped_baseline
from compliance_agent.config import AgentConfig
from compliance_agent.core.waking import sources
from compliance_agent.documents import read_json
from compliance_agent.drift import DriftDetector
from compliance_agent.lab.clinic import healthy_host
from compliance_agent.lab.clock import FakeClock
from compliance_agent.lab.drift import FAULTS
from compliance_agent.lab.host import FakeHost
from compliance_agent.ports import Source
from compliance_agent.waking import RETRY_S, Waking

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Between(FakeClock):
    """Time between two rounds: rests pass at once, and the next round never comes unless somebody lets time pass."""

    async def sleep(self, seconds: float) -> None:
        if seconds < 20:
            await super().sleep(seconds)
            return
        until = self.monotonic() + seconds
        while self.monotonic() < until:
            await asyncio.sleep(0.001)


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.002)


class Clinic:
    """The real agent with the shipped baseline over a simulated host, between its first round and its second."""

    def __init__(self, root: Path, **settings: Any) -> None:
        self.clock = Between()
        self.host = healthy_host(1, self.clock)
        given = {"mcp_poll_interval_sec": 86_400, "healing_cooldown_sec": 0, "flap_limit": 100, **settings}
        self.config = AgentConfig(
            client_id="msp-1", site_id="clinic-1", host_id="srv-1", state_dir=root / "state",
            baseline_path=shipped_baseline(), **given,
        )  # fmt: skip
        detector = DriftDetector(self.config, host=self.host, baseline=load(shipped_baseline()), clock=self.clock)
        self.looks: list[str] = []
        begun = detector._rounds.begun

        def counted(check_id: str, interval_s: float) -> None:
            self.looks.append(check_id)
            begun(check_id, interval_s)

        detector._rounds.begun = counted  # type: ignore[method-assign]
        self.agent = ComplianceAgent(self.config, drift_detector=detector, clock=self.clock)

    @contextlib.asynccontextmanager
    async def life(self) -> AsyncIterator[None]:
        living = asyncio.create_task(self.agent.start(handle_signals=False))
        try:
            await until(lambda: self.agent.stats["loops_completed"] == 1 and not self.agent._iterating)
            await self.calm()
            yield
        finally:
            self.agent.shutdown_event.set()
            await asyncio.wait_for(living, timeout=10)

    async def calm(self) -> None:
        """Until nothing has been looked at for a moment."""
        count = -1
        while count != len(self.looks):
            count = len(self.looks)
            await asyncio.sleep(0.05)

    def records(self, check: str) -> list[dict[str, Any]]:
        raw = [path.read_bytes() for path in self.config.evidence_dir.glob("*/*/*/*/bundle.json")]
        found = [read_json(one) for one in raw if one]  # an empty one is being written, on the writer's thread
        return [one for one in found if one["check"] == check and one["kind"] == "remediation"]


@pytest.mark.parametrize("name", ["firewall_flushed", "chrony_stopped", "ssh_passwords_on"])
async def test_drift_between_two_rounds_is_healed_and_recorded(name: str, tmp_path: Path) -> None:
    """The ruleset, a unit and a file; the record says that an event asked for it."""
    clinic, fault = Clinic(tmp_path), FAULTS[name]
    async with clinic.life():
        fault.inject(clinic.host)
        await until(lambda: bool(clinic.records(fault.check)))
        await clinic.calm()
        assert clinic.agent.stats["loops_completed"] == 1, "this was a round"
    record = clinic.records(fault.check)[0]
    assert (record["reason"], record["outcome"], record["trigger"]) == (fault.reason, "success", "event")


async def test_a_cure_wakes_its_own_check_once(tmp_path: Path) -> None:
    """One look for the drift, the cure's own, and one for all that the cure has written."""
    clinic = Clinic(tmp_path)
    async with clinic.life():
        before = clinic.looks.count("ssh_access")
        FAULTS["ssh_passwords_on"].inject(clinic.host)
        await until(lambda: bool(clinic.records("ssh_access")))
        await clinic.calm()
        assert clinic.looks.count("ssh_access") - before == 3
    assert len(clinic.records("ssh_access")) == 1


async def test_only_the_check_concerned_is_woken(tmp_path: Path) -> None:
    clinic = Clinic(tmp_path)
    async with clinic.life():
        before = list(clinic.looks)
        clinic.host.unit("chrony.service").changed_at = clinic.host.now()
        clinic.host.notice()
        await until(lambda: len(clinic.looks) > len(before))
        await clinic.calm()
        assert set(clinic.looks[len(before) :]) <= {
            name
            for name in clinic.agent.drift_detector.baseline.entries
            if Source("unit", "chrony.service") in reads(clinic, name)
        }


def reads(clinic: Clinic, name: str) -> frozenset[Source]:
    entry = clinic.agent.drift_detector.baseline.entries[name]
    return sources(entry.check.spec.reads, entry.parameters)


async def test_the_gates_are_the_same(tmp_path: Path) -> None:
    """Whoever paused healing has paused it for events too."""
    clinic = Clinic(tmp_path)
    async with clinic.life():
        clinic.agent.healing_engine.pause()
        FAULTS["firewall_flushed"].inject(clinic.host)
        await until(lambda: bool(clinic.records("firewall")))
    assert [(one["outcome"], one["error"]) for one in clinic.records("firewall")] == [("deferred", "paused")]


async def test_an_opponent_reverts_every_cure_and_gets_no_loop(tmp_path: Path) -> None:
    """As fast as it is healed, for as long as it takes: the looks are spent, the cures are within their own budget."""
    clinic = Clinic(tmp_path, event_looks_per_hour=30, healing_budget_per_hour=5)
    async with clinic.life():
        began, before = clinic.clock.monotonic(), len(clinic.looks)
        for _ in range(400):
            FAULTS["firewall_flushed"].inject(clinic.host)
            await asyncio.sleep(0.002)
        await clinic.calm()
        hours = 1 + int((clinic.clock.monotonic() - began) / 3_600)
        assert len(clinic.looks) - before <= 30 * hours + 5 * hours  # five cures look once more each
        tried = [one for one in clinic.records("firewall") if one["outcome"] in {"success", "reverted", "failed"}]
        assert 1 <= len(tried) <= 5 * hours


async def test_where_nothing_can_be_told_that_is_said_and_the_rounds_go_on(tmp_path: Path) -> None:
    clinic = Clinic(tmp_path)
    clinic.host.deaf["path"] = "no_watches_left"
    async with clinic.life():
        waking = clinic.agent.waking
        assert waking is not None
        assert waking.trouble() == {"path": "no_watches_left"}
        assert waking.state()["trouble"] == {"path": "no_watches_left"}
    with looking(clinic.config.database_path) as view:
        assert view.events() == {
            "sources": waking.sources, "untold": [{"kind": "path", "code": "no_watches_left"}],
        }  # fmt: skip


async def test_events_can_be_turned_off(tmp_path: Path) -> None:
    clinic = Clinic(tmp_path, events=False)
    async with clinic.life():
        before = len(clinic.looks)
        FAULTS["firewall_flushed"].inject(clinic.host)
        await clinic.calm()
        assert len(clinic.looks) == before
    with looking(clinic.config.database_path) as view:
        assert view.events() == {"sources": 0, "untold": [{"kind": "all", "code": "off"}]}


# -- by itself, over a detector and events of the test's own


class Detector:
    """Counts who was woken."""

    def __init__(self, baseline: Baseline) -> None:
        self.baseline = baseline
        self.woken: list[str] = []

    def wake(self, check_id: str) -> None:
        self.woken.append(check_id)

    def took_s(self, check_id: str) -> float:
        return 0.0


class Tower:
    """Events that the test tells."""

    def __init__(self) -> None:
        self.watched: list[frozenset[Source]] = []
        self.queue: asyncio.Queue[frozenset[Source]] = asyncio.Queue()
        self.troubles: dict[str, str] = {}
        self.error: Exception | None = None
        self.heals = False

    async def watch(self, sources: Collection[Source]) -> None:
        if self.heals:
            self.troubles = {}
        self.watched.append(frozenset(sources))

    async def told(self) -> frozenset[Source]:
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        return await self.queue.get()

    def trouble(self) -> Mapping[str, str]:
        return self.troubles

    async def close(self) -> None:
        """Nothing to give back."""


@contextlib.asynccontextmanager
async def waking(budget: int = 100) -> AsyncIterator[tuple[Waking, Detector, Tower, Between]]:
    detector, tower, clock = Detector(load(shipped_baseline())), Tower(), Between()
    made = Waking(tower, detector, clock, 1.0, budget)
    await made.begin()
    running = asyncio.create_task(made.run())
    try:
        yield made, detector, tower, clock
    finally:
        running.cancel()


async def test_everything_at_once_wakes_each_check_once() -> None:
    """A queue that was full: all sources of a kind are told of."""
    async with waking() as (made, detector, tower, _):
        tower.queue.put_nowait(frozenset(source for source in tower.watched[0] if source.kind == "path"))
        await until(lambda: bool(detector.woken))
        assert sorted(set(detector.woken)) == sorted(detector.woken)
        assert {"accounts", "ssh_access"} <= set(detector.woken)
        assert made.woken == len(detector.woken)


async def test_another_baseline_is_watched_from_the_next_round_on() -> None:
    async with waking() as (made, detector, tower, _):
        entries = dict(list(detector.baseline.entries.items())[:2])
        detector.baseline = Baseline("2", "0" * 64, detector.baseline.mode, entries)
        made.nudge()
        await until(lambda: len(tower.watched) == 2)
        assert tower.watched[1] < tower.watched[0]


async def test_what_could_not_be_watched_is_tried_again_and_looked_at() -> None:
    async with waking() as (made, detector, tower, clock):
        tower.troubles = {"path": "no_watches_left"}
        await made.begin()
        made.nudge()
        await asyncio.sleep(0.02)
        assert len(tower.watched) == 2
        clock.advance(RETRY_S + 1)
        tower.heals = True
        made.nudge()
        await until(lambda: {"accounts", "ssh_access"} <= set(detector.woken))
        assert made.trouble() == {}
        assert len(tower.watched) == 3


async def test_a_spent_hour_is_said_and_ends() -> None:
    async with waking(budget=1) as (made, detector, tower, clock):
        firewall = frozenset({Source("ruleset")})
        tower.queue.put_nowait(firewall)
        await until(lambda: detector.woken == ["firewall"])
        await until(lambda: made.trouble() == {"all": "budget_spent"})
        tower.queue.put_nowait(firewall)
        await until(lambda: made.uncounted == 1)
        assert detector.woken == ["firewall"]
        clock.advance(3_601)
        made.nudge()
        await until(lambda: made.trouble() == {})
        tower.queue.put_nowait(firewall)
        await until(lambda: detector.woken == ["firewall", "firewall"])


async def test_a_mistake_in_here_costs_events_for_a_while_and_no_more() -> None:
    async with waking() as (_, detector, tower, clock):
        tower.error = RuntimeError("a planted mistake")
        tower.queue.put_nowait(frozenset())
        await until(lambda: tower.error is None)
        tower.queue.put_nowait(frozenset({Source("ruleset")}))
        await asyncio.sleep(0.02)
        assert detector.woken == []
        clock.advance(RETRY_S + 1)
        await until(lambda: detector.woken == ["firewall"])


# What waits for a round, by why nothing tells of it.
WAITS = {
    "the kernel tells nobody": {
        "port_opened", "person_shares_files", "auditing_off", "audit_rules_deleted", "audit_records_lost", "swap_unencrypted",
        "key_slots_many",
    },
    "only time passed, or another host changed": {
        "certificate_over", "clock_skewed", "time_source_lost", "av_signatures_old", "backup_stale", "security_update_pending",
        "package_lists_stale",
    },
    "a daemon goes on with what it has read, or does its work badly": {
        "certificate_not_read", "old_tls_allowed", "av_blind", "log_canary_lost",
    },
    "what a manifest lists, or dpkg knows, may be a whole system": {"program_changed", "program_left", "package_file_changed"},
}  # fmt: skip


def told_of(name: str) -> bool:
    host: FakeHost = healthy_host(1, FakeClock())
    fault = FAULTS[name]
    check = registry()[fault.check]
    entry = load(shipped_baseline()).entries.get(fault.check)
    parameters = entry.parameters if entry is not None else check.spec.parameters(**check.spec.example)
    events = host.events()
    asyncio.run(events.watch(sources(check.spec.reads, parameters)))
    fault.inject(host)
    return bool(events._told)


def test_which_faults_of_the_lab_are_told_of() -> None:
    assert {name for name in FAULTS if not told_of(name)} == set().union(*WAITS.values())
