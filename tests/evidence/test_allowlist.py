"""No string in a bundle is open: what a host calls its users, files or patients has no way in."""

from __future__ import annotations

import copy
import re
import re._parser as regex_parser  # type: ignore[import-not-found]
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compliance_agent import facts
from compliance_agent.errors import BadEvidence
from compliance_agent.evidence import allowlist
from compliance_agent.evidence.allowlist import (
    LOG,
    ByWord,
    Facts,
    Maybe,
    Pattern,
    Place,
    Rows,
    SignedNote,
    build,
    check_document,
    registry,
)
from compliance_agent.facts import Bool, Choice, Digest, FactType, Int, Many, Name, Revision, Timestamp, Version
from compliance_agent.lab.clock import START
from compliance_agent.models import ActionTaken, ClockState
from tests.evidence.conftest import bundle, seen

KEY = "c" * 64
CLOSED = (Bool, Int, Choice, Digest, Revision, Timestamp, Version, Name)
# Leaves whose words come from the operator's configuration or baseline, which hold no patient's data by contract.
GIVEN_BY_PEOPLE = {
    "client_id",
    "site_id",
    "host.id",
    "policy_version",
    "baseline.version",
    "agent.version",
    "exception_id",
}


def leaves(schema: Any, at: str = "") -> Iterator[tuple[str, FactType]]:
    """Every leaf type of a schema with its place."""
    if isinstance(schema, Maybe | Rows | ByWord | Many):
        yield from leaves(schema.of, at)
    elif isinstance(schema, Facts):
        for check, declared in registry().facts_of.items():
            for name, kind in declared.items():
                yield from leaves(kind, f"{at}<{check}>.{name}")
    elif isinstance(schema, dict):
        for key, inner in schema.items():
            yield from leaves(inner, f"{at}.{key}".lstrip("."))
    else:
        assert isinstance(schema, FactType), at
        yield at, schema


def characters(tree: Any) -> Iterator[int]:
    """Every character that a parsed regular expression can match; -1 for a class or wildcard."""
    for item in tree:
        match item:
            case (operation, tuple(arguments)) if str(operation) == "RANGE":
                yield from range(arguments[0], arguments[1] + 1)
            case (operation, int(argument)) if str(operation) == "LITERAL":
                yield argument
            case (operation, (_, _, inner)) if str(operation) == "MAX_REPEAT":
                yield from characters(inner)
            case (operation, (_, _, _, inner)) if str(operation) == "SUBPATTERN":
                yield from characters(inner)
            case (operation, (_, branches)) if str(operation) == "BRANCH":
                for branch in branches:
                    yield from characters(branch)
            case (operation, list(members)) if str(operation) == "IN":
                yield from characters(members)
            case _:
                yield -1


def is_closed(kind: FactType) -> bool:
    """Bounded, and without room for words: no space, no letter outside ASCII, at most 96 characters.

    A log's origin is three labels long, and a note of a log must be one that a server signed.
    """
    if kind in {LOG, SignedNote()}:
        return True
    if isinstance(kind, Choice):
        return all(len(word) <= 64 and word.isascii() and " " not in word for word in kind.words)
    if isinstance(kind, Pattern):
        tree = regex_parser.parse(kind.regex, re.ASCII)
        return tree.getwidth()[1] <= 96 and set(characters(tree)) <= set(range(0x21, 0x7F))
    return isinstance(kind, CLOSED)


def test_every_leaf_is_closed() -> None:
    found = dict(leaves(registry().schema))
    assert len(found) > 50
    assert [at for at, kind in found.items() if not is_closed(kind)] == []


@pytest.mark.parametrize("regex", [".*", "[a-z ]{1,20}", "[a-z]+", r"\w{1,20}[a-z ]?", "(?s:.{1,20})"])
def test_an_open_string_would_be_found(regex: str) -> None:
    """The planted fault for the walk above."""
    assert [at for at, kind in leaves({"note": Pattern("x", regex)}) if not is_closed(kind)] == ["note"]


def example(check: str) -> dict[str, Any]:
    """A full, valid remediation bundle of this check."""
    entry = registry().checks[check]
    state = {name: None for name in entry["facts"]}
    made = bundle(
        check=check,
        kind="remediation",
        outcome="reverted",
        result="fail",
        reason=next(iter(entry["reasons"]), "as_expected"),
        severity="high",
        hipaa_controls=entry["citations"],
        pre_state=state,
        post_state=state,
        post_result="fail",
        post_reason="as_expected",
        action_taken=[ActionTaken(action, step=1, exit_code=0) for action in list(registry().actions)[:2]],
        error="timed_out",
        order_id="0" * 32,
        exception_id="exc-7",
        states={check: ("pass", "as_expected")},
    )
    document, undeclared = build(made, Place(0, 2, "d" * 64), seen(KEY))
    assert undeclared == []
    return document


CHECKS = sorted(registry().checks)


@pytest.mark.parametrize("check", CHECKS)
def test_the_example_of_every_check_fits(check: str) -> None:
    check_document(example(check))


def places(value: Any, at: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(place, container, key) of every leaf of a document."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        here = f"{at}[{key}]" if isinstance(value, list) else f"{at}.{key}".lstrip(".")
        if isinstance(item, dict | list) and item:
            yield from places(item, here)
        else:
            yield here, value, key


FREE_TEXT = st.one_of(
    st.sampled_from(
        ["Jane Doe", "jane.doe@clinic.example", "MRN 0012345", "/home/jane/scan.pdf", "1984-02-30", "O'Neil", "", " "]
    ),
    st.text(min_size=1, max_size=40).filter(lambda text: " " in text or not text.isascii()),
    st.text(st.sampled_from("abcdefghijklmnop"), min_size=97, max_size=200),
)


@given(check=st.sampled_from(CHECKS), which=st.integers(0, 10_000), text=FREE_TEXT)
def test_free_text_in_any_leaf_is_refused(check: str, which: int, text: str) -> None:
    document = example(check)
    found = list(places(document))
    at, container, key = found[which % len(found)]
    if at in GIVEN_BY_PEOPLE and facts.NAME.fullmatch(text):
        return
    container[key] = text
    with pytest.raises(BadEvidence) as caught:
        check_document(document)
    assert caught.value.code == "bad_schema"
    assert len(text) < 3 or text not in str(caught.value)


@pytest.mark.parametrize("word", ["jane_doe", "diabetes"])
@pytest.mark.parametrize("check", CHECKS[:1])
def test_a_word_that_no_list_holds_is_refused_everywhere(check: str, word: str) -> None:
    """A token is short and has no space, and could still be a name: the lists are closed."""
    for number, (at, _, _) in enumerate(places(example(check))):
        if at in GIVEN_BY_PEOPLE:
            continue
        document = example(check)
        _, container, key = list(places(document))[number]
        container[key] = word
        with pytest.raises(BadEvidence):
            check_document(document)


@pytest.mark.parametrize("value", [True, 1.5, -1, 2**53, [], {}, None, "x", float("nan")])
def test_a_wrong_type_anywhere_is_refused_or_fits_the_schema(value: Any) -> None:
    """Whatever is put into any leaf, the answer is yes or BadEvidence, never another exception."""
    for number in range(len(list(places(example(CHECKS[0]))))):
        document = example(CHECKS[0])
        _, container, key = list(places(document))[number]
        container[key] = copy.copy(value)
        try:
            check_document(document)
        except BadEvidence as error:
            assert error.code == "bad_schema"


def test_a_missing_and_an_extra_key_are_refused() -> None:
    for key in list(example(CHECKS[0])):
        document = example(CHECKS[0])
        del document[key]
        with pytest.raises(BadEvidence, match=key):
            check_document(document)
    with pytest.raises(BadEvidence):
        check_document({**example(CHECKS[0]), "note": None})


@pytest.mark.parametrize("document", [None, [], "x", 1, {}, {"schema": allowlist.SCHEMA}])
def test_what_is_no_bundle_is_refused(document: Any) -> None:
    with pytest.raises(BadEvidence):
        check_document(document)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"check": None}, "check"),
        ({"timestamp_end": "2020-01-01T00:00:00Z"}, "timestamp_end"),
        ({"created_at": "2026-02-30T00:00:00Z"}, "created_at"),
        ({"outcome": "success", "post_result": "unknown"}, "outcome"),
        ({"seq": 1, "epoch": 0}, "prev"),
        ({"seq": 0}, "seq"),
    ],
)
def test_what_contradicts_itself_is_refused(change: dict[str, Any], field: str) -> None:
    with pytest.raises(BadEvidence, match=field):
        check_document({**example(CHECKS[0]), **change})


def test_a_name_must_stand_in_the_baseline_where_that_is_known() -> None:
    known = allowlist.read_registry(
        '{"common_reasons":["as_expected"],"codes":[],"actions":[],"checks":{"services":{"reasons":{},"citations":[],"facts":'
        '{"stopped":{"schema":{"type":"many","of":{"type":"name","parameter":"units"},"at_most":4},"doc":""}}}}}'
    )
    made = bundle(check="services", kind="drift", pre_state={"stopped": ("sshd.service",)})
    document, _ = build(made, Place(0, 2, "d" * 64), seen(KEY), known)
    check_document(document, known=known)
    check_document(document, known=known, names={"services": {"units": ("sshd.service",)}})
    for names in ({"services": {"units": ("cron.service",)}}, {}):
        with pytest.raises(BadEvidence, match="stopped"):
            check_document(document, known=known, names=names)


def test_undeclared_words_are_replaced_and_named() -> None:
    """Losing a record over a word that a list lacks would be worse than not knowing the word."""
    made = bundle(
        reason="jane_doe",
        error="Traceback: /home/jane",
        action_taken=[ActionTaken("rm -rf", result="odd")],
        states={"no_such_check": ("pass", "as_expected")},
        counts={"jane": 1, "pending": 2},
    )
    document, undeclared = build(made, Place(0, 1, allowlist.NO_PREV), seen(KEY))
    check_document(document)
    assert "jane" not in str(document)
    assert undeclared == ["reason", "error", "actions[0].action", "actions[0].result", "states", "counts"]


def test_a_long_uptime_still_fits() -> None:
    circumstances = seen(KEY)
    long = ClockState("none", None, None, None, "not a boot id", 2**62)
    document, _ = build(
        bundle(), Place(0, 1, allowlist.NO_PREV), allowlist.Circumstances(KEY, START, long, circumstances.agent, None)
    )
    check_document(document)
    assert document["clock"]["monotonic_ns"] == 2**53 - 1
    assert document["clock"]["boot_id"] is None


def test_timestamps_are_utc() -> None:
    document, _ = build(bundle(), Place(0, 1, allowlist.NO_PREV), seen(KEY))
    assert document["timestamp_start"] == "2026-11-22T12:00:00.000000Z"
    assert (
        allowlist.timestamp((START + timedelta(microseconds=5)).replace(tzinfo=None)) == "2026-11-22T12:00:00.000005Z"
    )
