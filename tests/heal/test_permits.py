"""Root's file of permissions: only root's, only whole, only as it is written down."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compliance_agent.heal.permits import fits, parse
from compliance_agent.heal.trouble import Refused
from tests.heal.scene import BASELINE, PERMITS, Scene

GOOD: dict[str, Any] = {
    "schema": "compliance-agent/permits/v1",
    "baseline": BASELINE,
    "version": "1",
    "files": {"/etc/x": [{"line": "a"}, {"maybe": "b"}, {"key": "k ", "of": ["c", "d"]}]},
    "modes": {"/etc/y": 0o600},
    "units": {"a.service": "needed"},
    "ruleset": "table\n\tchain\n",
    "may": ["audit"],
}


def test_a_file_of_the_agreed_form_is_read() -> None:
    permits = parse(json.dumps(GOOD).encode())
    assert (permits.baseline, permits.modes, permits.may) == (BASELINE, {"/etc/y": 0o600}, ["audit"])


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666])
def test_one_that_others_may_write_does_not_count(scene: Scene, mode: int) -> None:
    scene.does("clock")
    scene.path(PERMITS).chmod(mode)
    scene.refuses("clock", "permits_not_roots")


def test_one_in_a_directory_that_others_may_write_does_not_count(scene: Scene) -> None:
    scene.path("/etc/msp").chmod(0o777)
    scene.refuses("clock", "permits_not_roots")


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away, which root alone can")
def test_one_of_another_user_does_not_count(scene: Scene) -> None:
    os.chown(scene.path(PERMITS), 65534, 0)
    scene.refuses("clock", "permits_not_roots")


def test_a_link_to_one_does_not_count(scene: Scene) -> None:
    scene.path(PERMITS).rename(scene.path("/etc/msp/real"))
    scene.path(PERMITS).symlink_to("real")
    scene.refuses("clock", "permits_not_roots")


def test_none_permits_nothing(scene: Scene) -> None:
    scene.path(PERMITS).unlink()
    scene.refuses("clock", "no_permits")


def test_a_new_one_counts_at_once(scene: Scene) -> None:
    scene.does("clock")
    scene.permit(may=[])
    scene.refuses("clock")


HOSTILE: list[Any] = [
    None,
    True,
    1,
    -1,
    0o10000,
    2**53,
    "",
    "x",
    "-x",
    [],
    ["x"],
    [None],
    {},
    {"a": "b"},
    "/etc/../x",
    "a\0b",
]


@pytest.mark.parametrize("name", sorted(GOOD))
def test_each_field_is_held_to_its_form(name: str) -> None:
    """Missing, and of each hostile value at the field and one level below it; only what means nothing is taken."""
    harmless: dict[str, list[Any]] = {
        "files": [{}],
        "modes": [{}],
        "units": [{}],
        "ruleset": [None, "", "x", "-x", "/etc/../x"],
        "may": [[]],
        "version": ["", "x", "-x", "/etc/../x"],
    }
    with pytest.raises(Refused, match="bad_permits"):
        parse(json.dumps({key: value for key, value in GOOD.items() if key != name}).encode())
    for value in HOSTILE:
        if not any(
            value is taken or (value == taken and type(value) is type(taken)) for taken in harmless.get(name, ())
        ):
            with pytest.raises(Refused, match="bad_permits"):
                parse(json.dumps({**GOOD, name: value}).encode())
    if isinstance(GOOD[name], dict):
        inner = next(iter(GOOD[name]))
        for value in HOSTILE:
            if (name, value) not in [("modes", 1), ("files", [])] or value is True:
                with pytest.raises(Refused, match="bad_permits"):
                    parse(json.dumps({**GOOD, name: {inner: value}}).encode())


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xef\xbb\xbf{}",
        b"{}",
        b"[" * 100_000,
        json.dumps(GOOD).encode()[:-1] + b', "may": []}',
        json.dumps({**GOOD, "more": 1}).encode(),
        json.dumps(GOOD).replace("384", "384.0").encode(),
        json.dumps(GOOD).replace("384", "NaN").encode(),
        json.dumps(GOOD).encode("utf-16"),
        json.dumps(GOOD).encode() + b"x",
    ],
    ids=lambda raw: repr(raw[:12]),
)
def test_what_is_not_strict_is_refused(raw: bytes) -> None:
    with pytest.raises(Refused, match="bad_permits"):
        parse(raw)


@given(st.binary(max_size=400))
def test_no_bytes_make_it_crash(raw: bytes) -> None:
    with pytest.raises(Refused):
        parse(raw)


SPECS = GOOD["files"]["/etc/x"]


@given(
    st.lists(st.sampled_from(["a", "b", "k c", "k d", "k c,d", "k d,c", "k ", "", "a ", "c"]), max_size=4),
    st.booleans(),
)
def test_content_fits_exactly_when_it_is_one_of_the_ways_to_write_it(lines: list[str], ended: bool) -> None:
    """Held against the whole set of good texts, spelt out."""
    text = "\n".join(lines) + ("\n" if ended and lines else "")
    good = {f"a\n{maybe}{key}\n" for maybe in ("", "b\n") for key in ("k c", "k d", "k c,d")}
    assert fits(text.encode(), SPECS) == (text in good)


def test_an_empty_file_is_one_without_lines() -> None:
    assert fits(b"", [])
    assert not fits(b"\n", [])
