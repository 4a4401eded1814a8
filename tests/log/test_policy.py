"""Policies: read strictly, evaluated as the specification says, and refused by line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compliance_agent.errors import BadEvidence
from compliance_agent.log.note import KeyType, Note, Signature
from compliance_agent.log.policy import Policy
from tests.log.builder import LOG, LOG_PQ, NOW, ORIGIN, POLICY, WITNESSES, MemoryLog, signer

W = [str(one.key) for one in WITNESSES]
Y = [str(signer(f"y{number}.example", KeyType.COSIGNATURE).key) for number in range(3)]
EXAMPLE = f"""\
log {LOG.key}

witness X1 {W[0]}
witness X2 {W[1]}
witness X3 {W[2]}
group X-witnesses 2 X1 X2 X3

witness Y1 {Y[0]}
witness Y2 {Y[1]}
witness Y3 {Y[2]}
group Y-witnesses any Y1 Y2 Y3

group X-and-Y all X-witnesses Y-witnesses
quorum X-and-Y
"""
NAMES = ["X1", "X2", "X3", "Y1", "Y2", "Y3"]


@given(st.sets(st.sampled_from(NAMES)))
def test_the_example_of_the_specification(seen: set[str]) -> None:
    """Two of the X and one of the Y."""
    wanted = len(seen & {"X1", "X2", "X3"}) >= 2 and bool(seen & {"Y1", "Y2", "Y3"})
    assert Policy.parse(EXAMPLE.encode()).is_met_by(seen) == wanted


def test_a_group_is_no_witness() -> None:
    """Only the policy's witnesses count: neither a group's name nor a stranger's."""
    policy = Policy.parse(EXAMPLE.encode())
    assert not policy.is_met_by(["X-witnesses", "Y-witnesses", "X-and-Y", "stranger", "none"])


def test_what_is_kept() -> None:
    assert POLICY.logs == (LOG.key, LOG_PQ.key)
    assert list(POLICY.witnesses.values()) == [one.key for one in WITNESSES]
    assert POLICY.groups == {"some": (2, ("w1", "w2", "w3"))}
    assert (POLICY.quorum, POLICY.urls) == ("some", {LOG.key: "https://log.example/"})


@pytest.mark.parametrize(
    ("text", "met_by"),
    [
        ("quorum none\n", []),
        (f"witness a {W[0]}\nquorum a\n", ["a"]),
        (f"\twitness  a\t{W[0]}  https://w.example \n  # note\n \t\nquorum\ta\n", ["a"]),
        (f"witness é {W[0]}\ngroup K all é\nquorum K\n", ["é"]),
        (f"quorum none\nwitness late {W[0]}\n", []),
        (f"log {LOG.key}\nlog {LOG_PQ.key}\nquorum none\n", []),
    ],
)
def test_policies_that_are_fine(text: str, met_by: list[str]) -> None:
    policy = Policy.parse(text.encode())
    assert policy.is_met_by(met_by)
    assert policy.is_met_by([]) == (policy.quorum == "none")


def test_names_are_octets() -> None:
    """A Kelvin sign is no K, and bytes that are not UTF-8 are a name like any other, kept so that it can be printed."""
    text = f"witness K {W[0]}\nwitness \u212a {W[1]}\n".encode() + f"witness \xff {W[2]}\nquorum \xff\n".encode(
        "latin-1"
    )
    policy = Policy.parse(text)
    assert len(policy.witnesses) == 3
    assert policy.quorum.isprintable()
    assert policy.is_met_by([policy.quorum]) and not policy.is_met_by(["K", "\u212a", "ÿ"])


A, B = f"witness a {W[0]}\n", f"witness b {W[1]}\n"
WEAK = "weak.example+b8528257+BAEAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("quorum a\n", 1),
        (A + "quorum b\n", 2),
        ("quorum g\n" + A + "group g any a\n", 1),
        (A + "quorum a\nquorum a\n", 3),
        ("quorum none\nquorum none\n", 2),
        (A + "group g any b\n" + B + "quorum g\n", 2),
        (A + "group g any g\nquorum g\n", 2),
        (A + "group g all a g\nquorum g\n", 2),
        (A + "group g any none\nquorum g\n", 2),
        (A + "group g any a a\nquorum g\n", 2),
        (A + "group g any a\ngroup h any a\nquorum h\n", 3),
        (A + "group g 0 a\nquorum g\n", 2),
        (A + "group g 2 a\nquorum g\n", 2),
        (A + "group g 01 a\nquorum g\n", 2),
        (A + "group g most a\nquorum g\n", 2),
        (A + "group g any\nquorum g\n", 2),
        (A + "group a any a\nquorum a\n", 2),
        (A + B + "group g any a\ngroup g any b\nquorum g\n", 4),
        (A + "group none any a\nquorum none\n", 2),
        (f"witness none {W[0]}\nquorum none\n", 1),
        (A + f"witness a {W[1]}\nquorum a\n", 2),
        (A + f"witness b {W[0]}\nquorum a\n", 2),
        (A + A.replace("a", "b", 1) + "quorum a\n", 2),
        (f"log {LOG.key}\nlog {LOG.key}\nquorum none\n", 2),
        (f"log {W[0]}\nquorum none\n", 1),
        (f"witness a {LOG.key}\nquorum a\n", 1),
        (f"witness a {WEAK}\nquorum a\n", 1),
        (f"witness {W[0]}\nquorum none\n", 1),
        (f"witness a {W[0]} https://x more\nquorum a\n", 1),
        (f"log {LOG.key} https://x more\nquorum none\n", 1),
        ("log x\nquorum none\n", 1),
        ("log\nquorum none\n", 1),
        ("quorum\n", 1),
        ("# fine\nhello\nquorum none\n", 2),
        ("Quorum none\n", 1),
        ("quorum none\r\n", 1),
        ("quorum none\x00\n", 1),
        ("# \x7f\nquorum none\n", 1),
        ("# a\x0bb\nquorum none\n", 1),
        (A + "quorum\u00a0a\n", 2),
    ],
)
def test_what_is_wrong_is_refused_by_line(text: str, line: int) -> None:
    with pytest.raises(BadEvidence, match=rf"^policy line {line}: ") as refused:
        Policy.parse(text.encode())
    assert refused.value.code == "bad_policy"


@pytest.mark.parametrize("text", ["", "\n", "# nothing\n", A, "quorum none", A + "quorum a"])
def test_a_policy_without_a_whole_quorum_line_is_refused(text: str) -> None:
    with pytest.raises(BadEvidence) as refused:
        Policy.parse(text.encode())
    assert refused.value.code == "bad_policy"


def test_a_duplicate_under_another_name_is_refused() -> None:
    """One operator would count twice."""
    twin = signer("another.name", KeyType.COSIGNATURE, seed=WITNESSES[0].key.name).key
    assert twin.public == WITNESSES[0].key.public
    with pytest.raises(BadEvidence, match="line 2"):
        Policy.parse(f"{A}witness b {twin}\nquorum a\n".encode())


def test_deep_groups_do_not_recurse() -> None:
    """A thousand groups in a row are evaluated in their order."""
    chain = "".join(f"group g{n} any g{n - 1}\n" for n in range(1, 3000))
    policy = Policy.parse(f"{A}group g0 any a\n{chain}quorum g2999\n".encode())
    assert policy.is_met_by(["a"]) and not policy.is_met_by([])


def test_a_checkpoint_and_its_witnesses() -> None:
    log = MemoryLog(9)
    verified = POLICY.verify(log.checkpoint(LOG, *WITNESSES[:2]))
    assert (verified.checkpoint.origin, verified.checkpoint.size, verified.checkpoint.root) == (
        ORIGIN,
        9,
        log.edge.root(),
    )
    assert verified.witnesses == {"w1": NOW, "w2": NOW}
    assert verified.quorum_met


def test_a_missing_quorum_is_said() -> None:
    log = MemoryLog(9)
    assert POLICY.verify(log.checkpoint(LOG, WITNESSES[0])).quorum_met is False
    unwitnessed = POLICY.verify(log.checkpoint(LOG_PQ, signer("stranger.example", KeyType.COSIGNATURE)))
    assert (unwitnessed.quorum_met, unwitnessed.witnesses) == (False, {})


def test_the_log_itself_must_have_signed() -> None:
    """Witnesses alone are not enough, nor is another log's key, even one that the policy knows."""
    other = signer("another.example/log")
    policy = Policy.parse(f"log {LOG.key}\nlog {other.key}\n{A}quorum a\n".encode())
    log = MemoryLog(9)
    for signers, code in (
        ((WITNESSES[0],), "unknown_log"),
        ((other, WITNESSES[0]), "unknown_log"),
        ((other,), "no_known_signature"),
    ):
        with pytest.raises(BadEvidence) as refused:
            policy.verify(log.checkpoint(*signers))
        assert refused.value.code == code


def test_a_known_line_that_fails_refuses_the_checkpoint() -> None:
    note = Note.parse(MemoryLog(9).checkpoint(LOG, *WITNESSES[:2]))
    forged = Signature(WITNESSES[2].key.name, WITNESSES[2].key.id, bytes(72))
    with pytest.raises(BadEvidence) as refused:
        POLICY.verify(Note(note.text, (*note.signatures, forged)).encode())
    assert refused.value.code == "bad_signature"


def test_the_same_witness_twice_counts_once() -> None:
    note = Note.parse(MemoryLog(9).checkpoint(LOG, WITNESSES[0]))
    again = WITNESSES[0].line(note.text, NOW + 5)
    verified = POLICY.verify(Note(note.text, (*note.signatures, again)).encode())
    assert list(verified.witnesses) == ["w1"] and not verified.quorum_met


@given(st.binary(max_size=200) | st.text("log witness group quorum none all any a b 1 2 \n\t#").map(str.encode))
def test_any_bytes_are_a_policy_or_refused(raw: bytes) -> None:
    try:
        assert Policy.parse(raw).quorum
    except BadEvidence as refused:
        assert refused.code == "bad_policy"
        assert "\n" not in str(refused)
