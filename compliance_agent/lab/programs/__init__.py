"""Programs of a clinic host, simulated: state in a dataclass, output as the real tool of Debian 12 prints it.

A module here holds `PROGRAMS = {"name": function}`; the function takes a `Call` and returns what `Ran` holds. State
that outlives a call is a dataclass, reached with `call.host.part(Class)`. No list to edit:

    @dataclass
    class Fans:
        speed: int = 900

    def fanctl(call: Call) -> Ran:
        fans = call.host.part(Fans)
        if call.words[:1] == ["set"]:
            call.alters()
            fans.speed = int(call.words[1])
        return said(f"{fans.speed}")

    PROGRAMS = {"fanctl": fanctl}
"""

from __future__ import annotations

import functools
import importlib
import pkgutil

from compliance_agent.lab.host import Program


@functools.cache
def programs() -> dict[str, Program]:
    """Every simulated program by its name.

    Raises:
        RuntimeError: two modules simulate the same program.
    """
    found: dict[str, Program] = {}
    for module_info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{module_info.name}")
        for name, program in module.PROGRAMS.items():
            if name in found:
                raise RuntimeError(f"program {name} is simulated twice")
            found[name] = program
    return found
