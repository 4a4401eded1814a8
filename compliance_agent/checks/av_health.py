"""The virus scanner works: its daemon answers, its signatures are recent, and it finds the EICAR test file.

All three are asked of the daemon itself, through its own socket: what is loaded counts, not what lies on the disk. The test
file is sent as a stream and never stored.
"""

from __future__ import annotations

from dataclasses import field, replace

from compliance_agent.checks.spec import UNREADABLE, Case, CheckSpec, Citation, failed, passed, unknown
from compliance_agent.checks.units import UNIT, unit_word
from compliance_agent.core import clamd
from compliance_agent.core.tools import answered
from compliance_agent.dataclass import dataclass
from compliance_agent.errors import CannotTell
from compliance_agent.facts import Bool, Int, Version, fact
from compliance_agent.models import Plan, Result, Severity, Step, Verdict
from compliance_agent.ports import Host

FUTURE_H = -26  # a database is at most this far ahead of a right clock: zones, and one summer hour


@dataclass(frozen=True)
class Parameters:
    unit: str = field(default="clamav-daemon.service", metadata={"doc": "The scanner daemon's unit.", "unit": "needed"})
    socket: str = field(default="/run/clamav/clamd.ctl", metadata={"doc": "The scanner daemon's socket."})
    freshclam_unit: str = field(
        default="clamav-freshclam.service",
        metadata={"doc": "The unit that keeps the signatures up to date.", "unit": "needed"},
    )
    max_signature_age_h: int = field(default=48, metadata={"doc": "Oldest signatures allowed."})
    eicar: bool = field(default=True, metadata={"doc": "Whether the daemon must find the EICAR test file."})

    def __post_init__(self) -> None:
        if not self.unit or not self.freshclam_unit:
            raise ValueError("unit and freshclam_unit: may not be empty")
        if not self.socket.startswith("/"):
            raise ValueError("socket: expected an absolute path")
        if not 1 <= self.max_signature_age_h <= 8760:
            raise ValueError("max_signature_age_h: expected 1 to 8760")


@dataclass(frozen=True)
class Observation:
    unit: str | None = fact(UNIT, "State of the scanner daemon's unit.")
    updater: str | None = fact(UNIT, "State of the signature updater's unit.")
    engine: str | None = fact(Version(), "Version of the scanner.")
    database: int | None = fact(Int(0, 10**9), "Number of the daily signature database that is loaded.")
    signature_age_h: int | None = fact(Int(-(10**6), 10**6), "Age of that database.")
    signatures_loaded: bool | None = fact(Bool(), "An official signature database is loaded.")
    probe_found: bool | None = fact(Bool(), "The daemon reported the EICAR test file.")


CHECK = CheckSpec(
    id="av_health",
    title="The virus scanner runs, is up to date and finds the test file",
    severity=Severity.HIGH,
    rationale="A scanner that is stopped, stale or blind protects from nothing and looks no different from outside.",
    citations=(
        Citation(
            "164.308(a)(5)(ii)(B)",
            rationale="The scanner is shown to run, to be recent and to detect.",
            does_not_prove="That workforce members know how to guard against and report malicious software.",
            primary=True,
        ),
    ),
    parameters=Parameters,
    observation=Observation,
    reasons={
        "daemon_down": "The scanner daemon's unit is not active.",
        "daemon_missing": "There is no such unit on this host.",
        "signatures_missing": "No official signature database is loaded.",
        "signatures_old": "The loaded signatures are older than allowed.",
        "signatures_in_future": "The loaded signatures are dated in the future, so their age cannot be told.",
        "probe_missed": "The scanner called the EICAR test file clean.",
        "updater_down": "The unit that keeps the signatures up to date is not active.",
    },
    needs=("systemd", "clamd's socket", "env", "date"),
    reads=("unit:{unit}", "unit:{freshclam_unit}"),
    interval_s=300,
    deadline_s=30.0,
)


async def observe(host: Host, baseline: Parameters) -> Observation:
    states = await host.units((baseline.unit, baseline.freshclam_unit))
    seen = Observation(unit=unit_word(states[baseline.unit]), updater=unit_word(states[baseline.freshclam_unit]))
    if seen.unit != "active":
        return seen
    if not clamd.answers_ping(await host.ask(baseline.socket, clamd.PING)):
        raise CannotTell("unparsable", "the scanner did not answer PING with PONG")
    seen = await _signatures(host, baseline.socket, seen)
    if not baseline.eicar:
        return seen
    reply = await host.ask(baseline.socket, clamd.scan_stream(clamd.eicar()), timeout_s=15.0)
    return replace(seen, probe_found=clamd.found_test_file(reply))


async def _signatures(host: Host, socket: str, seen: Observation) -> Observation:
    zone = clamd.parse_zone(answered(await host.run(clamd.ZONE), "env").out)
    version = clamd.parse_version(await host.ask(socket, clamd.VERSION), zone)
    return replace(
        seen,
        engine=version.engine,
        database=version.database,
        signatures_loaded=version.built_at is not None,
        signature_age_h=version.age_h(host.now()),
    )


def judge(baseline: Parameters, seen: Observation) -> Verdict:
    if seen.unit is None or seen.updater is None:
        return unknown("unparsable", "the scanner units' states could not be told")
    if seen.unit == "missing":
        return failed("daemon_missing", f"expected {baseline.unit}, found no such unit")
    if seen.unit != "active":
        return failed("daemon_down", f"expected {baseline.unit} active, found it {seen.unit}")
    if seen.signatures_loaded is None:
        return unknown("unparsable", "the scanner runs, and its signatures could not be told")
    if not seen.signatures_loaded:
        return failed("signatures_missing", "expected the official signatures loaded, found none")
    return _judge_working(baseline, seen)


def _judge_working(baseline: Parameters, seen: Observation) -> Verdict:
    if seen.signature_age_h is None:
        return unknown("unparsable", "the age of the signatures could not be told")
    got = f"expected signatures of at most {baseline.max_signature_age_h} h, found {seen.signature_age_h} h"
    if seen.signature_age_h > baseline.max_signature_age_h:
        return failed("signatures_old", got)
    if seen.signature_age_h < FUTURE_H:
        return unknown("signatures_in_future", got)
    if baseline.eicar and seen.probe_found is None:
        return unknown("unparsable", "whether the scanner finds the test file could not be told")
    if baseline.eicar and not seen.probe_found:
        return failed("probe_missed", "expected the test file reported, found it called clean")
    if seen.updater != "active":
        return failed("updater_down", f"expected {baseline.freshclam_unit} active, found it {seen.updater}")
    return passed(got)


def plan(baseline: Parameters, seen: Observation) -> Plan | None:
    """Start what is stopped, restart what is blind, and let the updater fetch what is missing or old.

    The updater fetches as its own unit, because the side that acts as root has no network.
    """
    reason = judge(baseline, seen).reason
    answers = Step("await_scanner", {"unit": baseline.unit, "socket": baseline.socket, "max_age_h": 0})
    if reason == "daemon_down":
        return Plan(CHECK.id, (Step("ensure_unit_active", {"unit": baseline.unit}), answers))
    if reason == "probe_missed":
        return Plan(CHECK.id, (Step("restart_unit", {"unit": baseline.unit}), answers))
    if seen.updater == "missing":
        return None
    updater = Step("ensure_unit_active", {"unit": baseline.freshclam_unit})
    if reason == "updater_down":
        return Plan(CHECK.id, (updater,))
    if reason in {"signatures_old", "signatures_missing"}:
        fetch = Step("restart_unit", {"unit": baseline.freshclam_unit})
        recent = replace(answers, args={**answers.args, "max_age_h": baseline.max_signature_age_h})
        return Plan(CHECK.id, (updater, fetch, recent))
    return None


GOOD = Observation("active", "active", "1.4.3", 27_800, 9, signatures_loaded=True, probe_found=True)
CASES = (
    Case("works", GOOD, Result.PASS, "as_expected"),
    Case("exactly as old as allowed", replace(GOOD, signature_age_h=48), Result.PASS),
    Case("daemon stopped", Observation("stopped", "active"), Result.FAIL, "daemon_down", heals=True),
    Case("daemon masked", Observation("masked", "active"), Result.FAIL, "daemon_down", heals=True),
    Case("not installed", Observation("missing", "missing"), Result.FAIL, "daemon_missing"),
    Case("signatures of last week", replace(GOOD, signature_age_h=170), Result.FAIL, "signatures_old", heals=True),
    Case(
        "no signatures",
        replace(GOOD, signatures_loaded=False, signature_age_h=None, database=None),
        Result.FAIL,
        "signatures_missing",
        heals=True,
    ),
    Case("signatures of next week", replace(GOOD, signature_age_h=-160), Result.UNKNOWN, "signatures_in_future"),
    Case("blind", replace(GOOD, probe_found=False), Result.FAIL, "probe_missed", heals=True),
    Case("probe not told", replace(GOOD, probe_found=None), Result.UNKNOWN),
    Case("probe not wanted", replace(GOOD, probe_found=None), Result.PASS, parameters={"eicar": False}),
    Case("updater stopped", replace(GOOD, updater="stopped"), Result.FAIL, "updater_down", heals=True),
    Case("updater not installed", replace(GOOD, updater="missing"), Result.FAIL, "updater_down"),
    Case("age not told", replace(GOOD, signature_age_h=None), Result.UNKNOWN),
    Case("runs, nothing answered", Observation("active", "active"), Result.UNKNOWN),
    Case("nothing was seen", Observation(), Result.UNKNOWN),
    Case("could not look", UNREADABLE, Result.UNKNOWN, "tool_failed"),
)
