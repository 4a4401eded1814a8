"""The root side of orders (`adopt/`), as the agent asks it: for a nonce, to take a baseline, to note an approval, to follow this
host's key. It believes nothing said here.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import structlog

from compliance_agent.adapters.heal_host import Root
from compliance_agent.adopt.protocol import ANSWER_S, TABLE
from compliance_agent.core.orders import REASONS
from compliance_agent.errors import BadFrame, ConfigError, StepFailed
from compliance_agent.frames import Asking, Message

log = structlog.get_logger()
SLOWEST_S = ANSWER_S + 5.0
NOT_ASKED = "no_approvals"  # there is no file for them (heal/approvals.py)
TRIES = {
    "nonce": 1,
    "take": 2,
    "approve": 2,
    "follow": 1,
}  # an answer that was lost is asked for again; what was taken is not taken twice


class AdoptRoot:
    """The root side behind its socket."""

    def __init__(self, path: Path) -> None:
        self._root = Root(path, TABLE, lambda _kind: SLOWEST_S)

    def nonce(self) -> str | None:
        """A new nonce of root's; it also finishes what it had begun. None when it does not answer."""
        try:
            answer = self._ask("nonce", b"")
        except ConfigError as error:
            log.warning("adopt.no_nonce", code=error.code)
            return None
        return str(answer.fields["nonce"])

    async def take(
        self, order: bytes, documents: tuple[Sequence[bytes], bytes | None], body: bytes, sig: bytes
    ) -> None:
        """Have it take the baseline of this order.

        Raises:
            ConfigError: it did not; `code` is a key of core.orders.REASONS.
        """
        brought = {**_brought(order, documents), "baseline": _text(body), "signature": _text(sig)}
        await asyncio.to_thread(self._ask, "take", json.dumps(brought).encode("ascii"))

    async def approve(self, order: bytes, documents: tuple[Sequence[bytes], bytes | None]) -> bool:
        """Have it note what this order approves; False where root waits for no approval on this host.

        Raises:
            ConfigError: it did not; `code` is a key of core.orders.REASONS.
        """
        raw = json.dumps(_brought(order, documents)).encode("ascii")
        answer = await asyncio.to_thread(self._exchanged, "approve", raw, TRIES["approve"])
        if (answer.kind, answer.fields.get("code")) == ("refused", NOT_ASKED):
            return False
        self._good(answer)
        return True

    def host_key(self) -> str:
        """The id of the key that root knows this host by; it also finishes what it had begun.

        Raises:
            ConfigError: it does not say; `no_trust`: it takes no order on this host.
        """
        return self._follow(b"")

    def follow(self, statement: bytes, old: bytes, old_sig: bytes, new_sig: bytes) -> str:
        """Have it verify that a key gave way to the next one (entries/rotation.py); the id of the key that it knows then.

        Raises:
            ConfigError: it did not; `code` is the one that its journal has.
        """
        parts = {"statement": statement, "old": old, "old_sig": old_sig, "new_sig": new_sig}
        return self._follow(json.dumps({name: _text(raw) for name, raw in parts.items()}).encode("ascii"))

    def _follow(self, blob: bytes) -> str:
        answer = self._exchanged("follow", blob, TRIES["follow"])
        if answer.kind == "refused":
            raise ConfigError("adopt: refused", code=str(answer.fields["code"]))
        return str(self._good(answer).fields["host"])

    def _ask(self, kind: str, blob: bytes) -> Message:
        return self._good(self._exchanged(kind, blob, TRIES[kind]))

    @staticmethod
    def _good(answer: Message) -> Message:
        if answer.kind in {"given", "taken", "noted", "follows"}:
            return answer
        if answer.kind == "refused":
            log.error("adopt.refused", code=answer.fields["code"])
            code = answer.fields["code"] if answer.fields["code"] in REASONS else "adopt_refused"
            raise ConfigError(f"adopt: refused ({answer.fields['code']})", code=code)
        said = answer.fields.get("code") or answer.fields.get("reason")
        log.error("adopt.failed", code=said)
        raise ConfigError(f"adopt: {said}", code="adopt_failed")

    def _exchanged(self, kind: str, blob: bytes, tries: int) -> Message:
        try:
            return self._root.exchange(kind, Asking(TABLE).ask(kind, {}, blob).frames)
        except (StepFailed, BadFrame) as error:
            if tries > 1:
                return self._exchanged(kind, blob, tries - 1)
            raise ConfigError(f"{error}", code="adopt_unreachable") from error


def _brought(order: bytes, documents: tuple[Sequence[bytes], bytes | None]) -> dict[str, Any]:
    roots, keys = documents
    listed = None if keys is None else _text(keys)
    return {"order": _text(order), "roots": [_text(raw) for raw in roots], "keys": listed}


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")
