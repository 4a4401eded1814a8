"""What a step may say is declared with its sentence: a token that no list holds would stand in evidence as `undeclared`."""

from __future__ import annotations

import ast
import importlib
import inspect
import re

import pytest

from compliance_agent import facts
from compliance_agent.adapters.subprocess_host import _FILE_CODES
from compliance_agent.errors import CANNOT_TELL_REASONS
from compliance_agent.evidence.allowlist import registry
from compliance_agent.lab.handbook import reasons_page
from compliance_agent.remedies import actions
from compliance_agent.remedies.spec import Action

ACTIONS = tuple(actions().values())
every_action = pytest.mark.parametrize("action", ACTIONS, ids=lambda action: action.id)


def said_in(source: str) -> set[str]:
    """Words in a module that look like a code: lower case, joined by underscores, alone in their string."""
    strings = (node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant))
    return {text for text in strings if isinstance(text, str) and re.fullmatch(r"[a-z]+(_[a-z]+)+", text)}


def undeclared(action: Action, source: str) -> set[str]:
    return said_in(source) - {action.id, *action.arguments, *CANNOT_TELL_REASONS, *action.codes}


@every_action
def test_every_code_is_declared(action: Action) -> None:
    module = importlib.import_module(f"compliance_agent.remedies.{action.id}")
    assert undeclared(action, inspect.getsource(module)) == set()


def test_a_code_that_is_not_declared_would_be_found() -> None:
    source = 'async def blocked(host, args):\n    return "unit_on_fire" if args else None\n'
    assert undeclared(actions()["run_backup_unit"], source) == {"unit_on_fire"}


@every_action
def test_every_code_may_stand_in_evidence_and_is_explained(action: Action) -> None:
    page = reasons_page()
    for code, sentence in action.codes.items():
        assert facts.TOKEN.fullmatch(code) and sentence.endswith("."), code
        assert code in registry().codes
        assert f"| `{code}` |" in page


@pytest.mark.parametrize("action", ["set_mode", "set_sshd_policy", "set_shell_timeout", "set_idle_logout"])
def test_every_way_in_which_this_machine_refuses_to_change_a_file_is_declared(action: str) -> None:
    """A read-only file system once stood in evidence as `undeclared`."""
    refusals = {*_FILE_CODES.values(), "unsafe_directory", "storage_full", "io_error"}
    assert refusals <= {*CANNOT_TELL_REASONS, *actions()[action].codes}
    assert refusals <= set(registry().codes)
