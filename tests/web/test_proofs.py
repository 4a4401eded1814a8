"""Words for what was proven: every state and code of the services has its sentence, and entries of any shape can be shown."""

from __future__ import annotations

import inspect
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.fields import to_base64
from compliance_agent.log.merkle import RootHash
from compliance_agent.log.note import Note, Signature
from compliance_agent.server import following, log_reading, sequencer
from compliance_agent.server.services import checkpoints, logbook, proving, served_logs
from compliance_agent.server.services.checkpoints import Line, State, Witness
from compliance_agent.server.services.logbook import Entry
from compliance_agent.server.services.moments import Bound, Interval
from compliance_agent.server.services.proving import Proven
from compliance_agent.web import proofs


def test_every_state_has_its_look() -> None:
    assert set(proofs.STATES) == set(proofs.SUMMARIES) == set(State)


def test_every_code_has_its_sentence() -> None:
    """The codes as they stand in the services' source: a new one without words is found here."""
    source = "".join(map(inspect.getsource, (proving, checkpoints, served_logs, logbook)))
    codes = set(re.findall(r'State\.[A-Z]+, "([a-z_]+)"', source)) | set(re.findall(r'code="([a-z_]+)"', source))
    codes |= set(re.findall(r'_line\("[a-z]+", [^,]+(?:==[^,]+)?, "([a-z_]+)", "[a-z_]+"', source))
    assert {"host_signed", "other_entry", "no_policy", "linked"} <= codes
    assert codes - {"not_found"} <= set(proofs.CODES)
    assert set(re.findall(r'Line\("([a-z]+)"', source)) <= set(proofs.LINES)
    assert set(re.findall(r'Witness\(name, "([a-z]+)"', source)) == set(proofs.WITNESSES)


def test_every_reason_to_stand_still_has_its_sentence() -> None:
    source = "".join(map(inspect.getsource, (sequencer, log_reading, following)))
    codes = set(re.findall(r'code="([a-z_]+)"', source)) - {"bad_checkpoint"}  # unusable, then
    assert "log_forked" in codes
    assert codes | {"clock_not_advanced", "storage_full", "write_unknown", "not_sequencing"} <= set(proofs.STILL)


def test_the_worst_line_leads() -> None:
    good, bad, untold = (Line("entry", state, "x") for state in (State.VERIFIED, State.WRONG, State.UNTOLD))
    assert [Proven(lines).state for lines in ((good,), (good, untold), (untold, bad, good))] == [
        State.VERIFIED,
        State.UNTOLD,
        State.WRONG,
    ]
    panel = proofs.panel(Proven((bad,), (Witness("north", "absent"),)))
    assert (panel.state, panel.tone, panel.witnesses[0].sentence) == (
        "wrong",
        "fail",
        "has not cosigned this checkpoint",
    )


def test_a_wrong_date_leads_too() -> None:
    """Every line verified, and the record dated wrongly: that is not `everything holds`."""
    noon = datetime(2026, 11, 22, 12, tzinfo=UTC)
    dated = Interval(Bound(noon), Bound(noon), noon - timedelta(hours=1))
    panel = proofs.panel(Proven((Line("entry", State.VERIFIED, "x"),), (), dated))
    assert (panel.state, panel.sentence) == ("wrong", "Something is wrong.")


TIME = Note(Checkpoint("o", 41, RootHash(bytes(32))).text, (Signature("o", b"1234", bytes(64)),)).encode()


@pytest.mark.parametrize(
    ("content", "detail"),
    [
        (
            {"kind": "bundle", "key": "k", "epoch": 0, "seq": 7, "bundle_sha256": "ab" * 32},
            "epoch 0, seq 7, SHA-256 ababababababab",
        ),
        ({"kind": "key", "event": "revoke", "key": "k"}, "revoke"),
        ({"kind": "fork", "key": "k", "epoch": 0, "seq": 7}, "two records"),
        ({"kind": "shard", "previous": None}, "no year before it"),
        ({"kind": "shard", "previous": "eA=="}, "binds the last checkpoint"),
        (
            {"kind": "time", "checkpoint": to_base64(TIME), "tokens": ["eA=="]},
            "of 41 entries, 1 signature lines, 1 time stamps",
        ),
        ({"kind": "time", "checkpoint": 3}, "no readable checkpoint"),
    ],
)
def test_an_entry_in_words(content: dict[str, Any], detail: str) -> None:
    assert detail in proofs.entry(Entry(1, content["kind"], content)).detail


VALUES = st.none() | st.integers() | st.text(max_size=8) | st.lists(st.text(max_size=3), max_size=2)
NAMES = st.sampled_from(["key", "epoch", "seq", "bundle_sha256", "event", "previous", "checkpoint", "tokens"])


@given(st.sampled_from([*proofs.ENTRY_KINDS, "brand_new"]), st.dictionaries(NAMES, VALUES))
def test_no_entry_is_too_odd_to_be_shown(kind: str, content: dict[str, Any]) -> None:
    row = proofs.entry(Entry(0, kind, content))
    assert row.sentence and isinstance(row.detail, str)
