"""Logging works from end to end: a line written now arrives in the journal and in the syslog file.

Running daemons prove little, so each look writes a canary line and waits for that very line. The line is the one thing
this check leaves behind: a fixed word and a digest of the boot id and the clock, no data. A canary that nobody wrote can
not be found, and one from an earlier look has another digest.
"""

from __future__ import annotations

import hashlib
from dataclasses import field, replace

from compliance_agent.checks.files import is_there
from compliance_agent.checks.spec import UNREADABLE, Case, CheckSpec, Citation, Proposal, failed, passed, unknown
from compliance_agent.checks.units import unit_word
from compliance_agent.core.tools import answered
from compliance_agent.dataclass import dataclass
from compliance_agent.documents import read_json
from compliance_agent.errors import CannotTell, DocumentError
from compliance_agent.facts import Bool, Int, Many, Name, fact
from compliance_agent.models import Plan, Result, Severity, Step, Verdict
from compliance_agent.ports import Host

TAG = "compliance-canary"
JOURNAL = ("journalctl", "--no-pager", "-o", "json", "--output-fields=MESSAGE", "-t", TAG, "-n", "16")
TAIL_BYTES = 262_144  # as much of the file's end as the canary may have been pushed up by other lines
PAUSES_MS = (50, 100, 200, 400, 800, 1600)  # between looks for it; most arrive before the first
# journalctl's hints that it does not show everything, given also with exit status 0
BLINDED = (b"not seeing messages from other users", b"insufficient permissions")


@dataclass(frozen=True)
class Parameters:
    units: tuple[str, ...] = field(
        default=("systemd-journald.service", "rsyslog.service"),
        metadata={"doc": "Units that must be active.", "unit": "needed"},
    )
    destination: str = field(
        default="/var/log/syslog",
        metadata={"doc": "File in which the canary must arrive; `journal` where the journal is the only destination."},
    )
    forwarder: str = field(
        default="rsyslog.service",
        metadata={"doc": "Unit restarted when the canary does not arrive; one of `units`.", "unit": "needed"},
    )

    def __post_init__(self) -> None:
        if not self.units:
            raise ValueError("units: is empty; at least one unit must be watched")
        if self.destination != "journal" and not self.destination.startswith("/"):
            raise ValueError("destination: expected an absolute path, or journal")
        if self.forwarder not in self.units:
            raise ValueError("forwarder: expected one of units")


@dataclass(frozen=True)
class Observation:
    units_down: tuple[str, ...] | None = fact(Many(Name("units")), "Units that are not active.")
    units_missing: tuple[str, ...] | None = fact(Many(Name("units")), "Units that this host does not have.")
    written: bool | None = fact(Bool(), "The canary was accepted by the logging socket.")
    in_journal: bool | None = fact(Bool(), "The canary arrived in the journal.")
    in_destination: bool | None = fact(Bool(), "The canary arrived in the destination file, where there is one.")
    waited_ms: int | None = fact(Int(0, 60_000), "How long it was waited for.")


CHECK = CheckSpec(
    id="logging",
    title="Log lines are recorded and reach their destination",
    severity=Severity.HIGH,
    rationale="What is not recorded cannot be examined, and a log that silently stopped looks like a quiet day.",
    citations=(
        Citation(
            "164.312(b)",
            rationale="A line written through the system's own logger is found where the records are kept.",
            does_not_prove="That every application that touches ePHI logs what it does.",
            primary=True,
        ),
        Citation(
            "164.308(a)(1)(ii)(D)",
            rationale="Records of activity exist to be reviewed.",
            does_not_prove="That anyone reviews them; a signed review by a person is needed.",
        ),
    ),
    parameters=Parameters,
    observation=Observation,
    reasons={
        "unit_down": "A logging unit is not active.",
        "unit_missing": "A logging unit does not exist on this host.",
        "canary_refused": "The logging socket did not take the canary.",
        "canary_lost": "The canary was written and did not arrive.",
    },
    needs=("systemd", "logger (writes one line per look)", "journalctl", "tail", "group adm or systemd-journal"),
    reads=("unit:{units}",),
    untold={"stat:/var/log/*": "a log changes with each line"},
    interval_s=300,
    deadline_s=30.0,
)


async def observe(host: Host, baseline: Parameters) -> Observation:
    words = {name: unit_word(state) for name, state in (await host.units(baseline.units)).items()}
    seen = Observation(
        units_down=tuple(name for name in baseline.units if words[name] != "active"),
        units_missing=tuple(name for name in baseline.units if words[name] == "missing"),
    )
    if seen.units_down:
        return seen
    canary = await _canary(host)
    ran = await host.run(("logger", "--socket-errors=on", "-p", "daemon.notice", "-t", TAG, "--", canary))
    if ran.exit_status != 0:
        return replace(seen, written=False)
    return await _await(host, baseline.destination, canary, replace(seen, written=True))


async def propose(host: Host) -> Proposal:
    """The first place where lines may arrive that is here: a syslog file of rsyslog's, else the journal."""
    rsyslog, journald = "rsyslog.service", "systemd-journald.service"
    if unit_word((await host.units((rsyslog,)))[rsyslog]) == "active":
        for path in ("/var/log/syslog", "/var/log/messages"):
            if await is_there(host, path):
                return {"units": (journald, rsyslog), "destination": path, "forwarder": rsyslog}
    return {"units": (journald,), "destination": "journal", "forwarder": journald}


async def _canary(host: Host) -> str:
    """A line that was never written before: derived from this moment, so that no randomness is needed."""
    clock = await host.clock_state()
    moment = f"{clock.boot_id} {clock.monotonic_ns} {host.now().isoformat()}"
    return f"canary {hashlib.sha256(moment.encode()).hexdigest()[:32]}"


async def _await(host: Host, destination: str, canary: str, seen: Observation) -> Observation:
    """Look for the canary until it is everywhere it should be, with longer and longer pauses."""
    waited = 0
    for pause_ms in (*PAUSES_MS, 0):
        if not seen.in_journal:
            seen = replace(seen, in_journal=await _in_journal(host, canary))
        if destination != "journal" and not seen.in_destination:
            seen = replace(seen, in_destination=await _in_file(host, destination, canary))
        if seen.in_journal and seen.in_destination is not False:
            break
        await host.pause(pause_ms / 1000)
        waited += pause_ms
    return replace(seen, waited_ms=waited)


async def _in_journal(host: Host, canary: str) -> bool:
    ran = await host.run(JOURNAL)
    if ran.exit_status == 0 and canary in messages(ran.out):
        return True
    if any(hint in ran.err for hint in BLINDED):
        raise CannotTell("not_permitted", "journalctl does not show this user the system's messages")
    answered(ran, "journalctl")
    return False


def messages(out: bytes) -> set[str]:
    """The texts in the output of `journalctl -o json`; entries that are not text are left out.

    Raises:
        CannotTell: `unparsable`.
    """
    try:
        entries = [read_json(line) for line in out.splitlines()]
    except DocumentError as error:
        raise CannotTell("unparsable", "journalctl did not print one JSON object per line") from error
    if not all(isinstance(entry, dict) for entry in entries):
        raise CannotTell("unparsable", "journalctl did not print one JSON object per line")
    return {text for entry in entries if isinstance(text := entry.get("MESSAGE"), str)}


async def _in_file(host: Host, path: str, canary: str) -> bool:
    try:
        await host.stat(path)
    except CannotTell as error:
        if error.reason == "not_found":  # nothing was ever written there, so neither was the canary
            return False
        raise
    ran = answered(await host.run(("tail", "-c", str(TAIL_BYTES), "--", path)), "tail")
    return canary.encode() in ran.out


def judge(baseline: Parameters, seen: Observation) -> Verdict:
    if seen.units_down is None or seen.units_missing is None:
        return unknown("unparsable", "the logging units' states could not be told")
    if seen.units_missing:
        return failed("unit_missing", f"expected {', '.join(seen.units_missing)}, found no such unit")
    if seen.units_down:
        return failed("unit_down", f"expected every logging unit active, found {', '.join(seen.units_down)} down")
    if seen.written is None:
        return unknown("unparsable", "whether the canary was written could not be told")
    if not seen.written:
        return failed("canary_refused", "expected the logging socket to take a line, found that it does not")
    return _judge_arrival(baseline, seen)


def _judge_arrival(baseline: Parameters, seen: Observation) -> Verdict:
    wanted = {"the journal": seen.in_journal}
    if baseline.destination != "journal":
        wanted[baseline.destination] = seen.in_destination
    if lost := [place for place, arrived in wanted.items() if arrived is False]:
        return failed(
            "canary_lost", f"expected the canary in {' and '.join(wanted)}, found none in {' and '.join(lost)}"
        )
    if None in wanted.values():
        return unknown("unparsable", "whether the canary arrived could not be told")
    return passed(f"the canary arrived in {' and '.join(wanted)}")


def plan(baseline: Parameters, seen: Observation) -> Plan | None:
    """Start what is down; restart the forwarder that loses lines. A journal that loses them is for a person."""
    reason = judge(baseline, seen).reason
    if reason == "unit_down":
        steps = tuple(Step("ensure_unit_active", {"unit": unit}) for unit in seen.units_down or ())
        return Plan(CHECK.id, steps)
    if reason == "canary_lost" and seen.in_journal:
        return Plan(CHECK.id, (Step("restart_unit", {"unit": baseline.forwarder}),))
    return None


GOOD = Observation((), (), written=True, in_journal=True, in_destination=True, waited_ms=0)
CASES = (
    Case("arrives everywhere", GOOD, Result.PASS, "as_expected"),
    Case("rsyslog stopped", Observation(("rsyslog.service",), ()), Result.FAIL, "unit_down", heals=True),
    Case(
        "both stopped",
        Observation(("systemd-journald.service", "rsyslog.service"), ()),
        Result.FAIL,
        "unit_down",
        heals=True,
    ),
    Case("not installed", Observation(("rsyslog.service",), ("rsyslog.service",)), Result.FAIL, "unit_missing"),
    Case("socket gone", Observation((), (), written=False), Result.FAIL, "canary_refused"),
    Case("lost on the way", replace(GOOD, in_destination=False), Result.FAIL, "canary_lost", heals=True),
    Case("lost in the journal", replace(GOOD, in_journal=False), Result.FAIL, "canary_lost"),
    Case(
        "the journal is the destination",
        replace(GOOD, in_destination=None),
        Result.PASS,
        parameters={"destination": "journal"},
    ),
    Case("destination not readable", replace(GOOD, in_destination=None), Result.UNKNOWN),
    Case("journal not readable", replace(GOOD, in_journal=None), Result.UNKNOWN),
    Case("searched, never written", replace(GOOD, written=None), Result.UNKNOWN),
    Case("nothing was seen", Observation(), Result.UNKNOWN),
    Case("could not look", UNREADABLE, Result.UNKNOWN, "tool_failed"),
)
