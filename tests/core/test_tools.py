"""What a program's answer is worth before its meaning is looked at."""

from __future__ import annotations

import pytest

from compliance_agent.core.tools import answered, json_answer, refused
from compliance_agent.errors import CannotTell
from compliance_agent.lab.faults import GARBAGE
from compliance_agent.ports import Ran

REFUSALS = [
    b"Operation not permitted (you must be root)\n",
    b"netlink: Error: cache initialization failed: Operation not permitted\n",
    b"Device /dev/sda3 does not exist or access denied.\n",
    b"Cannot initialize device-mapper, running as non-root user.\n",
    b"Fatal: open /srv/restic/config: permission denied\n",
]


@pytest.mark.parametrize("said", REFUSALS)
def test_a_refusal_is_told_from_a_failure(said: bytes) -> None:
    """As nft, cryptsetup and restic say it."""
    with pytest.raises(CannotTell) as caught:
        answered(Ran(1, b"", said), "tool")
    assert caught.value.reason == "not_permitted"
    assert said.decode().strip() not in str(caught.value)


@pytest.mark.parametrize("status", [1, 2, 100, -9])
def test_any_other_status_is_a_failure(status: int) -> None:
    with pytest.raises(CannotTell) as caught:
        answered(Ran(status, b"a good answer", b"Jane Roe: no such file"), "tool")
    assert (caught.value.reason, "Jane" in str(caught.value)) == ("tool_failed", False)


def test_a_good_answer_is_given_back() -> None:
    ran = Ran(0, b"{}", b"a warning")
    assert answered(ran, "tool") is ran
    assert not refused(ran)
    assert json_answer(b'{"a": [1]}', "tool") == {"a": [1]}


@pytest.mark.parametrize("raw", [raw for raw in GARBAGE if raw not in (b"[]", b"{}", b"null", b"-1")])
def test_what_is_no_json_is_unparsable(raw: bytes) -> None:
    with pytest.raises(CannotTell) as caught:
        json_answer(raw, "tool")
    assert caught.value.reason == "unparsable"
