"""Tiles of logs of others, fetched when a proof first asks for them; never trusted, see `core.receipt`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from compliance_agent.core.receipt import CODES, LogHead
from compliance_agent.errors import BadEvidence, ServerRefused
from compliance_agent.log.tiles import Tile
from compliance_agent.log.tree import TileReader

T = TypeVar("T")
MOST_TILES = 32  # at most four for each of seven levels
TILES_KEPT = 64


class Source(Protocol):
    """Where the files of logs come from."""

    async def log_file(self, origin: str, path: str) -> bytes:
        """A file of the log; ServerRefused with its status when there is none."""


class FetchedTiles:
    """A small memory of tiles."""

    def __init__(self) -> None:
        self._tiles: dict[tuple[str, Tile], bytes] = {}

    def clear(self) -> None:
        """Forget all."""
        self._tiles.clear()

    async def run(self, client: Source, head: LogHead, work: Callable[[TileReader], T]) -> T:
        """Run `work(read)` on the tiles of a tree, fetching each when it is first asked for.

        Raises:
            BadEvidence: `no_tile`, `bad_tile`, or what `work` raises.
            Unavailable, BadReply, ServerRefused: the server could not be asked.
        """

        def read(level: int, index: int, width: int) -> bytes:
            tile = Tile(level, index, width)
            if (head.origin, tile) not in self._tiles:
                raise _Missing(tile)
            return self._tiles[head.origin, tile]

        for _ in range(MOST_TILES):
            try:
                return work(read)
            except _Missing as missing:
                content = await _fetched(client, head.origin, missing.tile)
                if len(self._tiles) >= TILES_KEPT:
                    self._tiles.pop(next(iter(self._tiles)))
                self._tiles[head.origin, missing.tile] = content
            except BadEvidence:
                self._tiles.clear()  # the next try must not be judged by the same bad tile
                raise
        raise BadEvidence(f"log {head.origin}: too many tiles for one proof", code="bad_tile")


class _Missing(Exception):
    """A tile that is not here yet."""

    def __init__(self, tile: Tile) -> None:
        super().__init__()
        self.tile = tile


async def _fetched(client: Source, origin: str, tile: Tile) -> bytes:
    """One tile, or the full one that replaced it."""
    for wanted in dict.fromkeys((tile, Tile(tile.level, tile.index))):
        try:
            return await client.log_file(origin, wanted.path)
        except ServerRefused as error:
            if error.status not in {404, 410}:
                raise
    raise BadEvidence(f"log {origin}: {CODES['no_tile']}", code="no_tile")
