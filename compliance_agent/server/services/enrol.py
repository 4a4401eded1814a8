"""Enrolment: a one-time token and a proof of possession make a key a host of a site (RELIABILITY 3.3, EVIDENCE 2.5).

A host's identity is its key, and a live host is never replaced. A label is only what people call it: who enrols under that of a
live host becomes a second host, an alarm is raised, and nothing is accepted from the second one before an operator approved it. The
token is known here only by its hash, and is used up in the same transaction that makes the host. An answer that was lost may
be fetched again by the same key with the same token while that lasts: it gets a new API key, and the lost one dies.

A key counts from its entry in the site's log: that is made when the host is, or, for one that had to wait, with its approval.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import structlog

from compliance_agent import crypto
from compliance_agent.entries.leaf import KeyEvent, key_leaf
from compliance_agent.errors import BadEvidence, Refusal
from compliance_agent.evidence.canonical import canonical
from compliance_agent.server.records import Clock, Host, NewLeaf, Site, Store, Token, Transaction
from compliance_agent.server.services.secrets import API_KEY_PREFIX, Rng, hashed, new_secret
from compliance_agent.server.services.verification import Verify

CONTEXT = b"compliance-agent/enrol/v1\n"
TOKEN_PREFIX = "cae1."  # noqa: S105  the token's version mark
NONCE_LIFE = timedelta(minutes=5)
MOST_NONCES = 10_000
LONGEST_TOKEN_LIFE = timedelta(days=7)
CLOCKS_DIFFER = timedelta(minutes=5)  # between two machines of one server

log = structlog.get_logger()


@dataclass(frozen=True)
class Request:
    """An enrolment request whose fields have the right form."""

    token: str
    public_key: bytes
    host_id: str
    nonce: bytes
    proof: bytes


@dataclass(frozen=True)
class Enrolled:
    """A host and its new API key, which is not kept here and cannot be shown again."""

    host: Host
    api_key: str


class Enrolment:
    """The enrolment desk.

    Args:
        approval: every new host waits for an operator, not only one whose label is taken.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        *,
        approval: bool = False,
        verify: Verify = crypto.verify,
        rng: Rng = secrets.token_bytes,
    ) -> None:
        self._store = store
        self._clock = clock
        self._approval = approval
        self._verify = verify
        self._rng = rng

    async def new_token(
        self,
        site_id: str,
        client_id: str,
        life: timedelta,
        *,
        ca_sha256: str | None,
        actor: str,
        order_root: str | None = None,
    ) -> tuple[str, datetime, Site]:
        """A token for one host of a site, when it expires, and the site, which is made when it is new.

        Raises:
            Refusal: a life of less than a minute or more than 7 days.
        """
        if not timedelta(minutes=1) <= life <= LONGEST_TOKEN_LIFE:
            raise Refusal("expires: expected 1 minute to 7 days", code="bad_expiry", status=422)
        now = self._clock()
        expires_at = now.replace(microsecond=0) + life
        secret = {
            "v": 1,
            "site": site_id,
            "ca_sha256": ca_sha256,
            "exp": int(expires_at.timestamp()),
            "secret": self._rng(16).hex(),
            **({} if order_root is None else {"order_root": order_root}),
        }
        token = TOKEN_PREFIX + base64.urlsafe_b64encode(canonical(secret)).decode("ascii").rstrip("=")

        async def work(tx: Transaction) -> Site:
            site = await tx.add_site(Site(site_id, client_id, now))
            await tx.add_token(hashed(token), site_id, now, expires_at)
            await tx.audit(now, actor, "token.made", site_id=site_id)
            return site

        return token, expires_at, await self._store.write(work)

    async def challenge(self, public_key: bytes) -> bytes:
        """A nonce that this key must sign within five minutes.

        Raises:
            Refusal: a weak key, or too many unanswered challenges.
        """
        _check_key(public_key)
        nonce, key_id, now = self._rng(32), crypto.key_id(public_key), self._clock()

        async def work(tx: Transaction) -> bool:
            return await tx.add_nonce(hashed(nonce), key_id, now, now + NONCE_LIFE, at_most=MOST_NONCES)

        if not await self._store.write(work):
            raise Refusal("too many unanswered challenges", code="busy", status=429, retry_after_s=60)
        return nonce

    async def enrol(self, request: Request) -> Enrolled:
        """Make the key a host of the token's site.

        Raises:
            Refusal: see the codes; whatever it says, nothing was changed and the token is as it was.
        """
        _check_key(request.public_key)
        message = CONTEXT + request.nonce + hashlib.sha256(request.token.encode("utf-8", "surrogatepass")).digest()
        if not self._verify(request.public_key, request.proof, message):
            raise Refusal("proof: does not verify under public_key", code="bad_proof", status=403)
        api_key, now = new_secret(API_KEY_PREFIX, self._rng), self._clock()
        host = await self._store.write(lambda tx: _redeem(tx, request, hashed(api_key), now, self._approval))
        log.info("host.enrolled", key_id=host.key_id, site_id=host.site_id)
        return Enrolled(host, api_key)

    async def tokens(self, sites: Iterable[str]) -> list[Token]:
        """Every token of these sites, newest first, by its hash alone."""
        return await self._store.for_sites(sites).tokens()

    async def revoke_token(self, sites: Iterable[str], token_id: str, *, actor: str) -> Token:
        """Let a token that nobody has used be worth nothing.

        Raises:
            Refusal: there is not exactly one whose id begins so, or it was used or revoked before.
        """
        found = [item for item in await self.tokens(sites) if item.hash.startswith(token_id)]
        if len(found) != 1:
            raise Refusal(f"token: {len(found)} have an id that begins so", code="not_found", status=404)
        [token], now = found, self._clock()

        async def work(tx: Transaction) -> None:
            if not await tx.revoke_token(token.site_id, token.hash, now):
                raise Refusal(f"token: {token.state(now)} already", code="token_used", status=409)
            await tx.audit(now, actor, "token.revoked", site_id=token.site_id, subject=token.id)

        await self._store.write(work)
        return token

    async def approve(self, site_id: str, key_id: str, *, actor: str) -> Host:
        """An operator looked into a host: it need not wait any more, and its key is in one place only.

        Raises:
            Refusal: there is no such live host.
        """
        now = self._clock()

        async def work(tx: Transaction) -> Host:
            host = (await tx.hosts({site_id}, {key_id})).get(key_id)
            if host is None or host.revoked_at is not None:
                raise Refusal("host: not known here, or revoked", code="not_found", status=404)
            if host.waiting_since is not None:
                await tx.add_leaves([_key_leaf("enrol", host, now)], now)
            await tx.approve_host(site_id, key_id)
            await tx.audit(now, actor, "host.approved", site_id=site_id, subject=key_id)
            return host

        return await self._store.write(work)

    async def revoke(self, site_id: str, key_id: str, *, actor: str) -> None:
        """Accept nothing more from a host; what it sent so far stays valid."""
        now = self._clock()

        async def work(tx: Transaction) -> None:
            host = (await tx.hosts({site_id}, {key_id})).get(key_id)
            if host is not None and host.revoked_at is None and host.waiting_since is None:
                await tx.add_leaves([_key_leaf("revoke", host, now)], now)
            await tx.revoke_host(site_id, key_id, now)
            await tx.audit(now, actor, "host.revoked", site_id=site_id, subject=key_id)

        await self._store.write(work, {site_id})


def _key_leaf(event: KeyEvent, host: Host, now: datetime) -> NewLeaf:
    at = now.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return NewLeaf(host.site_id, key_leaf(event, host.key_id, host.public_key, at), host.key_id)


def _check_key(public_key: bytes) -> None:
    try:
        crypto.check_public_key(public_key)
    except BadEvidence as error:
        raise Refusal(f"public_key: {error}", code="weak_key", status=422) from error


async def _redeem(tx: Transaction, request: Request, api_key_hash: str, now: datetime, approval: bool) -> Host:
    key_id = crypto.key_id(request.public_key)
    if not await tx.take_nonce(hashed(request.nonce), key_id, now):
        raise Refusal("nonce: unknown, used or expired; ask for a new challenge", code="bad_nonce", status=403)
    token_hash = hashed(request.token)
    token = await tx.token(token_hash)
    if token is None:
        raise Refusal("token: not known here", code="token_unknown", status=403)
    if token.revoked_at is not None:
        raise Refusal("token: revoked", code="token_revoked", status=403)
    if token.expires_at <= now:
        raise Refusal("token: expired", code="token_expired", status=403)
    if token.created_at > now + CLOCKS_DIFFER:
        raise Refusal("token: made at a later time than this server's; check its clock", code="token_early", status=403)
    if token.used_at:
        host = await _again(tx, token, key_id, request)
    else:
        host = await _first(tx, token, key_id, request, now, approval)
    await tx.replace_api_key(host.site_id, key_id, api_key_hash, now)
    await tx.audit(now, f"host:{key_id}", "host.enrolled", site_id=host.site_id, subject=host.host_id)
    return host


async def _first(tx: Transaction, token: Token, key_id: str, request: Request, now: datetime, approval: bool) -> Host:
    if await tx.key_is_known(key_id):
        raise Refusal("public_key: enrolled before; a re-enrolled host makes a new key", code="key_known", status=409)
    first = await tx.live_label(token.site_id, request.host_id)
    if first is not None:
        log.error("enrolment.label_taken", site_id=token.site_id, key_id=key_id)
        await tx.audit(now, f"host:{key_id}", "host.label_taken", site_id=token.site_id, subject=first)
    waits = approval or first is not None
    await tx.redeem_token(token.hash, key_id, now)
    host = Host(key_id, token.site_id, token.client_id, request.host_id, request.public_key, now)
    host = replace(host, waiting_since=now if waits else None)
    await tx.add_host(host)
    if not waits:
        await tx.add_leaves([_key_leaf("enrol", host, now)], now)
    return host


async def _again(tx: Transaction, token: Token, key_id: str, request: Request) -> Host:
    host = (await tx.hosts({token.site_id}, {key_id})).get(key_id) if token.used_by == key_id else None
    if host is None or host.host_id != request.host_id or host.revoked_at is not None:
        raise Refusal("token: used already; each enrols one host", code="token_used", status=403)
    return host
