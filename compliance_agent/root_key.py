"""The key by which root's side of orders knows this host, led to the present one by what each key and the next have signed.

    root knows K1 -> K1 and K2 signed that K2 follows -> root verifies that itself (adopt/rotation.py) -> root knows K2 -> ...

Until root knows it, orders that name this host by its present key are refused there, and `status` and `why` say so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

import structlog

from compliance_agent.errors import AgentError, ConfigError
from compliance_agent.ports import Clock

log = structlog.get_logger()
ASK_AGAIN_S = 600.0  # where root's side did not answer
AFTER_REFUSAL_S = 3_600.0  # where it said no, which a person has to see to
NO_ORDERS = "no_trust"  # root takes no order on this host, so there is no key to know


class Root(Protocol):
    """`adapters.adopt_root.AdoptRoot`."""

    def host_key(self) -> str:
        """The id of the key that root knows this host by."""
        ...

    def follow(self, statement: bytes, old: bytes, old_sig: bytes, new_sig: bytes) -> str:
        """Have root verify a rotation; the id of the key that it knows then."""
        ...


class Former(Protocol):
    """A key that gave way; `evidence.former.FormerKey`."""

    @property
    def key_id(self) -> str: ...
    @property
    def public(self) -> bytes: ...
    @property
    def statement(self) -> bytes: ...
    @property
    def old_sig(self) -> bytes: ...
    @property
    def new_sig(self) -> bytes: ...


class FormerKeys(Protocol):
    """`evidence.former.FormerKeys`."""

    async def known(self) -> Sequence[Former]: ...


class Parts(Protocol):
    """What it needs of the agent, read anew each time."""

    signer: Any
    clock: Clock

    @property
    def adopt_root(self) -> Root | None: ...


class RootKey:
    """What root knows, as this process heard it last.

    Args:
        parts: the agent.
        former: keys that gave way here.

    Attributes:
        key_id: the key that root knows this host by; empty where it has not said.
        code: why it is not the present one, or why root could not be asked; empty when neither.
    """

    def __init__(self, parts: Parts, former: FormerKeys) -> None:
        self._parts = parts
        self._former = former
        self._present = ""
        self._one = asyncio.Lock()  # an order and the loop may both come to it
        self._ask_at = 0.0
        self.key_id = self.code = ""

    @property
    def state(self) -> str:
        """`same`, `differs`, `not_known`, or `no_orders` where root takes none on this host."""
        if self.code == NO_ORDERS:
            return "no_orders"
        if not self.key_id:
            return "not_known"
        return "same" if self.key_id == self._parts.signer.key_id else "differs"

    async def lead(self, *, now: bool = False) -> None:
        """Lead root to the present key, if it is not known to be there. Trouble is said once, and tried again after a while.

        Args:
            now: an order for root is at hand, so it is not waited until then.
        """
        async with self._one:
            await self._led(now=now)

    async def _led(self, *, now: bool) -> None:
        root, present, at = self._parts.adopt_root, self._parts.signer.key_id, self._parts.clock.monotonic()
        if root is None or self.key_id == present or (present == self._present and at < self._ask_at and not now):
            return
        self._present, before, code = present, self.key_id, ""
        try:
            await self._lead(root, present)
        except AgentError as error:
            code = error.code
        code = code or ("" if self.key_id == present else "no_statement")
        self._ask_at = at + (ASK_AGAIN_S if code == "adopt_unreachable" else AFTER_REFUSAL_S)
        if code and code not in {self.code, NO_ORDERS}:
            log.error("key.root_not_led", code=code, root_key_id=self.key_id)
        elif not code and before != present:
            log.info("key.root_knows", key_id=present)
        self.code = code

    async def _lead(self, root: Root, present: str) -> None:
        self.key_id = await asyncio.to_thread(root.host_key)
        if self.key_id == present:
            return
        steps = {former.key_id: former for former in await self._former.known()}
        for _ in range(len(steps)):
            step = steps.get(self.key_id)
            if step is None or self.key_id == present:
                return
            told = (step.statement, step.public, step.old_sig, step.new_sig)
            self.key_id = await asyncio.to_thread(root.follow, *told)

    def explained(self, error: ConfigError) -> ConfigError:
        """A refusal of root's, by its own name where it is that root knows this host by another key."""
        if error.code != "other_host" or self.state != "differs":
            return error
        return ConfigError("adopt: root knows this host by another key", code="root_other_key")
