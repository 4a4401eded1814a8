"""Plans may only say what the table of actions allows, and are stored without loss."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compliance_agent.errors import DocumentError
from compliance_agent.models import Plan, Step
from compliance_agent.remedies.plan import decode, encode, lines, resolve, target_of
from compliance_agent.remedies.spec import Action


async def nothing(*_: Any) -> None:
    return None


ACTION = Action(
    "set_level", "Set {name} to {level}", {"name": str, "level": int, "hard": bool}, nothing, nothing, nothing
)
TABLE = {"set_level": ACTION}
STEP = Step("set_level", {"name": "x", "level": 3, "hard": False})
PLAN = Plan("toy", (STEP,))

words = st.text(max_size=20)
plans = st.builds(
    Plan,
    check=words,
    steps=st.lists(
        st.builds(Step, words, st.dictionaries(words, words | st.booleans() | st.integers(-(2**53), 2**53))), max_size=4
    ).map(tuple),
    disruptive=st.booleans(),
    target=words,
    disturbs=words,
)


def test_the_text_is_the_actions_own() -> None:
    assert lines(PLAN, resolve(PLAN, TABLE)) == ("Set x to 3",)


@pytest.mark.parametrize(
    "args",
    [
        {"name": "x", "level": 3},
        {"name": "x", "level": 3, "hard": False, "more": 1},
        {"name": "x", "level": True, "hard": False},  # a truth is no number here
        {"name": "x", "level": 3, "hard": 0},
        {"name": 3, "level": 3, "hard": False},
        {"name": b"x", "level": 3, "hard": False},
    ],
)
def test_arguments_must_be_exactly_those_declared(args: dict[str, Any]) -> None:
    with pytest.raises(RuntimeError, match="plan of toy, step 1"):
        resolve(replace(PLAN, steps=(Step("set_level", args),)), TABLE)


def test_an_action_outside_the_table_is_refused() -> None:
    with pytest.raises(RuntimeError, match="no such action"):
        resolve(replace(PLAN, steps=(STEP, Step("run_shell", {"command": "true"}))), TABLE)


@given(plans)
def test_a_plan_comes_back_as_it_was(plan: Plan) -> None:
    assert decode(encode(plan)) == plan


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"check": "x"', '{"check":"x","steps":[1]}', "\0"])
def test_text_that_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(DocumentError):
        decode(text)


def test_a_plan_without_a_target_is_named_by_its_steps() -> None:
    assert target_of(replace(PLAN, target="g-42")) == "g-42"
    other = replace(PLAN, steps=(replace(STEP, args={**STEP.args, "level": 4}),))
    assert target_of(PLAN) == target_of(replace(PLAN)) != target_of(other)
    assert len(target_of(PLAN)) <= 40
