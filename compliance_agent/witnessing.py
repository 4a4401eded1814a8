"""What a log's server does to have a checkpoint witnessed: ask every witness of a policy at once, and believe no line unverified.

    found = await witnessed(note, policy, transports, tree.consistency, old, now, deadline_s=5)
    found.note       # the note with a cosignature line of each witness that gave a right one
    found.failed     # the others by their names in the policy, with one of CODES: unwitnessed is visible, never silent
    found.old        # to be kept, and given the next time

A witness with two keys stands in the policy twice, under one URL, and is asked once. A witness that remembers another size is
asked once more from there (C2SP tlog-witness, "add-checkpoint"), unless it remembers less than it has cosigned, or more than
there is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from compliance_agent.errors import AgentError, BadEvidence, BadReply, Unavailable
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.fields import from_decimal, to_base64
from compliance_agent.log.note import Note, Signature, VerifierKey
from compliance_agent.log.policy import Policy
from compliance_agent.ports import HttpReply, Transport

LARGEST_SKEW_S = 300  # between a witness's time and ours: an earlier one would make evidence look older than it is
MAX_REPLY_BYTES = 65_536
SIZE = "text/x.tlog.size"

CODES = {
    "no_url": "the policy does not say where the witness is, or there is no transport to it",
    "unavailable": "no connection, or it was cut",
    "timed_out": "no whole answer within the deadline",
    "bad_reply": "the answer is not one that the protocol allows",
    "no_cosignature": "the answer holds no line by this witness's key",
    "bad_cosignature": "the line by this witness's key does not verify",
    "bad_time": "the time of the cosignature is 0, or more than five minutes from ours",
    "refused": "the witness said no, for a reason without a code here",
    "malformed": "400: the witness takes the request for malformed",
    "unknown_key": "403: the witness knows no key that signed this checkpoint",
    "unknown_origin": "404: the witness does not witness this log",
    "inconsistent": "422: the witness holds this checkpoint to contradict one it cosigned",
    "stale": "409 again: another request was faster",
    "ahead": "the witness has cosigned a larger tree than this one: this log was put back, or there is another",
    "rolled_back": "the witness remembers less than it has cosigned",
    "no_proof": "no consistency proof could be made from the size the witness remembers",
}
_REFUSED = {400: "malformed", 403: "unknown_key", 404: "unknown_origin", 422: "inconsistent"}


@dataclass(frozen=True)
class Witnessed:
    """What asking has brought.

    Attributes:
        note: the checkpoint with every verified line; a witness's older line is replaced by its newer one.
        cosigned: names of the policy, with the time each says (POSIX seconds).
        failed: names of the policy, with one of CODES.
        old: for each URL the size that its witness is known to have cosigned.
        quorum_met: whether the note satisfies the policy now.
    """

    note: bytes
    cosigned: Mapping[str, int]
    failed: Mapping[str, str]
    old: Mapping[str, int]
    quorum_met: bool


@dataclass(frozen=True)
class _Asked:
    """One witness's answer."""

    lines: Mapping[str, tuple[Signature, int]]
    failed: Mapping[str, str]
    old: int | None


async def witnessed(
    note: bytes,
    policy: Policy,
    transports: Mapping[str, Transport],
    consistency: Callable[[int], Sequence[bytes]],
    old: Mapping[str, int],
    now: Callable[[], int],
    *,
    deadline_s: float = 5.0,
) -> Witnessed:
    """Ask all witnesses of `policy` for cosignatures of the checkpoint in `note`, concurrently.

    Args:
        note: signed by a log of the policy.
        policy: names the witnesses, their keys and their URLs.
        transports: for each URL of the policy the way to it.
        consistency: the proof that the tree of this size begins the checkpoint's.
        old: for each URL the size that its witness cosigned last, as far as known.
        now: POSIX seconds.
        deadline_s: after which a witness that has not answered has failed.

    Raises:
        BadEvidence: `note` does not verify under the policy. Nothing is raised because of a witness.
    """
    checkpoint = policy.verify(note).checkpoint
    sites: dict[str, dict[str, VerifierKey]] = {}
    for name, key in policy.witnesses.items():
        sites.setdefault(policy.urls.get(key, ""), {})[name] = key

    async def ask(url: str, keys: Mapping[str, VerifierKey]) -> _Asked:
        if url not in transports:
            return _Asked({}, dict.fromkeys(keys, "no_url"), old.get(url))
        one = _Question(note, checkpoint, keys, transports[url], consistency, now)
        return await one.ask(old.get(url), deadline_s)

    answers = dict(zip(sites, await asyncio.gather(*(ask(*site) for site in sites.items())), strict=True))
    lines = {name: line for answer in answers.values() for name, line in answer.lines.items()}
    signed = merged(note, [policy.witnesses[name] for name in lines], [line for line, _ in lines.values()])
    return Witnessed(
        signed,
        {name: at for name, (_, at) in lines.items()},
        {name: code for answer in answers.values() for name, code in answer.failed.items()},
        {**old, **{url: answer.old for url, answer in answers.items() if answer.old is not None}},
        policy.verify(signed).quorum_met,
    )


class _Question:
    """One checkpoint put to one witness, which answers with a line for each of its keys."""

    def __init__(
        self,
        note: bytes,
        checkpoint: Checkpoint,
        keys: Mapping[str, VerifierKey],
        transport: Transport,
        consistency: Callable[[int], Sequence[bytes]],
        now: Callable[[], int],
    ) -> None:
        self._note = note
        self._text = Note.parse(note).text
        self._size = checkpoint.size
        self._keys = keys
        self._transport = transport
        self._consistency = consistency
        self._now = now

    async def ask(self, old: int | None, deadline_s: float) -> _Asked:
        """Its lines, or why there are none."""
        try:
            async with asyncio.timeout(deadline_s):
                reply = await self._post(old or 0, deadline_s)
                if reply.status == 409:
                    remembered = self._remembered(reply, old)
                    reply = await self._post(remembered, deadline_s)
            return self._judge(reply, old)
        except TimeoutError:
            return self._failed("timed_out", old)
        except AgentError as error:
            code = error.code if error.code in CODES else _kind(error)
            return self._failed(code, old)

    async def _post(self, old: int, deadline_s: float) -> HttpReply:
        try:
            proof = [] if old in {0, self._size} else await asyncio.to_thread(self._consistency, old)
        except AgentError as error:
            raise BadEvidence(CODES["no_proof"], code="no_proof") from error
        head = "".join(f"{line}\n" for line in [f"old {old}", *map(to_base64, proof), ""])
        headers = {"content-type": "text/plain; charset=utf-8"}
        body = head.encode() + self._note
        return await self._transport.request(
            "POST", "/add-checkpoint", headers=headers, body=body, timeout_s=deadline_s
        )

    def _remembered(self, reply: HttpReply, old: int | None) -> int:
        """The size in a 409, if asking from there can help."""
        text = reply.body.decode("ascii", "replace")
        if reply.headers.get("content-type", "").partition(";")[0].strip() != SIZE or not text.endswith("\n"):
            raise BadReply(CODES["bad_reply"], code="bad_reply")
        size = from_decimal(text[:-1], "size in the answer", "bad_reply")
        if size > self._size:
            raise BadReply(CODES["ahead"], code="ahead")
        if size < (old or 0):
            raise BadReply(CODES["rolled_back"], code="rolled_back")
        if size == (old or 0):
            raise BadReply(CODES["bad_reply"], code="bad_reply")
        return size

    def _judge(self, reply: HttpReply, old: int | None) -> _Asked:
        if reply.status != 200:
            return self._failed("stale" if reply.status == 409 else _REFUSED.get(reply.status, "refused"), old)
        if len(reply.body) > MAX_REPLY_BYTES:
            return self._failed("bad_reply", old)
        found = _lines(reply.body)
        results = {name: self._line(key, found) for name, key in self._keys.items()}
        lines = {name: result for name, result in results.items() if not isinstance(result, str)}
        failed = {name: result for name, result in results.items() if isinstance(result, str)}
        return _Asked(lines, failed, self._size if lines else old)

    def _line(self, key: VerifierKey, found: Sequence[Signature]) -> tuple[Signature, int] | str:
        """This key's line and its time, or a code. A line of the key that does not verify spoils all of them."""
        ours = [line for line in found if (line.name, line.key_id) == (key.name, key.id)]
        if not ours:
            return "no_cosignature"
        try:
            times = [key.verify(self._text, line.signature) for line in ours]
        except BadEvidence:
            return "bad_cosignature"
        at = times[0] or 0
        return (ours[0], at) if at > 0 and abs(at - self._now()) <= LARGEST_SKEW_S else "bad_time"

    def _failed(self, code: str, old: int | None) -> _Asked:
        return _Asked({}, dict.fromkeys(self._keys, code), old)


def _kind(error: AgentError) -> str:
    return "unavailable" if isinstance(error, Unavailable) else "bad_reply"


def _lines(body: bytes) -> list[Signature]:
    """The signature lines of an answer; BadEvidence `bad_reply` when it is anything else."""
    try:
        note = Note.parse(b"-\n\n" + body)  # as after a text: the rules for lines are the note's
    except BadEvidence as error:
        raise BadEvidence(CODES["bad_reply"], code="bad_reply") from error
    if note.text != "-\n":
        raise BadEvidence(CODES["bad_reply"], code="bad_reply")
    return list(note.signatures)


def merged(note: bytes, keys: Sequence[VerifierKey], lines: Sequence[Signature]) -> bytes:
    """The note with these lines of these keys, in place of older ones of theirs."""
    whole, newer = Note.parse(note), {(key.name, key.id) for key in keys}
    kept = [line for line in whole.signatures if (line.name, line.key_id) not in newer]
    return replace(whole, signatures=(*kept, *lines)).encode()
