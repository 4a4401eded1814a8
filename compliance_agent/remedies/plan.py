"""Plans, held against the table of actions: what would run, in words and in types.

A plan comes from a check; it may only name rows of the table, with exactly the arguments the row declares. The same text is
printed by a dry run and by the real one, because both come from `lines`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from compliance_agent.errors import DocumentError
from compliance_agent.models import Plan, Step
from compliance_agent.remedies.spec import Action


def resolve(plan: Plan, table: Mapping[str, Action]) -> tuple[Action, ...]:
    """The actions of a plan's steps, in order.

    Raises:
        RuntimeError: a step names no action, or its arguments are not those the action declares.
    """
    found = []
    for number, step in enumerate(plan.steps, start=1):
        action = table.get(step.action)
        if action is None:
            raise RuntimeError(f"plan of {plan.check}, step {number}: no such action {step.action[:40]!r}")
        _check_arguments(plan.check, number, step, action)
        found.append(action)
    return tuple(found)


def _check_arguments(check: str, number: int, step: Step, action: Action) -> None:
    if set(step.args) != set(action.arguments):
        raise RuntimeError(f"plan of {check}, step {number}: {action.id} takes {sorted(action.arguments)}")
    for name, kind in action.arguments.items():
        if type(step.args[name]) is not kind:  # exact: True is no int here
            raise RuntimeError(f"plan of {check}, step {number}: {action.id}.{name} must be {kind.__name__}")


def lines(plan: Plan, actions: tuple[Action, ...]) -> tuple[str, ...]:
    """What each step does, one sentence each, for a person at this host."""
    return tuple(action.describe(step.args) for action, step in zip(actions, plan.steps, strict=True))


def target_of(plan: Plan) -> str:
    """What the plan would bring the host to: its own name for it, else a digest of its steps."""
    if plan.target:
        return plan.target
    return "steps-" + hashlib.sha256(encode(plan).encode()).hexdigest()[:32]


def encode(plan: Plan) -> str:
    """The plan as JSON text, the same text for equal plans."""
    document: dict[str, Any] = {
        "check": plan.check,
        "steps": [{"action": step.action, "args": dict(step.args)} for step in plan.steps],
        "disruptive": plan.disruptive,
        "target": plan.target,
        "disturbs": plan.disturbs,
    }
    return json.dumps(document, sort_keys=True, separators=(",", ":"))


def decode(text: str) -> Plan:
    """The plan that `encode` wrote.

    Raises:
        DocumentError: the text is not such a plan.
    """
    try:
        document = json.loads(text)
        return Plan(
            check=document["check"],
            steps=tuple(Step(step["action"], step["args"]) for step in document["steps"]),
            disruptive=document["disruptive"],
            target=document["target"],
            disturbs=document["disturbs"],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise DocumentError("a stored plan cannot be read", code="not_a_plan") from error
