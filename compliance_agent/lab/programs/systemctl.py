"""systemctl, beside what `units` and `unit_action` of the Host port reach: only what has no unit of its own."""

from __future__ import annotations

from datetime import timedelta

from compliance_agent.lab.host import Call, FakeHost, said
from compliance_agent.ports import Ran


def systemctl(call: Call) -> Ran:
    """`systemctl daemon-reload | is-system-running | reboot | show --property=StateChangeTimestamp -- UNIT |
    show --property=Type,NRestarts -- UNIT | kill --kill-whom=main --signal=HUP -- UNIT`.
    """
    if not call.host.has_service_manager:
        return said("", 1, err="System has not been booted with systemd as init system (PID 1). Can't operate.\n")
    command = call.words[0] if call.words else ""
    if command == "is-system-running":
        failed = any(unit.failed for unit in call.host.units_table.values())
        return said("degraded\n" if failed else "running\n", 1 if failed else 0)
    if command == "daemon-reload":
        call.alters()
        return said("")
    if command == "kill" and {"--kill-whom=main", "--signal=HUP"} <= call.flags:
        call.alters()
        unit = call.host.units_table.get(call.words[-1])
        if unit is None or not unit.active:
            return said("", 1, err=f"Failed to kill unit {call.words[-1]}: Unit {call.words[-1]} not loaded.\n")
        unit.reloaded()
        return said("")
    if command == "show" and "--property=StateChangeTimestamp" in call.flags:
        return said(f"StateChangeTimestamp={_stamp(call.host, call.words[-1])}\n")
    if command == "show" and "--property=Type,NRestarts" in call.flags:
        unit = call.host.units_table.get(call.host.aliases.get(call.words[-1], call.words[-1]))
        return said(f"Type={unit.type}\nNRestarts={unit.restarts}\n" if unit else "\n")
    return said("", 1, err=f"Unknown command verb {command}.\n")


def _stamp(host: FakeHost, name: str) -> str:
    """When a unit last changed its state; one that did not since boot changed when the host came up."""
    unit = host.units_table.get(host.aliases.get(name, name))
    booted_at = host.now() - timedelta(seconds=host.clock.monotonic())
    return f"{(unit.changed_at if unit and unit.changed_at else booted_at):%a %Y-%m-%d %H:%M:%S} UTC" if unit else ""


PROGRAMS = {"systemctl": systemctl}
