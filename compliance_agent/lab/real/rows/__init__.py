"""The faults of every check, one file per check: every module of this package that holds a `TABLE` is one. No list to edit."""

from __future__ import annotations

import importlib
import pkgutil

from compliance_agent.lab.real.row import Table


def tables() -> tuple[Table, ...]:
    """Every check's table, in the order of the file names.

    Raises:
        RuntimeError: a file is not named after the one check that its rows are for.
    """
    found = []
    for module_info in sorted(pkgutil.iter_modules(__path__), key=lambda info: info.name):
        table = importlib.import_module(f"{__name__}.{module_info.name}").TABLE
        if {row.check for row in table.rows} != {module_info.name}:
            raise RuntimeError(f"lab/real/rows/{module_info.name}.py: expected rows for that check and no other")
        found.append(table)
    return tuple(found)
