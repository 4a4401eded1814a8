"""Roots and lists of order keys at the server: checked when they are published, and carried to hosts that have older ones.

The keys that sign them are never here. What is published is held to the very rules that hosts hold it to (core/order_roots.py),
only to spare people a round trip: a host believes its pin and signatures, and nothing of this server.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256

from compliance_agent.core import envelopes, order_roots
from compliance_agent.core.order_roots import Trust
from compliance_agent.errors import DocumentError, Refusal
from compliance_agent.server.records import Clock, Host, SiteReader, Store, Transaction, User
from compliance_agent.server.records.orders import TrustDocument, TrustSaid
from compliance_agent.server.services import roles

AT_MOST = 4  # carried in one check-in; a host takes as many
MOST_ROOTS = 1_000


class OrderTrustDesk:
    """The desk for what says whose orders count. It sees the sites of `reader` alone."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def publish(self, user: User, reader: SiteReader, site_id: str, raw: bytes, *, anew: bool = False) -> Trust:
        """Carry a signed root or list of order keys to the hosts of a site; what holds with it.

        Args:
            user: who does it.
            reader: the sites that they see.
            site_id: the site.
            raw: the document.
            anew: it is a first root, and what was published before is carried no more: hosts are pinned to another root by hand.

        Raises:
            Refusal: no such site, or it does not follow from what is published there.
        """
        roles.check(user, roles.Act.APPROVE_ORDER)
        site = next((site for site in await reader.site_rows() if site.site_id == site_id), None)
        if site is None:
            raise Refusal("site: no such site", code="no_such_site", status=404)
        is_root = envelopes.payload_type(raw, limit_bytes=order_roots.MAX_BYTES) == order_roots.ROOT_TYPE
        now = self._clock()

        async def work(tx: Transaction) -> Trust:
            if anew:
                await tx.drop_trust(site_id)
            before = None if anew else await _published(tx, site_id)
            try:
                after = order_roots.first(raw) if before is None else order_roots.advance(before, raw)
            except DocumentError as error:
                raise Refusal(f"order trust: {error}", code=error.code, status=422) from error
            if after.root.tenant != site.client_id:
                raise Refusal(f"order trust: the site is {site.client_id}'s", code="trust_tenant", status=422)
            if after == before:
                return after
            version = after.root.version if is_root else after.keys_version
            digest = after.root.sha256 if is_root else sha256(raw).hexdigest()
            role = "root" if is_root else "keys"
            await tx.add_trust(TrustDocument(site_id, role, version, digest, raw, user.name, now))
            action = "order_trust.anew" if anew else f"order_trust.{role}"
            await tx.audit(now, user.name, action, site_id=site_id, subject=f"{version} {digest}")
            if is_root:
                held = await tx.trust(site_id, "keys", after.keys_version, 1) if after.keys_version else []
                after = order_roots.with_keys(after, held[0].envelope if held else None)
            return after

        return await self._store.write(work)

    async def documents(self, site_id: str) -> list[TrustDocument]:
        """Every root and list of a site, roots first, each in its order."""

        async def work(tx: Transaction) -> list[TrustDocument]:
            return [item for role in ("root", "keys") for item in await tx.trust(site_id, role, 1, MOST_ROOTS)]

        return await self._store.write(work)

    async def published(self, site_id: str) -> Trust | None:
        """What is published for a site; None when nothing is."""
        return await self._store.write(lambda tx: _published(tx, site_id))


async def _published(tx: Transaction, site_id: str) -> Trust | None:
    roots = await tx.trust(site_id, "root", 1, MOST_ROOTS)
    newest = (await tx.trust_heads({site_id})).get((site_id, "keys"), 0)
    keys = await tx.trust(site_id, "keys", newest, 1) if newest else []
    if not roots:
        return None
    try:
        return order_roots.replay(
            roots[0].sha256, [item.envelope for item in roots], keys[0].envelope if keys else None
        )
    except DocumentError as error:
        raise Refusal(f"order trust: what is stored does not hold: {error}", code=error.code, status=500) from error


async def carried(tx: Transaction, callers: Sequence[tuple[Host, TrustSaid | None]]) -> Mapping[str, list[bytes]]:
    """At a check-in: what each host has not got yet, by its key id; roots first, since a list is held to the newest."""
    asking = [(host, said) for host, said in callers if said is not None]
    if not asking:
        return {}
    heads = await tx.trust_heads({host.site_id for host, _ in asking})
    found: dict[str, list[bytes]] = {}
    for host, said in asking:
        newest = heads.get((host.site_id, "root"), 0)
        first: int | None = said.root + 1
        if said.root == 0:
            first = await tx.trust_version(host.site_id, said.pin) if newest else None
        if first is None:
            continue
        roots = await tx.trust(host.site_id, "root", first, AT_MOST) if first <= newest else []
        listed = [item.envelope for item in roots]
        keys = heads.get((host.site_id, "keys"), 0)
        if len(listed) < AT_MOST and keys > said.keys:
            listed += [item.envelope for item in await tx.trust(host.site_id, "keys", keys, 1)]
        found[host.key_id] = listed
    return found
