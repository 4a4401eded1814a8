"""What a simulated host tells of its changes, behind the Events port.

It looks at the host's state and compares: `notice` is called after every change that the host makes itself, after every fault of
lab/, and by a test that has changed something by hand. `blind` takes a kind away, as a kernel without watches left does; `flood` is
a queue that was full.

    host.files["/etc/passwd"].content += b"x"
    host.notice()                              # whoever watches it is told
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from compliance_agent.ports import Source

if TYPE_CHECKING:
    from compliance_agent.lab.host import FakeHost


class FakeEvents:
    """One teller over one host; it is told by `FakeHost.notice`."""

    def __init__(self, host: FakeHost) -> None:
        self._host = host
        self._seen: dict[Source, Any] = {}
        self._told: set[Source] = set()
        self._any = asyncio.Event()

    async def watch(self, sources: Collection[Source]) -> None:
        if self not in self._host.tellers:
            self._host.tellers.append(self)
        self._seen = {source: self._state(source) for source in sources}
        self._told.clear()

    async def told(self) -> frozenset[Source]:
        while not self._told:
            self._any.clear()
            await self._any.wait()
        told, self._told = frozenset(self._told), set()
        return told

    def trouble(self) -> Mapping[str, str]:
        kinds = {source.kind for source in self._seen}
        return {kind: code for kind, code in self._host.deaf.items() if kind in kinds}

    async def close(self) -> None:
        self._seen.clear()
        if self in self._host.tellers:
            self._host.tellers.remove(self)

    def notice(self) -> None:
        """Tell of what is not as it was."""
        for source, before in self._seen.items():
            now = self._state(source)
            if now != before and source.kind not in self._host.deaf:
                self._seen[source] = now
                self._told.add(source)
        if self._told:
            self._any.set()

    def flood(self, kind: str) -> None:
        """The queue of this kind was full: everything of it may have changed."""
        self._told.update(source for source in self._seen if source.kind == kind)
        self._any.set()

    def _state(self, source: Source) -> Any:
        host = self._host
        if source.kind == "unit":
            unit = host.units_table.get(host.aliases.get(source.name, source.name))
            return unit and (unit.active, unit.enabled, unit.masked, unit.failed, unit.changed_at)
        if source.kind == "ruleset":
            from compliance_agent.lab.programs.nft import Ruleset

            return json.dumps(host.part(Ruleset).objects)
        if source.kind == "mounts":
            mounts = host.files.get("/proc/self/mountinfo")
            return mounts and (mounts.source() if mounts.source is not None else mounts.content)
        below = source.name.rstrip("/") + "/"
        return [
            (name, node.kind, node.content, node.mode, node.uid, node.gid, node.target, node.modified_at)
            for name, node in self._nodes(source.name)
            if name == source.name or (name.startswith(below) and "/" not in name[len(below) :])
        ]

    def _nodes(self, path: str) -> list[tuple[str, Any]]:
        """What is at this path and below it, and what a link there leads to."""
        host, found = self._host, []
        for name, node in host.files.items():
            if name == path or name.startswith(path.rstrip("/") + "/"):
                found.append((name, node))
        at_path = host.files.get(path)
        if at_path is not None and at_path.kind == "symlink":
            try:
                found.append((path, host.find(path)[1]))
            except Exception:  # it leads nowhere, and that is its state
                return found
        return found
