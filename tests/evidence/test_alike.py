"""What is read as alike is what reading it in full gives, whatever was done to it; and honest records are alike."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from compliance_agent.errors import BadEvidence
from compliance_agent.evidence.alike import KEPT as MOST
from compliance_agent.evidence.alike import OWN, Alike
from compliance_agent.evidence.allowlist import check_document, registry
from compliance_agent.evidence.canonical import canonical, is_canonical
from tests.evidence.test_accepting import KEPT, ODD, places, put
from tests.evidence.test_spelled import encoded

PLAIN = [path for path in KEPT if registry().spelled(path.read_bytes())]
LATER: dict[str, Any] = {
    "bundle_id": "0b1e7c9a-3c5d-4e6f-8a9b-0c1d2e3f4a5b",
    "created_at": "2031-01-02T03:04:05.000006Z",
    "timestamp_start": "2031-01-02T03:04:05.000006Z",
    "timestamp_end": "2031-01-02T03:04:05.000007Z",
    "log_head": {"origin": "s.example/site/2031", "size": 7, "root": "c" * 64, "witnessed_at": None},
    "counts": {"pending": 3},
    "prev": "d" * 64,
    "seq": 12_345,
}


def learned(path: Path) -> Alike:
    """Knows the kind of this record."""
    alike = Alike(registry())
    alike.learn(path.read_bytes(), json.loads(path.read_bytes()))
    return alike


def read(alike: Alike, raw: bytes) -> Any:
    """As it is read here; what the slow way refuses, or reads as something else, must not be."""
    found = alike.read(raw)
    if found is not None:
        assert is_canonical(raw), raw
        assert found == json.loads(raw)
        check_document(found)
    return found


@pytest.mark.parametrize("path", PLAIN, ids=lambda path: path.stem)
def test_the_next_record_of_a_host_is_alike(path: Path) -> None:
    """Else the fast way would be slow, and all the tests below would say nothing."""
    document = {**json.loads(path.read_bytes()), **LATER}
    assert read(learned(path), path.read_bytes()) == json.loads(path.read_bytes())
    assert read(learned(path), canonical(document)) == document
    assert Alike(registry()).read(canonical(document)) is None


@pytest.mark.parametrize("path", PLAIN, ids=lambda path: path.stem)
def test_what_is_no_members_own_is_never_passed_over(path: Path) -> None:
    alike, document = learned(path), json.loads(path.read_bytes())
    own = {key for keys in OWN for key in keys}
    for key in document.keys() - own:
        assert read(alike, encoded({**document, key: "other"})) is None


@pytest.mark.parametrize("path", PLAIN, ids=lambda path: path.stem)
def test_every_place_with_every_odd_value(path: Path) -> None:
    alike, document = learned(path), json.loads(path.read_bytes())
    for at in places(document):
        for odd in ODD:
            read(alike, encoded(put(document, at, odd)))
        if isinstance(at[-1], str):
            read(alike, encoded(put(document, (*at[:-1], "more"), 1)))


@pytest.mark.parametrize("path", PLAIN, ids=lambda path: path.stem)
def test_every_byte_with_other_ones(path: Path) -> None:
    alike, raw, rng = learned(path), path.read_bytes(), random.Random(path.stem)
    for at in range(len(raw)):
        for other in (b"", b" ", b",", b'"', b"\\", b"0", b"-", b"}", b"\n", bytes([rng.randrange(256)])):
            read(alike, raw[:at] + other + raw[at + 1 :])
    for _ in range(2_000):
        start, end = sorted(rng.randrange(len(raw) + 1) for _ in range(2))
        to = rng.randrange(len(raw))
        read(alike, raw[:start] + raw[end:])
        read(alike, raw[:to] + raw[start:end] + raw[to:])


def test_two_gaps_do_not_make_up_for_each_other() -> None:
    """What one gap holds too little and another too much would fit together, without anything between the gaps."""
    path = PLAIN[0]
    raw = path.read_bytes()
    document = json.loads(raw)
    bundle, seq = (f'"{key}":{json.dumps(document[key])}'.encode() for key in ("bundle_id", "seq"))
    broken = raw.replace(bundle, bundle + b"\n" + seq).replace(b"," + seq + b",", b",,")
    assert broken.count(seq) == 1
    assert learned(path).read(broken) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"timestamp_end": "2000-01-01T00:00:00.000000Z"},
        {"epoch": 0, "seq": 1, "prev": "e" * 64},
        {"prev": "E" * 64},
        {"seq": 0},
    ],
    ids="-".join,
)
def test_what_own_members_say_of_each_other_is_asked_again(wrong: dict[str, Any]) -> None:
    """A kind that was right says nothing of an end before its start, or of a first record that follows another."""
    document = {**json.loads(PLAIN[0].read_bytes()), **LATER, "epoch": 0}
    alike = Alike(registry())
    alike.learn(canonical(document), document)
    assert read(alike, canonical(document)) == document
    with pytest.raises(BadEvidence):
        check_document({**document, **wrong})
    assert read(alike, canonical({**document, **wrong})) is None


def test_a_record_is_of_the_kind_that_it_was_read_as() -> None:
    """Whoever keeps something for a kind must not take it for a record that was read in full, or for one that was refused."""
    path, document = PLAIN[0], {**json.loads(PLAIN[0].read_bytes()), **LATER}
    alike = learned(path)
    kind = alike.kind
    assert kind is not None
    for other in (canonical({**document, "epoch": 77}), canonical({**document, "seq": 0}), b"{}"):
        assert alike.read(canonical(document)) == document and alike.kind is kind
        assert alike.read(other) is None and alike.kind is None
    alike.learn(canonical({**document, "epoch": 77}), {**document, "epoch": 77})
    another = alike.kind
    assert another is not None and another is not kind and another != kind
    assert alike.read(canonical(document)) == document and alike.kind is kind
    twice = {**document, "error": document["bundle_id"]}
    assert alike.read(canonical(twice)) is None
    alike.learn(canonical(twice).replace(b"}", b"}" + canonical(twice), 1), twice)  # its own members stand there twice
    assert alike.kind is None


def test_the_kinds_that_were_seen_last_are_kept() -> None:
    document, alike = {**json.loads(PLAIN[0].read_bytes()), **LATER}, Alike(registry())
    kinds = [canonical({**document, "epoch": number}) for number in range(MOST + 1)]
    for raw in kinds:
        alike.learn(raw, json.loads(raw))
        assert alike.read(kinds[0]) == json.loads(kinds[0])  # asked for, so it stays
    assert [alike.read(raw) is not None for raw in kinds] == [True, False, *[True] * (MOST - 1)]
