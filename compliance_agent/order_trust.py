"""Whose orders count on this host: by the chain from the root that it is pinned to, or by a list that its own root wrote.

With `order_root_file` the host asks its server for newer roots and lists of keys at each check-in, and takes what follows from what
it has (core/order_roots.py); each one is durable before it counts. The server carries them and can make none. The pin is
read each time: a new one, which only somebody with the host's own root can write, begins a new chain. With `order_keys_file` the
list is the file. Without either no order counts. What has expired stops orders and nothing else.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any, Protocol

import structlog

from compliance_agent.adapters.durable import read_file
from compliance_agent.config import AgentConfig
from compliance_agent.core import order_keys, order_roots
from compliance_agent.core.order_keys import OrderKeys
from compliance_agent.core.order_roots import Trust
from compliance_agent.errors import AgentError, ConfigError, DocumentError
from compliance_agent.facts import SHA256

log = structlog.get_logger()
MOST_DOCUMENTS = 4  # of one check-in; the server sends the next ones with the next


class Store(Protocol):
    """`adapters.order_trust_store.OrderTrustStore`."""

    def documents(self) -> tuple[list[bytes], bytes | None]: ...
    def begin(self, version: int, envelope: bytes) -> None: ...
    def add_root(self, version: int, envelope: bytes) -> None: ...
    def use_keys(self, version: int, envelope: bytes) -> None: ...


class OrderTrust:
    """The trust of one host.

    Args:
        config: where the pin or the list is.
        store: the documents that were taken.
        call: runs what may wait for the disk.
    """

    def __init__(self, config: AgentConfig, store: Store, call: Callable[[Callable[[], Any]], Awaitable[Any]]) -> None:
        self._config = config
        self._store = store
        self._call = call
        self._pin = ""
        self._trust: Trust | None = None
        self._said = ""
        self._refused: deque[tuple[str, bytes]] = deque(maxlen=4 * MOST_DOCUMENTS)

    def keys(self, now: datetime) -> OrderKeys | None:
        """Whose orders count now. Expired ones are given all the same: the order is refused by that name."""
        try:
            keys = self._keys()
        except ConfigError as error:
            self._say(error.code)
            return None
        self._say("order_keys_expired" if keys is not None and now >= keys.expires else "")
        return keys

    def said(self) -> dict[str, Any] | None:
        """What a check-in says of it: the pin, and the versions of root and list that are here (0 for none)."""
        if self._config.order_root_file is None:
            return None
        try:
            trust = self._current()
        except ConfigError as error:
            self._say(error.code)
            return None
        root, keys = (trust.root.version, trust.keys_version) if trust is not None else (0, 0)
        return {"pin": self._pin, "root": root, "keys": keys}

    def documents(self) -> tuple[list[bytes], bytes | None]:
        """What leads from the pin to the keys, for one who verifies it anew; nothing where a list is on the host."""
        return ([], None) if self._config.order_root_file is None else self._store.documents()

    async def take(self, documents: Sequence[bytes]) -> None:
        """Take what follows from what is here and could be made durable; what does not is said once and changes nothing."""
        if self._config.order_root_file is None:
            return
        for raw in documents[:MOST_DOCUMENTS]:
            try:
                await self._one(raw)
            except DocumentError as error:
                if (self._pin, raw) not in self._refused:
                    log.error("order.trust_refused", code=error.code)
                    self._refused.append((self._pin, raw))
            except AgentError as error:
                log.error("order.trust_not_kept", code=error.code)
                return

    async def _one(self, raw: bytes) -> None:
        before = self._current()
        if before is None:
            after = order_roots.begin(raw, self._pin)
            await self._call(lambda: self._store.begin(after.root.version, raw))
        else:
            after = order_roots.advance(before, raw)
            if after == before:
                return
            if after.root != before.root:
                await self._call(lambda: self._store.add_root(after.root.version, raw))
                after = order_roots.with_keys(after, (await self._call(self._store.documents))[1])
            else:
                await self._call(lambda: self._store.use_keys(after.keys_version, raw))
        self._trust = after
        log.info("order.trust_changed", root=after.root.version, keys=after.keys_version)

    def _keys(self) -> OrderKeys | None:
        if self._config.order_root_file is None:
            return load_keys(self._config)
        trust = self._current()
        return None if trust is None or trust.root.tenant != self._config.client_id else trust.keys_now()

    def _current(self) -> Trust | None:
        """The trust under the present pin.

        Raises:
            ConfigError: there is no usable pin.
        """
        pin = read_pin(self._config)
        if pin != self._pin:
            self._pin, self._trust = pin, replayed(pin, *self._store.documents())
        return self._trust

    def _say(self, code: str) -> None:
        if code and code != self._said:
            log.error("order.keys_unusable", code=code)
        self._said = code


def replayed(pin: str, roots: Sequence[bytes], keys: bytes | None) -> Trust | None:
    """The trust that stored documents give under a pin; None where they do not, and the chain begins anew from the pin."""
    try:
        return order_roots.replay(pin, roots, keys)
    except DocumentError as error:
        log.error("order.trust_refused", code=error.code)
        return None


def standing(config: AgentConfig, documents: tuple[list[bytes], bytes | None], now: datetime) -> dict[str, Any]:
    """Whose word counts, for `status`: how that is known, the versions, until when, and `good`, `expired`, `none` or a code."""
    by_root = config.order_root_file is not None
    trust = None
    try:
        trust = replayed(read_pin(config), *documents) if by_root else None
        keys = trust.keys_now() if trust is not None else None if by_root else load_keys(config)
        state = "none" if keys is None else "expired" if now >= keys.expires else "good"
    except ConfigError as error:
        keys, state = None, error.code
    known_by = "order_root_file" if by_root else "order_keys_file" if config.order_keys_file is not None else None
    return {
        "known_by": known_by,
        "state": state,
        "root_version": trust.root.version if trust is not None else None,
        "root_sha256": trust.root.sha256 if trust is not None else None,
        "keys_version": keys.version if keys is not None else None,
        "expires": keys.expires.strftime("%Y-%m-%dT%H:%M:%SZ") if keys is not None else None,
    }


def read_pin(config: AgentConfig) -> str:
    """The SHA-256 of the root that this host is pinned to.

    Raises:
        ConfigError: the file cannot be used.
    """
    path = config.order_root_file
    if path is None:
        raise RuntimeError("no order_root_file")
    try:
        text = read_file(path, limit_bytes=128, trusted=True).decode("ascii", "replace").strip()
    except AgentError as error:
        raise ConfigError(f"order_root_file {error}", code="bad_order_root", hint=error.hint) from error
    if not SHA256.fullmatch(text):
        raise ConfigError(
            f"order_root_file {path}: expected the SHA-256 of a root, 64 hex digits",
            code="bad_order_root",
            hint="compliance-agent order-root show ROOT",
        )
    return text


def load_keys(config: AgentConfig) -> OrderKeys | None:
    """Whose orders count by `order_keys_file`; None where that is not set.

    Raises:
        ConfigError: the file cannot be used.
    """
    path = config.order_keys_file
    if path is None:
        return None
    try:
        return order_keys.parse(read_file(path, limit_bytes=order_keys.MAX_BYTES, trusted=True))
    except AgentError as error:
        raise ConfigError(f"order_keys_file {path}: {error}", code="bad_order_keys", hint=error.hint) from error
