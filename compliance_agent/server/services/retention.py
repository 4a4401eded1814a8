"""How long records are kept, by what the server holds: the rules of a site, the holds on it, what is due to one record."""

from __future__ import annotations

import json
import re
from datetime import datetime

from compliance_agent.core.retention import REASON_ID, Keep, SiteRules, day_of, in_effect
from compliance_agent.entries.act import digest_of
from compliance_agent.errors import ConfigError, NoInput
from compliance_agent.server.records import Clock, Hold, Keeping, Store, Transaction
from compliance_agent.server.services.acts import Act, note


async def rules_of(rows: Keeping, site_id: str) -> SiteRules:
    """What decides about the records of a site, as it stands now."""
    last_used, live = await rows.baselines(site_id)
    standing = [(hold.host_id, hold.reason_id) for hold in await rows.holds(site_id) if hold.released_at is None]
    return SiteRules(last_used, in_effect(last_used, live), standing)


def keep_of(rules: SiteRules, host_id: str | None, body: bytes, created_at: str, received_at: datetime) -> Keep:
    """What is due to one record, by its own bytes."""
    return rules.keep(host_id, _version(body), day_of(created_at, received_at))


def _version(body: bytes) -> str | None:
    """The baseline version that a record names; one that cannot be read names a version that nobody has noted."""
    if not body:
        return None
    try:
        baseline = json.loads(body)["baseline"]
        return None if baseline is None else str(baseline["version"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""


class Holds:
    """Holds: made and released by the operator, audited, never deleted."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def add(self, site_id: str, host_id: str | None, reason_id: str) -> None:
        """Hold every record of a site, or of its hosts with one label.

        Raises:
            ConfigError: the reason is not an id.
            NoInput: the site or host is not known, or the same hold stands already.
        """
        _checked(reason_id)
        await self._known(site_id, host_id)
        hold = Hold(site_id, host_id, reason_id, self._clock())

        async def act(tx: Transaction) -> bool:
            made = await tx.add_hold(hold)
            if made:
                await _note(tx, Act.HOLD_ADDED, hold)
            return made

        if not await self._store.write(act, {site_id}):
            raise NoInput(f"{_named(hold)}: this hold stands already", code="hold_stands")

    async def release(self, site_id: str, host_id: str | None, reason_id: str) -> None:
        """End a hold.

        Raises:
            ConfigError: the reason is not an id.
            NoInput: no such hold stands.
        """
        _checked(reason_id)
        hold = Hold(site_id, host_id, reason_id, self._clock())

        async def act(tx: Transaction) -> bool:
            released = await tx.release_hold(site_id, host_id, reason_id, hold.added_at)
            if released:
                await _note(tx, Act.HOLD_RELEASED, hold)
            return released

        if not await self._store.write(act, {site_id}):
            raise NoInput(f"{_named(hold)}: no such hold stands", hint="compliance-agent server retention hold list")

    async def of(self, site_id: str | None = None) -> list[Hold]:
        """Holds of one site or of all, released ones included."""
        sites = await self._store.all_sites()
        reader = self._store.for_sites(sites)
        return [hold for site in sorted(sites) if site_id in {None, site} for hold in await reader.holds(site)]

    async def _known(self, site_id: str, host_id: str | None) -> None:
        reader = self._store.for_sites({site_id})
        if not await reader.site_rows():
            raise NoInput(f"site {site_id}: not known to this server", hint="compliance-agent server hosts")
        if host_id is not None and host_id not in {host.host_id for host in await reader.hosts(site_id)}:
            raise NoInput(f"site {site_id}: no host {host_id}", hint="compliance-agent server hosts")


def _checked(reason_id: str) -> None:
    if not re.fullmatch(REASON_ID, reason_id, re.ASCII):
        raise ConfigError(
            "reason id: expected letters, digits and ._-, at most 63, beginning with a letter or digit",
            code="bad_reason",
        )


def _named(hold: Hold) -> str:
    return f"{hold.site_id}/{hold.host_id or '*'}/{hold.reason_id}"


async def _note(tx: Transaction, act: Act, hold: Hold) -> None:
    said = f"{hold.host_id or '*'}:{hold.reason_id}"
    subject = digest_of({"site_id": hold.site_id, "host_id": hold.host_id, "reason_id": hold.reason_id})
    await note(tx, hold.added_at, act, by=None, sites={hold.site_id}, subject=subject, said=said)
