"""The witness role of an agent: it cannot be called, so it looks at logs itself, cosigns what only grew, and brings its line.

    GET <log>/checkpoint -> signed by the log's key? -> tiles show that it begins with the one cosigned last
        -> the witness stores and cosigns (witness.py) -> POST <log>/cosignature

What a log shows is held against the witness's own memory and nothing else. Tiles that show neither growth nor a fork accuse
nobody and are fetched again with the next turn; a fork is put to the witness, which refuses it. Trouble with one log is said when
it begins or changes, and never touches another log nor the rest of the agent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import structlog

from compliance_agent.core.receipt import LogHead, check_prefix, read_note, verify_note
from compliance_agent.core.witness import origin_hash
from compliance_agent.errors import AgentError, BadEvidence, BadReply, ServerRefused
from compliance_agent.log.fields import to_base64
from compliance_agent.log.note import Note, VerifierKey
from compliance_agent.log.tree import TileTree
from compliance_agent.ports import HttpReply, Transport
from compliance_agent.tile_fetch import FetchedTiles

TIMEOUT_S = 20.0
TRIES = 3  # a log that grows meanwhile is looked at again, so often in one turn

log = structlog.get_logger()


class Answering(Protocol):
    """The witness itself: `witness.Witness`."""

    async def answer(self, method: str, target: str, body: bytes) -> HttpReply: ...


class WitnessCalls:
    """Looks at each log in turn.

    Args:
        witness: cosigns, and remembers.
        own: its public keys.
        logs: the keys of the logs.
        transports: for each origin the way to its log.
        token: what shows it the logs, None where they are shown to everybody.
    """

    def __init__(
        self,
        witness: Answering,
        own: frozenset[VerifierKey],
        logs: Mapping[str, VerifierKey],
        transports: Mapping[str, Transport],
        token: str | None,
    ) -> None:
        self._witness, self._own, self._logs, self._transports = witness, own, logs, transports
        self._headers = {} if token is None else {"authorization": f"Bearer {token}"}
        self._tiles = FetchedTiles()
        self.trouble: dict[str, str] = {}

    async def turn(self) -> None:
        """Look at every log once. Raises nothing for any of them."""
        for origin in self._logs:
            try:
                await self._look(origin)
            except Exception as error:  # a bug must neither end the role unsaid nor touch another log
                self._say(origin, error.code if isinstance(error, AgentError) else type(error).__name__)
            else:
                self._say(origin, "")

    async def close(self) -> None:
        """Close the connections."""
        for transport in self._transports.values():
            await transport.close()

    async def log_file(self, origin: str, path: str) -> bytes:
        """A file of a log, for `FetchedTiles`."""
        reply = await self._ask(origin, "GET", path)
        if reply.status != 200:
            raise ServerRefused(f"log {origin}: status {reply.status} for {path}", status=reply.status)
        return reply.body

    async def _look(self, origin: str) -> None:
        for _ in range(TRIES):
            head = verify_note(await self.log_file(origin, "checkpoint"), [self._logs[origin]])
            if head.origin != origin:
                raise BadEvidence(f"log {origin}: shows a checkpoint of another log", code="foreign_log")
            if self._says(head):
                return
            lines = await self._cosigned(head)
            reply = await self._ask(origin, "POST", "cosignature", head.note + lines)
            if reply.status == 204:
                return
            if reply.status != 409:
                raise ServerRefused(f"log {origin}: status {reply.status} for a cosignature", status=reply.status)
        raise ServerRefused(f"log {origin}: grows faster than it can be witnessed", status=409, code="stale")

    def _says(self, head: LogHead) -> bool:
        """Whether our line stands under the checkpoint already."""
        try:
            return len(Note.parse(head.note).verify(self._own)) == len(self._own)
        except BadEvidence:  # nobody of ours, or a line that another wrote in our name
            return False

    async def _cosigned(self, head: LogHead) -> bytes:
        """The witness's own lines under a checkpoint."""
        latest = await self._witness.answer("GET", f"/{origin_hash(head.origin)}/checkpoint", b"")
        if latest.status not in {200, 404}:
            raise BadEvidence(f"witness: status {latest.status} for its own memory", code="rolled_back")
        held = read_note(latest.body) if latest.status == 200 else None
        old = held.size if held is not None else 0
        if held is not None and held.size > head.size:
            raise BadEvidence(
                f"log {head.origin}: shows {head.size} entries, {held.size} were cosigned", code="log_rolled_back"
            )
        proof, forked = list[bytes](), False
        if held is not None and 0 < old < head.size:
            before = held
            try:
                await self._tiles.run(self, head, lambda read: check_prefix(before, head, read))
            except BadEvidence as error:
                if error.code != "log_forked":
                    raise
                forked = True
            proof = await self._tiles.run(self, head, lambda read: TileTree(head.size, read).consistency(old))
        lead = "".join(f"{line}\n" for line in [f"old {old}", *map(to_base64, proof), ""])
        reply = await self._witness.answer("POST", "/add-checkpoint", lead.encode() + head.note)
        if reply.status != 200 or forked:
            code = "log_forked" if forked or reply.status == 422 else "not_cosigned"
            raise BadEvidence(f"log {head.origin}: the witness answers {reply.status}", code=code)
        return reply.body

    async def _ask(self, origin: str, method: str, path: str, body: bytes = b"") -> HttpReply:
        headers = {**self._headers, **({"content-type": "text/plain; charset=utf-8"} if body else {})}
        reply = await self._transports[origin].request(
            method, f"/{path}", headers=headers, body=body, timeout_s=TIMEOUT_S
        )
        if 300 <= reply.status < 400:
            raise BadReply(f"log {origin}: status {reply.status}; redirects are not followed")
        return reply

    def _say(self, origin: str, code: str) -> None:
        known = self.trouble.get(origin, "")
        if code and code != known:
            log.error("witness.call_failed", origin_sha256=origin_hash(origin), code=code)
        elif known and not code:
            log.info("witness.call_recovered", origin_sha256=origin_hash(origin))
        self.trouble[origin] = code
