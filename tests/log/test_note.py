"""Signed notes and verifier keys, honest and hostile."""

from __future__ import annotations

import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compliance_agent.errors import BadEvidence
from compliance_agent.log import note as note_module
from compliance_agent.log.note import MAX_SIGNATURES, KeyType, Note, Signature, VerifierKey
from tests.log.builder import LOG, LOG_PQ, NOW, ORIGIN, WITNESSES, MemoryLog, Signer, flips, signer

SPEC_VKEY = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
SPEC_NOTE = (
    "This is an example message.\n\n"
    "— example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n"
).encode()
SMALL_ORDER = bytes([1]) + bytes(31)
FOR_ANY_MESSAGE = bytes([1]) + bytes(63)
TEXT = "a text\n"
FOO = VerifierKey.parse(SPEC_VKEY)


def signed(*signers: Signer, text: str = TEXT) -> Note:
    return Note(text, tuple(one.line(text) for one in signers))


def code_of(raw: bytes, *keys: VerifierKey) -> str:
    """The code with which a note is refused."""
    with pytest.raises(BadEvidence) as refused:
        Note.parse(raw).verify(keys)
    assert "\n" not in str(refused.value)
    return refused.value.code


def test_the_vector_of_the_specification() -> None:
    assert str(FOO) == SPEC_VKEY
    assert (FOO.name, FOO.type, FOO.id.hex()) == ("example.com/foo", KeyType.ED25519, "530d903a")
    assert Note.parse(SPEC_NOTE).encode() == SPEC_NOTE
    assert Note.parse(SPEC_NOTE).verify([FOO]) == [(FOO, None)]


@pytest.mark.parametrize("type_", KeyType)
def test_keys_and_signatures_of_every_type(type_: KeyType) -> None:
    """vkey round trip; the note verifies with the time that was given, and not for another name or text."""
    one = signer("signer.example/x", type_)
    assert VerifierKey.parse(str(one.key)) == one.key
    text = Note.parse(MemoryLog(3).checkpoint()).text
    note = Note.parse(signed(one, text=text).encode())
    assert note.verify([one.key, FOO]) == [(one.key, None if type_ == KeyType.ED25519 else NOW)]
    assert code_of(Note(text.replace("3", "4", 1), note.signatures).encode(), one.key) == "bad_signature"
    assert (
        code_of(note.encode(), signer("signer.example/y", type_, seed="signer.example/x").key) == "no_known_signature"
    )
    assert code_of(note.encode(), signer("signer.example/x", type_, seed="other").key) == "no_known_signature"


@pytest.mark.parametrize(
    "vkey",
    [
        *("", "+", "++", "example.com/foo", "example.com/foo+530d903a", "example.com/foo+530d903a+"),
        SPEC_VKEY.replace("530d903a", "530d903b"),
        SPEC_VKEY.replace("530d903a", "530D903A"),
        SPEC_VKEY.replace("530d903a", "30d903a"),
        SPEC_VKEY.replace("foo", "fo o"),
        SPEC_VKEY.replace("foo", "bar"),
        SPEC_VKEY.removeprefix("example.com/foo"),
        SPEC_VKEY + "\n",
        SPEC_VKEY[:-1] + "l",
        SPEC_VKEY[:-4],
        "\udcff" + SPEC_VKEY,
    ],
)
def test_other_vkeys_are_refused(vkey: str) -> None:
    with pytest.raises(BadEvidence) as refused:
        VerifierKey.parse(vkey)
    assert refused.value.code in {"bad_vkey", "weak_key"}  # other bits of a key are seldom a point of the curve


@pytest.mark.parametrize("type_", KeyType)
def test_a_key_of_another_length_is_refused(type_: KeyType) -> None:
    good = signer("x.example", type_).key.public
    for public in (good[:-1], good + b"\0", b""):
        with pytest.raises(BadEvidence) as refused:
            VerifierKey("x.example", type_, public)
        assert refused.value.code == "bad_vkey"


@pytest.mark.parametrize("type_", [0x00, 0x02, 0x03, 0x05, 0xFF])
def test_a_vkey_of_another_type_is_refused(type_: int) -> None:
    """Nothing here could verify with it, so a policy that names it must not look as if it did."""
    material = bytes([type_]) + FOO.public
    number = hashlib.sha256(b"example.com/foo\n" + material).hexdigest()[:8]
    with pytest.raises(BadEvidence, match="type"):
        VerifierKey.parse(f"example.com/foo+{number}+{base64.b64encode(material).decode()}")


@pytest.mark.parametrize("type_", [KeyType.ED25519, KeyType.COSIGNATURE])
def test_a_small_order_key_never_verifies(type_: KeyType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its one signature fits every message in OpenSSL: the key is refused, and were it not, the signature would be."""
    with pytest.raises(BadEvidence) as refused:
        VerifierKey("weak.example", type_, SMALL_ORDER)
    assert refused.value.code == "weak_key"
    monkeypatch.setattr(note_module, "check_public_key", lambda public: None)
    weak = VerifierKey("weak.example", type_, SMALL_ORDER)
    prefix = b"" if type_ == KeyType.ED25519 else bytes(8)
    text = Note.parse(MemoryLog(1).checkpoint()).text
    line = Signature(weak.name, weak.id, prefix + FOR_ANY_MESSAGE)
    assert code_of(Note(text, (line,)).encode(), weak) == "bad_signature"


def test_unknown_lines_are_ignored_and_known_ones_must_verify() -> None:
    """Rules of "Signatures": unknown key ignored, none known refused, one known and wrong refused."""
    other, known = signer("other.example"), signer("known.example")
    forged = Signature(known.key.name, known.key.id, bytes(64))
    same_name = Signature(known.key.name, b"\0\0\0\0", bytes(5))
    same_id = Signature("another.example", known.key.id, bytes(5))
    noise = (same_name, same_id, other.line(TEXT), Signature("ecdsa.example", b"\2\2\2\2", bytes(71)))
    assert Note(TEXT, (*noise, known.line(TEXT))).verify([known.key]) == [(known.key, None)]
    assert code_of(Note(TEXT, noise).encode(), known.key) == "no_known_signature"
    assert code_of(Note(TEXT, noise).encode()) == "no_known_signature"
    assert code_of(Note(TEXT, (known.line(TEXT), forged)).encode(), known.key) == "bad_signature"
    assert code_of(Note(TEXT, (other.line(TEXT), forged)).encode(), known.key, other.key) == "bad_signature"


@pytest.mark.parametrize("length", [0, 1, 63, 65, 72])
def test_a_signature_of_another_length_is_refused(length: int) -> None:
    key = signer("known.example").key
    raw = Note(TEXT, (Signature(key.name, key.id, bytes(length)),)).encode()
    assert code_of(raw, key) == ("bad_signature" if length else "bad_note")


@pytest.mark.parametrize("count", [16, 17, MAX_SIGNATURES])
def test_many_lines_are_accepted(count: int) -> None:
    signers = [signer(f"s{number}.example") for number in range(count)]
    assert len(Note.parse(signed(*signers).encode()).verify([one.key for one in signers])) == count


def test_too_much_is_refused() -> None:
    one = signer("s.example")
    assert code_of(signed(*[one] * (MAX_SIGNATURES + 1)).encode(), one.key) == "bad_note"
    assert code_of(signed(one, text="x" * 1_000_000 + "\n").encode(), one.key) == "bad_note"


def test_the_text_ends_at_the_last_empty_line() -> None:
    """A text may hold empty lines, and lines that look like signatures."""
    for text in ("a\n\nb\n", "\n", "a\n\n", f"a\n\n— x.example {'A' * 8}\n", "no control but é \x7f\n"):
        note = Note.parse(signed(LOG, text=text).encode())
        assert note.text == text
        assert note.verify([LOG.key])


GOOD = SPEC_NOTE.decode()
BASE64 = GOOD.split()[-1]


@pytest.mark.parametrize(
    "hostile",
    [
        "",
        "\n",
        "\n\n",
        GOOD.replace("\n\n", "\n"),
        GOOD.split("\n\n")[0] + "\n\n",
        GOOD.split("\n\n")[1],
        GOOD[:-1],
        GOOD + "\n",
        GOOD + "x\n",
        GOOD.replace("\n", "\r\n"),
        GOOD.replace("message", "mess\tage"),
        GOOD.replace("message", "mess\0age"),
        GOOD.replace("message", "mess\x1fage"),
        GOOD.replace("— ", "- "),
        GOOD.replace("— ", "—"),
        GOOD.replace("— ", "—  "),
        GOOD.replace("— ", " — "),
        GOOD.replace("— ", "—\u00a0"),
        GOOD.replace("example.com/foo ", ""),
        GOOD.replace("example.com/foo", ""),
        GOOD.replace("example.com/foo", "example.com/f+o"),
        GOOD.replace("example.com/foo", "example.com/f\u2003o"),
        GOOD.replace("example.com/foo", "example.com/f\u0085o"),
        GOOD.replace(BASE64, BASE64[:-1]),
        GOOD.replace(BASE64, BASE64 + "="),
        GOOD.replace(BASE64, BASE64[:-2] + "N="),
        GOOD.replace(BASE64, "!" + BASE64[1:]),
        GOOD.replace(BASE64, BASE64 + " "),
        GOOD.replace(BASE64, BASE64 + " x"),
        GOOD.replace(BASE64, BASE64[:5]),
        GOOD.replace(BASE64, "Uw2QOg=="),
        GOOD.replace(BASE64, ""),
    ],
)
def test_hostile_notes_are_refused(hostile: str) -> None:
    assert code_of(hostile.encode(), FOO) == "bad_note"


def test_what_is_not_utf8_is_refused() -> None:
    assert code_of(SPEC_NOTE.replace(b"example m", b"example\xff m"), FOO) == "bad_note"
    assert code_of(SPEC_NOTE.replace(b"example m", b"\xed\xa0\x80 m"), FOO) == "bad_note"


def survivors(raw: bytes, *keys: VerifierKey, step: int = 1) -> list[int]:
    """The bits that can be flipped without a refusal."""
    alive = []
    for bit, damaged in flips(raw, step):
        try:
            Note.parse(damaged).verify(keys)
        except BadEvidence:
            continue
        alive.append(bit)
    return alive


def test_any_flipped_bit_of_a_note_is_refused() -> None:
    """Text, blank line, dash, name, key id, signature, newline: all of them."""
    assert survivors(SPEC_NOTE, FOO) == []
    cosigned = signed(WITNESSES[0], text=Note.parse(MemoryLog(3).checkpoint()).text).encode()
    assert survivors(cosigned, WITNESSES[0].key) == []
    quantum = signed(LOG_PQ, text=Note.parse(MemoryLog(3).checkpoint()).text).encode()
    assert survivors(quantum, LOG_PQ.key, step=11) == []


@pytest.mark.parametrize("skipped", ["signature", "base64", "exact line"])
def test_a_verifier_that_skips_a_step_is_caught(skipped: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted faults: the flips above find each of them."""
    if skipped == "signature":
        monkeypatch.setattr(note_module, "verify", lambda public, signature, message: True)
    if skipped == "base64":
        monkeypatch.setattr(note_module, "from_base64", loose_base64)
    if skipped == "exact line":
        monkeypatch.setattr(Signature, "parse", classmethod(loose_line))
    assert survivors(SPEC_NOTE, FOO)


def loose_base64(text: str, where: str, _: str) -> bytes:
    try:
        return base64.b64decode(text)
    except ValueError as error:
        raise BadEvidence(where) from error


def loose_line(_: type[Signature], line: str, where: str = "") -> Signature:
    try:
        raw = base64.b64decode(line.split(" ")[2])
    except (ValueError, IndexError) as error:
        raise BadEvidence(where) from error
    return Signature(line.split(" ")[1], raw[:4], raw[4:])


def test_our_notes_read_with_sigstore() -> None:
    """Its reader sees the same text and lines, and its keyring verifies the log's Ed25519 line beside all the others."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
    from sigstore._internal.rekor.checkpoint import SignedCheckpoint
    from sigstore._internal.trust import Keyring, RekorKeyring
    from sigstore._utils import KeyID
    from sigstore_models.common.v1 import PublicKey, PublicKeyDetails

    der = Ed25519PublicKey.from_public_bytes(LOG.key.public).public_bytes(
        Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    )
    public = PublicKey(raw_bytes=base64.b64encode(der), key_details=PublicKeyDetails.PKIX_ED25519)
    log = MemoryLog(7)
    theirs = SignedCheckpoint.from_text(log.checkpoint(LOG, LOG_PQ, *WITNESSES).decode())
    theirs.signed_note.verify(RekorKeyring(Keyring([public])), KeyID(LOG.key.id))
    assert [line.name for line in theirs.signed_note.signatures] == [
        ORIGIN,
        ORIGIN,
        *(one.key.name for one in WITNESSES),
    ]
    seen = theirs.checkpoint
    assert (seen.origin, seen.log_size, seen.log_hash) == (ORIGIN, 7, log.edge.root().hex())


NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"], exclude_characters="+"), min_size=1)
LINES = st.builds(Signature, NAMES, st.binary(min_size=4, max_size=4), st.binary(min_size=1, max_size=80))
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="".join(map(chr, range(32))))).map(
    "{}\n".format
)


@given(st.lists(TEXTS, min_size=1).map("".join), st.lists(LINES, min_size=1, max_size=20))
def test_note_round_trip(text: str, lines: list[Signature]) -> None:
    note = Note(text, tuple(lines))
    assert Note.parse(note.encode()) == note


@given(st.binary(max_size=300) | st.text(alphabet="— a+=\n\u2003AQ", max_size=60).map(str.encode))
def test_any_bytes_are_refused_or_kept(raw: bytes) -> None:
    """What parses is written back as the same bytes; what does not is a BadEvidence and nothing else."""
    try:
        assert Note.parse(raw).encode() == raw
    except BadEvidence as refused:
        assert refused.code == "bad_note"


def test_a_cosignature_without_its_time_is_a_mistake() -> None:
    for one, time in ((WITNESSES[0], None), (LOG, NOW)):
        with pytest.raises(RuntimeError):
            one.key.sign(TEXT, one.private, time)
