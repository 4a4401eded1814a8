"""Orders at the server: drafted, approved by people, signed on their own devices, forwarded, answered by the host's record.

    draft -> approved -> signed -> delivered -> answered            (or cancelled, or out of time)

No key that signs orders is ever here. What is signed is made here once (`prepare`), shown to the signer, and kept as it is; the
host believes signatures and its own list of signers, and nothing that this server says about approvals. An order is answered by the
record that names the SHA-256 of its exact bytes, so a made-up copy answers nothing.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any

import structlog

from compliance_agent import crypto
from compliance_agent.core import order_keys, orders
from compliance_agent.core.orders import FORMS, LONGEST_LIFE, Order
from compliance_agent.documents import read_yaml
from compliance_agent.entries.act import digest_of
from compliance_agent.errors import DocumentError, Refusal
from compliance_agent.evidence.allowlist import registry
from compliance_agent.evidence.canonical import canonical
from compliance_agent.facts import VERSION
from compliance_agent.server.records import Clock, Host, SiteReader, Store, Transaction, User
from compliance_agent.server.records.orders import OrderHost, OrderMark, OrderRow, SignedBaseline
from compliance_agent.server.services import roles
from compliance_agent.server.services.acts import Act, note
from compliance_agent.server.services.secrets import Rng

log = structlog.get_logger()
MAX_BASELINE_BYTES = 700_000  # in base64 it fits the largest body
AT_MOST = 16  # forwarded in one check-in; a host takes as many
OPEN = ("draft", "approved", "signed", "delivered")
Bounded = Callable[[Transaction, "OrderRow"], Awaitable[None]]


@dataclass(frozen=True)
class Wanted:
    """What somebody wants done."""

    key_id: str
    kind: str
    parameters: Mapping[str, Any]
    life_s: int = int(orders.USUAL_LIFE.total_seconds())


class OrderDesk:
    """The desk for orders. Every act names the person, and sees the sites of `reader` alone."""

    def __init__(self, store: Store, clock: Clock, *, rng: Rng = secrets.token_bytes) -> None:
        self._store = store
        self._clock = clock
        self._rng = rng

    async def draft(
        self,
        user: User,
        reader: SiteReader,
        wanted: Wanted,
        bounded: Bounded | None = None,
        *,
        order_id: str | None = None,
    ) -> OrderRow:
        """Write down what is wanted; nothing happens before people have approved and signed it.

        Args:
            user: who wants it.
            reader: the person's sites.
            wanted: what.
            bounded: asked within the transaction that writes it; refuses what would be too much.
            order_id: of the order, where asking twice for the same must make one.

        Raises:
            Refusal: no such host, or not an order of the agreed form.
        """
        roles.check(user, roles.Act.DRAFT_ORDER)
        host = await reader.host(wanted.key_id)
        if host is None or host.revoked_at is not None:
            raise Refusal("host: no such host", code="no_such_host", status=404)
        row = self._drafted(user, host, wanted, order_id)

        async def work(tx: Transaction) -> OrderRow:
            held = await tx.order(row.site_id, row.order_id) if order_id is not None else None
            if held is not None:
                return _same(held, row)
            named = wanted.parameters.get("sha256") if wanted.kind == "adopt_baseline" else None
            if named is not None:
                known = await tx.baseline(row.site_id, str(named))
                if known is None or known.version != wanted.parameters.get("version"):
                    raise Refusal("parameters: no such baseline for that site", code="no_such_baseline", status=404)
            if bounded is not None:
                await bounded(tx, row)
            await tx.add_order(row)
            await self._note(tx, user, Act.ORDER_DRAFTED, row)
            return row

        return await self._store.write(work)

    def _drafted(self, user: User, host: Host, wanted: Wanted, order_id: str | None) -> OrderRow:
        if wanted.kind not in FORMS:
            raise Refusal(f"kind: expected one of {', '.join(FORMS)}", code="unknown_kind", status=422)
        if not 60 <= wanted.life_s <= LONGEST_LIFE.total_seconds():
            raise Refusal("life_s: expected 60 to 86400 seconds", code="order_too_long", status=422)
        bound = FORMS[wanted.kind].bound
        if bound and not host.baseline_sha256:
            raise Refusal("host: has not said which baseline it is held to", code="no_baseline", status=409)
        now = self._clock()
        row = OrderRow(
            order_id=order_id or self._rng(16).hex(),
            site_id=host.site_id,
            key_id=host.key_id,
            kind=wanted.kind,
            parameters=_canonical(wanted.parameters),
            life_s=wanted.life_s,
            drafted_by=user.name,
            drafted_at=now,
            baseline_sha256=host.baseline_sha256 if bound else None,
        )
        made = _order(row, host, now, OrderHost(host.key_id, host.site_id, "0" * 32, now, 1), ["0" * 64])
        try:
            orders.payload(made)
        except DocumentError as error:
            raise Refusal(f"{error}", code="bad_order", status=422) from error
        unknown = set(made.checks) - set(registry().checks)
        if unknown:
            raise Refusal("parameters: names a check that does not exist", code="unknown_check", status=422)
        return row

    async def approve(self, user: User, reader: SiteReader, order_id: str) -> OrderRow:
        """One person says yes. Who says it twice has said it once.

        Raises:
            Refusal: no such order, or it is not a draft any more.
        """
        roles.check(user, roles.Act.APPROVE_ORDER)
        found = await self.find(reader, order_id)
        now = self._clock()

        async def work(tx: Transaction) -> OrderRow:
            row = _in(await tx.order(found.site_id, order_id), {"draft"})
            marks = await tx.order_marks(row.site_id, order_id)
            people = {mark.who for mark in marks if mark.what == "approved"}
            if user.name not in people:
                await tx.add_order_mark(OrderMark(order_id, row.site_id, "approved", user.name, now))
                await self._note(tx, user, Act.ORDER_APPROVED, row)
            if len(people | {user.name}) >= order_keys.least(row.kind):
                row = replace(row, state="approved")
                await tx.save_order(row)
            return row

        return await self._store.write(work)

    async def prepare(self, user: User, reader: SiteReader, order_id: str, signers: Sequence[str]) -> OrderRow:
        """Make the bytes that these signers are to sign, for the host's nonce and next number, from now on.

        Asked again it makes them anew, and signatures over the former bytes are gone.

        Raises:
            Refusal: not approved yet, too few signers, or the host has not given a nonce.
        """
        roles.check(user, roles.Act.APPROVE_ORDER)
        found = await self.find(reader, order_id)
        if len(set(signers)) < order_keys.least(found.kind):
            need = order_keys.least(found.kind)
            raise Refusal(f"signers: a {found.kind} needs {need} of them", code="too_few_signers", status=422)
        now = self._clock()

        async def work(tx: Transaction) -> OrderRow:
            row = _in(await tx.order(found.site_id, order_id), {"approved"})
            host = (await tx.hosts({row.site_id}, {row.key_id})).get(row.key_id)
            if host is None or host.revoked_at is not None:
                raise Refusal("host: is revoked", code="host_revoked", status=409)
            if host.contested_at is not None:
                raise Refusal(
                    "host: two machines seem to have its key; settle that first", code="host_contested", status=409
                )
            known = (await tx.order_hosts({row.site_id}, {row.key_id})).get(row.key_id)
            numbered = FORMS[row.kind].numbered
            if numbered and known is None:
                raise Refusal("host: has not checked in as one that takes orders", code="no_nonce", status=409)
            if known is not None and numbered:
                # The time keeps numbers growing although a restored database has forgotten some.
                known = replace(known, counter=max(known.counter + 1, int(now.timestamp())))
                await tx.save_order_host(known)
            made = _order(row, host, now, known, signers)
            row = replace(
                row,
                payload=_payload(made),
                signers=" ".join(made.signers),
                not_before=made.not_before,
                expires=made.expires,
                counter=made.counter,
            )
            await tx.save_order(row)
            return row

        return await self._store.write(work)

    async def add_signature(
        self, user: User, reader: SiteReader, order_id: str, public: bytes, signature: bytes
    ) -> OrderRow:
        """Keep one signer's signature; with the last one the order goes out at the host's next check-in.

        Raises:
            Refusal: not prepared, not a signer of it, or not a signature of these bytes.
        """
        roles.check(user, roles.Act.APPROVE_ORDER)
        found = await self.find(reader, order_id)
        signer, now = crypto.key_id(public), self._clock()

        async def work(tx: Transaction) -> OrderRow:
            row = _in(await tx.order(found.site_id, order_id), {"approved"})
            if row.payload is None or row.expires is None or row.expires <= now:
                raise Refusal(
                    "order: is not prepared, or out of time; prepare it anew", code="not_prepared", status=409
                )
            body = row.payload
            if signer not in row.signers.split():
                raise Refusal("public_key: the order names other signers", code="unknown_signer", status=422)
            if not crypto.verify(public, signature, crypto.pae(orders.TYPE, body)):
                raise Refusal("sig: not of this order by that key", code="order_signature", status=422)
            marks = await tx.order_marks(row.site_id, order_id)
            signatures = {mark.who: mark.signature for mark in marks if mark.signature is not None}
            kept = {
                who: sig
                for who, sig in {**signatures, signer: signature}.items()
                if who == signer or _still_signs(sig, marks, who, row)
            }
            mark = OrderMark(order_id, row.site_id, f"signed:{sha256(body).hexdigest()}", signer, now, signature)
            if not any((known.what, known.who) == (mark.what, mark.who) for known in marks):
                await tx.add_order_mark(mark)
                await self._note(tx, user, Act.ORDER_SIGNED, row, signer)
            if set(kept) == set(row.signers.split()):
                envelope = orders.envelope(body, kept)
                row = replace(row, state="signed", envelope=envelope, sha256=sha256(envelope).hexdigest())
                await tx.save_order(row)
            return row

        return await self._store.write(work)

    async def cancel(self, user: User, reader: SiteReader, order_id: str) -> OrderRow:
        """Forward it no more. What a host has taken already is taken. Who drafted it withdraws it; anybody else refuses it.

        Raises:
            Refusal: no such order, or it has ended.
        """
        roles.check(user, roles.Act.DRAFT_ORDER)
        found = await self.find(reader, order_id)
        now = self._clock()

        async def work(tx: Transaction) -> OrderRow:
            row = replace(_in(await tx.order(found.site_id, order_id), set(OPEN)), state="cancelled", ended_at=now)
            await tx.save_order(row)
            act = Act.ORDER_WITHDRAWN if row.drafted_by == user.name else Act.ORDER_REFUSED
            await self._note(tx, user, act, row)
            return row

        return await self._store.write(work)

    async def add_baseline(
        self, user: User, reader: SiteReader, site_id: str, body: bytes, sig: bytes
    ) -> SignedBaseline:
        """Keep a signed baseline that hosts of a site may be told to adopt. Whether it can be used, and whose it is, hosts decide.

        Raises:
            Refusal: no such site, or it is not YAML with a version, or no signature.
        """
        roles.check(user, roles.Act.DRAFT_ORDER)
        if site_id not in reader.sites:
            raise Refusal("site: no such site", code="no_such_site", status=404)
        try:
            document = read_yaml(body, limit_bytes=MAX_BASELINE_BYTES)
        except DocumentError as error:
            raise Refusal(f"baseline: {error}", code="bad_baseline", status=422) from error
        version = document.get("version") if isinstance(document, dict) else None
        if not isinstance(version, str) or not VERSION.fullmatch(version) or len(sig) != crypto.SIGNATURE_BYTES:
            raise Refusal("baseline: expected one with a version, and its signature", code="bad_baseline", status=422)
        now = self._clock()
        made = SignedBaseline(site_id, sha256(body).hexdigest(), version, body, sig, user.name, now)

        async def work(tx: Transaction) -> None:
            await tx.add_baseline(made)
            said = f"{version} {made.sha256}"
            await note(tx, now, Act.BASELINE_ADDED, by=user, sites={site_id}, subject=made.sha256, said=said)

        await self._store.write(work)
        return made

    async def baseline_for(self, host: Host, digest: str) -> SignedBaseline:
        """The baseline of the host's site with this digest.

        Raises:
            Refusal: there is none.
        """
        found = await self._store.write(lambda tx: tx.baseline(host.site_id, digest))
        if found is None:
            raise Refusal("baseline: no such baseline", code="no_such_baseline", status=404)
        return found

    async def find(self, reader: SiteReader, order_id: str) -> OrderRow:
        """One order.

        Raises:
            Refusal: there is none within these sites.
        """
        row = await reader.order(order_id)
        if row is None:
            raise Refusal("order: no such order", code="no_such_order", status=404)
        return row

    async def _note(self, tx: Transaction, user: User, act: Act, row: OrderRow, signer: str = "") -> None:
        said = f"{row.order_id} {signer}".strip()
        await note(tx, self._clock(), act, by=user, sites={row.site_id}, subject=subject_of(row), said=said)


def subject_of(row: OrderRow) -> str:
    """What acts about an order name: the digest of what it asks for, which never changes."""
    return digest_of(
        {
            "host": row.key_id,
            "kind": row.kind,
            "order_id": row.order_id,
            "parameters": row.parameters,
            "site": row.site_id,
        }
    )


def _same(held: OrderRow, row: OrderRow) -> OrderRow:
    """The order that is there, if it is the one that is asked for again."""
    asked = [(one.key_id, one.kind, one.parameters, one.life_s, one.drafted_by) for one in (held, row)]
    if asked[0] != asked[1]:
        raise Refusal("order: another one was drafted from this page; load it anew", code="stale_page", status=409)
    return held


def standing(row: OrderRow, now: datetime) -> str:
    """Where an order stands: its state, or `expired` when its time passed without an answer."""
    out_of_time = row.expires is not None and row.expires <= now and row.state in {"signed", "delivered"}
    return "expired" if out_of_time else row.state


async def exchange(tx: Transaction, callers: Sequence[tuple[Host, str | None]], now: datetime) -> list[list[bytes]]:
    """At a check-in: note the nonce of each host that takes orders, and give it what waits for it, oldest number first.

    A key that two machines seem to have is given none: nobody could tell which of them took it.
    """
    asking = [host for host, nonce in callers if nonce is not None and host.contested_at is None]
    if not asking:
        return [[] for _ in callers]
    sites, keys = {host.site_id for host in asking}, {host.key_id for host in asking}
    known, awaited = await tx.order_hosts(sites, keys), await tx.awaited(sites, keys, now)
    given = list[list[bytes]]()
    for host, nonce in callers:
        if nonce is None or host.contested_at is not None:
            given.append([])
            continue
        before = known.get(host.key_id)
        if before is None or before.nonce != nonce:
            counter = before.counter if before is not None else 0
            known[host.key_id] = OrderHost(host.key_id, host.site_id, nonce, now, counter)
            await tx.save_order_host(known[host.key_id])
        given.append(await _forwarded(tx, host, now) if host.key_id in awaited else [])
    return given


async def _forwarded(tx: Transaction, host: Host, now: datetime) -> list[bytes]:
    waiting = await tx.forwardable(host.site_id, host.key_id, now, AT_MOST)
    for row in waiting:
        if row.state == "signed":
            await tx.save_order(replace(row, state="delivered"))
            log.info("order.forwarded", order_id=row.order_id, site_id=row.site_id, kind=row.kind)
    return [row.envelope for row in waiting if row.envelope is not None]


def _still_signs(signature: bytes, marks: Collection[OrderMark], who: str, row: OrderRow) -> bool:
    """Whether it is over the present bytes, and not over ones that were prepared before."""
    wanted = f"signed:{sha256(row.payload or b'').hexdigest()}"
    return any((mark.what, mark.who, mark.signature) == (wanted, who, signature) for mark in marks)


def _in(row: OrderRow | None, states: Collection[str]) -> OrderRow:
    if row is None or row.state not in states:
        state = "gone" if row is None else row.state
        raise Refusal(f"order: is {state}; expected {' or '.join(sorted(states))}", code="wrong_state", status=409)
    return row


def _canonical(parameters: Mapping[str, Any]) -> str:
    try:
        return canonical(dict(parameters)).decode()
    except (TypeError, ValueError, DocumentError) as error:
        raise Refusal(
            "parameters: expected names, lists of names and whole numbers", code="bad_order", status=422
        ) from error


def _payload(order: Order) -> bytes:
    try:
        return orders.payload(order)
    except DocumentError as error:
        raise Refusal(f"{error}", code="bad_order", status=422) from error


def _order(row: OrderRow, host: Host, now: datetime, known: OrderHost | None, signers: Sequence[str]) -> Order:
    numbered = FORMS[row.kind].numbered and known is not None
    start = now.replace(microsecond=0)
    return Order(
        order_id=row.order_id,
        tenant=host.client_id,
        site=host.site_id,
        host=host.key_id,
        kind=row.kind,
        parameters=json.loads(row.parameters),
        baseline_sha256=row.baseline_sha256,
        counter=known.counter if numbered and known else None,
        nonce=known.nonce if numbered and known else None,
        not_before=start,
        expires=start + timedelta(seconds=row.life_s),
        signers=tuple(sorted(set(signers))),
    )
