"""The words of the lab's table: a row is one fault, a table is the rows of one check; and the scripts that many rows share.

`inject`, `restore` and `truth` are shell scripts that run on the host as root. `truth` asks the machine itself, by other means
than the check, whether all is well; the word `healed` of an agent counts only when it agrees. Where a verdict is `unknown` the
probe could not look, and a `pass` recorded meanwhile is a fault of the product.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Scripts = tuple[str, str]  # what is done, and what puts the host back
PUBLISH = "# done by the lab: publish "  # first line of a script; then VERSION, and what kind (network.py)


@dataclass(frozen=True)
class Row:
    """One fault.

    Attributes:
        check: id of the check it is for.
        fault: its name, unique within the check.
        inject: makes it.
        restore: puts the host back; a healed host needs none.
        result: verdict that must be recorded.
        reason: reason of that verdict.
        outcome: how the cure must end; None where none may be tried.
        error: code that must stand beside the outcome; None where nothing may.
        truth: ends with 0 when the fault is gone.
        former: ends with 0 when the host is as the fault left it, after a cure that failed.
        wait_s: longest time until the expected record.
        standing: the fault is there from the start and stays, so the record of it may be older than the row.
    """

    check: str
    fault: str
    inject: str
    result: str
    reason: str
    outcome: str | None = None
    error: str | None = None
    restore: str = "true"
    truth: str = "true"
    former: str = "true"
    wait_s: float = 45.0
    standing: bool = False

    @property
    def name(self) -> str:
        """`check:fault`."""
        return f"{self.check}:{self.fault}"


@dataclass(frozen=True)
class Table:
    """The rows of one check, done to one host in this order: a cure that was rolled back is not tried again, so the rows whose
    cure fails stand last.

    Attributes:
        rows: its faults.
        setup: script that furnishes the host before its agent starts.
        entry: the check's entry in the lab's baseline, where the shipped one has none or names what a lab host does not have.
        interval_s: how often the lab's agent looks.
        rests: verdict and reason of a host that no fault was done to; a container does not pass everything.
        no_cure: why no cure is seen here although the check has one.
        cost_s: about how long the rows take; the checks are spread over the hosts by it.
    """

    rows: tuple[Row, ...]
    setup: str = ""
    entry: Mapping[str, Any] = field(default_factory=dict)
    interval_s: int = 1
    rests: tuple[str, str] = ("pass", "as_expected")
    no_cure: str = ""
    cost_s: float = 30.0

    @property
    def check(self) -> str:
        """The check that all its rows are for."""
        return self.rows[0].check


@dataclass(frozen=True)
class Of:
    """Makes the rows of one check, by how they must end. A script stands alone, or with the one that puts the host back."""

    check: str

    def healed(self, fault: str, reason: str, script: str | Scripts, truth: str, **more: Any) -> Row:
        """Found, and cured."""
        inject, restore = _both(script)
        return Row(self.check, fault, inject, "fail", reason, "success", restore=restore, truth=truth, **more)

    def alarm(self, fault: str, reason: str, script: str | Scripts, code: str = "no_cure", **more: Any) -> Row:
        """Found, and left to a person."""
        inject, restore = _both(script)
        return Row(self.check, fault, inject, "fail", reason, "alert", code, restore=restore, **more)

    def blind(self, fault: str, reason: str, script: str | Scripts, **more: Any) -> Row:
        """Not seen, and said so."""
        inject, restore = _both(script)
        return Row(self.check, fault, inject, "unknown", reason, restore=restore, **more)

    def undone(self, fault: str, reason: str, script: str | Scripts, code: str, former: str, **more: Any) -> Row:
        """Found, cured in vain, and as it was. Afterwards a person looks into it, so that the next row may be cured."""
        inject, restore = _both(script)
        restore = f"{restore}; {looked_into(self.check)}"
        return Row(self.check, fault, inject, "fail", reason, "reverted", code, restore=restore, former=former, **more)


def _both(script: str | Scripts) -> Scripts:
    return (script, "true") if isinstance(script, str) else script


def then(*scripts: str | Scripts) -> Scripts:
    """Several faults as one, taken back in reverse."""
    pairs = [_both(script) for script in scripts]
    return "\n".join(do for do, _ in pairs), "\n".join(back for _, back in reversed(pairs))


def at_once(script: str | Scripts) -> Scripts:
    """A fault of several parts that the agent sees whole or not at all."""
    inject, restore = _both(script)
    stop, go_on = (f"systemctl kill -s {signal} compliance-agent" for signal in ("STOP", "CONT"))
    return f"{stop}\n{inject}\n{go_on}", restore


def kept(path: str, script: str, afterwards: str = "true") -> Scripts:
    """A change of a file, and the script that brings the file back, byte for byte and with its mode."""
    copy = f"/root/kept{path.replace('/', '-')}"
    return f"cp -p {path} {copy}\n{script}", f"cp -p {copy} {path}\n{afterwards}"


def made(path: str, text: str, afterwards: str = "true") -> Scripts:
    """A file that is not there otherwise."""
    return f"printf '{text}' >{path}\n{afterwards}", f"rm {path}\n{afterwards}"


def hidden(program: str) -> Scripts:
    """Scripts that take a program away and give it back."""
    return f"mv {program} {program}.away", f"mv {program}.away {program}"


def hanging(program: str) -> Scripts:
    """Scripts that put a program in the place of one which never answers, and give that back."""
    take, give = hidden(program)
    return f"{take}; printf '#!/bin/sh\\nexec sleep 600\\n' >{program}; chmod 755 {program}", f"rm {program}; {give}"


def refusing(program: str, when: str) -> Scripts:
    """Scripts that have a program fail when this shell test of its arguments holds, and end that."""
    take, give = hidden(program)
    wrapper = f'#!/bin/sh\\n{when} && exit 9\\nexec {program}.away "$@"\\n'
    return f"{take}; printf '{wrapper}' >{program}; chmod 755 {program}", f"rm {program}; {give}"


def looked_into(check: str) -> str:
    """A script for what a person does after a cure that was rolled back: let it be tried again."""
    return f"systemctl stop compliance-agent; compliance-agent heal --again {check}; systemctl start compliance-agent"


def unreadable(check: str, program: str, reason: str = "tool_missing") -> Row:
    """The check's own program is gone: it cannot look, so nothing may be said."""
    inject, restore = hidden(program)
    return Row(check, "unreadable", inject, "unknown", reason, restore=restore)


def stopped(check: str, unit: str, reason: str, activator: str = "") -> tuple[Row, ...]:
    """A unit stopped, masked and killed; each has to come back by itself.

    `activator` is the socket that would start it again with the next line that is logged, before anyone could see it down.
    """
    masked, _ = at_once(f"systemctl mask --now {unit}")  # masked and still up, it would be cured of that alone
    killed, _ = at_once(f"systemctl kill -s KILL {unit}; systemctl stop {activator} {unit}")
    up = f"systemctl is-active {unit} && ! systemctl is-enabled {unit} | grep masked"
    ways = {
        "unit_stopped": f"systemctl stop {activator} {unit}",
        "unit_masked": masked,
        "unit_killed": killed,
    }
    return tuple(Row(check, fault, inject, "fail", reason, "success", truth=up) for fault, inject in ways.items())


def failing(unit: str) -> Scripts:
    """Scripts that let every start of a unit fail, and end that."""
    place = f"/run/systemd/system/{unit}.d"
    make = f"mkdir -p {place} && printf '[Service]\\nExecStart=\\nExecStart=/bin/false\\nRestart=no\\n' >{place}/z.conf"
    return (
        f"{make} && systemctl daemon-reload",
        f"rm -r {place}; systemctl daemon-reload; systemctl reset-failed {unit}",
    )
