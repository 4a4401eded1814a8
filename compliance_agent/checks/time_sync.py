"""Time is synchronised: without it, audit records from several hosts cannot be put in order.

Two witnesses must agree: the daemon that disciplines the clock (chrony or systemd-timesyncd) says by how much it is off,
and the kernel says that somebody disciplines it. A daemon that follows only its own machine is not synchronised. One that may
not set the clock (a container) reckons with the steps it wanted, so what its source said last is held against the limit too.
"""

from __future__ import annotations

import dataclasses
from dataclasses import field, replace

from compliance_agent.checks.spec import (
    UNREADABLE,
    Case,
    CheckSpec,
    Citation,
    Permits,
    Proposal,
    failed,
    passed,
    unknown,
)
from compliance_agent.checks.units import UNIT, unit_word
from compliance_agent.core.timekeeping import (
    SAMPLES,
    TIMESYNC_STAMP,
    TIMESYNC_STATUS,
    TRACKING,
    Measured,
    parse_samples,
    parse_timesync_status,
    parse_tracking,
)
from compliance_agent.core.tools import answered
from compliance_agent.dataclass import dataclass
from compliance_agent.facts import Bool, Choice, Int, fact
from compliance_agent.models import Plan, Result, Severity, Step, Verdict
from compliance_agent.ports import Host

FOREVER_US = 10**15  # some 31 years: as much as the parsers let through
SOURCES = ("chrony", "ntpd", "timesyncd", "kernel", "none", "unknown")


DAEMONS = {"chrony.service": "chrony", "chronyd.service": "chrony", "systemd-timesyncd.service": "timesyncd"}


@dataclass(frozen=True)
class Parameters:
    max_offset_ms: int = field(default=500, metadata={"doc": "Largest distance from true time."})
    max_stratum: int = field(default=10, metadata={"doc": "Most hops to a reference clock, 1 to 15."})
    max_age_s: int = field(default=14_400, metadata={"doc": "Longest time since the last update from a source."})
    daemon: str = field(default="chrony", metadata={"doc": "What disciplines the clock: chrony or timesyncd."})
    unit: str = field(default="chrony.service", metadata={"doc": "The daemon's unit.", "unit": "needed"})

    def __post_init__(self) -> None:
        if self.daemon not in {"chrony", "timesyncd"}:
            raise ValueError(f"daemon: expected chrony or timesyncd, found {self.daemon!r}")
        if not 1 <= self.max_offset_ms <= 3_600_000:
            raise ValueError("max_offset_ms: expected 1 to 3600000")
        if not 1 <= self.max_stratum <= 15:
            raise ValueError("max_stratum: expected 1 to 15")
        if not 64 <= self.max_age_s <= 604_800:
            raise ValueError("max_age_s: expected 64 (the shortest usual poll) to 604800")
        if not self.unit:
            raise ValueError("unit: is empty")


@dataclass(frozen=True)
class Observation:
    unit: str | None = fact(UNIT, "State of the daemon's unit.")
    synchronised: bool | None = fact(Bool(), "The daemon follows a source other than this host itself.")
    offset_us: int | None = fact(Int(-FOREVER_US, FOREVER_US), "Measured offset; positive when this host is ahead.")
    bound_us: int | None = fact(Int(0, 2 * FOREVER_US), "How far off the measurement itself may be.")
    stratum: int | None = fact(Int(0, 16), "Hops between this host and a reference clock.")
    age_s: int | None = fact(Int(-(10**10), 10**10), "Time since the last update; negative when it lies in the future.")
    kernel_synchronised: bool | None = fact(Bool(), "The kernel's own word that its clock is disciplined.")
    kernel_source: str | None = fact(Choice(SOURCES), "What the kernel's clock is disciplined by.")
    sample_us: int | None = fact(
        Int(-FOREVER_US, FOREVER_US),
        "Offset by the last answer of the followed source, after every step since (chrony).",
    )
    sample_error_us: int | None = fact(Int(0, FOREVER_US), "How far off that answer may be.")


CHECK = CheckSpec(
    id="time_sync",
    title="The clock is synchronised to within the allowed offset",
    severity=Severity.MEDIUM,
    rationale="Audit records from several hosts are only evidence if their clocks agree.",
    citations=(
        Citation(
            "164.312(b)",
            rationale="Records of activity can be examined in order only when the time in them is right.",
            does_not_prove="That activity is recorded at all, or that anyone examines it.",
            primary=True,
        ),
    ),
    parameters=Parameters,
    observation=Observation,
    reasons={
        "daemon_down": "The time daemon's unit is not active.",
        "daemon_missing": "There is no such unit on this host.",
        "offset_too_large": "The clock is further from true time than allowed.",
        "not_synchronised": "The daemon runs and follows no source but this host itself.",
        "stratum_too_high": "The source is more hops away from a reference clock than allowed.",
        "update_too_old": "The last update from a source is older than allowed (or dated in the future).",
        "bound_too_wide": "The measurement is too imprecise to show that the offset is within the limit.",
        "witnesses_disagree": "The daemon says synchronised and the kernel does not (chrony: is rtcsync set?).",
    },
    needs=("chronyc or timedatectl", "systemd"),
    reads=("unit:{unit}",),
    interval_s=60,
)


async def observe(host: Host, baseline: Parameters) -> Observation:
    unit = unit_word((await host.units((baseline.unit,)))[baseline.unit])
    kernel = await host.clock_state()
    source = kernel.source if kernel.source in SOURCES else "unknown"
    seen = Observation(unit=unit, kernel_synchronised=kernel.synchronized, kernel_source=source)
    if unit != "active":
        return seen
    measured = await _measure(host, baseline.daemon)
    return replace(seen, **dataclasses.asdict(measured))


async def propose(host: Host) -> Proposal:
    """The daemon that runs."""
    states = await host.units(tuple(DAEMONS))
    unit = next((unit for unit in DAEMONS if unit_word(states[unit]) == "active"), None)
    return {} if unit is None else {"daemon": DAEMONS[unit], "unit": unit}


async def _measure(host: Host, daemon: str) -> Measured:
    if daemon == "chrony":
        measured = parse_tracking(answered(await host.run(TRACKING), "chronyc").text, host.now())
        if not measured.synchronised:
            return measured
        sample = parse_samples(answered(await host.run(SAMPLES), "chronyc").text)
        return measured if sample is None else replace(measured, sample_us=sample[0], sample_error_us=sample[1])
    measured = parse_timesync_status(answered(await host.run(TIMESYNC_STATUS), "timedatectl").text)
    if not measured.synchronised:
        return measured
    updated_at = (await host.stat(TIMESYNC_STAMP)).modified_at
    return replace(measured, age_s=int((host.now() - updated_at).total_seconds()))


def judge(baseline: Parameters, seen: Observation) -> Verdict:
    if seen.unit is None:
        return unknown("unparsable", "whether the time daemon runs could not be told")
    if seen.unit == "missing":
        return failed("daemon_missing", f"expected {baseline.unit}, found no such unit")
    if seen.unit != "active":
        return failed("daemon_down", f"expected {baseline.unit} active, found it {seen.unit}")
    if seen.synchronised is None:
        return unknown("unparsable", "whether the clock follows a source could not be told")
    if not seen.synchronised:
        return failed("not_synchronised", "expected the clock to follow a source, found none")
    return _judge_measured(baseline, seen)


def _judge_measured(baseline: Parameters, seen: Observation) -> Verdict:
    if seen.offset_us is None or seen.stratum is None or seen.age_s is None or seen.bound_us is None:
        return unknown("unparsable", "the daemon runs, and the offset could not be measured")
    limit_us, offset_us, age_s = baseline.max_offset_ms * 1000, abs(seen.offset_us), abs(seen.age_s)
    got = f"expected at most {baseline.max_offset_ms} ms, found {offset_us / 1000:.3f} ms"
    if offset_us > limit_us:
        return failed("offset_too_large", got)
    if seen.sample_us is not None and abs(seen.sample_us) - (seen.sample_error_us or 0) > limit_us:
        answer = f"{got}, and {seen.sample_us / 1000:.3f} ms by its source's last answer"
        return failed("offset_too_large", f"{answer}: the daemon could not step the clock")
    if age_s > baseline.max_age_s:
        return failed("update_too_old", f"expected an update within {baseline.max_age_s} s, found one {age_s} s away")
    if not 1 <= seen.stratum <= baseline.max_stratum:
        return failed("stratum_too_high", f"expected stratum 1 to {baseline.max_stratum}, found {seen.stratum}")
    if offset_us + seen.bound_us > limit_us:
        return unknown("bound_too_wide", f"{got}, and the measurement may be {seen.bound_us / 1000:.3f} ms off")
    if seen.kernel_synchronised is None:
        return unknown("unparsable", f"{got}; whether the kernel's clock is disciplined could not be told")
    if not seen.kernel_synchronised:
        return unknown("witnesses_disagree", f"{got}; the kernel says that nobody disciplines its clock")
    return passed(got)


def plan(baseline: Parameters, seen: Observation) -> Plan | None:
    """Start what is stopped; step what is far off. What no source answers is for a person to look at."""
    reason = judge(baseline, seen).reason
    wait = Step("await_clock", {"daemon": baseline.daemon})
    if reason == "daemon_down":
        return Plan(CHECK.id, (Step("ensure_unit_active", {"unit": baseline.unit}), wait))
    if reason == "offset_too_large" and baseline.daemon == "chrony":
        steps = (Step("step_clock"), wait)
        return Plan(CHECK.id, steps, disruptive=True, disturbs="steps_clock")
    return None


def permits(baseline: Parameters) -> Permits:
    """Step the clock."""
    return {"may": ["clock"]}


GOOD = Observation("active", True, -1705, 78_430, 3, 35, True, "chrony", -1211, 80_001)
CASES = (
    Case("synchronised", GOOD, Result.PASS, "as_expected"),
    Case("exactly at the limit", replace(GOOD, offset_us=500_000, bound_us=0), Result.PASS),
    Case("service stopped", Observation("stopped", kernel_synchronised=False), Result.FAIL, "daemon_down", heals=True),
    Case("stopped, kernel content", Observation("stopped", kernel_synchronised=True), Result.FAIL, heals=True),
    Case("masked while it runs", Observation("masked"), Result.FAIL, "daemon_down", heals=True),
    Case("not installed", Observation("missing"), Result.FAIL, "daemon_missing"),
    Case("ahead by two minutes", replace(GOOD, offset_us=120_000_000), Result.FAIL, "offset_too_large", heals=True),
    Case("behind by half a second", replace(GOOD, offset_us=-501_000), Result.FAIL, "offset_too_large", heals=True),
    Case("a step that did not come", replace(GOOD, sample_us=-30_000_000), Result.FAIL, "offset_too_large", heals=True),
    Case("one answer that may be wrong", replace(GOOD, sample_us=900_000, sample_error_us=450_000), Result.PASS),
    Case("no source is followed just now", replace(GOOD, sample_us=None, sample_error_us=None), Result.PASS),
    Case("no source answers", Observation("active", False), Result.FAIL, "not_synchronised"),
    Case("stratum 11", replace(GOOD, stratum=11), Result.FAIL, "stratum_too_high"),
    Case("stratum 0 is no stratum", replace(GOOD, stratum=0), Result.FAIL, "stratum_too_high"),
    Case("sources gone since yesterday", replace(GOOD, age_s=86_400), Result.FAIL, "update_too_old"),
    Case("last update in the future", replace(GOOD, age_s=-86_400), Result.FAIL, "update_too_old"),
    Case("too imprecise to tell", replace(GOOD, bound_us=900_000), Result.UNKNOWN, "bound_too_wide"),
    Case("kernel disagrees", replace(GOOD, kernel_synchronised=False), Result.UNKNOWN, "witnesses_disagree"),
    Case("kernel not readable", replace(GOOD, kernel_synchronised=None), Result.UNKNOWN),
    Case("runs, not measured", Observation("active", True), Result.UNKNOWN),
    Case("nothing was seen", Observation(), Result.UNKNOWN),
    Case("could not look", UNREADABLE, Result.UNKNOWN, "tool_failed"),
)
