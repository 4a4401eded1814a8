"""The logs as static files (C2SP tlog-tiles), and receipts that are fetched later.

Whoever may not see a site's log, and whatever is not a file of one, gets the same 404: also who sends no credentials at all.
"""

from __future__ import annotations

import asyncio
import base64
import re
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from compliance_agent.entries.minimum import Pruned
from compliance_agent.errors import BadEvidence, NoInput, Refusal
from compliance_agent.log.tiles import ENTRIES, Tile
from compliance_agent.server.api.deps import body_of, host_of, services_of, user_or_none
from compliance_agent.server.api.schemas import LogReceipt, ReceiptsReply, ReceiptsRequest, strict_body
from compliance_agent.server.desks import Services
from compliance_agent.server.services import roles
from compliance_agent.server.services.receipts import Receipt
from compliance_agent.server.services.secrets import API_KEY_PREFIX

router = APIRouter(tags=["log"])
MOST_NOTE_BYTES = 65_536
_FOREVER = "private, max-age=31536000, immutable"
_BINARY: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/octet-stream": {}}, "description": "The file"}
}
_TEXT: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {}}, "description": "The signed note"}}

_JSON: dict[int | str, dict[str, Any]] = {200: {"content": {"application/json": {}}, "description": "The statement"}}


@router.get("/log/{site_id}/{year}/checkpoint", summary="The newest signed checkpoint", responses=_TEXT)
async def checkpoint(request: Request, site_id: str, year: str) -> Response:
    """As it is on disk: it is there before anybody is told of it."""
    number = await _visible(request, site_id, year)
    await services_of(request).sequencer.current(site_id)
    try:
        note = await asyncio.to_thread(services_of(request).log_files.published, site_id, number)
    except NoInput:
        note = None
    if note is None:
        raise _not_found()
    return Response(note, media_type="text/plain; charset=utf-8", headers={"Cache-Control": "no-cache"})


@router.get("/log/{site_id}/{year}/retention.json", summary="Which entries were destroyed, and why", responses=_JSON)
async def retention(request: Request, site_id: str, year: str) -> Response:
    """As it is on disk; there is none while every entry is served."""
    number = await _visible(request, site_id, year)
    said = await _pruned(request, site_id, number)
    if said is None:
        raise _not_found()
    return Response(said.encode(), media_type="application/json", headers={"Cache-Control": "no-cache"})


@router.get("/log/{site_id}/{year}/tile/{path:path}", summary="A tile or an entry bundle", responses=_BINARY)
async def tile(request: Request, site_id: str, year: str, path: str) -> Response:
    """`<L>/<N>[.p/<W>]` or `entries/<N>[.p/<W>]`, exactly; a partial one may be gone once the full one is there."""
    number = await _visible(request, site_id, year)
    try:
        wanted = Tile.parse(f"tile/{path}")
        said = await _pruned(request, site_id, number) if wanted.level == ENTRIES else None
        if said is not None and said.covers(wanted):
            raise Refusal("Gone: destroyed when its time was over, see retention.json", code="pruned", status=410)
        content = await _tile(services_of(request), site_id, number, wanted)
    except (BadEvidence, NoInput) as error:
        raise _not_found() from error
    return Response(content, media_type="application/octet-stream", headers={"Cache-Control": _FOREVER})


@router.post(
    "/log/{site_id}/{year}/cosignature",
    status_code=204,
    summary="A witness that only calls out brings its line",
    openapi_extra={"requestBody": {"required": True, "content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def cosignature(request: Request, site_id: str, year: str) -> Response:
    """The newest checkpoint with the witness's line; that line is all the credentials it needs, and all that is believed."""
    services = services_of(request)
    raw = await request.body()
    if services.cosigning is None or not re.fullmatch(r"[0-9]{4}", year, re.ASCII) or len(raw) > MOST_NOTE_BYTES:
        raise _not_found()
    await services.cosigning.hand_in(site_id, int(year), raw)
    return Response(status_code=204)


@router.post("/api/v1/receipts", openapi_extra=body_of(ReceiptsRequest), summary="Receipts of a host's own bundles")
async def receipts(request: Request) -> ReceiptsReply:
    """In the order asked for; null for what is not published yet, and for what this host never delivered."""
    services = services_of(request)
    caller = await host_of(request, fresh=True)
    body = await strict_body(request, ReceiptsRequest)
    found = await services.receipts.of(caller, body.bundles)
    return ReceiptsReply(receipts=[None if item is None else LogReceipt(**shown(item)) for item in found])


def shown(receipt: Receipt) -> dict[str, str]:
    """A receipt as it stands in a reply."""
    leaf, proof = (base64.b64encode(raw).decode("ascii") for raw in (receipt.leaf, receipt.proof))
    return {"bundle_id": receipt.bundle_id, "leaf": leaf, "proof": proof}


async def _tile(services: Services, site_id: str, year: int, wanted: Tile) -> bytes:
    """A tile as it is here, once everything is that another replica has shown; NoInput when there is none."""
    files = services.log_files
    try:
        return await asyncio.to_thread(files.exactly, site_id, year, wanted)
    except NoInput:
        if services.duties.alone:
            raise
        await services.sequencer.current(site_id)
    try:
        return await asyncio.to_thread(files.exactly, site_id, year, wanted)
    except NoInput:
        return await asyncio.to_thread(files.cut, site_id, year, wanted)


async def _pruned(request: Request, site_id: str, year: int) -> Pruned | None:
    return await asyncio.to_thread(services_of(request).log_files.pruned, site_id, year)


async def _visible(request: Request, site_id: str, year: str) -> int:
    """The year, when the caller may see this site's logs; Refusal 404."""
    if not re.fullmatch(r"[0-9]{4}", year, re.ASCII) or site_id not in await _sites(request):
        raise _not_found()
    return int(year)


async def _sites(request: Request) -> frozenset[str]:
    services, authorization = services_of(request), request.headers.get("authorization", "")
    if authorization.partition(" ")[2].startswith(API_KEY_PREFIX):
        try:
            return frozenset({(await host_of(request, fresh=True)).site_id})
        except Refusal as refusal:
            if refusal.status == 429:
                raise
            return frozenset()
    user = await user_or_none(request)
    if user is None or not roles.may(user, roles.Act.LOOK):
        return frozenset()
    return (await services.users.reader(user)).sites


def _not_found() -> Refusal:
    return Refusal("Not Found", code="not_found", status=404)
