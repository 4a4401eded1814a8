"""The words of the lab's table: a row is one fault, a table is the rows of one check; and the scripts that many rows share.

`inject`, `restore` and `truth` are shell scripts that run on the host as root. `truth` asks the machine itself, by other means
than the check, whether all is well; the word `healed` of an agent counts only when it agrees. Where a verdict is `unknown` the
probe could not look, and a `pass` recorded meanwhile is a fault of the product.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

PUBLISH = "# done by the lab: publish "  # first line of a script; then VERSION, and `broken` for a package that fails


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
        passes: whether a host without a fault passes here.
        no_cure: why no cure is seen here although the check has one.
        cost_s: about how long the rows take; the checks are spread over the hosts by it.
    """

    rows: tuple[Row, ...]
    setup: str = ""
    entry: Mapping[str, Any] = field(default_factory=dict)
    interval_s: int = 1
    passes: bool = True
    no_cure: str = ""
    cost_s: float = 30.0

    @property
    def check(self) -> str:
        """The check that all its rows are for."""
        return self.rows[0].check


def hidden(program: str) -> tuple[str, str]:
    """Scripts that take a program away and give it back."""
    return f"mv {program} {program}.away", f"mv {program}.away {program}"


def unreadable(check: str, program: str, reason: str = "tool_missing") -> Row:
    """The check's own program is gone: it cannot look, so nothing may be said."""
    inject, restore = hidden(program)
    return Row(check, "unreadable", inject, "unknown", reason, restore=restore)


def stopped(check: str, unit: str, reason: str, activator: str = "") -> tuple[Row, ...]:
    """A unit stopped, masked and killed; each has to come back by itself.

    `activator` is the socket that would start it again with the next line that is logged, before anyone could see it down.
    """
    up = f"systemctl is-active {unit} && ! systemctl is-enabled {unit} | grep masked"
    ways = {
        "unit_stopped": f"systemctl stop {activator} {unit}",
        "unit_masked": f"systemctl mask --now {unit}",
        "unit_killed": f"systemctl kill -s KILL {unit}; systemctl stop {activator} {unit}",
    }
    return tuple(Row(check, fault, inject, "fail", reason, "success", truth=up) for fault, inject in ways.items())


def failing(unit: str) -> tuple[str, str]:
    """Scripts that let every start of a unit fail, and end that."""
    place = f"/run/systemd/system/{unit}.d"
    make = f"mkdir -p {place} && printf '[Service]\\nExecStart=\\nExecStart=/bin/false\\nRestart=no\\n' >{place}/z.conf"
    return (
        f"{make} && systemctl daemon-reload",
        f"rm -r {place}; systemctl daemon-reload; systemctl reset-failed {unit}",
    )
