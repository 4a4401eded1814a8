"""Orders for people and their scripts: draft, approve, fetch what is to be signed, bring the signature, look, cancel.

What changes something wants an operator token: a browser's cookie alone is sent by any page that asks for it.
"""

from __future__ import annotations

import base64
import json
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from starlette.requests import Request

from compliance_agent.errors import Refusal
from compliance_agent.server.api.deps import allowed, body_of, by_token, host_of, services_of
from compliance_agent.server.api.schemas import (
    BaselineOut,
    BaselineSent,
    BaselineWhole,
    OrderDraft,
    OrderMarkOut,
    OrderOut,
    OrderSignature,
    OrderSigners,
    decoded,
    strict_body,
)
from compliance_agent.server.records import SiteReader, User
from compliance_agent.server.records.orders import OrderRow
from compliance_agent.server.services import roles
from compliance_agent.server.services.orders import Wanted, standing

router = APIRouter(prefix="/api/v1/orders", tags=["orders"])
baselines = APIRouter(prefix="/api/v1/baselines", tags=["orders"])


Looker = Annotated[User, Depends(allowed(roles.Act.LOOK))]
Drafter = Annotated[User, Depends(by_token(roles.Act.DRAFT_ORDER))]
Approver = Annotated[User, Depends(by_token(roles.Act.APPROVE_ORDER))]
Host = Annotated[str | None, Query(max_length=64, pattern=r"^[A-Za-z0-9._-]+$")]


@router.get("", summary="Orders, newest first")
async def orders(request: Request, user: Looker, host: Host = None) -> list[OrderOut]:
    """At most a hundred, of one host or of all that the caller may see."""
    reader = await services_of(request).users.reader(user)
    if host is not None and await reader.host(host) is None:
        raise Refusal("host: no such host", code="no_such_host", status=404)
    return [await _out(request, reader, row) for row in await reader.orders(host)]


@router.get("/{order_id}", summary="One order")
async def order(request: Request, user: Looker, order_id: str) -> OrderOut:
    """What it asks for, who approved and signed it, and how the host says it ended."""
    services = services_of(request)
    reader = await services.users.reader(user)
    return await _out(request, reader, await services.orders.find(reader, order_id))


@router.post("", status_code=201, openapi_extra=body_of(OrderDraft), summary="Draft an order")
async def draft(request: Request, user: Drafter) -> OrderOut:
    """Nothing happens before people have approved it and signed it with keys that this server does not have."""
    services, body = services_of(request), await strict_body(request, OrderDraft)
    reader = await services.users.reader(user)
    wanted = Wanted(body.host, body.kind, body.parameters, body.life_s)
    return await _out(request, reader, await services.orders.draft(user, reader, wanted))


@router.post("/{order_id}/approve", summary="Say yes to a draft")
async def approve(request: Request, user: Approver, order_id: str) -> OrderOut:
    """Each person counts once."""
    services = services_of(request)
    reader = await services.users.reader(user)
    return await _out(request, reader, await services.orders.approve(user, reader, order_id))


@router.post("/{order_id}/prepare", openapi_extra=body_of(OrderSigners), summary="Make the bytes that are to be signed")
async def prepare(request: Request, user: Approver, order_id: str) -> OrderOut:
    """For the host's nonce and next number, from now on; `payload` of the answer is what each signer signs."""
    services, body = services_of(request), await strict_body(request, OrderSigners)
    reader = await services.users.reader(user)
    return await _out(request, reader, await services.orders.prepare(user, reader, order_id, body.signers))


@router.post("/{order_id}/signatures", openapi_extra=body_of(OrderSignature), summary="Bring one signer's signature")
async def sign(request: Request, user: Approver, order_id: str) -> OrderOut:
    """With the last one, the order goes out at the host's next check-in."""
    services, body = services_of(request), await strict_body(request, OrderSignature)
    reader = await services.users.reader(user)
    public, signature = decoded(body.public_key, 32), decoded(body.sig, 64)
    return await _out(request, reader, await services.orders.add_signature(user, reader, order_id, public, signature))


@router.post("/{order_id}/cancel", summary="Forward it no more")
async def cancel(request: Request, user: Drafter, order_id: str) -> OrderOut:
    """What a host has taken already is taken."""
    services = services_of(request)
    reader = await services.users.reader(user)
    return await _out(request, reader, await services.orders.cancel(user, reader, order_id))


@baselines.post("", status_code=201, openapi_extra=body_of(BaselineSent), summary="Bring a signed baseline")
async def add_baseline(request: Request, user: Drafter) -> BaselineOut:
    """For the hosts of one site, which verify it themselves before an order makes them adopt it."""
    services, body = services_of(request), await strict_body(request, BaselineSent)
    reader = await services.users.reader(user)
    raw, sig = decoded(body.baseline, None), decoded(body.sig, 64)
    made = await services.orders.add_baseline(user, reader, body.site, raw, sig)
    return BaselineOut(version=made.version, sha256=made.sha256)


@baselines.get("/{sha256}", summary="A signed baseline, for a host of its site")
async def baseline(request: Request, sha256: str) -> BaselineWhole:
    """The exact bytes and their signature."""
    services = services_of(request)
    caller = await host_of(request)
    found = await services.orders.baseline_for(caller, sha256)
    raw, sig = (base64.b64encode(part).decode("ascii") for part in (found.body, found.sig))
    return BaselineWhole(version=found.version, sha256=found.sha256, baseline=raw, sig=sig)


async def _out(request: Request, reader: SiteReader, row: OrderRow) -> OrderOut:
    marks = await reader.order_marks(row.order_id)
    shown: dict[str, Any] = {name: getattr(row, name) for name in OrderOut.model_fields if hasattr(row, name)}
    return OrderOut(
        **{
            **shown,
            "state": standing(row, services_of(request).clock()),
            "parameters": json.loads(row.parameters),
            "signers": row.signers.split(),
            "payload": None if row.payload is None else base64.b64encode(row.payload).decode("ascii"),
            "envelope": None if row.envelope is None else base64.b64encode(row.envelope).decode("ascii"),
            "marks": [OrderMarkOut(what=mark.what.partition(":")[0], who=mark.who, at=mark.at) for mark in marks],
        }
    )
