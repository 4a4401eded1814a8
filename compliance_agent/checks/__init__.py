"""The checks: every module of this package that holds a `CHECK` is one. No list to edit."""

from __future__ import annotations

import functools
import importlib
import pkgutil

from compliance_agent.checks.spec import Check, CheckSpec


@functools.cache
def registry() -> dict[str, Check]:
    """Every check by id, in the order of their ids.

    Raises:
        RuntimeError: two checks share an id, or a file is not named after its check.
    """
    found: dict[str, Check] = {}
    for module_info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{module_info.name}")
        spec = getattr(module, "CHECK", None)
        if not isinstance(spec, CheckSpec):
            continue
        if spec.id in found or spec.id != module_info.name:
            raise RuntimeError(f"checks/{module_info.name}.py: id {spec.id!r} is taken or is not the file's name")
        propose = getattr(module, "propose", None)
        permits = getattr(module, "permits", None)
        found[spec.id] = Check(spec, module.observe, module.judge, module.plan, module.CASES, propose, permits)
    return dict(sorted(found.items()))
