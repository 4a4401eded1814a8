"""The fixed table of actions: every module of this package that holds an `ACTION` is one row. No list to edit."""

from __future__ import annotations

import functools
import importlib
import pkgutil

from compliance_agent.remedies.spec import Action


@functools.cache
def actions() -> dict[str, Action]:
    """Every action by id.

    Raises:
        RuntimeError: a file is not named after its action.
    """
    found: dict[str, Action] = {}
    for module_info in pkgutil.iter_modules(__path__):
        action = getattr(importlib.import_module(f"{__name__}.{module_info.name}"), "ACTION", None)
        if not isinstance(action, Action):
            continue
        if action.id != module_info.name:
            raise RuntimeError(f"remedies/{module_info.name}.py: id {action.id!r} is not the file's name")
        found[action.id] = action
    return dict(sorted(found.items()))
