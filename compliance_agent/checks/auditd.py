"""The kernel records what the baseline lists, the audit daemon keeps it, and both will be so after the next boot.

What counts is what the kernel has loaded; the files are read as well, since they decide what it has after a boot. A container has
no audit subsystem of its own: there `auditctl` refuses, or calls it disabled with a good exit status, and neither is an answer.
"""

from __future__ import annotations

import hashlib
from dataclasses import field, replace
from pathlib import PurePosixPath

from compliance_agent.checks.files import read_whole, stats_of
from compliance_agent.checks.spec import UNREADABLE, Case, CheckSpec, Citation, Permits, failed, passed, unknown
from compliance_agent.checks.units import UNIT, unit_word
from compliance_agent.core import auditd
from compliance_agent.core.tools import answered, unparsable
from compliance_agent.dataclass import dataclass
from compliance_agent.facts import SHA256, Bool, Choice, Digest, Int, Many, Name, fact
from compliance_agent.models import Plan, Result, Severity, Step, Verdict
from compliance_agent.ports import Host

CONFIG = "/etc/audit/auditd.conf"
MOST_FILES = 256
COUNT = Int(0, auditd.MOST)


@dataclass(frozen=True)
class Parameters:
    rules: tuple[str, ...] = field(
        metadata={
            "doc": "What must be recorded: `PATH:PERMISSIONS` (of r, w, x, a), `b64:SYSCALL` or `b32:SYSCALL`, each by"
            " whomever; or `key:KEY` for at least one rule of that key."
        }
    )
    unit: str = field(default="auditd.service", metadata={"doc": "The audit daemon's unit.", "unit": "needed"})
    rules_in_files: bool = field(
        default=True,
        metadata={
            "doc": f"The rules must stand in {auditd.RULES_DIR} too; false where they are loaded from elsewhere."
        },
    )
    rules_sha256: str | None = field(
        default=None, metadata={"doc": "SHA-256 of all that `auditctl -l` prints, to pin every rule."}
    )
    space_actions: tuple[str, ...] = field(
        default=("syslog", "email", "exec", "single", "halt"), metadata={"doc": "Accepted values of space_left_action."}
    )
    log_actions: tuple[str, ...] = field(
        default=("keep_logs", "syslog"),
        metadata={"doc": "Accepted values of max_log_file_action. `rotate` deletes the oldest records."},
    )
    max_lost: int = field(default=0, metadata={"doc": "Most records that the kernel may have lost since boot."})

    def __post_init__(self) -> None:
        if not 1 <= len(self.rules) <= 64 or not all(auditd.is_wanted(name) for name in self.rules):
            raise ValueError("rules: expected 1 to 64 of PATH:PERMISSIONS, b64:SYSCALL, b32:SYSCALL, key:KEY")
        if "." not in self.unit:
            raise ValueError("unit: expected the whole name of a unit")
        if self.rules_sha256 is not None and not SHA256.fullmatch(self.rules_sha256):
            raise ValueError("rules_sha256: expected 64 lower-case hexadecimal digits")
        for name, words in (("space_actions", auditd.SPACE_ACTIONS), ("log_actions", auditd.LOG_ACTIONS)):
            if not getattr(self, name) or not set(getattr(self, name)) <= set(words):
                raise ValueError(f"{name}: expected some of {', '.join(words)}")
        if not 0 <= self.max_lost <= auditd.MOST:
            raise ValueError("max_lost: expected a number of records")


@dataclass(frozen=True)
class Observation:
    unit: str | None = fact(UNIT, "State of the daemon's unit.")
    recording: bool | None = fact(Bool(), "The kernel's audit subsystem is on.")
    locked: bool | None = fact(Bool(), "Its configuration is locked until the next boot.")
    received: bool | None = fact(Bool(), "A daemon takes the kernel's records.")
    lost: int | None = fact(COUNT, "Records that the kernel lost since boot.")
    backlog: int | None = fact(COUNT, "Records that wait for the daemon.")
    backlog_limit: int | None = fact(COUNT, "Records that may wait; 0: any number.")
    loaded: int | None = fact(COUNT, "Rules that the kernel has loaded.")
    loaded_sha256: str | None = fact(Digest(), "SHA-256 of the loaded rules as printed.")
    not_loaded: tuple[str, ...] | None = fact(Many(Name("rules")), "Listed ones that no loaded rule covers.")
    not_kept: tuple[str, ...] | None = fact(Many(Name("rules")), "Listed ones that no rule in the files covers.")
    never_rules: int | None = fact(COUNT, "Loaded rules that keep something from being recorded.")
    tasks_exempt: bool | None = fact(Bool(), "A rule exempts every new process (`-a never,task`).")
    log_files: int | None = fact(Int(0, MOST_FILES), "Files of the audit log.")
    logs_open: int | None = fact(Int(0, MOST_FILES), "Of these, open to everybody.")
    space_left_action: str | None = fact(Choice(auditd.SPACE_ACTIONS), "What is done when space runs low.")
    max_log_file_action: str | None = fact(Choice(auditd.LOG_ACTIONS), "What is done when a log file is full.")


CHECK = CheckSpec(
    id="auditd",
    title="The kernel records what the baseline lists, and the audit daemon keeps it",
    severity=Severity.HIGH,
    rationale="What the kernel did not record when it happened can be examined by nobody afterwards.",
    citations=(
        Citation(
            "164.312(b)",
            rationale="The mechanism that records activity is on, has the listed rules, and loses no records unnoticed.",
            does_not_prove="That the rules are the right ones for this system, or that anybody examines the records.",
            primary=True,
        ),
        Citation(
            "164.308(a)(1)(ii)(D)",
            rationale="Records of activity exist, so there is something that a person can review.",
            does_not_prove="That a person reviewed them in time; that needs a sign-off.",
        ),
    ),
    parameters=Parameters,
    observation=Observation,
    example={"rules": ("/etc/passwd:wa", "/etc/sudoers:wa", "b64:settimeofday", "key:perm_mod")},
    reasons={
        "daemon_down": "The audit daemon is not active.",
        "recording_off": "The kernel's audit subsystem is off.",
        "rules_not_loaded": "A listed rule stands in the host's files and is not loaded.",
        "daemon_missing": "There is no such unit on this host.",
        "not_received": "The unit is active, and no daemon takes the kernel's records.",
        "rules_locked": "A listed rule is not loaded, and the configuration is locked: it takes a restart of the host.",
        "rules_absent": "A listed rule is neither loaded nor in the host's files.",
        "tasks_exempt": "A rule exempts every process, so the listed rules have no effect.",
        "rules_not_kept": "A listed rule is loaded and will be gone after a boot.",
        "rules_changed": "The loaded rules are not those that were pinned.",
        "not_written": "No audit log is written on this host.",
        "logs_open": "Files of the audit log are open to everybody.",
        "drops_silently": "When space ends, records are dropped or no longer written.",
        "records_lost": "The kernel lost more records than allowed.",
    },
    for_people=(
        "daemon_missing",
        "not_received",
        "rules_locked",
        "rules_absent",
        "tasks_exempt",
        "rules_not_kept",
        "rules_changed",
        "not_written",
        "logs_open",
        "drops_silently",
        "records_lost",
    ),
    needs=("auditctl", "systemd", "root", "the cure also augenrules"),
    reads=("unit:{unit}", "path:/etc/audit/auditd.conf", "path:/etc/audit/rules.d"),
    untold={
        "program:auditctl": "the kernel tells nobody of the rules it has loaded",
        "list:/var/log/*": "a log changes with each line",
        "stat:/var/log/*": "a log changes with each line",
    },
    interval_s=300,
    deadline_s=20.0,
)


async def observe(host: Host, baseline: Parameters) -> Observation:
    seen = Observation(unit_word((await host.units((baseline.unit,)))[baseline.unit]))
    if seen.unit == "missing":
        return seen
    status = auditd.read_status(answered(await host.run(auditd.STATUS), "auditctl").text)
    printed = answered(await host.run(auditd.RULES), "auditctl")
    loaded = [auditd.read_rule(line) for line in auditd.read_rules(printed.text)]
    rules = [rule for rule in loaded if rule is not None]
    seen = replace(
        seen,
        recording=status.enabled > 0,
        locked=status.enabled == 2,
        received=status.pid > 0,
        lost=status.lost,
        backlog=status.backlog,
        backlog_limit=status.backlog_limit,
        loaded=len(loaded),
        loaded_sha256=hashlib.sha256(printed.out).hexdigest(),
        not_loaded=tuple(name for name in baseline.rules if not auditd.covered(name, rules)),
        never_rules=sum("never" in rule.place or "exclude" in rule.place for rule in rules),
        tasks_exempt=any(rule.place == "never,task" and not rule.narrowed for rule in rules),
    )
    if baseline.rules_in_files:
        kept = await _rules_in_files(host)
        seen = replace(seen, not_kept=tuple(name for name in baseline.rules if not auditd.covered(name, kept)))
    return await _with_log(host, seen)


async def _rules_in_files(host: Host) -> list[auditd.Rule]:
    rules: list[auditd.Rule] = []
    for name in _few([name for name in await host.list(auditd.RULES_DIR) if name.endswith(".rules")], "rule files"):
        rules += auditd.rules_of_file(
            (await read_whole(host, f"{auditd.RULES_DIR}/{name}"))[1].decode(errors="replace")
        )
    return rules


async def _with_log(host: Host, seen: Observation) -> Observation:
    config = auditd.read_config((await read_whole(host, CONFIG))[1].decode(errors="replace"))
    path = PurePosixPath(config.log_file)
    names = [name for name in await host.list(str(path.parent)) if config.writes and name.startswith(path.name)]
    stats = (await stats_of(host, [str(path.parent / name) for name in _few(names, "log files")])).values()
    return replace(
        seen,
        log_files=len(stats),
        logs_open=sum(bool(stat.mode & 0o007) or stat.kind != "file" for stat in stats),
        space_left_action=config.space_left_action,
        max_log_file_action=config.max_log_file_action,
    )


def _few(names: list[str], what: str) -> list[str]:
    if len(names) > MOST_FILES:
        raise unparsable("audit", f"at most {MOST_FILES} {what}")
    return names


def judge(baseline: Parameters, seen: Observation) -> Verdict:
    if seen.unit is None:
        return unknown("unparsable", "whether the audit daemon runs could not be told")
    if seen.unit == "missing":
        return failed("daemon_missing", f"expected {baseline.unit}, found no such unit")
    if seen.unit != "active":
        return failed("daemon_down", f"expected {baseline.unit} active, found it {seen.unit}")
    if None in (seen.recording, seen.locked, seen.received, seen.lost, seen.not_loaded, seen.tasks_exempt):
        return unknown("unparsable", "what the kernel records could not be told")
    if baseline.rules_in_files and seen.not_kept is None:
        return unknown("unparsable", "which rules stand in the files could not be told")
    return _judge_rules(baseline, seen) or _judge_log(baseline, seen)


def _judge_rules(baseline: Parameters, seen: Observation) -> Verdict | None:
    if not seen.recording:
        return failed("recording_off", "expected the kernel's audit subsystem on, found it off")
    missing = ", ".join(seen.not_loaded or ())
    if _loadable(baseline, seen):
        return failed("rules_not_loaded", f"expected {missing} recorded, found it in the files and not loaded")
    if not seen.received:
        return failed("not_received", f"expected {baseline.unit} to take the records, found that no daemon does")
    if missing and seen.locked:
        return failed("rules_locked", f"expected {missing} recorded, found no rule, and no change until the next boot")
    if missing:
        return failed("rules_absent", f"expected {missing} recorded, found no rule for it")
    if seen.tasks_exempt:
        return failed("tasks_exempt", "expected no rule that exempts every process, found -a never,task")
    if baseline.rules_in_files and seen.not_kept:
        return failed("rules_not_kept", f"expected {', '.join(seen.not_kept)} in {auditd.RULES_DIR}, found no rule")
    if baseline.rules_sha256 not in {None, seen.loaded_sha256}:
        return failed("rules_changed", "expected the rules that were pinned, found others")
    return None


def _judge_log(baseline: Parameters, seen: Observation) -> Verdict:
    if None in (seen.log_files, seen.logs_open, seen.space_left_action, seen.max_log_file_action):
        return unknown("unparsable", "how the audit log is kept could not be told")
    if not seen.log_files:
        return failed("not_written", "expected an audit log, found none")
    if seen.logs_open:
        return failed("logs_open", f"expected no log file open to everybody, found {seen.logs_open}")
    if seen.space_left_action not in baseline.space_actions or seen.max_log_file_action not in baseline.log_actions:
        found = f"space_left_action {seen.space_left_action}, max_log_file_action {seen.max_log_file_action}"
        return failed("drops_silently", f"expected actions that drop nothing silently, found {found}")
    if (seen.lost or 0) > baseline.max_lost:
        return failed("records_lost", f"expected at most {baseline.max_lost} records lost, found {seen.lost}")
    return passed(f"{seen.loaded} rules are loaded, {seen.lost} records were lost")


def _loadable(baseline: Parameters, seen: Observation) -> bool:
    """Whether loading the host's own files would bring a listed rule. Not while the configuration is locked."""
    return (
        baseline.rules_in_files
        and not seen.locked
        and seen.not_kept is not None
        and bool(set(seen.not_loaded or ()) - set(seen.not_kept))
    )


def plan(baseline: Parameters, seen: Observation) -> Plan | None:
    """Start the daemon, switch recording on, load the host's own files. What is in no file is for a person to write."""
    steps = []
    if seen.unit not in {None, "active", "missing"}:
        steps.append(Step("ensure_unit_active", {"unit": baseline.unit}))
    if seen.recording is False:
        steps.append(Step("enable_auditing", {}))
    if _loadable(baseline, seen):
        steps.append(Step("load_audit_rules", {}))
    return Plan(CHECK.id, tuple(steps)) if steps else None


def permits(baseline: Parameters) -> Permits:
    """Switch auditing on, and load the host's own rules."""
    return {"may": ["audit"]}


GOOD = Observation("active", True, False, True, 0, 0, 8192, 4, "0" * 64, (), (), 0, False, 1, 0, "email", "keep_logs")
_ONE = ("/etc/passwd:wa",)
CASES = (
    Case("as listed", GOOD, Result.PASS, "as_expected"),
    Case("as listed, and locked", replace(GOOD, locked=True), Result.PASS),
    Case("files not asked for", replace(GOOD, not_kept=None), Result.PASS, parameters={"rules_in_files": False}),
    Case("as pinned", GOOD, Result.PASS, parameters={"rules_sha256": "0" * 64}),
    Case("stopped", replace(GOOD, unit="stopped", received=False), Result.FAIL, "daemon_down", heals=True),
    Case("no such unit", Observation("missing"), Result.FAIL, "daemon_missing"),
    Case("switched off", replace(GOOD, recording=False), Result.FAIL, "recording_off", heals=True),
    Case("a rule deleted", replace(GOOD, not_loaded=_ONE), Result.FAIL, "rules_not_loaded", heals=True),
    Case("a rule nowhere", replace(GOOD, not_loaded=_ONE, not_kept=_ONE), Result.FAIL, "rules_absent"),
    Case("a rule missing while locked", replace(GOOD, locked=True, not_loaded=_ONE), Result.FAIL, "rules_locked"),
    Case("a rule only loaded by hand", replace(GOOD, not_kept=_ONE), Result.FAIL, "rules_not_kept"),
    Case("other rules", GOOD, Result.FAIL, "rules_changed", parameters={"rules_sha256": "1" * 64}),
    Case("processes exempt", replace(GOOD, tasks_exempt=True), Result.FAIL, "tasks_exempt"),
    Case("no daemon listens", replace(GOOD, received=False), Result.FAIL, "not_received"),
    Case("no log", replace(GOOD, log_files=0), Result.FAIL, "not_written"),
    Case("log open", replace(GOOD, logs_open=1), Result.FAIL, "logs_open"),
    Case("nothing is said when space ends", replace(GOOD, space_left_action="ignore"), Result.FAIL, "drops_silently"),
    Case("old records deleted", replace(GOOD, max_log_file_action="rotate"), Result.FAIL, "drops_silently"),
    Case("records lost", replace(GOOD, lost=12), Result.FAIL, "records_lost"),
    Case("files not read", replace(GOOD, not_kept=None), Result.UNKNOWN),
    Case("log not looked at", replace(GOOD, logs_open=None), Result.UNKNOWN),
    Case("the kernel not asked", Observation("active"), Result.UNKNOWN),
    Case("nothing was seen", Observation(), Result.UNKNOWN),
    Case("could not look", UNREADABLE, Result.UNKNOWN, "tool_failed"),
)
