"""A reply is believed whole or not at all: every field of every reply, wrong in every way, ends in a refusal of our tree."""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.signing import SigningKey

from compliance_agent.crypto import verify
from compliance_agent.documents import read_json
from compliance_agent.errors import BadReply, ServerRefused
from compliance_agent.evidence.canonical import canonical, is_canonical
from compliance_agent.ports import HttpReply
from compliance_agent.transport import protocol
from compliance_agent.transport.protocol import Sent

SERVER, OTHER = SigningKey(b"s" * 32), SigningKey(b"o" * 32)
KEY_ID = "ab" * 32
SENT = tuple(
    Sent(f"00000000-0000-4000-8000-00000000000{number}", 0, number, f'{{"n":{number}}}'.encode(), b"x" * 64)
    for number in (1, 2, 3)
)


def b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def named(sent: Sent, **changes: Any) -> dict[str, Any]:
    return {"bundle_sha256": sent.sha256, "epoch": sent.epoch, "seq": sent.seq, "status": "stored", **changes}


def ack_document(*bundles: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "schema": "compliance-agent/ack/v2",
        "key_id": KEY_ID,
        "received_at": "2026-11-22T12:00:00.000000Z",
        "bundles": list(bundles),
        **changes,
    }


def signed(document: dict[str, Any], key: SigningKey = SERVER) -> dict[str, str]:
    raw = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    return {"document": b64(raw), "sig": b64(key.sign(raw).signature)}


def reply(document: Any, status: int = 200, **headers: str) -> HttpReply:
    return HttpReply(status, headers, json.dumps(document).encode())


def evidence(answer: HttpReply) -> protocol.EvidenceReply:
    return protocol.read_evidence_reply(answer, SENT, KEY_ID, bytes(SERVER.verify_key), verify)


ALL_STORED: dict[str, Any] = {
    "ack": signed(ack_document(*map(named, SENT))),
    "stopped": None,
    "min_interval_s": 30,
}
STOPPED: dict[str, Any] = {
    "ack": signed(ack_document(named(SENT[0]))),
    "stopped": {"index": 1, "code": "seq_gap", "expected": {"epoch": 0, "seq": 2, "prev": "0" * 64}},
    "min_interval_s": None,
}
CHECKIN = {
    "server_time": "2026-11-22T12:00:00Z",
    "known": {"epoch": 0, "seq": 5, "digest": "a" * 64},
    "min_interval_s": 60,
    "orders": [],
    "durable": [{"origin": "acme/clinic-1/2026", "size": 7}, {"origin": "acme/clinic-1/2025", "size": 0}],
}
ENROLLED = {
    "site_id": "clinic-1", "client_id": "msp-1", "host_id": "srv-1", "key_id": KEY_ID, "api_key": "cak1.abc",
    "server_key": b64(bytes(SERVER.verify_key)), "server_name": "Acme MSP", "min_interval_s": 60,
}  # fmt: skip
PROBLEM = {
    "type": "about:blank", "title": "Conflict", "status": 409, "detail": "x", "code": "seq_gap",
    "expected": {"epoch": 1, "seq": 7, "prev": "b" * 64},
}  # fmt: skip

IDS = [sent.bundle_id for sent in SENT]
RECEIPTS: list[Any] = [{"bundle_id": IDS[0], "leaf": b64(b"leaf"), "proof": b64(b"proof")}, None, None]

READERS: dict[str, tuple[Any, Callable[[HttpReply], Any], int]] = {
    "evidence stored": (ALL_STORED, evidence, 200),
    "evidence stopped": (STOPPED, evidence, 200),
    "check-in": (CHECKIN, protocol.read_checkin_reply, 200),
    "challenge": ({"nonce": b64(b"n" * 32)}, protocol.read_challenge_reply, 200),
    "enrolled": (ENROLLED, protocol.read_enrol_reply, 201),
    "enrolled with a log": ({**ENROLLED, "log_key": b64(b"l" * 32)}, protocol.read_enrol_reply, 201),
    "receipts": ({"receipts": RECEIPTS}, lambda answer: protocol.read_receipts_reply(answer, IDS), 200),
    "problem": (PROBLEM, evidence, 409),
}
OPTIONAL = {
    ("stopped",),
    ("min_interval_s",),
    ("known",),
    ("orders",),
    ("durable",),
    ("stopped", "expected"),
    ("log_key",),
}
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2**53, 2**63, -(2**70), "", " ", "x", "0" * 64, "\ud800", "\u202e", "a\0b",
    "2026-02-30T00:00:00Z", "9" * 5_000, [], {}, [[]], {"a": 1}, [None], "../../etc/passwd",
]  # fmt: skip


def leaves(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of every value, containers included."""
    if at:
        yield at
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, (*at, key))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from leaves(item, (*at, number))


def changed(document: Any, at: tuple[Any, ...], value: Any) -> Any:
    made = copy.deepcopy(document)
    inner = made
    for step in at[:-1]:
        inner = inner[step]
    inner[at[-1]] = value
    return made


def read(name: str, answer: HttpReply) -> Any:
    """What the reader makes of it: a value, or an error of our tree; anything else fails the test."""
    try:
        return READERS[name][1](answer)
    except (BadReply, ServerRefused) as error:
        assert "\n" not in error.line and error.line.isprintable()
        return error


@pytest.mark.parametrize("name", READERS)
def test_a_good_reply_is_read(name: str) -> None:
    document, _, status = READERS[name]
    answer = read(name, reply(document, status))
    if name == "problem":
        assert isinstance(answer, ServerRefused)
        assert (answer.code, answer.status, answer.expected) == ("seq_gap", 409, (1, 7))
    else:
        assert not isinstance(answer, BadReply | ServerRefused)


@pytest.mark.parametrize("name", READERS)
def test_every_field_wrong_in_every_way_is_refused_and_nothing_else(name: str) -> None:
    document, _, status = READERS[name]
    good = read(name, reply(document, status))
    for at in leaves(document):
        for value in VALUES:
            answer = read(name, reply(changed(document, at, value), status))
            if name.startswith("evidence") and not isinstance(answer, BadReply | ServerRefused):
                assert answer.acknowledged == good.acknowledged, f"{at} = {value!r} was believed"


@pytest.mark.parametrize("name", READERS)
def test_every_missing_field_is_noticed(name: str) -> None:
    document, _, status = READERS[name]
    for at in leaves(document):
        if isinstance(at[-1], int) or at in OPTIONAL or name == "problem":
            continue
        lacking = copy.deepcopy(document)
        inner = lacking
        for step in at[:-1]:
            inner = inner[step]
        del inner[at[-1]]
        answer = read(name, reply(lacking, status))
        if at in {("stopped", "expected", "prev"), ("min_interval_s",)}:
            continue
        if at[:2] == ("receipts", 0):  # of one receipt: see below
            continue
        assert isinstance(answer, BadReply), at


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=150, deadline=None)
@given(raw=st.binary(max_size=200), status=st.integers(100, 599))
def test_no_bytes_and_no_status_raise_anything_else(name: str, raw: bytes, status: int) -> None:
    read(name, HttpReply(status, {}, raw))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=150, deadline=None)
@given(data=st.data(), value=JSON)
def test_no_json_value_at_any_place_raises_anything_else(name: str, data: st.DataObject, value: Any) -> None:
    document, _, status = READERS[name]
    at = data.draw(st.sampled_from(list(leaves(document))))
    answer = read(name, reply(changed(document, at, value), status))
    if name == "evidence stored" and not isinstance(answer, BadReply):
        assert len(answer.acknowledged) == len(SENT)


# --- receipts: offered beside acknowledgements, and never at their cost ---------------------------


def test_receipts_come_in_the_order_of_the_bundles() -> None:
    first = protocol.OfferedReceipt(IDS[0], b"leaf", b"proof")
    assert protocol.read_receipts_reply(reply({"receipts": RECEIPTS}), IDS) == [first, None, None]
    answer = evidence(reply({**ALL_STORED, "receipts": RECEIPTS}))
    assert [ack.receipt for ack in answer.acknowledged] == [first, None, None]
    assert [ack.receipt for ack in evidence(reply(ALL_STORED)).acknowledged] == [None] * 3


@pytest.mark.parametrize(
    "value", [None, 1, "x", {}, [], [1], [[]], [{}], [{"bundle_id": 1}], [None] * 500, RECEIPTS * 9]
)
def test_no_receipts_cost_an_acknowledgement(value: Any) -> None:
    answer = evidence(reply({**ALL_STORED, "receipts": value}))
    assert [(ack.bundle_id, ack.seq) for ack in answer.acknowledged] == [(sent.bundle_id, sent.seq) for sent in SENT]


@pytest.mark.parametrize("field", ["bundle_id", "leaf", "proof"])
@pytest.mark.parametrize("value", [None, 1, [], "!", "another"])
def test_a_receipt_that_cannot_be_read_is_one_that_proves_nothing(field: str, value: Any) -> None:
    """It stays in its place, so that it is refused by name instead of passed over."""
    [found, *_] = protocol.read_receipts_reply(reply({"receipts": [{**RECEIPTS[0], field: value}, None, None]}), IDS)
    assert found is not None and found.bundle_id == IDS[0] and b"" in {found.leaf, found.proof}


@pytest.mark.parametrize("count", [0, 1, 2, 4])
def test_receipts_must_answer_every_bundle(count: int) -> None:
    with pytest.raises(BadReply):
        protocol.read_receipts_reply(reply({"receipts": [None] * count}), IDS)


def test_the_request_for_receipts_and_the_path_of_a_file() -> None:
    raw = protocol.receipts_request(IDS)
    assert is_canonical(raw) and read_json(raw) == {"protocol": 1, "bundles": IDS}
    assert protocol.log_path("acme/clinic-1/2026", "tile/0/x001/002.p/7") == "/log/clinic-1/2026/tile/0/x001/002.p/7"
    assert protocol.read_log_file(HttpReply(200, {}, b"\x00\xff")) == b"\x00\xff"
    with pytest.raises(ServerRefused) as refused:
        protocol.read_log_file(HttpReply(404, {}, b""))
    assert refused.value.status == 404


# --- acknowledgements: well signed, and still not ours --------------------------------------------

ACK_CHANGES: dict[str, list[Any]] = {
    "schema": ["compliance-agent/ack/v1", "", None, 1, []],
    "key_id": ["cd" * 32, KEY_ID.upper(), None, 0],
    "received_at": ["yesterday", "2026-02-30T00:00:00Z", None, 0, [], {}],
    "bundles": [[], None, "x", 1, {}, [None], [[]], ["x"], [named(SENT[0]), named(SENT[1]), None]],
}
NAMED_CHANGES: dict[str, list[Any]] = {
    "bundle_sha256": [SENT[1].sha256, SENT[0].sha256.upper(), "0" * 64, None, {}],
    "epoch": [1, -1, False, "0", None, [0]],
    "seq": [2, 0, True, "1", None, [1], {"seq": 1}],
    "status": ["", "STORED", "refused", None, True, ["stored"], {"stored": 1}],
}


def believed(ack: Any) -> protocol.EvidenceReply:
    return evidence(reply({**ALL_STORED, "ack": ack}))


def test_one_signature_acknowledges_all_of_them() -> None:
    """Each keeps the same proof: the signature, and the document that names all three."""
    found = believed(ALL_STORED["ack"]).acknowledged
    assert [(ack.bundle_id, ack.epoch, ack.seq) for ack in found] == [(one.bundle_id, 0, one.seq) for one in SENT]
    assert len({ack.ack for ack in found}) == 1
    signature, document = found[0].ack[:64], found[0].ack[64:]
    assert verify(bytes(SERVER.verify_key), signature, document)
    assert [item["bundle_sha256"] for item in json.loads(document)["bundles"]] == [one.sha256 for one in SENT]


@pytest.mark.parametrize("field", ACK_CHANGES)
def test_an_acknowledgement_of_anything_else_is_refused(field: str) -> None:
    for value in ACK_CHANGES[field]:
        with pytest.raises(BadReply):
            believed(signed(ack_document(*map(named, SENT), **{field: value})))


@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize("field", NAMED_CHANGES)
def test_one_wrong_word_about_one_bundle_costs_the_whole_acknowledgement(field: str, at: int) -> None:
    for value in NAMED_CHANGES[field]:
        bundles = [named(sent) for sent in SENT]
        if bundles[at][field] == value and type(bundles[at][field]) is type(value):
            continue  # it is right for this one
        bundles[at][field] = value
        with pytest.raises(BadReply):
            believed(signed(ack_document(*bundles)))


FIRST, SECOND, THIRD = (named(sent) for sent in SENT)
ELSEWHERE = named(Sent("00000000-0000-4000-8000-000000000009", 0, 9, b'{"n":9}', b"x" * 64))
NOT_THESE: dict[str, list[dict[str, Any]]] = {
    "two swapped": [FIRST, THIRD, SECOND],
    "one of another batch": [FIRST, SECOND, ELSEWHERE],
    "one for another's place": [FIRST, SECOND, {**ELSEWHERE, "seq": 3}],
    "one left out": [FIRST, THIRD],
    "the last left out": [FIRST, SECOND],
    "the first left out": [SECOND, THIRD],
    "one twice": [FIRST, FIRST, SECOND],
    "one more": [FIRST, SECOND, THIRD, ELSEWHERE],
    "the last twice": [FIRST, SECOND, THIRD, THIRD],
    "another batch": [ELSEWHERE],
    "a batch of the same length": [{**ELSEWHERE, "seq": seq} for seq in (1, 2, 3)],
}


@pytest.mark.parametrize("which", NOT_THESE)
def test_an_acknowledgement_of_other_bundles_is_refused(which: str) -> None:
    """Well signed, and not of what was sent: swapped, missing, repeated, or replayed from another batch."""
    with pytest.raises(BadReply):
        believed(signed(ack_document(*NOT_THESE[which])))


@pytest.mark.parametrize("which", ["two swapped", "one of another batch", "the first left out", "one twice"])
def test_planted_without_the_digests_it_would_be_believed(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above refuses because each name is compared, and for no other reason."""
    monkeypatch.setattr(protocol, "_names", lambda document, ours: None)
    answer = {**ALL_STORED, "ack": signed(ack_document(*NOT_THESE[which]))}
    stopped = {"index": 2, "code": "fork", "expected": None} if len(NOT_THESE[which]) == 2 else None
    assert evidence(reply({**answer, "stopped": stopped})).acknowledged


def test_an_acknowledgement_must_be_the_servers_over_these_very_bytes() -> None:
    good = ALL_STORED["ack"]
    document, signature = base64.b64decode(good["document"]), base64.b64decode(good["sig"])
    other = signed(ack_document(ELSEWHERE))
    bad = {
        "another key": signed(ack_document(FIRST, SECOND, THIRD), OTHER),
        "cut document": {**good, "document": b64(document[:-1])},
        "cut document, signed": signed({"schema": "compliance-agent/ack/v2"}),
        "longer document": {**good, "document": b64(document + b" ")},
        "no signature": {**good, "sig": ""},
        "cut signature": {**good, "sig": b64(signature[:-1])},
        "longer signature": {**good, "sig": b64(signature + b"\0")},
        "signature of another": {**good, "sig": other["sig"]},
        "document of another": {**good, "document": other["document"]},
        "no base64": {**good, "sig": "*" * 88},
        "not an object": {"document": b64(b"[]"), "sig": b64(SERVER.sign(b"[]").signature)},
        "a key twice": {"document": b64(b'{"a":1,"a":2}'), "sig": b64(SERVER.sign(b'{"a":1,"a":2}').signature)},
        "none": None,
        "the form before": [good, good, good],
    }
    for name, item in bad.items():
        with pytest.raises(BadReply) as refused:
            believed(item)
        assert refused.value.retryable, name


@given(st.integers(0, 10_000))
@settings(max_examples=300, deadline=None)
def test_no_flipped_bit_is_believed(bit: int) -> None:
    document = bytearray(base64.b64decode(ALL_STORED["ack"]["document"]))
    document[bit // 8 % len(document)] ^= 1 << bit % 8
    with pytest.raises(BadReply):
        believed({**ALL_STORED["ack"], "document": b64(bytes(document))})


def test_a_weak_pinned_key_verifies_nothing() -> None:
    """The small-order key whose one signature fits every message elsewhere."""
    item = {"document": b64(canonical(ack_document(FIRST))), "sig": b64(b"\x01" + bytes(63))}
    with pytest.raises(BadReply):
        protocol.read_evidence_reply(
            reply({"ack": item, "stopped": None}), SENT[:1], KEY_ID, b"\x01" + bytes(31), verify
        )


@pytest.mark.parametrize(
    "document",
    [
        {**ALL_STORED, "ack": STOPPED["ack"]},
        {**STOPPED, "ack": ALL_STORED["ack"]},
        {**ALL_STORED, "stopped": STOPPED["stopped"]},
        {**STOPPED, "stopped": None},
        {**STOPPED, "stopped": {**STOPPED["stopped"], "index": 0}},
        {**STOPPED, "stopped": {**STOPPED["stopped"], "index": 2}},
    ],
)
def test_every_bundle_is_either_acknowledged_or_refused(document: dict[str, Any]) -> None:
    with pytest.raises(BadReply):
        evidence(reply(document))


@pytest.mark.parametrize("status", [100, 204, 206, 301, 302, 307, 308, 399])
def test_redirects_and_other_answers_are_not_followed_nor_believed(status: int) -> None:
    with pytest.raises(BadReply):
        evidence(reply(ALL_STORED, status, location="https://evil.example/"))


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 429, 500, 502, 503, 599])
@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"{", b'{"code": 1}', b'{"code":"Not A Token"}', b'{"code":"x","expected":7}']
)
def test_a_refusal_is_one_whatever_its_body(status: int, body: bytes) -> None:
    with pytest.raises(ServerRefused) as refused:
        evidence(HttpReply(status, {"retry-after": "7"}, body))
    assert refused.value.status == status
    assert refused.value.retry_after_s == 7.0
    assert refused.value.code.isascii() and " " not in refused.value.code


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None), ("0", 1.0), ("1", 1.0), ("30", 30.0), ("3600", 3600.0), ("3601", 3600.0), ("9" * 5_000, 3600.0),
        ("", None), ("-1", None), ("1.5", None), ("1e3", None), (" 5", None), ("\uff11\uff12", None), ("1_0", None),
        ("Wed, 21 Oct 2026 07:28:00 GMT", None), ("inf", None), ("nan", None),
    ],
)  # fmt: skip
def test_retry_after_is_bounded(value: str | None, seconds: float | None) -> None:
    assert protocol.retry_after(value) == seconds


# --- requests ------------------------------------------------------------------------------------


def test_requests_are_canonical_and_hold_the_exact_bytes() -> None:
    bodies = [
        protocol.evidence_request(SENT),
        protocol.checkin_request(key_id=KEY_ID, head=(0, 3, "a" * 64), pending=2, baseline=("1", "b" * 64), checks={}),
        protocol.challenge_request(b"p" * 32),
        protocol.enrol_request(token="t", public_key=b"p" * 32, host_id="h", nonce=b"n" * 32, proof=b"x" * 64),
    ]
    assert all(is_canonical(body) for body in bodies)
    first = read_json(bodies[0])["bundles"][0]
    assert base64.b64decode(first["bundle"]) == SENT[0].body and base64.b64decode(first["sig"]) == SENT[0].signature


def test_a_full_batch_fits_into_one_request() -> None:
    body = b"x" * (protocol.MAX_BATCH_BYTES // 100)
    batch = [Sent("i" * 36, 0, number, body, b"s" * 64) for number in range(1, 101)]
    assert len(protocol.evidence_request(batch)) <= 1_048_576


def test_secrets_travel_in_one_header_only() -> None:
    assert protocol.headers("k")["authorization"] == "Bearer k"
    assert "authorization" not in protocol.headers(None)


def test_what_a_backup_holds_is_read_whole_or_the_reply_is_refused() -> None:
    """An older server says nothing, and that covers nothing; a log is named once, by an origin."""

    def durable(value: Any) -> dict[str, int]:
        return dict(protocol.read_checkin_reply(reply({**CHECKIN, "durable": value})).durable)

    assert durable(CHECKIN["durable"]) == {"acme/clinic-1/2026": 7, "acme/clinic-1/2025": 0}
    older = {name: value for name, value in CHECKIN.items() if name != "durable"}
    assert protocol.read_checkin_reply(reply(older)).durable == {}
    one = {"origin": "acme/clinic-1/2026", "size": 7}
    bad: list[Any] = [[one, one], [{**one, "origin": "acme"}], [{**one, "size": -1}], [{**one, "size": True}], {}, [7]]
    for value in [*bad, [{**one, "origin": f"acme/c{number}/2026"} for number in range(65)]]:
        with pytest.raises(BadReply):
            durable(value)
