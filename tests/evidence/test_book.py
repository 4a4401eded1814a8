"""A key's time in a log begins and ends once: nothing that is added later opens it again."""

from __future__ import annotations

from itertools import permutations

import pytest

from compliance_agent.evidence.allowlist import NO_PREV
from compliance_agent.evidence.book import KeyLine, Leaf

AT = "2026-11-22T00:00:00Z"
FIRST = ((0, 1), "a" * 64)


def record(seq: int, prev: str, digest: str) -> Leaf:
    return Leaf(digest, 0, prev, seq)


def line() -> KeyLine:
    """Enrolled, and one record."""
    made = KeyLine(events=[(1, "enrol", AT)])
    made.follow(2, record(1, NO_PREV, FIRST[1]), bytes(16), begins=True)
    return made


def end(made: KeyLine, how: str, index: int) -> None:
    if how == "rotate":
        made.rotate(index, AT, FIRST, KeyLine())
    else:
        made.events.append((index, how, AT))


@pytest.mark.parametrize("order", list(permutations(["rotate", "revoke"])), ids="-".join)
def test_whoever_ended_is_not_let_in_again_by_a_second_end(order: tuple[str, str]) -> None:
    made = line()
    end(made, order[0], 3)
    made.follow(4, record(2, FIRST[1], "b" * 64), bytes(16), begins=True)
    assert not made.valid
    end(made, order[1], 5)
    assert made.ended == (3, AT)
    assert not made.valid


@pytest.mark.parametrize("how", ["rotate", "revoke"])
def test_a_second_enrolment_does_not_let_it_in_again(how: str) -> None:
    made = line()
    end(made, how, 3)
    made.events.append((4, "enrol", AT))
    made.follow(5, record(2, FIRST[1], "b" * 64), bytes(16), begins=True)
    assert not made.valid


@pytest.mark.parametrize("how", ["rotate", "revoke"])
def test_what_it_signed_before_its_end_stays_valid(how: str) -> None:
    made = line()
    assert made.ended is None
    end(made, how, 3)
    assert made.valid
