"""What a log's server hears from witnesses: right lines are taken, everything else is a code, and nothing waits for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from compliance_agent import witnessing
from compliance_agent.errors import AgentError, BadEvidence, BadReply, Unavailable
from compliance_agent.log.note import KeyType, Note, VerifierKey
from compliance_agent.log.policy import Policy
from compliance_agent.ports import HttpReply
from compliance_agent.witnessing import CODES, Witnessed, witnessed
from tests.log.builder import LOG, NOW, WITNESSES, MemoryLog, Signer, signer
from tests.witness.builder import Local, body_of, checkpoint_of, fork_of, local, note_of, step, tree_of

LOG_600 = MemoryLog(600)
SIZE = {"content-type": "text/x.tlog.size"}
TEXT_300 = checkpoint_of(LOG_600, 300).text
NOTE_300 = note_of(checkpoint_of(LOG_600, 300))
Reply = Callable[[bytes], Awaitable[HttpReply]]


@dataclass
class Way:
    """A transport to a function."""

    reply: Reply
    bodies: list[bytes] = field(default_factory=list)

    async def request(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        timeout_s: float = 20.0,
    ) -> HttpReply:
        assert (method, path) == ("POST", "/add-checkpoint")
        self.bodies.append(body)
        return await self.reply(body)

    async def close(self) -> None:
        return None


def policy_of(*keys: VerifierKey, url: str = "https://w{}.example", quorum: str = "all") -> Policy:
    lines = [f"log {LOG.key}", *(f"witness w{at} {key} {url.format(at)}" for at, key in enumerate(keys, 1))]
    members = " ".join(f"w{at}" for at in range(1, len(keys) + 1))
    return Policy.parse("\n".join([*lines, f"group g {quorum} {members}", "quorum g", ""]).encode())


def answering(status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Way:
    async def reply(_: bytes) -> HttpReply:
        return HttpReply(status, headers or {}, body)

    return Way(reply)


def right(one: Signer, text: str = TEXT_300, at: int = NOW) -> Way:
    return answering(200, f"{one.line(text, at)}\n".encode())


def failing(error: Exception) -> Way:
    async def reply(_: bytes) -> HttpReply:
        raise error

    return Way(reply)


def hanging() -> Way:
    async def reply(_: bytes) -> HttpReply:
        await asyncio.Event().wait()
        raise AssertionError

    return Way(reply)


async def ask(policy: Policy, *ways: Way, old: Mapping[str, int] | None = None, note: bytes = NOTE_300) -> Witnessed:
    transports = {f"https://w{at}.example": way for at, way in enumerate(ways, 1)}
    proof = tree_of(LOG_600, 300).consistency
    return await witnessed(note, policy, transports, proof, old or {}, lambda: NOW, deadline_s=0.2)


async def test_three_right_answers() -> None:
    policy = policy_of(*(one.key for one in WITNESSES))
    found = await ask(policy, *map(right, WITNESSES))
    assert found.cosigned == {"w1": NOW, "w2": NOW, "w3": NOW} and not found.failed and found.quorum_met
    assert found.note == note_of(checkpoint_of(LOG_600, 300), LOG, *WITNESSES)
    assert policy.verify(found.note).witnesses == found.cosigned
    assert found.old == {f"https://w{at}.example": 300 for at in (1, 2, 3)}


async def test_one_that_hangs_holds_nobody_up() -> None:
    policy = policy_of(*(one.key for one in WITNESSES), quorum="2")
    found = await ask(policy, right(WITNESSES[0]), hanging(), right(WITNESSES[2]), old={"https://w2.example": 9})
    assert set(found.cosigned) == {"w1", "w3"} and found.failed == {"w2": "timed_out"} and found.quorum_met
    assert found.old["https://w2.example"] == 9


ONE = WITNESSES[0]
FORGED = signer(ONE.key.name, KeyType.COSIGNATURE, "forged")


@pytest.mark.parametrize(
    ("way", "code"),
    [
        (answering(400), "malformed"),
        (answering(403), "unknown_key"),
        (answering(404), "unknown_origin"),
        (answering(422), "inconsistent"),
        (answering(503), "refused"),
        (answering(302), "refused"),
        (answering(409), "bad_reply"),
        (answering(409, b"12", SIZE), "bad_reply"),
        (answering(409, b"012\n", SIZE), "bad_reply"),
        (answering(409, b"12\n"), "bad_reply"),
        (answering(409, b"301\n", SIZE), "ahead"),
        (answering(409, b"100\n", SIZE), "bad_reply"),  # the very size that was given
        (answering(409, b"99\n", SIZE), "rolled_back"),
        (answering(409, b"101\n", SIZE), "stale"),  # twice
        (answering(200), "bad_reply"),
        (answering(200, b"ok\n"), "bad_reply"),
        (answering(200, b"\xff\n"), "bad_reply"),
        (answering(200, str(ONE.line(TEXT_300)).encode()), "bad_reply"),  # no newline
        (answering(200, f"\n{ONE.line(TEXT_300)}\n".encode()), "bad_reply"),
        (answering(200, f"{ONE.line(TEXT_300)}\n".encode() * 1000), "bad_reply"),
        (right(WITNESSES[1]), "no_cosignature"),
        (right(FORGED), "no_cosignature"),
        (right(ONE, checkpoint_of(LOG_600, 299).text), "bad_cosignature"),
        (right(ONE, fork_of(300).text), "bad_cosignature"),
        (right(ONE, at=0), "bad_time"),
        (right(ONE, at=NOW + 301), "bad_time"),
        (right(ONE, at=NOW - 301), "bad_time"),
        (failing(Unavailable("x")), "unavailable"),
        (failing(Unavailable("x", code="no_connection")), "unavailable"),
        (failing(Unavailable("x", code="timed_out")), "timed_out"),
        (failing(BadReply("x", code="too_large")), "bad_reply"),
    ],
)
async def test_every_other_answer_is_a_code(way: Way, code: str) -> None:
    """The note stays as it was, the policy unsatisfied, and the size that is known stays known."""
    found = await ask(policy_of(ONE.key), way, old={"https://w1.example": 100})
    assert (found.note, found.cosigned, found.failed) == (NOTE_300, {}, {"w1": code})
    assert found.old == {"https://w1.example": 100} and not found.quorum_met
    assert code in CODES


async def test_a_wrong_line_beside_a_right_one() -> None:
    lines = f"{ONE.line(TEXT_300)}\n{ONE.line(fork_of(300).text)}\n".encode()
    assert (await ask(policy_of(ONE.key), answering(200, lines))).failed == {"w1": "bad_cosignature"}


async def test_lines_of_strangers_are_not_taken() -> None:
    lines = f"{WITNESSES[2].line(TEXT_300)}\n{ONE.line(TEXT_300)}\n{LOG.line(fork_of(300).text)}\n".encode()
    found = await ask(policy_of(ONE.key), answering(200, lines))
    assert found.note == note_of(checkpoint_of(LOG_600, 300), LOG, ONE)


async def test_a_newer_line_replaces_the_older() -> None:
    older = Note(TEXT_300, (LOG.line(TEXT_300), ONE.line(TEXT_300, NOW - 9), WITNESSES[1].line(TEXT_300))).encode()
    found = await ask(policy_of(ONE.key, WITNESSES[1].key), right(ONE), answering(503), note=older)
    assert found.note == note_of(checkpoint_of(LOG_600, 300), LOG, WITNESSES[1], ONE)
    assert found.failed == {"w2": "refused"}


async def test_without_url_or_way() -> None:
    policy = Policy.parse(
        f"log {LOG.key}\nwitness w1 {ONE.key}\nwitness w2 {WITNESSES[1].key} https://x\nquorum none\n".encode()
    )
    assert (await ask(policy)).failed == {"w1": "no_url", "w2": "no_url"}


async def test_a_note_of_no_log_of_ours_is_not_shown_to_anybody() -> None:
    way = right(ONE)
    with pytest.raises(BadEvidence):
        await ask(policy_of(ONE.key), way, note=note_of(checkpoint_of(LOG_600, 300), signer("elsewhere.example")))
    assert not way.bodies


async def test_a_proof_that_cannot_be_made() -> None:
    def torn(_: int) -> list[bytes]:
        raise BadEvidence("a tile is gone", code="bad_tile")

    found = await witnessed(
        NOTE_300, policy_of(ONE.key), {"https://w1.example": right(ONE)}, torn, {"https://w1.example": 5}, lambda: NOW
    )
    assert found.failed == {"w1": "no_proof"}


def to(one: Local) -> Way:
    return Way(one.add)


async def test_with_a_witness_that_has_two_keys(tmp_path: Path) -> None:
    """One question, two lines; from a size nobody told it, and then on from the size it did."""
    with local(tmp_path, ml_dsa=True) as one:
        policy, way = policy_of(*one.keys.keys, url="https://w1.example"), to(one)
        await one.add(step(LOG_600, 0, 77))
        found = await ask(policy, way)
        assert set(found.cosigned) == {"w1", "w2"} and found.quorum_met
        assert [body.split(b"\n")[0] for body in way.bodies] == [b"old 0", b"old 77"]
        way.bodies.clear()
        again = await ask(policy, way, old=found.old)
        assert again.quorum_met and way.bodies == [body_of(300, [], NOTE_300)]


async def test_with_a_witness_that_saw_more_or_something_else(tmp_path: Path) -> None:
    with local(tmp_path) as one:
        policy = policy_of(*one.keys.keys)
        await one.add(step(LOG_600, 0, 300))
        forked = await ask(policy, to(one), note=note_of(fork_of(300)), old={"https://w1.example": 300})
        assert forked.failed == {"w1": "inconsistent"}
        await one.add(step(LOG_600, 300, 301))
        assert (await ask(policy, to(one))).failed == {"w1": "ahead"}


# Planted fault: a server that believes what it is sent


async def test_a_server_that_does_not_verify_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VerifierKey, "verify", lambda *_: NOW)
    found = await ask(policy_of(ONE.key), right(ONE, fork_of(300).text))
    assert found.cosigned == {"w1": NOW}  # which test_every_other_answer_is_a_code refuses as bad_cosignature


def test_codes_are_all_told() -> None:
    assert set(witnessing._REFUSED.values()) <= set(CODES)
    assert issubclass(BadReply, AgentError)
