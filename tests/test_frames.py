"""Frames between the processes of a host: what is sent arrives, whatever the pieces; what is not allowed is named, and nothing else
is ever raised."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compliance_agent import frames
from compliance_agent.errors import BadFrame
from compliance_agent.frames import (
    CHUNK,
    HEAD,
    MAX_FRAME_BYTES,
    MAX_PAYLOAD_BYTES,
    Answering,
    Asking,
    Flag,
    Form,
    Kind,
    Maybe,
    Message,
    Named,
    Reader,
    Several,
    Side,
    Table,
    Text,
    Whole,
    Word,
)

MOST_BLOB = 300_000
FIELDS: dict[str, Form] = {
    "act": Word(("take", "give")),
    "path": Text(200, r"/[a-z/]*"),
    "size": Whole(0, 2**53 - 1),
    "fast": Flag(),
    "why": Maybe(Text(40)),
    "list": Several(Whole(-5, 5), 4),
    "head": Named(Text(10, "[a-z-]+"), Text(40), 3),
}
TABLE = Table(
    "test",
    3,
    Kind("ask", 1, Side.ASKS, FIELDS, most_blob_bytes=MOST_BLOB, answers=("done", "no")),
    Kind("ping", 2, Side.ASKS, answers=("done",)),
    Kind("done", 3, Side.ANSWERS, {"changed": Flag()}, most_blob_bytes=MOST_BLOB),
    Kind("no", 4, Side.ANSWERS, {"code": Text(40)}),
)
GOOD: dict[str, Any] = {
    "act": "take",
    "path": "/a",
    "size": 7,
    "fast": True,
    "why": None,
    "list": [1],
    "head": {"a": "b"},
}
CODES = {
    "bad_length",
    "no_hello",
    "other_protocol",
    "other_version",
    "unknown_kind",
    "wrong_side",
    "bad_json",
    "not_an_object",
    "missing_field",
    "unknown_field",
    "bad_field",
    "too_large",
    "bad_chunk",
    "cut",
}

lines = st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=40)
asks = st.fixed_dictionaries(
    {
        "act": st.sampled_from(["take", "give"]),
        "path": st.from_regex(r"/[a-z/]{0,80}", fullmatch=True),
        "size": st.integers(0, 2**53 - 1),
        "fast": st.booleans(),
        "why": st.none() | lines,
        "list": st.lists(st.integers(-5, 5), max_size=4),
        "head": st.dictionaries(st.from_regex("[a-z-]{1,10}", fullmatch=True), lines, max_size=3),
    }
)
blobs = st.binary(max_size=50) | st.integers(0, 3).map(lambda count: b"x" * (count * MAX_PAYLOAD_BYTES + count))
messages = st.builds(Message, st.just("ask"), st.integers(0, 2**32 - 1), asks, blobs) | st.builds(
    Message, st.just("ping"), st.integers(0, 2**32 - 1), st.just({})
)


def raw(number: int, id_: int, payload: bytes) -> bytes:
    """A frame as nobody of ours would make it."""
    return HEAD.pack(5 + len(payload), number, id_) + payload


def said(**fields: Any) -> bytes:
    """The payload of `ask`, with changes."""
    return json.dumps({**GOOD, "blob": 0, **fields}).encode()


def reader() -> Reader:
    """One that has had its hello."""
    made = Reader(TABLE, Side.ASKS)
    assert made.feed(TABLE.hello()) == []
    return made


@given(st.lists(messages, max_size=4), st.lists(st.integers(1, 200_000), max_size=12))
def test_what_is_sent_arrives_whatever_the_pieces(sent: list[Message], cuts: list[int]) -> None:
    whole = TABLE.hello() + b"".join(frame for message in sent for frame in TABLE.frames(message))
    came, taker, start = list[Message](), Reader(TABLE, Side.ASKS), 0
    for end in [*sorted(cuts), len(whole)]:
        came += taker.feed(whole[start:end])
        start = max(start, end)
    taker.end()
    assert came == sent


@given(messages)
def test_no_frame_is_larger_than_64_kb(message: Message) -> None:
    assert all(len(frame) <= MAX_FRAME_BYTES for frame in TABLE.frames(message))


def test_a_piece_of_one_byte_is_as_good_as_any() -> None:
    sent = Message("ask", 9, GOOD, b"abc")
    taker = Reader(TABLE, Side.ASKS)
    whole = TABLE.hello() + b"".join(TABLE.frames(sent))
    assert [message for byte in whole for message in taker.feed(bytes([byte]))] == [sent]


@settings(max_examples=500)
@given(st.binary(max_size=400), st.booleans())
def test_any_bytes_are_messages_or_a_named_refusal(data: bytes, greeted: bool) -> None:
    expect_messages_or_refusal(Reader(TABLE, Side.ASKS) if not greeted else reader(), data)


@settings(max_examples=500)
@given(
    st.sampled_from([0, 1, 2, 3, 4, 77, CHUNK]),
    st.integers(0, 3),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*FIELDS, "blob"]), inner),
        max_leaves=12,
    ),
)
def test_any_json_in_any_frame_is_a_message_or_a_named_refusal(number: int, id_: int, value: object) -> None:
    expect_messages_or_refusal(reader(), raw(number, id_, json.dumps(value).encode()))


@settings(max_examples=500)
@given(messages, st.data())
def test_a_byte_changed_anywhere_is_a_message_or_a_named_refusal(message: Message, data: st.DataObject) -> None:
    whole = bytearray(TABLE.hello() + b"".join(TABLE.frames(message)))
    place = data.draw(st.integers(0, min(len(whole), 2_000) - 1))
    whole[place] ^= data.draw(st.integers(1, 255))
    expect_messages_or_refusal(Reader(TABLE, Side.ASKS), bytes(whole))


def expect_messages_or_refusal(taker: Reader, data: bytes) -> None:
    """Nothing but whole messages that the table allows, or one of the codes; and what is broken stays so."""
    try:
        for message in taker.feed(data):
            kind = TABLE.kinds[message.kind]
            assert kind.by is Side.ASKS
            assert message.fields.keys() == kind.fields.keys()
            assert all(form.fits(message.fields[name]) for name, form in kind.fields.items())
        taker.end()
    except BadFrame as error:
        assert error.code in CODES
        if error.code != "cut":
            with pytest.raises(BadFrame, match=r".") as again:
                taker.feed(TABLE.hello())
            assert again.value.code == error.code


REFUSED: list[tuple[str, bytes]] = [
    ("bad_length", b"\x00\x00\x00\x04xxxx"),
    ("bad_length", b"\x00\x00\xff\xfdx"),
    ("bad_length", b"\xff\xff\xff\xff"),
    ("unknown_kind", raw(9, 1, b"{}")),
    ("unknown_kind", TABLE.hello()),  # a second one
    ("wrong_side", raw(3, 1, b'{"changed":true,"blob":0}')),
    ("bad_json", raw(2, 1, b"")),
    ("bad_json", raw(2, 1, b"{")),
    ("bad_json", raw(2, 1, b"\xff{}")),
    ("bad_json", raw(2, 1, b"\xef\xbb\xbf{}")),
    ("bad_json", raw(2, 1, b"{}{}")),
    ("bad_json", raw(2, 1, b'{"a":1,"a":1}')),
    ("bad_json", raw(2, 1, b'{"a":{"b":1,"b":1}}')),
    ("bad_json", raw(2, 1, b'{"a":1.0}')),
    ("bad_json", raw(2, 1, b'{"a":1e3}')),
    ("bad_json", raw(2, 1, b'{"a":NaN}')),
    ("bad_json", raw(2, 1, b'{"a":-Infinity}')),
    ("bad_json", raw(2, 1, b'{"a":-0}')),
    ("bad_json", raw(2, 1, b'{"a":9007199254740992}')),
    ("bad_json", raw(2, 1, b'{"a":' + b"9" * 60_000 + b"}")),
    ("bad_json", raw(2, 1, b"[" * 65_000)),
    ("bad_json", raw(2, 1, b'{"a":"\n"}')),
    ("not_an_object", raw(2, 1, b"[]")),
    ("not_an_object", raw(2, 1, b"null")),
    ("unknown_field", raw(2, 1, b'{"a":1}')),
    ("unknown_field", raw(2, 1, b'{"blob":0}')),
    ("missing_field", raw(1, 1, json.dumps(GOOD).encode())),
    ("missing_field", raw(1, 1, b"{}")),
    ("unknown_field", raw(1, 1, said(more=1))),
    ("bad_field", raw(1, 1, said(act="burn"))),
    ("bad_field", raw(1, 1, said(act=["take"]))),
    ("bad_field", raw(1, 1, said(path="a"))),
    ("bad_field", raw(1, 1, said(path="/a\n"))),
    ("bad_field", raw(1, 1, said(path="/" + "a" * 200))),
    ("bad_field", raw(1, 1, said(path=None))),
    ("bad_field", raw(1, 1, said(size=-1))),
    ("bad_field", raw(1, 1, said(size=True))),
    ("bad_field", raw(1, 1, said(size="7"))),
    ("bad_field", raw(1, 1, said(fast=1))),
    ("bad_field", raw(1, 1, said(fast=None))),
    ("bad_field", raw(1, 1, said(why="a\x00b"))),
    ("bad_field", raw(1, 1, said(why="\ud800"))),
    ("bad_field", raw(1, 1, said(list=[1] * 5))),
    ("bad_field", raw(1, 1, said(list=[[1]]))),
    ("bad_field", raw(1, 1, said(list={"a": 1}))),
    ("bad_field", raw(1, 1, said(head={"A": "b"}))),
    ("bad_field", raw(1, 1, said(head={"a": 1}))),
    ("bad_field", raw(1, 1, said(head=dict.fromkeys("abcd", "x")))),
    ("bad_field", raw(1, 1, said(head=[]))),
    ("too_large", raw(1, 1, said(blob=MOST_BLOB + 1))),
    ("too_large", raw(1, 1, said(blob=-1))),
    ("too_large", raw(1, 1, said(blob=None))),
    ("bad_chunk", raw(CHUNK, 1, b"x")),
    ("bad_chunk", raw(1, 1, said(blob=3)) + raw(CHUNK, 2, b"abc")),
    ("bad_chunk", raw(1, 1, said(blob=3)) + raw(2, 1, b"{}")),
    ("bad_chunk", raw(1, 1, said(blob=3)) + raw(CHUNK, 1, b"")),
    ("bad_chunk", raw(1, 1, said(blob=3)) + raw(CHUNK, 1, b"abcd")),
    ("cut", raw(1, 1, said(blob=3)) + raw(CHUNK, 1, b"ab")),
    ("cut", b"\x00"),
    ("cut", raw(2, 1, b"{}")[:-1]),
]


@pytest.mark.parametrize(
    ("code", "data"), REFUSED, ids=lambda value: value if isinstance(value, str) else repr(value[:24])
)
def test_what_breaks_a_rule_is_refused_by_its_name(code: str, data: bytes) -> None:
    taker = reader()
    with pytest.raises(BadFrame) as refused:
        taker.feed(data)
        taker.end()
    assert refused.value.code == code


HELLOS: list[tuple[str, bytes]] = [
    ("no_hello", raw(2, 1, b"{}")),
    ("no_hello", raw(0, 1, b'{"protocol":"test","version":3}')),
    ("other_protocol", raw(0, 0, b'{"protocol":"tset","version":3}')),
    ("other_protocol", raw(0, 0, b'{"protocol":"test"}')),
    ("other_protocol", raw(0, 0, b'{"protocol":"test","version":3,"more":1}')),
    ("other_version", raw(0, 0, b'{"protocol":"test","version":4}')),
    ("other_version", raw(0, 0, b'{"protocol":"test","version":true}')),
    ("bad_json", raw(0, 0, b"hello")),
]


@pytest.mark.parametrize(("code", "data"), HELLOS)
def test_another_protocol_or_version_is_refused_at_once(code: str, data: bytes) -> None:
    with pytest.raises(BadFrame) as refused:
        Reader(TABLE, Side.ASKS).feed(data)
    assert refused.value.code == code


def test_messages_before_a_broken_frame_are_not_given_with_it() -> None:
    """A connection that breaks a rule is closed: what came in the same piece is not used half."""
    taker = reader()
    with pytest.raises(BadFrame):
        taker.feed(raw(2, 1, b"{}") + raw(9, 2, b"{}"))
    with pytest.raises(BadFrame):
        taker.feed(raw(2, 3, b"{}"))


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("unknown_kind", Message("burn", 1)),
        ("unknown_kind", Message("ping", 2**32)),
        ("unknown_field", Message("ping", 1, {"a": 1})),
        ("missing_field", Message("ask", 1, {})),
        ("bad_field", Message("ask", 1, {**GOOD, "size": 1.5})),
        ("bad_field", Message("ask", 1, {**GOOD, "size": object()})),
        ("bad_field", Message("ask", 1, {**GOOD, "why": "\ud800"})),
        ("too_large", Message("ask", 1, {**GOOD, "why": "x" * 70_000})),
        ("too_large", Message("ask", 1, GOOD, b"x" * (MOST_BLOB + 1))),
        ("too_large", Message("ping", 1, {}, b"x")),
    ],
)
def test_what_the_table_does_not_allow_is_not_sent(code: str, message: Message) -> None:
    with pytest.raises(BadFrame) as refused:
        TABLE.frames(message)
    assert refused.value.code == code


@pytest.mark.parametrize(
    "kinds",
    [
        (Kind("a", 1, Side.ASKS), Kind("b", 1, Side.ASKS)),
        (Kind("a", 1, Side.ASKS), Kind("a", 2, Side.ASKS)),
        (Kind("a", 0, Side.ASKS),),
        (Kind("a", 255, Side.ASKS),),
        (Kind("a", 1, Side.ASKS, {"blob": Flag()}),),
        (Kind("a", 1, Side.ASKS, answers=("b",)),),
    ],
)
def test_a_table_that_cannot_be_is_a_bug(kinds: tuple[Kind, ...]) -> None:
    with pytest.raises(RuntimeError):
        Table("bad", 1, *kinds)


# Questions and answers


def test_an_answer_finds_its_question() -> None:
    asking = Asking(TABLE)
    first, second = asking.ask("ping", {}), asking.ask("ask", GOOD, b"abc")
    assert (first.id, second.id) == (1, 2)
    assert asking.take(Message("no", 2, {"code": "x"}))
    assert asking.take(Message("done", 1, {"changed": False}))


ANSWERS: list[tuple[str, Message]] = [
    ("unknown_id", Message("done", 0, {"changed": True})),
    ("unknown_id", Message("done", 2, {"changed": True})),
    ("wrong_answer", Message("no", 1, {"code": "x"})),
]


@pytest.mark.parametrize(("code", "answer"), ANSWERS)
def test_an_answer_to_nothing_or_of_the_wrong_kind_is_refused(code: str, answer: Message) -> None:
    asking = Asking(TABLE)
    asking.ask("ping", {})
    with pytest.raises(BadFrame) as refused:
        asking.take(answer)
    assert refused.value.code == code


def test_an_answer_told_twice_is_refused() -> None:
    asking = Asking(TABLE)
    done = Message("done", asking.ask("ping", {}).id, {"changed": True})
    assert asking.take(done)
    with pytest.raises(BadFrame, match="not open"):
        asking.take(done)


def test_an_answer_that_nobody_waits_for_is_dropped_once() -> None:
    asking = Asking(TABLE)
    done = Message("done", asking.ask("ping", {}).id, {"changed": True})
    asking.give_up(done.id)
    assert not asking.take(done)
    with pytest.raises(BadFrame, match="not open"):
        asking.take(done)


def test_what_is_given_up_is_forgotten_in_the_end() -> None:
    asking = Asking(TABLE)
    for _ in range(frames.MOST_GIVEN_UP + 1):
        asking.give_up(asking.ask("ping", {}).id)
    with pytest.raises(BadFrame, match="not open"):
        asking.take(Message("done", 1, {"changed": True}))
    assert not asking.take(Message("done", 2, {"changed": True}))


def test_ids_are_not_used_twice_on_one_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "LARGEST_ID", 1)
    asking = Asking(TABLE)
    asking.ask("ping", {})
    with pytest.raises(BadFrame) as refused:
        asking.ask("ping", {})
    assert refused.value.code == "ids_used_up"


@pytest.mark.parametrize("id_", [0, 4, 5])
def test_a_question_told_again_or_out_of_order_is_refused(id_: int) -> None:
    answering = Answering(TABLE)
    answering.take(Message("ping", 5))
    with pytest.raises(BadFrame) as refused:
        answering.take(Message("ping", id_))
    assert refused.value.code == "stale_id"


def test_only_so_many_questions_wait() -> None:
    answering = Answering(TABLE, most_open=2)
    answering.take(Message("ping", 1))
    answering.take(Message("ping", 2))
    with pytest.raises(BadFrame) as refused:
        answering.take(Message("ping", 3))
    assert refused.value.code == "too_many"
    assert answering.answer(1, "done", {"changed": True})
    answering.take(Message("ping", 4))


def test_a_question_is_answered_once_and_by_a_kind_that_answers_it() -> None:
    answering = Answering(TABLE)
    answering.take(Message("ping", 1))
    with pytest.raises(RuntimeError):
        answering.answer(1, "no", {"code": "x"})
    with pytest.raises(BadFrame):
        answering.answer(1, "done", {})
    assert answering.answer(1, "done", {"changed": True}, b"x" * MAX_FRAME_BYTES)[1:]
    with pytest.raises(RuntimeError):
        answering.answer(1, "done", {"changed": True})


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=30))
def test_both_sides_agree_on_what_is_open(acts: list[tuple[bool, int]]) -> None:
    """Whatever is asked, given up and answered in whatever order, each answer that is waited for arrives once."""
    asking, answering = Asking(TABLE), Answering(TABLE)
    to, fro = Reader(TABLE, Side.ASKS), Reader(TABLE, Side.ANSWERS)
    to.feed(TABLE.hello())
    fro.feed(TABLE.hello())
    waiting, given_up = list[int](), set[int]()
    for answers, place in acts:
        if not answers or not waiting:
            question = asking.ask("ping", {})
            for message in to.feed(b"".join(question.frames)):
                answering.take(message)
            waiting.append(question.id)
            if place == 0:
                asking.give_up(question.id)
                given_up.add(question.id)
        else:
            id_ = waiting.pop(place % len(waiting))
            for message in fro.feed(b"".join(answering.answer(id_, "done", {"changed": True}))):
                assert asking.take(message) is (message.id not in given_up)
