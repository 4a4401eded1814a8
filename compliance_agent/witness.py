"""A witness, apart from its files, keys and sockets: a request goes in, an answer comes out, cosigned only what was stored before.

It answers `POST /add-checkpoint` and `GET /<SHA-256 of the origin>/checkpoint` (C2SP tlog-witness v1.0.0). Whoever puts it on a
network may put a prefix before both. `witnessing.py` is the other side.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Protocol

import structlog

from compliance_agent.core.witness import CODES, NOTHING, Seen, admit, check, cosigned, origin_hash
from compliance_agent.errors import AgentError, LogStopped, Refusal
from compliance_agent.log.note import Signature, VerifierKey
from compliance_agent.log.policy import Policy
from compliance_agent.ports import Clock, HttpReply

TEXT = "text/plain; charset=utf-8"
SIZE = "text/x.tlog.size"
_CHECKPOINT = re.compile(r"/([0-9a-f]{64})/checkpoint")

log = structlog.get_logger()


class Cosigner(Protocol):
    """Who cosigns: the public keys, and one line of each under a checkpoint's text."""

    @property
    def keys(self) -> Collection[VerifierKey]: ...

    def lines(self, text: str, timestamp: int) -> Iterable[Signature]: ...


class Memory(Protocol):
    """What was cosigned last, for each origin; in names of files an origin is its `origin_hash`."""

    def update(self, name: str, make: Callable[[Seen | None], bytes]) -> bytes:
        """Call `make` with the latest and store the note it returns, as one step; durable when this returns.

        Raises:
            LogStopped: what is held is older than what was cosigned.
            StorageError: nothing may be said; the old or the new note is held.
        """
        ...

    def published(self, name: str) -> bytes | None:
        """The latest cosigned note; None before the first. Raises as `update`."""
        ...

    def condemn(self, name: str, seen: Seen) -> None:
        """Remember for ever that more was cosigned than is held: nothing of this origin is cosigned any more."""
        ...

    def keep(self, name: str, note: bytes) -> None:
        """Keep a signed note that contradicts the latest one, as proof against the log."""
        ...


def logs_of(policies: Iterable[Policy]) -> dict[str, list[VerifierKey]]:
    """For each origin the keys that may sign it: the log lines of all the policies."""
    logs: dict[str, list[VerifierKey]] = {}
    for policy in policies:
        for key in policy.logs:
            logs.setdefault(key.name, []).append(key)
    return logs


class Witness:
    """Answers the two calls.

    Args:
        logs: for each origin the keys that may sign it.
        cosigner: this witness's keys.
        memory: what it cosigned.
        clock: the time it says in a cosignature.
    """

    def __init__(
        self, logs: Mapping[str, Collection[VerifierKey]], cosigner: Cosigner, memory: Memory, clock: Clock
    ) -> None:
        self._logs = logs
        self._cosigner = cosigner
        self._memory = memory
        self._clock = clock

    async def answer(self, method: str, target: str, body: bytes) -> HttpReply:
        """The reply to one request; never an exception of ours."""
        found = _CHECKPOINT.fullmatch(target)
        if found is None and target != "/add-checkpoint":
            return _text(404, "nothing is here")
        if method != ("GET" if found else "POST"):
            return _text(405, "not this method", allow="GET" if found else "POST")
        try:
            if found:
                return await asyncio.to_thread(self._show, found[1])
            return await asyncio.to_thread(self.add, body)
        except Refusal as no:
            return _refused(no)
        except LogStopped:
            return _stopped("rolled_back")
        except AgentError as error:
            log.error("witness.failed", code=error.code)
            return _stopped("storage_failed")

    def add(self, body: bytes) -> HttpReply:
        """The answer to `add-checkpoint`.

        Raises:
            Refusal: the answer no, with its status.
            LogStopped, StorageError: as Memory.
        """
        submission = admit(body, self._logs)
        name, size = origin_hash(submission.checkpoint.origin), submission.checkpoint.size
        lines: list[Signature] = []

        def make(latest: Seen | None) -> bytes:
            now = int(self._clock.now().timestamp())
            check(submission, latest or NOTHING, self._cosigner.keys, now)
            lines[:] = self._cosigner.lines(submission.note.text, now)
            return submission.with_lines(lines)

        try:
            self._memory.update(name, make)
        except Refusal as no:
            if no.code == "rolled_back" and (before := cosigned(submission, self._cosigner.keys)) is not None:
                log.error("witness.rolled_back", origin_sha256=name, size=size)
                self._memory.condemn(name, before)
            if no.status == 422:
                log.error("witness.inconsistent", origin_sha256=name, size=size, code=no.code)
            if no.code == "other_root":
                self._keep(name, submission.with_lines(()))
            raise
        log.info("witness.cosigned", origin_sha256=name, size=size)
        return HttpReply(200, {"content-type": TEXT}, "".join(f"{line}\n" for line in lines).encode())

    def _keep(self, name: str, note: bytes) -> None:
        try:
            self._memory.keep(name, note)
        except AgentError as error:  # the answer is the same without room for the proof
            log.error("witness.failed", code=error.code)

    def _show(self, name: str) -> HttpReply:
        note = self._memory.published(name)
        if note is None:
            return _text(404, "no checkpoint of this origin was cosigned here")
        return HttpReply(200, {"content-type": TEXT, "cache-control": "no-cache"}, note)


def _refused(no: Refusal) -> HttpReply:
    if no.status == 409 and no.expected is not None:
        return HttpReply(409, {"content-type": SIZE}, f"{no.expected['size']}\n".encode())
    log.debug("witness.refused", status=no.status, code=no.code)  # strangers may ask as often as they like
    return _text(no.status, f"{no.code}: {no}")


def _stopped(code: str) -> HttpReply:
    return _text(503, f"{code}: {CODES[code]}")


def _text(status: int, text: str, **headers: str) -> HttpReply:
    return HttpReply(status, {"content-type": TEXT, **headers}, f"{text}\n".encode())
