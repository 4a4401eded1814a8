"""Receipts: that a bundle is in its site's log, provable offline (C2SP tlog-proof), minted from the tiles as they are served.

A receipt is made when it is asked for and kept nowhere: leaf, index and tiles are enough to make it again under a later checkpoint.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from compliance_agent.errors import BadEvidence, NoInput, StorageError
from compliance_agent.log.proof import Proof
from compliance_agent.log.tiles import Tile
from compliance_agent.log.tree import TileTree
from compliance_agent.server.log_files import LogFiles
from compliance_agent.server.records import Held, Host, Leaf, Store
from compliance_agent.server.services.board import Board, Head, Place

IN_THREAD = 8  # from this many receipts on, minting moves off the event loop
MOST_TREES = 64

log = structlog.get_logger()


@dataclass(frozen=True)
class Receipt:
    """A bundle's entry in the log, and the proof that it is there."""

    bundle_id: str
    leaf: bytes
    proof: bytes


class Receipts:
    """The receipts desk."""

    def __init__(self, store: Store, files: LogFiles, board: Board) -> None:
        self._store = store
        self._files = files
        self._board = board
        self._trees: dict[tuple[str, int], tuple[Head, TileTree]] = {}
        self._lock = threading.Lock()
        self.minted = 0
        self.made: Callable[[Place], None] | None = (
            None  # is told each place that a receipt was made for; from any thread
        )

    async def soon(self, host: Host, wanted: Sequence[Held], wait_s: float) -> list[Receipt | None]:
        """Receipts of bundles that were delivered just now; None for those that are not published in time."""
        places = [(host.key_id, item.epoch, item.seq) for item in wanted]
        coming = [place for place, item in zip(places, wanted, strict=True) if item.new]
        if coming and wait_s > 0:  # entries of one host are published in the order of its chain
            await self._board.until_published(coming[-1], host.site_id, wait_s)
        leaves = {item.bundle_id: self._board.recent(place) for place, item in zip(places, wanted, strict=True)}
        older = [item.bundle_id for item in wanted if leaves[item.bundle_id] is None and not item.new]
        return await self._minted(leaves | await self._stored(host, older), [item.bundle_id for item in wanted])

    async def of(self, host: Host, bundle_ids: Sequence[str]) -> list[Receipt | None]:
        """Receipts of a host's bundles; None for what is not its own, not known, or not published yet."""
        return await self._minted(await self._stored(host, bundle_ids), bundle_ids)

    async def _stored(self, host: Host, bundle_ids: Sequence[str]) -> dict[str, Leaf | None]:
        if not bundle_ids:
            return {}
        found = await self._store.for_sites({host.site_id}).leaves_of(host.key_id, set(bundle_ids))
        return {item.bundle_id: item for item in found if item.bundle_id is not None}

    async def _minted(self, leaves: dict[str, Leaf | None], bundle_ids: Sequence[str]) -> list[Receipt | None]:
        def mint() -> list[Receipt | None]:
            with self._lock:
                return [self._mint(bundle_id, leaves.get(bundle_id)) for bundle_id in bundle_ids]

        if not any(leaves.values()):
            return [None] * len(bundle_ids)
        beside = self._files.remote or len(bundle_ids) >= IN_THREAD
        return await asyncio.to_thread(mint) if beside else mint()

    def _mint(self, bundle_id: str, leaf: Leaf | None) -> Receipt | None:
        head = self._board.heads.get((leaf.site_id, leaf.year)) if leaf is not None else None
        if leaf is None or head is None or leaf.index >= head.size:
            return None
        try:
            path = self._tree(leaf.site_id, leaf.year, head).inclusion(leaf.index)
        except (BadEvidence, NoInput, StorageError) as error:
            log.error("log.tiles_unusable", code=error.code, site_id=leaf.site_id)
            return None
        self.minted += 1
        if self.made is not None and leaf.key_id is not None and leaf.epoch is not None and leaf.seq is not None:
            self.made((leaf.key_id, leaf.epoch, leaf.seq))
        return Receipt(bundle_id, leaf.leaf, Proof(leaf.index, tuple(path), head.note).encode())

    def _tree(self, site_id: str, year: int, head: Head) -> TileTree:
        held = self._trees.pop((site_id, year), None)
        if held is None or held[0] != head:
            held = (head, TileTree(head.size, lambda *tile: self._files.read(site_id, year, Tile(*tile))))
        self._trees[site_id, year] = held  # the one used last stands last
        if len(self._trees) > MOST_TREES:
            del self._trees[next(iter(self._trees))]
        return held[1]
