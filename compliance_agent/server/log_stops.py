"""A log that one replica has to stop stands still at all of them, until a person lets it go on (`server lift`).

What a replica finds by its own files, its own memory or its witnesses the others may have no means to know: so it is a row. Whoever
appends reads these rows in the same transaction. The others go on showing what is signed, which is what they have shown.

Once the row is gone each replica reads the log again, and stops it again where it still finds what it found.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from datetime import datetime

from compliance_agent.errors import Refusal
from compliance_agent.server.records import Clock, Store, Transaction
from compliance_agent.server.stillness import Stillness


@dataclass
class LogStops:
    """What stands still at all replicas.

    Args:
        store: holds the rows.
        still: where what is found here is said, and where what others found is.
        clock: of the server.
    """

    store: Store
    still: Stillness
    clock: Clock
    _known: set[str] = field(default_factory=set)  # sites with a row, at the last look

    async def tell(self, sites: Collection[str]) -> None:
        """Tell the others what was found here.

        Raises:
            StorageError: nothing was told; the next time tells it.
        """
        found = {site: code for site, code in self.still.untold.items() if site in sites}
        if found:
            await self.store.write(lambda tx: self._tell(tx, found), found)
            self._known |= found.keys()
            for site in found:
                del self.still.untold[site]

    async def hear(self, sites: Collection[str]) -> None:
        """Take up what others found, and what a person has lifted.

        Raises:
            StorageError: nobody can tell.
        """
        await self.tell(sites)
        stops = await self.store.for_sites(sites).log_stops()
        for site, code in stops.items():
            self.still.stop_too(site, code)
        for site in self._known - stops.keys():
            self.still.lifted(site)
        self._known = set(stops)

    async def _tell(self, tx: Transaction, found: dict[str, str]) -> None:
        now = self.clock()
        for site, code in found.items():
            if await tx.stop_log(site, code, now):
                await tx.audit(now, "server", "log.stop", site_id=site, subject=code)


async def going_on(tx: Transaction, sites: Iterable[str]) -> frozenset[str]:
    """Those of these sites whose logs nobody has stopped: the others must not be appended to or signed in this transaction."""
    asked = frozenset(sites)
    return asked - (await tx.log_stops(asked)).keys()


async def lift(store: Store, now: datetime, site_id: str, *, actor: str) -> str:
    """Let a site's log go on, now that somebody has looked; why it stood still.

    Raises:
        Refusal: it does not stand still by a row.
    """

    async def work(tx: Transaction) -> str | None:
        code = await tx.lift_log(site_id)
        if code is not None:
            await tx.audit(now, actor, "log.lift", site_id=site_id, subject=code)
        return code

    if (code := await store.write(work, {site_id})) is None:
        raise Refusal(f"site {site_id}: its log is not stopped for all servers", code="not_found", status=404)
    return code
