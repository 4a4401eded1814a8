"""The services a clinic relies on run and come back with the machine; those that must not be there cannot start.

Both lists are the baseline's. A unit that must not run is right when it does not exist, or is stopped and neither enabled nor
started by others.
"""

from __future__ import annotations

from dataclasses import field, replace

from compliance_agent.checks.spec import UNREADABLE, Case, CheckSpec, Citation, failed, passed, unknown
from compliance_agent.checks.units import unit_word
from compliance_agent.dataclass import dataclass
from compliance_agent.errors import CannotTell
from compliance_agent.facts import Many, Name, fact
from compliance_agent.models import Plan, Result, Severity, Step, Verdict
from compliance_agent.ports import Host, UnitState

COMES_BACK = {
    "enabled",
    "enabled-runtime",
    "static",
    "alias",
    "indirect",
    "generated",
    "transient",
    "linked",
    "linked-runtime",
}
STAYS_AWAY = {"disabled", "masked", "masked-runtime", ""}


@dataclass(frozen=True)
class Parameters:
    active: tuple[str, ...] = field(
        metadata={"doc": "Units that must run and come back with the machine.", "unit": "needed"}
    )
    forbidden: tuple[str, ...] = field(
        default=("telnet.socket", "rsh.socket", "rlogin.socket", "tftp.socket", "vsftpd.service", "rpcbind.socket"),
        metadata={"doc": "Units that must not run, nor be able to start by themselves.", "unit": "forbidden"},
    )

    def __post_init__(self) -> None:
        for name in ("active", "forbidden"):
            units = getattr(self, name)
            if not units:
                raise ValueError(f"{name}: is empty; nothing would be compared")
            if not all("." in unit for unit in units):
                raise ValueError(f"{name}: expected whole names of units, such as ssh.service")
        if set(self.active) & set(self.forbidden):
            raise ValueError("active, forbidden: a unit stands in both")


@dataclass(frozen=True)
class Observation:
    down: tuple[str, ...] | None = fact(Many(Name("active")), "Units that must run and do not.")
    missing: tuple[str, ...] | None = fact(Many(Name("active")), "Of these, not on this host.")
    not_enabled: tuple[str, ...] | None = fact(Many(Name("active")), "Units that run and will not come back.")
    forbidden_running: tuple[str, ...] | None = fact(Many(Name("forbidden")), "Units that must not run and do.")
    forbidden_enabled: tuple[str, ...] | None = fact(
        Many(Name("forbidden")), "Units that must not run, do not, and may start by themselves."
    )


CHECK = CheckSpec(
    id="services",
    title="Required services run, and forbidden ones cannot start",
    severity=Severity.MEDIUM,
    rationale="A service that nobody needs is a way in; one that stopped unnoticed leaves a measure without effect.",
    citations=(
        Citation(
            "164.308(a)(1)(ii)(B)",
            rationale="Keeping needless services off and protective ones on are measures that reduce risks.",
            does_not_prove="That the two lists are the right ones for what this host does.",
            primary=True,
        ),
        Citation(
            "164.312(e)(1)",
            rationale="Services that send passwords and records in the clear are among those that cannot start.",
            does_not_prove="That services which do run protect what they send; see transmission.",
        ),
    ),
    parameters=Parameters,
    observation=Observation,
    example={"active": ("cron.service", "dbus.service")},
    reasons={
        "forbidden_running": "A service runs that must not.",
        "service_down": "A service that must run does not.",
        "service_not_enabled": "A service that must run will not come back with the machine.",
        "forbidden_enabled": "A service that must not run may start by itself.",
        "service_missing": "A service that must run does not exist on this host.",
    },
    for_people=("service_missing",),
    needs=("systemd",),
    reads=("unit:{active}", "unit:{forbidden}"),
    optional={
        "unit:* strange_unit_4_telnet.socket": "a masked unit that does not run is as it should be",
        "unit:* strange_unit_4_r*.socket": "a masked unit that does not run is as it should be",
        "unit:* strange_unit_4_tftp.socket": "a masked unit that does not run is as it should be",
        "unit:* strange_unit_4_vsftpd.service": "a masked unit that does not run is as it should be",
    },
    interval_s=60,
)


async def observe(host: Host, baseline: Parameters) -> Observation:
    states = await host.units((*baseline.active, *baseline.forbidden))
    words = {name: unit_word(state) for name, state in states.items()}
    idle = [name for name in baseline.forbidden if not _runs(states[name])]
    return Observation(
        down=tuple(name for name in baseline.active if words[name] != "active"),
        missing=tuple(name for name in baseline.active if words[name] == "missing"),
        not_enabled=tuple(
            name for name in baseline.active if words[name] == "active" and not _comes_back(states[name])
        ),
        forbidden_running=tuple(name for name in baseline.forbidden if _runs(states[name])),
        forbidden_enabled=tuple(name for name in idle if words[name] != "missing" and _comes_back(states[name])),
    )


def _runs(state: UnitState) -> bool:
    """Whether it runs, is about to, or is about to end."""
    return state.active not in {"inactive", "failed"}


def _comes_back(state: UnitState) -> bool:
    if state.enabled not in COMES_BACK | STAYS_AWAY:
        raise CannotTell("unparsable", "the service manager described a unit file in unknown words")
    return state.enabled in COMES_BACK and state.load != "masked"


def judge(baseline: Parameters, seen: Observation) -> Verdict:
    if None in (seen.down, seen.missing, seen.not_enabled, seen.forbidden_running, seen.forbidden_enabled):
        return unknown("unparsable", "the states of the listed units could not be told")
    down = [name for name in seen.down or () if name not in (seen.missing or ())]
    if seen.forbidden_running:
        return failed("forbidden_running", f"expected {', '.join(seen.forbidden_running)} not to run, found it running")
    if down:
        return failed("service_down", f"expected every listed unit active, found {', '.join(down)} down")
    if seen.not_enabled:
        return failed("service_not_enabled", f"expected {', '.join(seen.not_enabled)} enabled, found it is not")
    if seen.forbidden_enabled:
        return failed("forbidden_enabled", f"expected {', '.join(seen.forbidden_enabled)} off, found it may start")
    if seen.missing:
        return failed("service_missing", f"expected {', '.join(seen.missing)}, found no such unit")
    return passed(f"{len(baseline.active)} units run, {len(baseline.forbidden)} cannot")


def plan(baseline: Parameters, seen: Observation) -> Plan | None:
    """Start, enable, stop and mask, all at once. Stopping what runs is noticed by whoever uses it, so it waits."""
    if judge(baseline, seen).reason in {"service_missing", "as_expected"}:
        return None
    steps = [Step("ensure_unit_active", {"unit": name}) for name in seen.down or () if name not in (seen.missing or ())]
    steps += [Step("enable_unit", {"unit": name}) for name in seen.not_enabled or ()]
    away = (*(seen.forbidden_running or ()), *(seen.forbidden_enabled or ()))
    steps += [Step("stop_and_mask_unit", {"unit": name}) for name in away]
    if seen.forbidden_running:
        return Plan(CHECK.id, tuple(steps), disruptive=True, disturbs="stops_service")
    return Plan(CHECK.id, tuple(steps)) if steps else None


GOOD = Observation((), (), (), (), ())
CASES = (
    Case("as listed", GOOD, Result.PASS, "as_expected"),
    Case("one stopped", replace(GOOD, down=("cron.service",)), Result.FAIL, "service_down", heals=True),
    Case(
        "one will not come back",
        replace(GOOD, not_enabled=("cron.service",)),
        Result.FAIL,
        "service_not_enabled",
        heals=True,
    ),
    Case(
        "telnet runs", replace(GOOD, forbidden_running=("telnet.socket",)), Result.FAIL, "forbidden_running", heals=True
    ),
    Case(
        "telnet may start",
        replace(GOOD, forbidden_enabled=("telnet.socket",)),
        Result.FAIL,
        "forbidden_enabled",
        heals=True,
    ),
    Case(
        "one stopped, another missing",
        replace(GOOD, down=("cron.service", "dbus.service"), missing=("dbus.service",)),
        Result.FAIL,
        "service_down",
        heals=True,
    ),
    Case(
        "not on this host",
        replace(GOOD, down=("dbus.service",), missing=("dbus.service",)),
        Result.FAIL,
        "service_missing",
    ),
    Case("half was seen", Observation((), (), ()), Result.UNKNOWN),
    Case("nothing was seen", Observation(), Result.UNKNOWN),
    Case("could not look", UNREADABLE, Result.UNKNOWN, "tool_failed"),
)
