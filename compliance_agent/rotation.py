"""This host's key gives way to a new one, so that whoever takes the key today cannot sign into yesterday (EVIDENCE 2.5).

    everything recorded is delivered -> a new key, durable -> a statement that both sign
        -> the chain goes on with the new key (one transaction) -> the files follow
        -> the server is told, again and again, until it signs that it knows -> the old key is removed

From the transaction on the new key signs, whether the server knows it yet or not: there is no moment at which it is unclear whose
word counts, and no stop at any point leaves the host without a key. Until the server knows, nothing newer can be delivered, so it
is told first. A refusal is said loudly, and the former key stays where it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import structlog

from compliance_agent.config import AgentConfig
from compliance_agent.crypto import Ed25519Signer
from compliance_agent.dataclass import dataclass
from compliance_agent.entries.rotation import statement
from compliance_agent.errors import AgentError, ConfigError, ServerRefused
from compliance_agent.ports import Clock

log = structlog.get_logger()


class Files(Protocol):
    """`adapters.key_files`."""

    def next_path(self, path: Path) -> Path: ...
    def settle(self, path: Path, key_id: str | None) -> None: ...
    def forget_former(self, path: Path) -> None: ...


class Former(Protocol):
    """A key that gave way; `evidence.former.FormerKey`."""

    @property
    def key_id(self) -> str: ...
    @property
    def statement(self) -> bytes: ...
    @property
    def old_sig(self) -> bytes: ...
    @property
    def new_sig(self) -> bytes: ...


class FormerKeys(Protocol):
    """`evidence.former.FormerKeys`."""

    async def unconfirmed(self) -> Sequence[Former]: ...
    async def confirm(self, key_id: str) -> None: ...


class Parts(Protocol):
    """What a rotation needs of the agent, read anew each time."""

    signer: Any
    mcp_client: Any
    offline_queue: Any
    evidence_generator: Any
    clock: Clock

    def use_signer(self, signer: Ed25519Signer) -> None: ...


@dataclass(frozen=True)
class Rotated:
    """What became of a rotation: `rotated`, or a code that says why not yet."""

    code: str
    key_id: str


WHY_NOT = {
    "no_server": "there is no server to deliver to, so nobody could tell the two keys' records apart",
    "not_delivered": "records wait for delivery; the old key's records go first",
    "nothing_recorded": "nothing was ever recorded with the present key",
    "not_confirmed": "the server does not know the last rotation yet",
    "not_told": "the server was not reached or said no, so the present API key stays; the agent goes on trying",
}


class KeyRotation:
    """Rotates the key of one host.

    Args:
        parts: the agent.
        config: where the key is, and how often it gives way.
        database: of the agent.
        former: keys that gave way, of that database.
        files: the key's files.
    """

    def __init__(self, parts: Parts, config: AgentConfig, database: Any, former: FormerKeys, files: Files) -> None:
        self._parts = parts
        self._config = config
        self._database = database
        self._former = former
        self._files = files
        self._said = ""

    @property
    def request_file(self) -> Path:
        """A person's wish, left for the running agent."""
        return self._config.state_dir / "rotate-key"

    def due(self, since: datetime | None) -> bool:
        """Whether the key shall give way: somebody asked, or it has signed for long enough."""
        if self.request_file.exists():
            return True
        days = self._config.key_rotation_days
        return days > 0 and since is not None and self._parts.clock.now() - since >= timedelta(days=days)

    async def obstacle(self) -> str:
        """Why it cannot give way now, a code of WHY_NOT; empty when it can."""
        if self._parts.mcp_client is None:
            return "no_server"
        if await self._former.unconfirmed():
            return "not_confirmed"
        stats = await self._parts.offline_queue.get_stats()
        if stats["pending"] > 0:
            return "not_delivered"
        epoch, seq, _ = await self._parts.evidence_generator.head()
        return "nothing_recorded" if (epoch, seq) == (0, 0) else ""

    async def rotate(self) -> Rotated:
        """Let a new key take this one's place, here and at the server.

        Raises:
            StorageError, ConfigError: nothing was changed, or the next start completes it.
        """
        code = await self.obstacle()
        if code:
            return Rotated(code, self._parts.signer.key_id)
        old, new = self._parts.signer, Ed25519Signer(self._files.next_path(self._config.signing_key_file))
        now = self._parts.clock.now()
        store = await self._parts.evidence_generator.open()
        head = await self._parts.evidence_generator.head()
        if (
            head[1] == 0
        ):  # an epoch without a record: it ends with the former epoch's last one, which no statement can name
            return Rotated("nothing_recorded", old.key_id)
        said = statement(
            old.public_bytes,
            new.public_bytes,
            site_id=self._config.site_id,
            host_id=self._config.host_id,
            head=head,
            at=now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        )
        try:
            await self._database.call(lambda: store.rotate(new, said, old.sign(said), new.sign(said), now))
        except ConfigError as error:
            if error.code != "not_delivered":
                raise
            return Rotated(error.code, old.key_id)
        self._files.settle(self._config.signing_key_file, new.key_id)
        settled = Ed25519Signer(self._config.signing_key_file)
        self._parts.use_signer(settled)
        self.request_file.unlink(missing_ok=True)
        log.warning("key.rotated", key_id=settled.key_id, former_key_id=old.key_id)
        await self.tell()
        return Rotated("rotated", settled.key_id)

    async def tell(self) -> bool:
        """Tell the server of a rotation that it does not know yet; whether there is none any more.

        Trouble is said once, and the next turn tells it again.
        """
        waiting = await self._former.unconfirmed()
        for former in waiting:
            try:
                await self._parts.mcp_client.rotate_key(former.statement, former.old_sig, former.new_sig)
            except AgentError as error:
                self._say(error, former.key_id)
                return False
            await self._former.confirm(former.key_id)
            self._files.forget_former(self._config.signing_key_file)
            self._said = ""
            log.info("key.rotation_confirmed", former_key_id=former.key_id)
        if not waiting:
            self._files.forget_former(self._config.signing_key_file)
        return True

    def _say(self, error: AgentError, former: str) -> None:
        """Each kind of trouble once: a refusal needs a person, anything else a network."""
        if self._said != error.code and isinstance(error, ServerRefused):
            log.error("key.rotation_refused", code=error.code, former_key_id=former)
        elif self._said != error.code:
            log.warning("key.rotation_waits", code=error.code, former_key_id=former)
        self._said = error.code
