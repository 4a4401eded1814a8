"""systemctl, beside what `units` and `unit_action` of the Host port reach: only what has no unit of its own."""

from __future__ import annotations

from compliance_agent.lab.host import Call, said
from compliance_agent.ports import Ran


def systemctl(call: Call) -> Ran:
    """`systemctl daemon-reload | is-system-running | reboot`."""
    if not call.host.has_service_manager:
        return said("", 1, err="System has not been booted with systemd as init system (PID 1). Can't operate.\n")
    command = call.words[0] if call.words else ""
    if command == "is-system-running":
        failed = any(unit.failed for unit in call.host.units_table.values())
        return said("degraded\n" if failed else "running\n", 1 if failed else 0)
    if command == "daemon-reload":
        call.alters()
        return said("")
    return said("", 1, err=f"Unknown command verb {command}.\n")


PROGRAMS = {"systemctl": systemctl}
