"""Orders in the viewer: what waits, one order, and the acts: draft, approve, withdraw.

The server holds no key that signs orders, so nothing here reaches a host: an order that people approved here waits for signatures
that are made elsewhere, and its page says by which command. Every act is read back to the person before it is done, needs a form
token and a second factor that was shown lately, and is an entry of the site's log. Drafting twice from one page makes one order.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from compliance_agent.core.orders import FORMS
from compliance_agent.errors import Refusal
from compliance_agent.server.api.deps import services_of
from compliance_agent.server.records import Host
from compliance_agent.server.records.orders import OrderRow
from compliance_agent.server.services import roles
from compliance_agent.web import asking, morning, present
from compliance_agent.web.caller import Caller, caller_of, now_of, stepped_up
from compliance_agent.web.forms import form_of, pairs_of
from compliance_agent.web.routing import PageRoute, page

MOST = 100
ASKED = ("kind", "check", "target", "sha256", "life")

router = APIRouter(route_class=PageRoute, include_in_schema=False, default_response_class=Response)


@router.get("/orders")
async def orders(request: Request) -> Response:
    """The newest orders, those that wait for a person first."""
    caller = await caller_of(request)
    now = now_of(request)
    found = await caller.reader.orders(at_most=MOST)
    hosts = await caller.reader.hosts_of({row.key_id for row in found})
    lines = [(present.order_line(row, now), hosts[row.key_id]) for row in found if row.key_id in hosts]
    waiting = {row.order_id for row in found if row.state in morning.NEEDS}
    return page(
        request,
        "orders.html",
        user=caller.user.name,
        waiting=[item for item in lines if item[0].order_id in waiting],
        others=[item for item in lines if item[0].order_id not in waiting],
        most=MOST if len(found) == MOST else 0,
    )


@router.get("/orders/{order_id}")
async def order(request: Request, order_id: str) -> Response:
    """One order: what it asks for, who said yes, what it waits for, and how it ended."""
    caller = await caller_of(request)
    return await _order(request, caller, await services_of(request).orders.find(caller.reader, order_id))


async def _order(
    request: Request, caller: Caller, row: OrderRow, status_code: int = 200, problem: str = ""
) -> Response:
    host = await _host(caller, row.key_id)
    marks = await caller.reader.order_marks(row.order_id)
    shown = asking.order_page(row, host, marks, now_of(request), _address(request))
    user = caller.user
    return page(
        request,
        "order.html",
        user=user.name,
        status_code=status_code,
        order=shown,
        problem=problem,
        may_approve=shown.state == "draft"
        and roles.may(user, roles.Act.APPROVE_ORDER)
        and user.name not in {mark.who for mark in shown.approvers},
        may_withdraw=shown.open and roles.may(user, roles.Act.DRAFT_ORDER),
    )


def _address(request: Request) -> str:
    return services_of(request).settings.public_url or f"{request.url.scheme}://{request.url.netloc}"


async def _host(caller: Caller, key_id: str) -> Host:
    host = await caller.reader.host(key_id)
    if host is None:
        raise Refusal("host: no such host", code="no_such_host", status=404)
    return host


@router.get("/orders/{order_id}/approve")
async def confirm_approval(request: Request, order_id: str) -> Response:
    """The order once more, and the question whether to say yes to it."""
    return await _confirm(request, order_id, roles.Act.APPROVE_ORDER, "approve")


@router.get("/orders/{order_id}/withdraw")
async def confirm_withdrawal(request: Request, order_id: str) -> Response:
    """The order once more, and the question whether to forward it no more."""
    return await _confirm(request, order_id, roles.Act.DRAFT_ORDER, "withdraw")


async def _confirm(request: Request, order_id: str, act: roles.Act, what: str) -> Response:
    caller = await caller_of(request, act)
    row = await services_of(request).orders.find(caller.reader, order_id)
    await stepped_up(request)
    host, marks = await _host(caller, row.key_id), await caller.reader.order_marks(order_id)
    shown = asking.order_page(row, host, marks, now_of(request), _address(request))
    if (what == "approve" and shown.state != "draft") or not shown.open:
        return await _order(request, caller, row, 409, "It has changed since: nothing was done.")
    own = row.drafted_by == caller.user.name
    return page(request, "order_act.html", user=caller.user.name, order=shown, what=what, own=own)


@router.post("/orders/{order_id}/approve")
async def approve(request: Request, order_id: str) -> Response:
    """Say yes. Twice is once; what is no draft any more is not approved."""
    return await _act(request, order_id, roles.Act.APPROVE_ORDER, "approve")


@router.post("/orders/{order_id}/withdraw")
async def withdraw(request: Request, order_id: str) -> Response:
    """Forward it no more."""
    return await _act(request, order_id, roles.Act.DRAFT_ORDER, "withdraw")


async def _act(request: Request, order_id: str, act: roles.Act, what: str) -> Response:
    caller = await caller_of(request, act)
    await form_of(request)
    desk = services_of(request).orders
    row = await desk.find(caller.reader, order_id)
    await stepped_up(request, back=f"/orders/{row.order_id}/{what}")
    try:
        await (desk.approve if what == "approve" else desk.cancel)(caller.user, caller.reader, row.order_id)
    except Refusal as refusal:
        if refusal.code != "wrong_state":
            raise
        row = await desk.find(caller.reader, row.order_id)
        return await _order(request, caller, row, 409, "It has changed since: nothing was done.")
    return RedirectResponse(f"/orders/{row.order_id}", status_code=303)


@router.get("/hosts/{key_id}/order")
async def ask(request: Request, key_id: str) -> Response:
    """What can be asked of a host."""
    caller = await caller_of(request, roles.Act.DRAFT_ORDER)
    row = present.host_row(await caller.fleet.host(key_id))
    return page(
        request,
        "order_ask.html",
        user=caller.user.name,
        host=row,
        kinds=asking.KINDS,
        choices=asking.choices(row.checks),
        chosen={name: request.query_params.get(name, "") for name in ("kind", "check")},
        lives=asking.LIVES,
        target_pattern=asking.TARGET,
        digest_pattern=asking.DIGEST,
    )


@router.get("/hosts/{key_id}/order/confirm")
async def confirm_draft(request: Request, key_id: str) -> Response:
    """What is about to be drafted, read back."""
    caller = await caller_of(request, roles.Act.DRAFT_ORDER)
    host, asked, fields = await _asked(request, caller, key_id, request.query_params)
    await stepped_up(request)
    bound = FORMS[asked.kind.kind].bound
    return page(
        request,
        "order_confirm.html",
        user=caller.user.name,
        host=host,
        asked=asked,
        fields=fields,
        once=secrets.token_urlsafe(16),
        seen=(host.baseline_sha256 or "") if bound else "",
        bound=bound,
    )


@router.post("/hosts/{key_id}/order/confirm")
async def draft(request: Request, key_id: str) -> Response:
    """Draft it, once however often the form is sent; and approve it too, where the person asks for both."""
    caller = await caller_of(request, roles.Act.DRAFT_ORDER)
    form = QueryParams(await pairs_of(request))
    host, asked, fields = await _asked(request, caller, key_id, form)
    await stepped_up(request, back=f"/hosts/{host.key_id}/order/confirm?{urlencode(fields)}")
    once = form.get("once", "")
    if asking.ONCE.fullmatch(once) is None:
        raise Refusal("once: expected that of the page", code="bad_order", status=422)
    if FORMS[asked.kind.kind].bound and form.get("seen", "") != (host.baseline_sha256 or ""):
        raise Refusal("host: is held to another baseline by now", code="stale_page", status=409)
    desk, user = services_of(request).orders, caller.user
    named = hashlib.sha256(f"{user.person_id} {host.key_id} {once}".encode()).hexdigest()[:32]
    row = await desk.draft(user, caller.reader, asked.wanted, order_id=named)
    if form.get("approve") == "1" and row.state == "draft":
        roles.check(user, roles.Act.APPROVE_ORDER)
        await desk.approve(user, caller.reader, row.order_id)
    return RedirectResponse(f"/orders/{row.order_id}", status_code=303)


async def _asked(
    request: Request, caller: Caller, key_id: str, given: QueryParams
) -> tuple[Host, asking.Asked, list[tuple[str, str]]]:
    """The host, what is asked of it, and the fields that say so."""
    host = await _host(caller, key_id)
    fields = [(name, value) for name, value in given.multi_items() if name in ASKED]
    verdicts = await caller.reader.verdicts(key_id)
    version: Any = None
    if given.get("kind") == "adopt_baseline":
        try:
            version = (await services_of(request).orders.baseline_for(host, given.get("sha256", "").strip())).version
        except Refusal:
            version = None  # said below, with the rest
    return host, asking.asked(host, {item.check for item in verdicts}, fields, version), fields
