"""The body of a checkpoint has one spelling."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compliance_agent.errors import BadEvidence
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.merkle import EMPTY_ROOT
from tests.log.builder import flips, root

SPEC = "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
LINES = SPEC.split("\n")[:-1]


def test_the_example_of_the_specification() -> None:
    seen = Checkpoint.parse(SPEC)
    assert (seen.origin, seen.size, seen.root[:4].hex(), seen.extensions) == (LINES[0], 20_852_163, "0ac5186a", ())
    assert seen.text == SPEC


def test_extension_lines_are_kept() -> None:
    assert Checkpoint.parse(SPEC + "one\ntwo\n").extensions == ("one", "two")


def test_the_empty_tree() -> None:
    """Size 0 has one root only."""
    assert Checkpoint.parse(Checkpoint("o", 0, EMPTY_ROOT).text).size == 0
    with pytest.raises(BadEvidence):
        Checkpoint.parse(Checkpoint("o", 0, root(bytes(32))).text)


ONE_LINE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n"), min_size=1)


@given(ONE_LINE, st.integers(1, 2**63 - 1), st.binary(min_size=32, max_size=32), st.lists(ONE_LINE))
def test_round_trip(origin: str, size: int, value: bytes, extensions: list[str]) -> None:
    checkpoint = Checkpoint(origin, size, root(value), tuple(extensions))
    assert Checkpoint.parse(checkpoint.text) == checkpoint


@pytest.mark.parametrize(
    "text",
    [
        *("", "\n", "\n\n\n", SPEC[:-1], SPEC + "\n", "\n" + SPEC, SPEC.replace("\n2", "\n\n2"), SPEC + "one\n\ntwo\n"),
        *("\n".join(LINES[:2]) + "\n", SPEC.replace("\n", "\r\n"), SPEC.replace("\n", "\u2028")),
        *(
            SPEC.replace("20852163", size)
            for size in ("020852163", "+1", "-1", "1_0", " 1", "1 ", "1.0", "x", str(2**63))
        ),
        *(
            SPEC.replace(LINES[2], hash_)
            for hash_ in ("AAAA", LINES[2][:-2] + "J=", LINES[2][:-1], LINES[2] + " ", "x")
        ),
    ],
)
def test_other_texts_are_refused(text: str) -> None:
    """Named by line where one line is wrong."""
    with pytest.raises(BadEvidence, match="checkpoint") as refused:
        Checkpoint.parse(text)
    assert refused.value.code == "bad_checkpoint"


def test_any_flipped_bit_gives_another_checkpoint_or_none() -> None:
    """No two texts are the same checkpoint, so what was signed is what is read."""
    for _, damaged in flips(SPEC.encode()):
        try:
            assert Checkpoint.parse(damaged.decode()) != Checkpoint.parse(SPEC)
        except (BadEvidence, UnicodeDecodeError):
            continue
