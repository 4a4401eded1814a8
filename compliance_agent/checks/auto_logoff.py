"""Sessions that nobody uses end by themselves: shells, logins, and on a desktop the screen.

What is judged is what is in force: TMOUT as a login shell gets it from /etc/profile and all it reads, what logind itself says, and
what dconf gives to a desktop. Keep-alives of SSH are no part of it: they notice dead connections, not idle people.
"""

from __future__ import annotations

from dataclasses import field, replace

from compliance_agent.checks.spec import (
    UNREADABLE,
    Case,
    CheckSpec,
    Citation,
    Permits,
    failed,
    lines_of,
    passed,
    unknown,
)
from compliance_agent.core import idle
from compliance_agent.core.tools import answered
from compliance_agent.dataclass import dataclass
from compliance_agent.errors import CannotTell
from compliance_agent.facts import Bool, Int, fact
from compliance_agent.models import Plan, Result, Severity, Step, Verdict
from compliance_agent.ports import Host

DESKTOPS = ("/usr/share/xsessions", "/usr/share/wayland-sessions")
SPAN = Int(0, 10**15)


@dataclass(frozen=True)
class Parameters:
    max_idle_s: int = field(default=900, metadata={"doc": "Longest time without use, seconds."})
    logind: bool = field(default=True, metadata={"doc": "logind must end idle sessions (systemd 252 or later)."})
    screen_lock: bool = field(default=True, metadata={"doc": "Where there is a desktop, its screen must lock."})
    shell_file: str = field(
        default="/etc/profile.d/00-compliance-tmout.sh", metadata={"doc": "File that the cure of shells writes."}
    )
    logind_file: str = field(
        default="/etc/systemd/logind.conf.d/50-compliance.conf",
        metadata={"doc": "File that the cure of sessions writes."},
    )

    def __post_init__(self) -> None:
        if not 60 <= self.max_idle_s <= 86_400:
            raise ValueError("max_idle_s: expected 60 to 86400")
        if not (self.shell_file.startswith("/") and self.shell_file.endswith(".sh")):
            raise ValueError("shell_file: expected an absolute path that ends in .sh")
        if not (self.logind_file.startswith("/") and self.logind_file.endswith(".conf")):
            raise ValueError("logind_file: expected an absolute path that ends in .conf")


@dataclass(frozen=True)
class Observation:
    shell_idle_s: int | None = fact(SPAN, "Seconds after which an idle shell ends; 0: never.")
    shell_readonly: bool | None = fact(Bool(), "The user of a shell cannot change that.")
    logind_knows: bool | None = fact(Bool(), "This logind can end idle sessions.")
    session_idle_s: int | None = fact(SPAN, "Seconds after which logind ends an idle session; 0: never.")
    desktop: bool | None = fact(Bool(), "A graphical desktop is installed.")
    screen_idle_s: int | None = fact(SPAN, "Seconds after which an idle screen goes dark; 0: never.")
    screen_locks: bool | None = fact(Bool(), "A screen that went dark needs a password.")


CHECK = CheckSpec(
    id="auto_logoff",
    title="Idle sessions end by themselves",
    severity=Severity.MEDIUM,
    rationale="A session that was left open lets the next person at the keyboard act as somebody else.",
    citations=(
        Citation(
            "164.312(a)(2)(iii)",
            rationale="Idle shells and logins are ended, and desktops locked, after a time set by the baseline.",
            does_not_prove="That applications with sessions of their own, such as a records system, end them too.",
            primary=True,
        ),
        Citation(
            "164.310(c)",
            rationale="A workstation that was left locks itself, which supports restricting access to it.",
            does_not_prove="That the workstation stands where only authorized people reach it.",
        ),
    ),
    parameters=Parameters,
    observation=Observation,
    reasons={
        "shell_not_ended": "An idle shell does not end, or later than allowed.",
        "shell_changeable": "Whoever uses a shell can switch its timeout off.",
        "session_not_ended": "logind does not end idle sessions, or later than allowed.",
        "logind_too_old": "This logind cannot end idle sessions (systemd before 252).",
        "screen_not_locked": "An idle desktop is not locked, or later than allowed.",
    },
    for_people=("logind_too_old", "screen_not_locked"),
    needs=("bash (reads /etc/profile as a login does)", "busctl", "dconf where there is a desktop"),
    reads=(
        "path:/etc/profile",
        "path:/etc/profile.d",
        "path:/etc/bash.bashrc",
        "path:/etc/systemd/logind.conf",
        "path:/etc/systemd/logind.conf.d",
        "path:{shell_file}",
        "path:{logind_file}",
        *(f"path:{path}" for path in DESKTOPS),
    ),
    optional={
        f"list:{path} {fault}": "no desktop, so there is no screen to lock"
        for path in DESKTOPS
        for fault in ("not_found", "empty")
    },
    interval_s=300,
    deadline_s=20.0,
)


async def observe(host: Host, baseline: Parameters) -> Observation:
    shell_idle_s, readonly = idle.read_tmout(answered(await host.run(idle.SHELL), "bash").text)
    seen = Observation(shell_idle_s, readonly)
    try:
        if baseline.logind:
            seen = await _with_logind(host, seen)
        if baseline.screen_lock:
            seen = await _with_screen(host, seen)
    except CannotTell:
        if _judge_shell(baseline, seen) is None:
            raise  # else it is a failure already, whatever the rest is like
    return seen


async def _with_logind(host: Host, seen: Observation) -> Observation:
    ran = await host.run(idle.LOGIND)
    if ran.exit_status != 0 and b"unknown" in ran.err.lower() and b"propert" in ran.err.lower():
        return replace(seen, logind_knows=False)
    return replace(seen, logind_knows=True, session_idle_s=idle.read_usec(answered(ran, "busctl").text))


async def _with_screen(host: Host, seen: Observation) -> Observation:
    if not any([await _holds_any(host, path) for path in DESKTOPS]):
        return replace(seen, desktop=False)
    delay = idle.read_delay(answered(await host.run(idle.IDLE_DELAY), "dconf").text)
    lock = answered(await host.run(idle.LOCK_ENABLED), "dconf").text.strip()
    if lock not in {"", "true", "false"}:
        raise CannotTell("unparsable", "dconf: expected true or false")
    # Without a setting GNOME goes dark after 300 s and locks.
    return replace(seen, desktop=True, screen_idle_s=300 if delay is None else delay, screen_locks=lock != "false")


async def _holds_any(host: Host, directory: str) -> bool:
    try:
        return any(name.endswith(".desktop") for name in await host.list(directory))
    except CannotTell as error:
        if error.reason == "not_found":
            return False
        raise


def judge(baseline: Parameters, seen: Observation) -> Verdict:
    return _judge_shell(baseline, seen) or _judge_logind(baseline, seen) or _judge_rest(baseline, seen)


def _judge_shell(baseline: Parameters, seen: Observation) -> Verdict | None:
    limit = baseline.max_idle_s
    if seen.shell_idle_s is None or seen.shell_readonly is None:
        return unknown("unparsable", "when an idle shell ends could not be told")
    if not 0 < seen.shell_idle_s <= limit:
        return failed("shell_not_ended", f"expected shells to end within {limit} s, found {_span(seen.shell_idle_s)}")
    if not seen.shell_readonly:
        return failed("shell_changeable", "expected a timeout of shells that is read-only, found one that is not")
    return None


def _judge_logind(baseline: Parameters, seen: Observation) -> Verdict | None:
    limit = baseline.max_idle_s
    if baseline.logind and seen.logind_knows is None:
        return unknown("unparsable", "when logind ends an idle session could not be told")
    if baseline.logind and seen.logind_knows:
        if seen.session_idle_s is None:
            return unknown("unparsable", "when logind ends an idle session could not be told")
        if not 0 < seen.session_idle_s <= limit:
            found = _span(seen.session_idle_s)
            return failed("session_not_ended", f"expected sessions to end within {limit} s, found {found}")
    return None


def _judge_rest(baseline: Parameters, seen: Observation) -> Verdict:
    limit = baseline.max_idle_s
    if baseline.logind and not seen.logind_knows:
        return failed("logind_too_old", "expected logind to end idle sessions, found one before systemd 252")
    if baseline.screen_lock and seen.desktop is None:
        return unknown("unparsable", "whether there is a desktop could not be told")
    if baseline.screen_lock and seen.desktop:
        if seen.screen_idle_s is None or seen.screen_locks is None:
            return unknown("unparsable", "when the screen is locked could not be told")
        if not seen.screen_locks or not 0 < seen.screen_idle_s <= limit:
            when = _span(seen.screen_idle_s) if seen.screen_locks else "that it does not"
            return failed("screen_not_locked", f"expected the screen to lock within {limit} s, found {when}")
    logind = f", sessions after {seen.session_idle_s} s" if baseline.logind else ""
    return passed(f"shells end after {seen.shell_idle_s} s{logind}, {'a' if seen.desktop else 'no'} desktop")


def _span(seconds: int) -> str:
    return f"{seconds} s" if seconds else "never"


def plan(baseline: Parameters, seen: Observation) -> Plan | None:
    """Write the file of shells, the file of logind, or both. A desktop's settings are for a person."""
    reason = judge(baseline, seen).reason
    shell = Step("set_shell_timeout", {"path": baseline.shell_file, "seconds": baseline.max_idle_s})
    logind = Step("set_idle_logout", {"path": baseline.logind_file, "seconds": baseline.max_idle_s})
    late = (
        bool(seen.logind_knows)
        and seen.session_idle_s is not None
        and not 0 < seen.session_idle_s <= baseline.max_idle_s
    )
    if reason in {"shell_not_ended", "shell_changeable"}:
        return Plan(CHECK.id, (shell, logind) if late else (shell,))
    return Plan(CHECK.id, (logind,)) if reason == "session_not_ended" else None


def permits(baseline: Parameters) -> Permits:
    """The two files, as they are written."""
    files = {
        baseline.shell_file: lines_of(idle.shell_file(baseline.max_idle_s)),
        baseline.logind_file: lines_of(idle.logind_file(baseline.max_idle_s)),
    }
    return {"files": files, "may": ["logind"]}


GOOD = Observation(900, True, True, 900, desktop=False)
_DESK = replace(GOOD, desktop=True, screen_idle_s=300, screen_locks=True)
CASES = (
    Case("ends", GOOD, Result.PASS, "as_expected"),
    Case("ends, and the desktop locks", _DESK, Result.PASS),
    Case("no timeout in shells", replace(GOOD, shell_idle_s=0), Result.FAIL, "shell_not_ended", heals=True),
    Case("too long a timeout", replace(GOOD, shell_idle_s=3600), Result.FAIL, "shell_not_ended", heals=True),
    Case("users may switch it off", replace(GOOD, shell_readonly=False), Result.FAIL, "shell_changeable", heals=True),
    Case("sessions stay", replace(GOOD, session_idle_s=0), Result.FAIL, "session_not_ended", heals=True),
    Case("sessions stay a day", replace(GOOD, session_idle_s=86_400), Result.FAIL, "session_not_ended", heals=True),
    Case("an old logind", Observation(900, True, False, desktop=False), Result.FAIL, "logind_too_old"),
    Case(
        "an old logind that is not asked",
        Observation(900, True, desktop=False),
        Result.PASS,
        parameters={"logind": False},
    ),
    Case("the screen stays open", replace(_DESK, screen_locks=False), Result.FAIL, "screen_not_locked"),
    Case("the screen never goes dark", replace(_DESK, screen_idle_s=0), Result.FAIL, "screen_not_locked"),
    Case("screens are not asked for", replace(GOOD, desktop=None), Result.PASS, parameters={"screen_lock": False}),
    Case("desktop not looked for", replace(GOOD, desktop=None), Result.UNKNOWN),
    Case("desktop not read", replace(_DESK, screen_locks=None), Result.UNKNOWN),
    Case("logind not asked", replace(GOOD, logind_knows=None, session_idle_s=None), Result.UNKNOWN),
    Case("nothing was seen", Observation(), Result.UNKNOWN),
    Case("could not look", UNREADABLE, Result.UNKNOWN, "tool_failed"),
)
