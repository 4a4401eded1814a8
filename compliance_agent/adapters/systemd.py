"""systemd: states of units in one question over its bus, or by `systemctl` where the bus gives none; actions by `systemctl`."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from compliance_agent.adapters.execute import Programs
from compliance_agent.adapters.offload import Offload
from compliance_agent.adapters.unit_bus import UnitBus, unit_place
from compliance_agent.errors import CannotTell, StepFailed
from compliance_agent.ports import UNIT_VERBS, Ran, UnitState

BOOTED = Path("/run/systemd/system")  # sd_booted(3): there exactly when systemd is the init
UNIT_NAME = re.compile(
    r"[A-Za-z0-9:_.\\@-]{1,240}\.(service|socket|timer|target|mount|automount|swap|path|slice|scope)"
)
PROPERTIES = ("Id", "LoadState", "ActiveState", "SubState", "UnitFileState", "TriggeredBy")


class Systemd:
    """The service manager of this host. `booted` is the directory that says there is one."""

    def __init__(self, programs: Programs, booted: Path = BOOTED, offload: Offload | None = None) -> None:
        self._programs = programs
        self._booted = booted
        self._offload = offload if offload is not None else Offload()
        self._bus = UnitBus(booted.parent.parent)
        self._messages = UnitBus(booted.parent.parent, direct=False)

    async def units(self, names: Sequence[str], *, timeout_s: float = 10.0) -> dict[str, UnitState]:
        """States of all these units.

        Raises:
            CannotTell: `tool_missing` without systemd, `tool_failed`, `unparsable`, `timed_out`.
            RuntimeError: a name that is no unit's.
        """
        for name in names:
            check_unit_name(name)
        if not names:
            return {}
        states = await self._by_bus(names, timeout_s)
        if states is not None:
            return dict(zip(names, states, strict=True))
        argv = ("systemctl", "show", "--no-pager", f"--property={','.join(PROPERTIES)}", "--", *names)
        ran = await self._programs.run(argv, timeout_s=timeout_s)
        if ran.exit_status != 0:
            raise self._no_answer(f"systemctl show: exit status {ran.exit_status}")
        return dict(zip(names, parse_show(ran.text, len(names)), strict=True))

    async def _by_bus(self, names: Sequence[str], timeout_s: float) -> list[UnitState] | None:
        """None where nobody can be asked over the bus, or the answer has another form; `systemctl` then finds a way or says why.

        Raises:
            CannotTell: `timed_out`: the manager took the question and says nothing. So it would to `systemctl`.
        """
        try:
            return await self._offload.call("manager:", timeout_s, lambda: self._bus.states(names, timeout_s))
        except TimeoutError as error:
            raise CannotTell("timed_out", f"the service manager: no answer within {timeout_s} s") from error
        except (OSError, EOFError, ValueError):
            return None

    async def printed(self, argv: Sequence[str], timeout_s: float) -> Ran | None:
        """What `busctl` or `systemctl` would print of some properties, asked over the bus. None for other questions,
        and where it could not be asked: then the program says why.

        Raises:
            CannotTell: `timed_out`.
        """
        ask = self._question(argv, timeout_s)
        if ask is None:
            return None
        try:
            text = await self._offload.call("bus:", timeout_s, ask)
        except TimeoutError as error:
            raise CannotTell("timed_out", f"{argv[0]}: no answer within {timeout_s} s") from error
        except (OSError, EOFError, ValueError):
            return None
        return Ran(0, text.encode("ascii"), b"")

    def _question(self, argv: Sequence[str], timeout_s: float) -> Callable[[], str] | None:
        match list(argv):
            case ["busctl", "--no-pager", "get-property", str(service), str(path), str(interface), str(name)]:
                return lambda: _of_busctl(self._messages.number(service, path, interface, name, timeout_s))
            case ["systemctl", "show", "--property=StateChangeTimestamp", "--", str(unit)] if UNIT_NAME.fullmatch(unit):
                place = (*unit_place(unit), "StateChangeTimestamp")
                return lambda: _of_systemctl(self._bus.number(*place, timeout_s))
            case ["systemctl", "show", "--property=Type,NRestarts", "--", str(unit)] if _is_service(unit):
                return lambda: "Type={}\nNRestarts={}\n".format(*self._bus.service(unit, timeout_s))
            case _:
                return None

    async def act(self, verb: str, name: str, *, timeout_s: float = 90.0) -> None:
        """One action on one unit, until the manager is done with it.

        Raises:
            StepFailed: the manager refused, or the unit did not come up.
            CannotTell: as `units`.
        """
        check_unit_name(name)
        if verb not in UNIT_VERBS:
            raise RuntimeError(f"no such verb: {verb}")
        argv = ("systemctl", "--no-pager", "--no-ask-password", "--quiet", verb, "--", name)
        ran = await self._programs.run(argv, timeout_s=timeout_s, gentle_s=2.0)
        if ran.exit_status == 0:
            return
        if not self._booted.is_dir():
            raise self._no_answer(f"systemctl {verb}: exit status {ran.exit_status}")
        message = f"systemctl {verb} {name}: exit status {ran.exit_status}"
        raise StepFailed(message, code=f"unit_{verb}_failed", exit_status_of_step=ran.exit_status)

    def _no_answer(self, message: str) -> CannotTell:
        if not self._booted.is_dir():
            return CannotTell("tool_missing", "this host was not booted with systemd")
        return CannotTell("tool_failed", message)


def _is_service(unit: str) -> bool:
    return UNIT_NAME.fullmatch(unit) is not None and unit.endswith(".service")


def _of_busctl(number: int) -> str:
    return f"t {number}\n"


def _of_systemctl(micros: int) -> str:
    """As systemctl prints a moment where the zone is UTC; none for 0."""
    moment = time.strftime("%a %Y-%m-%d %H:%M:%S UTC", time.gmtime(micros // 1_000_000)) if micros else ""
    return f"StateChangeTimestamp={moment}\n"


def check_unit_name(name: str) -> None:
    """Refuse what `systemctl` would take for a pattern, an option or a path.

    Raises:
        RuntimeError: not a unit's full name.
    """
    if not UNIT_NAME.fullmatch(name) or name.startswith("-"):
        raise RuntimeError(f"not a unit's full name: {name[:60]!r}")


def parse_show(text: str, count: int) -> list[UnitState]:
    """The blocks of `systemctl show`, one for each unit in the order they were asked for (an alias shows another Id).

    Raises:
        CannotTell: `unparsable`: another number of blocks, or a state is missing.
    """
    blocks = [block for block in re.split(r"\n[ \t]*\n", text.strip("\n")) if block]
    if len(blocks) != count:
        raise CannotTell("unparsable", f"systemctl show: expected {count} units, found {len(blocks)}")
    states = []
    for block in blocks:
        pairs = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        try:
            state = UnitState(
                pairs["LoadState"],
                pairs["ActiveState"],
                pairs["SubState"],
                pairs.get("UnitFileState", ""),
                tuple(sorted(filter(UNIT_NAME.fullmatch, pairs.get("TriggeredBy", "").split()))),
            )
        except KeyError as error:
            raise CannotTell("unparsable", f"systemctl show: no {error.args[0]}") from error
        if not (state.load and state.active and state.sub):
            raise CannotTell("unparsable", "systemctl show: an empty state")
        states.append(state)
    return states
