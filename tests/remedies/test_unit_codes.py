"""What the service manager's refusal is called is declared by every action that can meet it: seen on a booted host first."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from compliance_agent.remedies import actions
from compliance_agent.remedies.spec import Action


def source_of(action: Action) -> str:
    """The text of the file that an action stands in."""
    path = inspect.getsourcefile(action.apply)
    assert path is not None
    return Path(path).read_text("utf-8")


ON_UNITS = [action for action in actions().values() if "unit_action" in source_of(action)]


def test_there_are_actions_on_units() -> None:
    assert {"ensure_unit_active", "restart_unit", "run_backup_unit"} <= {action.id for action in ON_UNITS}


@pytest.mark.parametrize("action", ON_UNITS, ids=lambda action: action.id)
def test_every_verb_an_action_uses_has_its_code(action: Action) -> None:
    verbs = set(re.findall(r'unit_action\("(\w+)"', source_of(action)))
    assert verbs, "a verb that is not written out cannot be held against the codes"
    assert {f"unit_{verb}_failed" for verb in verbs} <= set(action.codes)
