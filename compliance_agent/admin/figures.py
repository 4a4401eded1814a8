"""The agent's figures. No host's name, no path and no text of the host is a label: checks, verdicts, codes and states alone."""

from __future__ import annotations

import os
import resource
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from compliance_agent.admin.standing import Standing
from compliance_agent.core.exposition import Family, one
from compliance_agent.models import Result

_BREAKER = ("closed", "half_open", "open")
_STATISTICS = {
    "drift_detected": ("drift", "Looks that found drift."),
    "remediations_attempted": ("remediations_attempted", "Cures that were begun."),
    "remediations_successful": ("remediations_successful", "Cures after which the check passed."),
    "evidence_generated": ("evidence_generated", "Records that were signed and stored."),
    "evidence_uploaded": ("evidence_uploaded", "Records that the server acknowledged."),
    "evidence_queued": ("evidence_queued", "Records that had to wait for a later delivery."),
}


async def families(standing: Standing) -> list[Family]:
    """Every figure, now."""
    pause, by_order = await standing.pause()
    return [
        *_process(standing),
        *_loop(standing, await standing.not_ready()),
        *_checks(standing),
        *_events(standing),
        *await _delivery(standing),
        _each(
            "healing_paused",
            "gauge",
            "Healing is paused, by whom.",
            "by",
            {"person": int(pause is not None), "order": int(by_order)},
        ),
        _one(
            "healing_pause_left_seconds",
            "gauge",
            "Until a pause that a person at the host asked for ends.",
            max(0.0, (pause.until - standing.agent.clock.now()).total_seconds()) if pause is not None else 0,
        ),
    ]


def _one(name: str, kind: Any, words: str, value: float) -> Family:
    return one(f"compliance_agent_{name}", kind, words, value)


def _each(name: str, kind: Any, words: str, label: str, values: dict[str, float]) -> Family:
    return Family(f"compliance_agent_{name}", kind, words, [({label: key}, value) for key, value in values.items()])


def _process(standing: Standing) -> list[Family]:
    baseline = getattr(standing.agent.drift_detector, "baseline", None)
    used = resource.getrusage(resource.RUSAGE_SELF)
    build = {"version": standing.version, "code_sha256": standing.code_sha256}
    held = {"version": str(getattr(baseline, "version", "unknown"))}
    return [
        Family("compliance_agent_build", "info", "Version of the program, and digest of its code.", [(build, 1)]),
        Family("compliance_agent_baseline", "info", "Version of the baseline in force.", [(held, 1)]),
        one("process_cpu_seconds", "counter", "Processor time of this process.", used.ru_utime + used.ru_stime),
        one("process_resident_memory_bytes", "gauge", "Memory of this process.", _resident_bytes()),
        one("process_open_fds", "gauge", "Open file descriptors.", sum(1 for _ in Path("/proc/self/fd").iterdir())),
        one("process_start_time_seconds", "gauge", "When this process began.", standing.started_at.timestamp()),
    ]


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _loop(standing: Standing, not_ready: list[str]) -> list[Family]:
    agent = standing.agent
    counts, cycle = agent.counts, agent.cycle
    ended = cycle.ended_at.timestamp() if cycle is not None else 0.0
    return [
        _one("ready", "gauge", "It does its work.", int(not not_ready)),
        _each("not_ready", "gauge", "What keeps it from that.", "code", dict.fromkeys(not_ready, 1.0)),
        Family(
            "compliance_agent_cycle_seconds",
            "summary",
            "Cycles that were completed, and their time.",
            [({}, counts.total("cycle_ms") / 1_000), ({}, counts.total("cycles"))],
        ),
        _each("cycles_failed", "counter", "Cycles that ended in an error.", "code", _floats(counts, "cycles_failed")),
        _one("ticks_skipped", "counter", "Cycles left out because one took too long.", counts.total("ticks_skipped")),
        _one("last_cycle_timestamp_seconds", "gauge", "When the last cycle was completed; 0 before the first.", ended),
        _one("last_cycle_seconds", "gauge", "How long it took.", cycle.seconds if cycle is not None else 0.0),
        _each("interval_why", "gauge", "1 for why the interval is what it is.", "why", {agent.pace.why: 1}),
        _one("interval_seconds", "gauge", "From the last tick to the next.", agent.interval_s),
        _one(
            "loop_lag_seconds",
            "gauge",
            "The latest that a timer fired since the last scrape.",
            standing.watchdog.take_lag(),
        ),
        _one("loop_overdue_seconds", "gauge", "Since the loop should have been heard of.", agent.progress.overdue_s()),
    ]


def _floats(counts: Any, name: str) -> dict[str, float]:
    return dict(counts.by_label(name))


def _checks(standing: Standing) -> list[Family]:
    agent = standing.agent
    verdicts = []
    for label, count in agent.counts.by_label("verdicts").items():
        check, _, result = label.partition(":")
        verdicts.append(({"check": check, "result": result or "other"}, count))
    present = [
        ({"check": drift.check, "result": str(word)}, int(drift.result is word))
        for drift in agent.latest
        for word in Result
    ]
    took = {drift.check: drift.duration_ms / 1_000 for drift in agent.latest}
    return [
        Family("compliance_agent_verdicts", "counter", "Looks, by check and verdict.", verdicts),
        Family("compliance_agent_check_result", "gauge", "1 for the newest verdict of each check.", present),
        _each("check_seconds", "gauge", "How long the newest look took.", "check", took),
        *(_one(name, "counter", words, agent.stats[key]) for key, (name, words) in _STATISTICS.items()),
    ]


def _events(standing: Standing) -> list[Family]:
    waking = standing.agent.waking
    if waking is None:
        return []
    return [
        _one("event_sources", "gauge", "Things whose change wakes a check.", waking.sources),
        _each(
            "events_untold",
            "gauge",
            "1 for each kind of event that is not told.",
            "kind",
            dict.fromkeys(waking.trouble(), 1.0),
        ),
        _one("events", "counter", "Events that checks were told of since the last start.", waking.told),
        _one("event_looks", "counter", "Looks that events caused.", waking.woken),
        _one("events_uncounted", "counter", "Events beyond the budget of looks; the rounds looked.", waking.uncounted),
    ]


async def _delivery(standing: Standing) -> list[Family]:
    agent, breaker = standing.agent, standing.breaker
    queue, trouble = await standing.queue()
    oldest = queue.get("oldest_pending")
    age_s = 0.0
    if isinstance(oldest, str):
        age_s = max(0.0, (agent.clock.now() - datetime.fromisoformat(oldest).astimezone(UTC)).total_seconds())
    found = [
        _one("storage_answers", "gauge", "The database can be read.", int(trouble is None)),
        _each(
            "delivery_failed", "counter", "Failed tries to deliver.", "code", _floats(agent.counts, "delivery_failed")
        ),
    ]
    if trouble is None:
        found += [
            _one("queue_records", "gauge", "Records that wait for the server.", _number(queue, "pending")),
            _one("queue_failed_records", "gauge", "Those that were tried very often.", _number(queue, "failed")),
            _one("queue_damaged_records", "gauge", "Records that are damaged and kept.", _number(queue, "damaged")),
            _one("queue_oldest_seconds", "gauge", "Age of the oldest that waits; 0 when none does.", age_s),
            _one("storage_full", "gauge", "There is no room for new records.", int(bool(queue.get("storage_full")))),
        ]
    if breaker is not None:
        states: dict[str, float] = {state: int(state == breaker[0]) for state in _BREAKER}
        found += [
            _each("breaker_state", "gauge", "1 for the state of the breaker before the server.", "state", states),
            _one("breaker_wait_seconds", "gauge", "Until the server may be asked again.", breaker[1]),
        ]
    return found


def _number(queue: dict[str, object], name: str) -> int:
    value = queue.get(name)
    return value if isinstance(value, int) else 0
