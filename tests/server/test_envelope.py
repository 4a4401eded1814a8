"""A request that is spelled as agents do is read in one pass; what that pass reads is what the strict reader reads."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compliance_agent.errors import AgentError
from compliance_agent.evidence.canonical import canonical
from compliance_agent.server.api import evidence

_PAIRS = st.lists(st.tuples(st.binary(max_size=40), st.binary(min_size=64, max_size=64)), min_size=1, max_size=4)
_ODD = [
    b'"',
    b"\\",
    b",",
    b"=",
    b"{",
    b"]",
    b'"},{"bundle":"',
    b'","sig":"',
    b'"}],"gaps":[],"protocol":1}',
    b"\0",
    b"A",
    b" ",
]


def spelled(pairs: list[tuple[bytes, bytes]]) -> bytes:
    items = [{"bundle": base64.b64encode(a).decode(), "sig": base64.b64encode(b).decode()} for a, b in pairs]
    return canonical({"protocol": 1, "bundles": items, "gaps": []})


def slowly(raw: bytes, monkeypatch: pytest.MonkeyPatch) -> list[tuple[bytes, bytes]] | None:
    with monkeypatch.context() as patch:
        patch.setattr(evidence, "_plainly", lambda _raw: None)
        try:
            bundles, traces = evidence.read_envelope(raw)
            assert traces is None
            return bundles
        except AgentError:
            return None


@given(_PAIRS)
def test_what_agents_send_is_read_in_one_pass(pairs: list[tuple[bytes, bytes]]) -> None:
    raw = spelled(pairs)
    assert evidence._plainly(raw) == pairs
    with pytest.MonkeyPatch.context() as patch:
        assert slowly(raw, patch) == pairs


@given(_PAIRS, st.integers(0, 400), st.integers(0, 3), st.sampled_from(_ODD))
def test_what_the_one_pass_reads_the_strict_reader_reads_too(
    pairs: list[tuple[bytes, bytes]], at: int, gone: int, put: bytes
) -> None:
    raw = spelled(pairs)
    at %= len(raw)
    changed = raw[:at] + put + raw[at + gone :]
    quick = evidence._plainly(changed)
    if quick is not None:
        with pytest.MonkeyPatch.context() as patch:
            assert slowly(changed, patch) == quick


def test_the_strict_reader_has_the_last_word() -> None:
    pair = (b"{}", bytes(64))
    raw = spelled([pair])
    for other in (json.dumps(json.loads(raw)).encode(), raw.replace(b"AAAA", b"\\u0041AAA", 1)):
        assert evidence._plainly(other) is None
        assert evidence.read_envelope(other) == ([pair], None)
    for bad in (
        spelled([(b"{}", bytes(63))]),
        spelled([pair] * 101),
        raw.replace(b'"gaps":[]', b'"gaps":[],"gaps":[]'),
    ):
        assert evidence._plainly(bad) is None
        with pytest.raises(AgentError):
            evidence.read_envelope(bad)
