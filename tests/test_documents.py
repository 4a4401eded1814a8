"""What is ambiguous in JSON or YAML from outside is refused with one line, quickly, whatever it is."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compliance_agent.documents import read_json, read_yaml
from compliance_agent.errors import DocumentError

HOSTILE_JSON = {
    "empty": b"",
    "one byte": b"{",
    "nul": b'{"a":"\0"}',
    "byte order mark": b'\xef\xbb\xbf{"a":1}',
    "utf-16": '{"a":1}'.encode("utf-16"),
    "bad utf-8": b'{"a":"\xff"}',
    "lone surrogate": b'{"a":"\\ud800"}',
    "lone surrogate key": b'{"\\ud800":1}',
    "too large": b'"' + b"x" * 1_048_577 + b'"',
    "too deep": b"[" * 200_000,
    "deep and closed": b"[" * 17 + b"]" * 17,
    "duplicate keys": b'{"a":1,"a":1}',
    "minus zero with fraction": b'{"a":-0.0}',
    "infinite": b'{"a":1e999}',
    "nan": b'{"a":NaN}',
    "infinity": b'{"a":-Infinity}',
    "2**63": b'{"a":9223372036854775808}',
    "2**53": b'{"a":9007199254740992}',
    "5,000 digits": b'{"a":' + b"9" * 5_000 + b"}",
    "full-width digits": '{"a":\uff11\uff12}'.encode(),
    "underscore digits": b'{"a":1_0}',
    "two documents": b'{"a":1}{"a":1}',
    "control character": b'{"a":"\n"}',
}

HOSTILE_YAML = {
    "nul": b"a: \0",
    "byte order mark": b"\xef\xbb\xbfa: 1",
    "bad utf-8": b"a: \xff",
    "too large": b"#" + b"x" * 1_048_577,
    "too deep": b"[" * 200_000,
    "deep and closed": b"[" * 17 + b"]" * 17,
    "duplicate keys": b"a: 1\na: 2",
    "alias": b"a: &x [1]\nb: *x",
    "anchor alone": b"a: &x 1",
    "tag": b"a: !!python/object/apply:os.system [id]",
    "standard tag": b"a: !!str 1",
    "second document": b"a: 1\n---\nb: 2",
    "key is a list": b"[1]: 2",
    "key is a number": b"1: 2",
    "unclosed": b"a: [1",
    "2**53": b"a: 9007199254740992",
    "billion laughs": b"a: &a [x]\nb: &b [*a,*a]\nc: [*b,*b]",
}


@pytest.mark.parametrize("name", HOSTILE_JSON)
def test_hostile_json_is_refused_in_one_line(name: str) -> None:
    started = time.process_time()
    with pytest.raises(DocumentError) as refused:
        read_json(HOSTILE_JSON[name])
    assert "\n" not in refused.value.line
    assert time.process_time() - started < 2


@pytest.mark.parametrize("name", HOSTILE_YAML)
def test_hostile_yaml_is_refused_in_one_line(name: str) -> None:
    started = time.process_time()
    with pytest.raises(DocumentError) as refused:
        read_yaml(HOSTILE_YAML[name])
    assert "\n" not in refused.value.line
    assert time.process_time() - started < 2


def test_yaml_guesses_nothing() -> None:
    text = b"a: no\nb: on\nc: 0600\nd: 12:30:00\ne: 1.5\nf: true\ng: null\nh: 17\ni: '17'\nj: 2026-01-01\nk:\n"
    assert read_yaml(text) == {
        "a": "no", "b": "on", "c": "0600", "d": "12:30:00", "e": "1.5", "f": True, "g": None, "h": 17, "i": "17",
        "j": "2026-01-01", "k": None,
    }  # fmt: skip


def test_empty_yaml_is_nothing() -> None:
    assert read_yaml(b"") is None
    assert read_yaml(b"# only a comment\n") is None


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc", min_size=1), inner, max_size=4),
    max_leaves=12,
)


@given(JSON_VALUES)
def test_what_json_can_say_is_read_back(value: object) -> None:
    assert read_json(json.dumps(value).encode()) == value


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(raw: bytes) -> None:
    for read in (read_json, read_yaml):
        try:
            read(raw)
        except DocumentError as refused:
            assert refused.code
