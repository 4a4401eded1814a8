"""What this machine tells by itself: files by inotify, units over D-Bus, the ruleset over netlink, mounts by the kernel's own poll.

    events = MachineEvents()
    await events.watch(sources)
    changed = await events.told()

One teller for each kind, made when something of its kind is watched. Each says its own trouble, and none holds up another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from compliance_agent.adapters.events.kernel import MountTable, Ruleset
from compliance_agent.adapters.events.paths import Paths
from compliance_agent.adapters.events.units import SYSTEM_BUS, Units
from compliance_agent.ports import Source


class Teller(Protocol):
    """One kind of event."""

    @property
    def trouble(self) -> str | None:
        """Why some or all of what it watches is not told."""
        ...

    async def watch(self, names: Collection[str]) -> None:
        """Tell of these from now on, and of nothing else."""
        ...

    async def close(self) -> None:
        """Give back what it holds."""
        ...


class MachineEvents:
    """The real side of the Events port.

    Args:
        bus: the message bus on which the service manager speaks.
    """

    def __init__(self, bus: Path = SYSTEM_BUS) -> None:
        self._makers: dict[str, Any] = {
            "path": Paths,
            "unit": lambda told: Units(told, bus),
            "ruleset": Ruleset,
            "mounts": MountTable,
        }
        self._tellers: dict[str, Teller] = {}
        self._watched: dict[str, frozenset[str]] = {}
        self._told: set[Source] = set()
        self._any = asyncio.Event()

    async def watch(self, sources: Collection[Source]) -> None:
        kinds = {source.kind for source in sources}
        for kind in kinds - self._tellers.keys():
            self._tellers[kind] = self._makers[kind](self._tells(kind))
        self._watched = {kind: frozenset(each.name for each in sources if each.kind == kind) for kind in self._tellers}
        self._told.clear()
        await asyncio.gather(*(teller.watch(self._watched[kind]) for kind, teller in self._tellers.items()))

    async def told(self) -> frozenset[Source]:
        while not self._told:
            self._any.clear()
            await self._any.wait()
        told, self._told = frozenset(self._told), set()
        return told

    def trouble(self) -> Mapping[str, str]:
        found = {kind: teller.trouble for kind, teller in self._tellers.items() if self._watched.get(kind)}
        return {kind: code for kind, code in found.items() if code is not None}

    async def close(self) -> None:
        tellers, self._tellers = self._tellers, {}
        await asyncio.gather(*(teller.close() for teller in tellers.values()))

    def _tells(self, kind: str) -> Any:
        def told(names: Iterable[str] | None, over: Collection[str] = ()) -> None:
            """`None` is everything of this kind; what changes those of `over` is done."""
            watched = self._watched.get(kind, frozenset())
            news = {Source(kind, name, name in over) for name in (watched if names is None else watched & set(names))}
            self._told = news | (self._told - news)
            self._any.set()

        return told
