"""A host's key gives way to a new one: checked, logged, and from then on the host is the new key (EVIDENCE 2.5).

The statement names the last record of the old key's chain, which must be the last one that is held here: so a host delivers first,
and rotates then. All of it happens in one transaction; the same statement again gets the same answer, because the first one may
be lost.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime

import orjson
import structlog

from compliance_agent.entries.rotation import Rotation, read, rotation_leaf, verified
from compliance_agent.errors import BadEvidence, Refusal
from compliance_agent.server.records import Clock, Head, Host, NewLeaf, Store, Transaction
from compliance_agent.server.services import chain

SCHEMA = "compliance-agent/rotated/v1"

log = structlog.get_logger()
Sign = Callable[[bytes], bytes]


@dataclass(frozen=True)
class Request:
    """What a host sends: the statement's exact bytes, and both signatures over them."""

    statement: bytes
    old_sig: bytes
    new_sig: bytes


class Rotations:
    """The desk for key rotations."""

    def __init__(self, store: Store, sign: Sign, clock: Clock) -> None:
        self._store = store
        self._sign = sign
        self._clock = clock

    async def rotate(self, caller: Host, request: Request) -> tuple[bytes, bytes]:
        """Let the new key take the old one's place; our signed word that it has (document, signature).

        Raises:
            Refusal: nothing was changed; see the codes.
        """
        held = await self._store.for_sites({caller.site_id}).hosts(caller.site_id)
        said = _read(request, {host.key_id: host for host in held})
        if caller.key_id not in {said.old_key, said.new_key}:
            raise Refusal("statement: is about another host's key", code="not_this_host", status=403)
        now = self._clock()
        done = await self._store.write(lambda tx: _rotate(tx, caller.site_id, said, request, now))
        if done:
            log.info("host.key_rotated", site_id=caller.site_id, key_id=said.old_key, new_key_id=said.new_key)
        document = orjson.dumps(
            {
                "schema": SCHEMA,
                "old_key": said.old_key,
                "new_key": said.new_key,
                "epoch": said.epoch,
                "seq": said.seq,
                "digest": said.digest,
            },
            option=orjson.OPT_SORT_KEYS,
        )
        return document, self._sign(document)


def _read(request: Request, held: dict[str, Host]) -> Rotation:
    try:
        old = held.get(read(request.statement).old_key)
        if old is None:
            raise Refusal("statement: its old key is not known here", code="unknown_key", status=403)
        said = verified(request.statement, old.public_key, request.old_sig, request.new_sig)
    except BadEvidence as error:
        raise Refusal(f"statement: {error}", code=error.code, status=422) from error
    if (said.site_id, said.host_id) != (old.site_id, old.host_id):
        raise Refusal("statement: is of another site or label than its key", code="not_this_host", status=403)
    return said


async def _rotate(tx: Transaction, site_id: str, said: Rotation, request: Request, now: datetime) -> bool:
    """Whether it was done now; it may have been done before."""
    host = (await tx.hosts({site_id}, {said.old_key})).get(said.old_key)
    if host is not None and host.rotated_to == said.new_key:
        return False
    if host is None or host.revoked_at is not None:
        raise Refusal("this key is revoked, or gave way to another one", code="host_revoked", status=403)
    if host.contested_at is not None:
        raise Refusal("more than one machine seems to hold this key", code="host_contested", status=409)
    if await tx.key_is_known(said.new_key):
        raise Refusal("statement: its new key was used before", code="key_known", status=409)
    head = host.head or Head(0, 0, "0" * 64)
    if (said.epoch, said.seq, said.digest) != (head.epoch, head.seq, head.digest):
        raise Refusal(
            "statement: names another last record than the one held here; deliver first, then rotate",
            code="wrong_head",
            status=409,
            expected=chain.expected(host.head),
        )
    new = replace(host, key_id=said.new_key, public_key=said.new_public, enrolled_at=now)
    await tx.rotate_host(host, new, now)
    at = now.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    leaf = rotation_leaf(request.statement, host.public_key, request.old_sig, request.new_sig, at)
    await tx.add_leaves([NewLeaf(site_id, leaf, host.key_id)], now)
    await tx.audit(now, f"host:{host.key_id}", "host.key_rotated", site_id=site_id, subject=said.new_key)
    return True
