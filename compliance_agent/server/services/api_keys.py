"""A host's API key gives way to one that the host made: only its hash is told, and only under the host's own signature.

    the host keeps the next key -> tells its hash, by the present key, signed -> both count -> the next is used -> the others end

Whoever has the API key alone can call as the host, and cannot put another key in its place. Both keys count until the new one is
used for the first time, so whichever side is stopped at whichever moment, the host has a key that counts. Told again, the same
hash gets the same answer.
"""

from __future__ import annotations

import structlog

from compliance_agent.errors import Refusal
from compliance_agent.server.records import Clock, Host, Store, Transaction
from compliance_agent.server.services.verification import Verify

CONTEXT = b"compliance-agent/api-key/v1\n"

log = structlog.get_logger()


class ApiKeys:
    """The desk for API keys of hosts that are enrolled."""

    def __init__(self, store: Store, clock: Clock, verify: Verify) -> None:
        self._store = store
        self._clock = clock
        self._verify = verify

    async def announce(self, caller: Host, present: str, coming: str, sig: bytes) -> None:
        """Let the key with hash `coming` count beside the one with hash `present`, which this call came with.

        Raises:
            Refusal: not signed by the host's own key, or a hash that has ended or is another host's; nothing was changed.
        """
        message = CONTEXT + bytes.fromhex(present) + bytes.fromhex(coming)
        if not self._verify(caller.public_key, sig, message):
            raise Refusal("sig: does not verify under this host's key", code="bad_proof", status=403)
        now = self._clock()

        async def work(tx: Transaction) -> bool:
            host = (await tx.hosts({caller.site_id}, {caller.key_id})).get(caller.key_id)
            if host is None or host.revoked_at is not None:
                raise Refusal("this host is revoked", code="host_revoked", status=403)
            if host.contested_at is not None:
                raise Refusal("more than one machine seems to hold this key", code="host_contested", status=409)
            added = await tx.add_api_key(host.site_id, host.key_id, present, coming, now)
            if added is None:
                raise Refusal("sha256: this key has ended, or is another host's", code="api_key_ended", status=409)
            if added:
                await tx.audit(
                    now, f"host:{host.key_id}", "host.api_key_announced", site_id=host.site_id, subject=coming[:16]
                )
            return added

        if await self._store.write(work, {caller.site_id}):
            log.info("host.api_key_announced", site_id=caller.site_id, key_id=caller.key_id)

    async def first_use(self, host: Host, key_hash: str) -> None:
        """The host has used its new key: from now on no other one counts."""
        now = self._clock()

        async def work(tx: Transaction) -> bool:
            ended = await tx.use_api_key(host.site_id, host.key_id, key_hash, now)
            if ended:
                await tx.audit(
                    now, f"host:{host.key_id}", "host.api_key_replaced", site_id=host.site_id, subject=key_hash[:16]
                )
            return ended

        if await self._store.write(work, {host.site_id}):
            log.info("host.api_key_replaced", site_id=host.site_id, key_id=host.key_id)
