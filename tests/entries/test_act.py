"""An act says who, what, about whom or what, and when, by ids; and nothing else fits in."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from compliance_agent.entries.act import CONSOLE, Act, act_leaf, check, digest_of
from compliance_agent.errors import BadEvidence

PERSON, KEY, AT = "p0123456789abcdef", "ab" * 32, "2026-11-22T12:00:00.000000Z"
DOCS = Path(__file__).resolve().parent.parent.parent / "docs" / "protocol.md"


def test_the_bytes_of_an_act() -> None:
    assert act_leaf(Act.USER_ROLE, CONSOLE, PERSON, AT) == (
        b'{"act":"user_role","actor":"console","at":"2026-11-22T12:00:00.000000Z","kind":"act","subject":"p0123456789abcdef","v":1}'
    )
    for act in Act:
        for actor in (CONSOLE, PERSON, KEY):
            for subject in (None, PERSON, KEY):
                check(json.loads(act_leaf(act, actor, subject, AT)))


BAD: list[dict[str, Any]] = [
    *({"act": word} for word in ("", "Login", "looked_at_a_patient", 1, None)),
    *({"actor": name} for name in ("", "j.doe", "p0123", "P0123456789ABCDEF", KEY.upper(), None, 7, "console ")),
    *({"subject": name} for name in ("", "j.doe", "clinic-1", "console", 7, [PERSON])),
    *({"at": time} for time in ("", "yesterday", None, 0, "2026-11-22 12:00:00")),
    {"note": "free text"},
    {"note": None},
]


@pytest.mark.parametrize("change", BAD, ids=str)
def test_what_says_anything_else_is_named(change: dict[str, Any]) -> None:
    leaf = json.loads(act_leaf(Act.LOGIN, PERSON, None, AT))
    with pytest.raises(BadEvidence) as caught:
        check({**leaf, **change})
    assert caught.value.code == "bad_entry"


@pytest.mark.parametrize("missing", ["act", "actor", "subject", "at"])
def test_what_leaves_something_out_is_named(missing: str) -> None:
    leaf = json.loads(act_leaf(Act.LOGIN, PERSON, None, AT))
    with pytest.raises(BadEvidence):
        check({name: value for name, value in leaf.items() if name != missing})


def test_no_act_is_made_that_would_not_verify() -> None:
    for actor, subject in (("j.doe", None), (PERSON, "clinic-1")):
        with pytest.raises(BadEvidence):
            act_leaf(Act.LOGIN, actor, subject, AT)


def test_a_digest_stands_for_a_document() -> None:
    hold = {"site_id": "clinic-1", "host_id": None, "reason_id": "case-7"}
    assert digest_of(hold) == digest_of(dict(reversed(hold.items()))) != digest_of({**hold, "reason_id": "case-8"})


def test_the_protocol_names_every_act() -> None:
    [table] = re.findall(r"Acts: (.*?)\. Digests are", DOCS.read_text("utf-8"), re.DOTALL)
    words = set(re.findall(r"`([a-z_]+)`", table)) - {"null"}
    assert words == {str(act) for act in Act}
