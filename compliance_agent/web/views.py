"""The pages: each asks a service, builds what its template is given, and renders it. No page touches a table or decides anything.

What does not exist and what belongs to another site are the same 404. Live pages are told when to load themselves
anew (`streams.py`); without scripts they are read by reloading.

    app.include_router(views.router)
    views.mount_static(app)           # last: static files, headers, and the page for what does not exist
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlencode, urlsplit

from fastapi import APIRouter, FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from compliance_agent import crypto
from compliance_agent.errors import Refusal
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.note import Note
from compliance_agent.log.proof import Proof
from compliance_agent.server.api.deps import services_of, session_cookie
from compliance_agent.server.desks import Services
from compliance_agent.server.records import BundleQuery, Host
from compliance_agent.server.records.orders import OrderRow
from compliance_agent.server.services import roles
from compliance_agent.server.services.cures import LATELY, Cures, cures
from compliance_agent.server.services.fleet import HostStanding, Moved, SiteStanding
from compliance_agent.web import beats, morning, present, proofs, security, timeline, words
from compliance_agent.web.assets import STATIC_ROUTE
from compliance_agent.web.caller import Caller, caller_of, now_of, session_of
from compliance_agent.web.forms import form_of, inside
from compliance_agent.web.pages import Counts, SiteRow, by_urgency, hosts_by_urgency
from compliance_agent.web.routing import Fallback, PageRoute, page

RECENT = 10
MOST_WAITING = 50
MOST_CHANGES = 20
CHANGES = ("drift", "remediation", "key_event", "incident")
DRAWN = 200
PER_PAGE = 50
RECEIPT_FILES = ("leaf.json", "bundle.tlog-proof", "log.vkey", "policy")
FILTERS = ("check", "kind", "result", "outcome")

router = APIRouter(route_class=PageRoute, include_in_schema=False, default_response_class=Response)


def mount_static(app: FastAPI) -> None:
    """Give an app the static files, the security headers on everything it answers, and the page for what does not exist.

    Call it after every router has been included: the page for what does not exist answers whatever no earlier route does.
    """
    app.router.routes.extend((STATIC_ROUTE, Fallback()))
    app.add_middleware(security.SecurityHeaders)


@router.get("/")
async def fleet(request: Request) -> Response:
    """Every site the caller may see, the most urgent first."""
    caller, now = await caller_of(request), now_of(request)
    # The day's changes take the database longest: meanwhile the rest is read and put together.
    standing, changes = _standing(caller, now), caller.fleet.changes(LATELY, MOST_CHANGES + 1)
    (found, held, orders), (moved, turns) = await asyncio.gather(standing, changes)
    sites = by_urgency(present.site_row(site, moved) for site in found)
    return page(
        request,
        "fleet.html",
        user=caller.user.name,
        sites=sites,
        waiting=morning.waiting_lines(held, orders, now),
        more_wait=held.more or len(orders) == MOST_WAITING,
        exceptions=morning.exception_lines(found, now),
        healed=morning.cure_lines(held.hosts, held.healed[:RECENT]),
        turns=morning.turn_lines(held.hosts, turns[:MOST_CHANGES]),
        more_turns=len(turns) > MOST_CHANGES,
        **_totals(sites),
    )


async def _standing(caller: Caller, now: datetime) -> tuple[list[SiteStanding], Cures, list[OrderRow]]:
    """Every site as it stands, and what waits for a person there."""
    found = await caller.fleet.sites()
    held = await cures(caller.reader, found, now)
    return found, held, await caller.reader.orders(at_most=MOST_WAITING, states=tuple(morning.NEEDS))


def _totals(sites: Iterable[SiteRow]) -> dict[str, Any]:
    sites = list(sites)
    unmet = [(site.oldest_unmet, site.site_id, site) for site in sites if site.oldest_unmet]
    oldest = min(unmet, default=None)
    return {
        "counts": sum((site.counts for site in sites), Counts()),
        "changes": sum((site.changes for site in sites), Moved()),
        "hosts": sum(site.hosts for site in sites),
        "silent": sum(site.silent for site in sites),
        "oldest": oldest[0] if oldest else None,
        "oldest_site": oldest[2] if oldest else None,
    }


@router.get("/sites/{site_id}")
async def site(request: Request, site_id: str) -> Response:
    """One clinic and its hosts."""
    caller = await caller_of(request)
    found = await caller.fleet.site(site_id)
    row = present.site_row(found, await caller.fleet.moved(site_id))
    hosts = hosts_by_urgency(present.host_row(host) for host in found.hosts)
    return page(request, "site.html", user=caller.user.name, site=row, hosts=hosts)


@router.get("/hosts/{key_id}")
async def host(request: Request, key_id: str) -> Response:
    """One host: every check with its reason and its last remediation, its history, its newest evidence."""
    caller = await caller_of(request)
    standing = await caller.fleet.host(key_id)
    row = present.host_row(standing)
    newest = await caller.fleet.newest(standing.host, (*CHANGES, "heartbeat"), DRAWN)
    rows = [present.bundle_row(bundle) for bundle in newest if bundle.kind != "heartbeat"]
    said = [bundle for bundle in newest if bundle.kind == "heartbeat"]
    now = now_of(request)
    base = await beats.base_of(caller.fleet, said, timeline.start_of(rows, now))
    return page(
        request,
        "host.html",
        user=caller.user.name,
        host=row,
        findings=present.findings(standing.gaps, await caller.fleet.forks(standing)),
        timeline=timeline.draw(
            row.checks,
            rows,
            base=base,
            last_seen=row.last_seen,
            silent=row.silent,
            now=now,
            heard=beats.heard(newest, said),
            quiet=timedelta(seconds=services_of(request).silence.stale_after_s),
        ),
        recent=rows[:RECENT],
        orders=[present.order_line(row, now) for row in await caller.reader.orders(key_id, RECENT)],
        heartbeat_at=present.made_at(said[0]) if said else None,
        may_order=roles.may(caller.user, roles.Act.DRAFT_ORDER),
    )


@router.get("/hosts/{key_id}/evidence")
async def evidence(request: Request, key_id: str) -> Response:
    """Every record of one host, filtered and page by page."""
    caller = await caller_of(request)
    row = present.host_row(await caller.fleet.host(key_id))
    chosen = {name: request.query_params.get(name, "") for name in FILTERS}
    before = _number(request.query_params.get("before"))
    query = BundleQuery(
        key_id=key_id,
        check=chosen["check"] or None,
        kind=chosen["kind"] or None,
        result=chosen["result"] or None,
        outcome=chosen["outcome"] or None,
        before=before,
        limit=PER_PAGE,
    )
    found = await caller.fleet.evidence_of(query)
    kept = {name: value for name, value in chosen.items() if value}
    path = f"/hosts/{key_id}/evidence"
    return page(
        request,
        "evidence.html",
        user=caller.user.name,
        host=row,
        rows=[present.bundle_row(bundle) for bundle in found.items],
        chosen=chosen,
        filtered=bool(kept),
        check_options=sorted((check.check, check.check) for check in row.checks),
        kind_options=_options(words.KINDS),
        result_options=_options(words.VERDICTS),
        outcome_options=_options(words.OUTCOMES),
        first_href=f"{path}?{urlencode(kept)}" if before is not None else "",
        older_href=f"{path}?{urlencode({**kept, 'before': found.next})}" if found.next is not None else "",
    )


def _options(table: Any) -> list[tuple[str, str]]:
    return [(token, word.label) for token, word in table.items()]


def _number(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        raise HTTPException(400)
    return int(text)


@router.get("/hosts/{key_id}/public-key")
async def public_key(request: Request, key_id: str) -> Response:
    """The host's public key as PEM, for OpenSSL."""
    caller = await caller_of(request)
    found = (await caller.fleet.host(key_id)).host
    return _download(crypto.public_pem(found.public_key).encode(), present.pem_name(found.host_id))


@router.get("/bundles/{bundle_id}")
async def bundle(request: Request, bundle_id: str) -> Response:
    """One record, verified while the page is made."""
    caller = await caller_of(request)
    began = time.perf_counter()
    found = await caller.fleet.bundle(bundle_id, request.query_params.get("key"))
    took_ms = round((time.perf_counter() - began) * 1000)
    row = present.host_row(HostStanding(found.host, silent=False, checks=()))
    panel = None
    if "proof" in request.query_params:  # only when asked: it reads the log's files
        prover = services_of(request).prover(caller.reader)
        held = (found.host, found.bundle, found.body, found.sig, found.previous, found.following)
        panel = proofs.panel(await prover.prove_held(*held))
    shown = present.bundle_page(found, row, took_ms)
    services = services_of(request)
    policy, authority = _witness_lines(services), _authority(services) is not None
    user = caller.user.name
    return page(request, "bundle.html", user=user, page=shown, panel=panel, policy=policy, authority=authority)


@router.get("/bundles/{bundle_id}/{name}")
async def bundle_file(request: Request, bundle_id: str, name: str) -> Response:
    """The record's bytes, or its signature, exactly as received; its entry, receipt and times; whom to trust for them."""
    caller = await caller_of(request)
    found = await caller.fleet.bundle(bundle_id, request.query_params.get("key"))
    content = {"bundle.json": found.body, "bundle.sig": found.sig}.get(name)
    if name in RECEIPT_FILES:
        content = await _of_receipt(services_of(request), found.host, bundle_id, name)
    if name == "times.json":
        prover = services_of(request).prover(caller.reader)
        content = await prover.times(found.host, found.bundle, found.body)
    if name == "authority.pem":
        content = _authority(services_of(request))
    if content is None:
        raise HTTPException(404)
    return _download(content, name)


async def _of_receipt(services: Services, host: Host, bundle_id: str, name: str) -> bytes | None:
    """The entry, the receipt, the verifier key of its log, or the policy of that log; None while there is no receipt."""
    [receipt] = await services.receipts.of(host, [bundle_id])
    if receipt is None or name == "leaf.json":
        return receipt.leaf if receipt else None
    if name == "bundle.tlog-proof":
        return receipt.proof
    origin = Checkpoint.parse(Note.parse(Proof.parse(receipt.proof).checkpoint).text).origin
    key = services.log_keys.verifier(origin)
    return f"{key}\n".encode() if name == "log.vkey" else f"log {key}\n{_witness_lines(services)}".encode()


def _authority(services: Services) -> bytes | None:
    """Certificates of the time-stamping authority, where one is asked."""
    stamps = services.cosigning.stamps if services.cosigning is not None else None
    return stamps.ca_pem if stamps is not None else None


def _witness_lines(services: Services) -> str:
    """The policy of this server's logs without their own line."""
    return services.policy.lines if services.policy is not None else "quorum none\n"


def _download(content: bytes, name: str) -> Response:
    return Response(
        content,
        media_type="application/octet-stream",
        headers={"Content-Disposition": f'attachment; filename="{name}"'},
    )


@router.get("/login")
async def login_page(request: Request) -> Response:
    """The form to sign in with."""
    if await services_of(request).users.of_session(session_of(request)) is not None:
        return RedirectResponse("/", status_code=303)
    return await _login(request, inside(request.query_params.get("next", "")), 200)


async def _login(request: Request, back: str, status_code: int, name: str = "", problem: str = "") -> Response:
    services = services_of(request)
    oidc, end_address = services.oidc, None
    if oidc is not None and "out" in request.query_params:
        end_address = await oidc.end_address(f"{(services.settings.public_url or '').rstrip('/')}/login")
    values = {"next": back, "name": name, "problem": problem, "end_address": end_address}
    provider = urlsplit(oidc.client.issuer).hostname if oidc is not None else None
    return page(request, "login.html", user=None, status_code=status_code, provider=provider, **values)


@router.post("/login")
async def login(request: Request) -> Response:
    """Sign in. Attempts are limited by the users service; a new session always has a new id."""
    form = await form_of(request)
    name, back = form.get("name", ""), inside(form.get("next", ""))
    try:
        users = services_of(request).users
        secret = await users.login(name, form.get("password", ""), form.get("code", ""))
    except Refusal as refusal:
        if refusal.status == 429:
            return await _login(request, back, 429, name, "Too many attempts for this name. Wait a quarter of an hour.")
        return await _login(request, back, 401, name, "Name, password or code is wrong.")
    before = session_of(request)
    if before:
        await users.logout(before)
    response = RedirectResponse(back, status_code=303)
    security.set_cookie(request, response, session_cookie(request), secret)
    return response


@router.post("/logout")
async def logout(request: Request) -> Response:
    """End the session, here and at the server."""
    await form_of(request)
    secret = session_of(request)
    if secret:
        await services_of(request).users.logout(secret)
    response = RedirectResponse("/login?out=1" if services_of(request).oidc is not None else "/login", status_code=303)
    security.drop_cookie(request, response, session_cookie(request))
    return response
