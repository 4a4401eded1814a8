"""The pages of the log, and the public page on which a visitor checks a record's files; built like those of `views`."""

from __future__ import annotations

import re

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from compliance_agent.log.tiles import Tile, written
from compliance_agent.server.api.deps import services_of
from compliance_agent.web import proofs
from compliance_agent.web.caller import caller_of
from compliance_agent.web.routing import PageRoute, page

NEWEST_TILES = 4

router = APIRouter(route_class=PageRoute, include_in_schema=False, default_response_class=Response)


@router.get("/verify")
async def verify(request: Request) -> Response:
    """Checks files that the visitor holds. Public: the page holds no data, and what it computes stays in the browser."""
    return page(request, "verify.html", user=None)


@router.get("/sites/{site_id}/log")
async def site_log(request: Request, site_id: str) -> Response:
    """The log of one site and year: its checkpoint, its keys, its newest entries, and why it stands still."""
    caller = await caller_of(request)
    year = request.query_params.get("year")
    book = services_of(request).logbook(caller.reader)
    log = await book.log(site_id, None if year is None else _year(year))
    return page(
        request,
        "log.html",
        user=caller.user.name,
        log=log,
        still=proofs.still(log),
        lines=[proofs.line(item) for item in log.lines],
        witnesses=[proofs.witness(item) for item in log.witnesses],
        entries=[proofs.entry(item) for item in log.entries],
        note=(log.note or b"").decode("utf-8", "replace"),
        tiles=_newest_tiles(log.checkpoint.size if log.checkpoint else 0),
        hosts={host.key_id: host.host_id for host in await caller.reader.only(site_id).hosts()},
    )


@router.get("/sites/{site_id}/log/{year}/key")
async def log_key(request: Request, site_id: str, year: str) -> Response:
    """The verifier key of one log, as text."""
    caller = await caller_of(request)
    vkey = await services_of(request).logbook(caller.reader).vkey(site_id, _year(year))
    return PlainTextResponse(f"{vkey}\n")


def _year(text: str) -> int:
    if not re.fullmatch(r"[0-9]{4}", text, re.ASCII):
        raise HTTPException(404)
    return int(text)


def _newest_tiles(size: int) -> list[str]:
    """The last file of each level, as they are served at this size."""
    last: dict[int, Tile] = {}
    for tile in written(max(size - 1, 0), size):
        last[tile.level] = tile
    return [last[level].path for level in sorted(last)][:NEWEST_TILES]
