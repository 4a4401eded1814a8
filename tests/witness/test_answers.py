"""Every status of C2SP tlog-witness v1.0.0 with its body, hostile requests, and two clients at once."""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compliance_agent.core import witness as core
from compliance_agent.core.witness import CODES, admit
from compliance_agent.errors import BadEvidence, Refusal
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.merkle import EMPTY_ROOT, RootHash
from compliance_agent.log.note import KeyType, Note, Signature
from compliance_agent.log.policy import Policy
from compliance_agent.witness import Witness
from tests.log.builder import LOG, LOG_PQ, NOW, ORIGIN, WITNESSES, MemoryLog, flips, signer
from tests.witness.builder import (
    HASH,
    LOGS,
    NAME,
    Local,
    body_of,
    checkpoint_of,
    fork_of,
    local,
    note_of,
    step,
    tree_of,
)

LOG_600 = MemoryLog(600)


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Local]:
    with local(tmp_path / "w") as made:
        yield made


def lines_of(body: bytes) -> list[Signature]:
    text = body.decode()
    assert text.endswith("\n")
    return [Signature.parse(line) for line in text[:-1].split("\n")]


async def refused(one: Local, body: bytes) -> tuple[int, str]:
    """Status and code of a refusal, after which the witness says what it said before."""
    before = await one.latest()
    reply = await one.add(body)
    assert reply.status != 200
    assert await one.latest() == before
    return reply.status, reply.body.decode().partition(":")[0]


async def test_a_growing_log_is_cosigned_at_every_step(one: Local) -> None:
    for old, new in [(0, 1), (1, 2), (2, 255), (255, 256), (256, 256), (256, 257), (257, 600)]:
        one.clock.at += 1
        reply = await one.add(step(LOG_600, old, new))
        assert (reply.status, reply.headers["content-type"].partition(";")[0]) == (200, "text/plain")
        [line] = lines_of(reply.body)
        [key] = one.keys.keys
        assert (line.name, line.key_id, key.type) == (NAME, key.id, KeyType.COSIGNATURE)
        assert key.verify(checkpoint_of(LOG_600, new).text, line.signature) == one.clock.at
        latest = await one.latest()
        assert latest.body == note_of(checkpoint_of(LOG_600, new)) + reply.body


async def test_both_keys_cosign(tmp_path: Path) -> None:
    with local(tmp_path, ml_dsa=True) as one:
        lines = lines_of((await one.add(step(LOG_600, 0, 7))).body)
        text = checkpoint_of(LOG_600, 7).text
        assert [key.type for key in one.keys.keys] == [KeyType.COSIGNATURE, KeyType.MLDSA44]
        assert [key.verify(text, line.signature) for key, line in zip(one.keys.keys, lines, strict=True)] == [NOW, NOW]


async def test_nothing_cosigned_yet(one: Local) -> None:
    assert (await one.latest()).status == 404
    assert (await one.witness.answer("GET", "/" + "0" * 64 + "/checkpoint", b"")).status == 404


async def test_a_stale_size_is_answered_with_the_latest(one: Local) -> None:
    """409, `text/x.tlog.size`, the size and a newline; also to a client that has no idea and says 0."""
    await one.add(step(LOG_600, 0, 300))
    for old, new in [(0, 400), (200, 400), (300 - 1, 299), (301, 400)]:
        reply = await one.add(step(LOG_600, old, new))
        assert (reply.status, reply.headers["content-type"], reply.body) == (409, "text/x.tlog.size", b"300\n")
    reply = await Local(one.directory.parent / "new").add(step(LOG_600, 5, 400))
    assert (reply.status, reply.body) == (409, b"0\n")


async def test_a_smaller_tree_is_never_cosigned(one: Local) -> None:
    await one.add(step(LOG_600, 0, 300))
    assert await refused(one, body_of(300, [], note_of(checkpoint_of(LOG_600, 299)))) == (400, "old_beyond_size")
    reply = await one.add(step(LOG_600, 0, 299))
    assert (reply.status, reply.body) == (409, b"300\n")


async def test_an_unknown_origin(one: Local) -> None:
    other = signer("evidence.example/clinic-b/2026")
    checkpoint = Checkpoint(other.key.name, 7, tree_of(LOG_600, 7).root())
    assert await refused(one, body_of(0, [], note_of(checkpoint, other))) == (404, "unknown_origin")
    assert await refused(one, body_of(0, [], note_of(checkpoint, LOG))) == (404, "unknown_origin")


async def test_signatures_of_others_do_not_count(one: Local) -> None:
    """403: by an unknown key, by a witness, by the log's key under another name, by nobody's key of the log's name."""
    mine = signer(NAME, KeyType.COSIGNATURE)
    for stranger in (signer("elsewhere.example"), signer(ORIGIN, seed="another"), WITNESSES[0], LOG_PQ, mine):
        body = body_of(0, [], note_of(checkpoint_of(LOG_600, 7), stranger))
        assert await refused(one, body) == (403, "bad_signature")


async def test_a_known_key_that_does_not_verify_spoils_the_note(one: Local) -> None:
    """Even beside a right line: such a note is malformed, and 403 is the answer the specification gives."""
    checkpoint = checkpoint_of(LOG_600, 7)
    right = LOG.line(checkpoint.text)
    wrong = Signature(right.name, right.key_id, bytes(64))
    for lines in ([wrong], [right, wrong], [wrong, right]):
        note = Note(checkpoint.text, tuple(lines)).encode()
        assert await refused(one, body_of(0, [], note)) == (403, "bad_signature")


async def test_lines_of_unknown_keys_are_ignored_and_not_kept(one: Local) -> None:
    note = note_of(checkpoint_of(LOG_600, 7), WITNESSES[0], LOG, LOG_PQ, signer("elsewhere.example"))
    reply = await one.add(body_of(0, [], note))
    assert reply.status == 200
    assert (await one.latest()).body == note_of(checkpoint_of(LOG_600, 7)) + reply.body


async def test_a_log_with_two_keys(tmp_path: Path) -> None:
    one = Local(tmp_path, logs={ORIGIN: [LOG.key, LOG_PQ.key]})
    note = note_of(checkpoint_of(LOG_600, 7), LOG, LOG_PQ)
    reply = await one.add(body_of(0, [], note))
    assert (await one.latest()).body == note + reply.body
    assert (
        await one.add(body_of(7, tree_of(LOG_600, 9).consistency(7), note_of(checkpoint_of(LOG_600, 9), LOG_PQ)))
    ).status == 200
    one.store.close()


@pytest.mark.parametrize("damage", ["flipped", "missing", "extra", "swapped", "none", "of others", "at 0"])
async def test_a_wrong_proof_is_refused(one: Local, damage: str) -> None:
    await one.add(step(LOG_600, 0, 300))
    proof = tree_of(LOG_600, 555).consistency(300)
    flipped = [bytes([proof[0][0] ^ 1]) + proof[0][1:], *proof[1:]]
    wrong = {
        "flipped": flipped,
        "missing": proof[:-1],
        "extra": [*proof, bytes(32)],
        "swapped": [proof[1], proof[0], *proof[2:]],
        "none": [],
        "of others": tree_of(LOG_600, 555).consistency(299),
        "at 0": [bytes(32)],
    }[damage]
    assert await refused(one, body_of(300, wrong, note_of(checkpoint_of(LOG_600, 555)))) == (
        422,
        "bad_consistency_proof",
    )


async def test_the_first_proof_is_empty(one: Local) -> None:
    note = note_of(checkpoint_of(LOG_600, 7))
    assert await refused(one, body_of(0, [bytes(32)], note)) == (422, "bad_consistency_proof")


async def test_a_repeat_has_no_proof(one: Local) -> None:
    await one.add(step(LOG_600, 0, 7))
    note = note_of(checkpoint_of(LOG_600, 7))
    assert await refused(one, body_of(7, [bytes(32)], note)) == (422, "bad_consistency_proof")


async def test_two_roots_of_one_size(one: Local) -> None:
    """The second is refused (422), and both signed notes are kept: together they prove that the log lies."""
    await one.add(step(LOG_600, 0, 300))
    assert await refused(one, body_of(300, [], note_of(fork_of(300)))) == (422, "other_root")
    kept = [path.read_bytes() for path in (one.directory / "contradiction" / HASH).iterdir()]
    policy = Policy((LOG.key,), {}, {}, "none", {})
    roots = {policy.verify(note).checkpoint.root for note in kept}
    assert roots == {fork_of(300).root, tree_of(LOG_600, 300).root()}
    for number in range(60):  # proof enough: no log can fill the disk
        forged = Checkpoint(ORIGIN, 300, RootHash(bytes([number]) * 32))
        await one.add(body_of(300, [], note_of(forged)))
    assert len(list((one.directory / "contradiction" / HASH).iterdir())) <= 34


async def test_the_empty_tree(one: Local) -> None:
    """It has one root; another is inconsistent rather than malformed (422)."""
    empty = Checkpoint(ORIGIN, 0, EMPTY_ROOT)
    assert (await refused(one, body_of(0, [], note_of_text(ORIGIN, "0", bytes(32)))))[0] == 422
    assert (await one.add(body_of(0, [], note_of(empty)))).status == 200
    assert (await one.add(step(LOG_600, 0, 5))).status == 200


def note_of_text(origin: str, size: str, root: bytes) -> bytes:
    text = f"{origin}\n{size}\n{base64.b64encode(root).decode()}\n"
    return Note(text, (Signature(LOG.key.name, LOG.key.id, LOG.private(text.encode())),)).encode()


async def test_extension_lines_are_cosigned(one: Local) -> None:
    seen = checkpoint_of(LOG_600, 7)
    checkpoint = Checkpoint(seen.origin, seen.size, seen.root, ("an extension",))
    [line] = lines_of((await one.add(body_of(0, [], note_of(checkpoint)))).body)
    [key] = one.keys.keys
    assert key.verify(checkpoint.text, line.signature) == NOW
    with pytest.raises(BadEvidence):
        key.verify(seen.text, line.signature)


async def test_time_is_never_zero_and_never_runs_back(one: Local) -> None:
    one.clock.at = 0
    assert await refused(one, step(LOG_600, 0, 5)) == (503, "clock_behind")
    one.clock.at = NOW
    assert (await one.add(step(LOG_600, 0, 5))).status == 200
    one.clock.at = NOW - 1
    assert await refused(one, step(LOG_600, 5, 6)) == (503, "clock_behind")
    one = one.again()
    assert await refused(one, step(LOG_600, 5, 6)) == (503, "clock_behind")
    one.clock.at = NOW
    assert (await one.add(step(LOG_600, 5, 6))).status == 200
    one.store.close()


GOOD = step(LOG_600, 7, 300)


def hostile() -> dict[str, bytes]:
    head, note = GOOD.split(b"\n\n", 1)
    hashes = head.split(b"\n")[1:]
    texts = {
        "empty": b"",
        "no empty line": GOOD.replace(b"\n\n", b"\n"),
        "no note": head + b"\n\n",
        "no old line": b"\n".join(hashes) + b"\n\n" + note,
        "an empty line first": b"\n" + GOOD,
        "OLD": b"OLD" + GOOD[3:],
        "two spaces": b"old  7" + GOOD[5:],
        "a tab": b"old\t7" + GOOD[5:],
        "leading zero": b"old 07" + GOOD[5:],
        "plus": b"old +7" + GOOD[5:],
        "minus": b"old -7" + GOOD[5:],
        "other digits": "old \u0667".encode() + GOOD[5:],
        "a word after": b"old 7 8" + GOOD[5:],
        "2^63": b"old 9223372036854775808" + GOOD[5:],
        "huge number": b"old " + b"9" * 5000 + GOOD[5:],
        "CRLF": GOOD.replace(b"\n", b"\r\n"),
        "CRLF in the head": head.replace(b"\n", b"\r\n") + b"\n\n" + note,
        "NUL": GOOD.replace(b"old", b"old\0", 1),
        "NUL in the note": GOOD.replace(ORIGIN.encode(), ORIGIN.encode() + b"\0", 1),
        "not UTF-8": GOOD + b"\xff\n",
        "no last newline": GOOD[:-1],
        "short hash": head + b"\n" + base64.b64encode(bytes(31)) + b"\n\n" + note,
        "long hash": head + b"\n" + base64.b64encode(bytes(33)) + b"\n\n" + note,
        "no padding": head[:-1] + b"\n\n" + note,
        "URL-safe base64": head + b"\n" + base64.urlsafe_b64encode(b"\xff" * 32) + b"\n\n" + note,
        "spaces around a hash": head.replace(hashes[0], b" " + hashes[0]) + b"\n\n" + note,
        "loose base64": head + b"\n" + b"A" * 42 + b"B=" + b"\n\n" + note,
        "64 hashes": b"old 7\n" + (base64.b64encode(bytes(32)) + b"\n") * 64 + b"\n" + note,
        "too long": GOOD[:-1] + b"\n" + ("— x.example/y " + "A" * 8 + "\n").encode() * 4000,
        "101 signatures": GOOD + ("— x.example/y " + base64.b64encode(bytes(8)).decode() + "\n").encode() * 100,
        "size with a zero": GOOD.replace(b"\n300\n", b"\n0300\n"),
        "no root": GOOD.replace(note.split(b"\n")[2] + b"\n", b"", 1),
        "empty line in the note": GOOD.replace(b"\n300\n", b"\n300\n\n"),
    }
    return texts


@pytest.mark.parametrize("name", hostile())
async def test_a_malformed_request(one: Local, name: str) -> None:
    await one.add(step(LOG_600, 0, 7))
    assert await refused(one, hostile()[name]) == (400, "bad_request")
    assert (await one.add(GOOD)).status == 200


async def test_63_hashes_are_a_form_and_no_proof(one: Local) -> None:
    await one.add(step(LOG_600, 0, 7))
    body = body_of(7, [bytes(32)] * 63, note_of(checkpoint_of(LOG_600, 300)))
    assert await refused(one, body) == (422, "bad_consistency_proof")


async def test_every_line_twice_or_away(one: Local) -> None:
    """No request with a line too many or too few is taken, but for a signature line that stands there twice."""
    await one.add(step(LOG_600, 0, 7))
    lines = GOOD.split(b"\n")[:-1]
    for at in range(len(lines)):
        for changed in (lines[:at] + lines[at + 1 :], lines[: at + 1] + lines[at:]):
            if changed[-1] == changed[-2] and at == len(lines) - 1:
                continue
            status, _ = await refused(one, b"\n".join(changed) + b"\n")
            assert status in {400, 403, 404, 422}


async def test_no_flipped_bit_is_cosigned(one: Local) -> None:
    """But in the name or id of nobody's line there is nothing to flip: whatever is cosigned is the checkpoint itself."""
    await one.add(step(LOG_600, 0, 7))
    for _, damaged in flips(GOOD, 3):
        status, _ = await refused(one, damaged)
        assert status in {400, 403, 404, 409, 422}


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=200) | st.text("old 017\n—=A+/ ", max_size=100).map(str.encode))
def test_any_bytes_are_refused_with_a_code(raw: bytes) -> None:
    with pytest.raises(Refusal) as no:
        admit(raw, LOGS)
    assert no.value.status == 400 and no.value.code in CODES


async def test_two_clients_at_once(one: Local) -> None:
    """Of requests from one size exactly one wins; the others hear the size to go on from."""
    await one.add(step(LOG_600, 0, 10))
    sizes = list(range(11, 41))
    replies = await asyncio.gather(*(one.add(step(LOG_600, 10, size)) for size in sizes))
    won = [size for size, reply in zip(sizes, replies, strict=True) if reply.status == 200]
    assert len(won) == 1
    assert {(reply.status, reply.body) for reply in replies if reply.status != 200} == {(409, b"%d\n" % won[0])}
    assert (await one.latest()).body.startswith(note_of(checkpoint_of(LOG_600, won[0])))


async def test_other_targets_and_methods(one: Local) -> None:
    for method, target, status in [
        ("GET", "/add-checkpoint", 405),
        ("PUT", "/add-checkpoint", 405),
        ("POST", f"/{HASH}/checkpoint", 405),
        ("GET", "/", 404),
        ("GET", f"/{HASH.upper()}/checkpoint", 404),
        ("GET", f"/{HASH}/checkpoint?x", 404),
        ("GET", "/../witness.pem", 404),
        ("POST", "/sign-subtree", 404),
    ]:
        reply = await one.witness.answer(method, target, GOOD)
        assert reply.status == status
        assert (status == 405) == ("allow" in reply.headers)


async def test_a_code_is_all_that_is_said(one: Local) -> None:
    """No word of the request or of this machine comes back."""
    reply = await one.add(b"old 7\nsecret\n\nname\n")
    assert re.fullmatch(r"bad_request: [a-z ,]+\n", reply.body.decode())


# Planted faults: what the tests above must catch


async def grows_safely(one: Local) -> bool:
    """Whether a witness keeps to one history, as the tests above would see it."""
    await one.add(step(LOG_600, 0, 300))
    forked = await one.add(body_of(300, [bytes(32)], note_of(fork_of(400))))
    again = await one.add(body_of(300, [], note_of(fork_of(300))))
    return {forked.status, again.status} == {422}


async def test_a_witness_that_skips_consistency_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with local(tmp_path / "right") as right:
        assert await grows_safely(right)
    monkeypatch.setattr(core, "verify_consistency", lambda *_: None)
    with local(tmp_path / "wrong") as wrong:
        assert not await grows_safely(wrong)


class Forgetful:
    """Stores after it has replied, if at all: each request finds what was there before."""

    def __init__(self, one: Local) -> None:
        self.store = one.store

    def update(self, name: str, make: object) -> bytes:
        return make(None)  # type: ignore[operator, no-any-return]

    def __getattr__(self, name: str) -> object:
        return getattr(self.store, name)


async def test_a_witness_that_stores_after_replying_is_caught(one: Local) -> None:
    one.witness = Witness(LOGS, one.keys, Forgetful(one), one.clock)  # type: ignore[arg-type]
    replies = [await one.add(step(LOG_600, 0, size)) for size in (5, 4)]
    assert [reply.status for reply in replies] == [200, 200]  # two histories, as test_two_clients_at_once refuses
    assert (await one.latest()).status == 404
