"""The pages of the log, and the public page on which a visitor checks a record's files; built like those of `views`."""

from __future__ import annotations

import re

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from compliance_agent import crypto
from compliance_agent.log.tiles import Tile, written
from compliance_agent.server.api.deps import services_of
from compliance_agent.web import proofs
from compliance_agent.web.caller import caller_of
from compliance_agent.web.routing import PageRoute, page

NEWEST_TILES = 4
NOBODY = "quorum none\n"

router = APIRouter(route_class=PageRoute, include_in_schema=False, default_response_class=Response)


@router.get("/verify")
async def verify(request: Request) -> Response:
    """Checks files that the visitor holds. Public: the page holds no data, and what it computes stays in the browser."""
    return page(request, "verify.html", user=None)


@router.get("/sites/{site_id}/log")
async def site_log(request: Request, site_id: str) -> Response:
    """The log of one site and year: its checkpoint, its keys, its newest entries, and why it stands still."""
    caller = await caller_of(request)
    year, services = request.query_params.get("year"), services_of(request)
    before = _index(request.query_params.get("before"))
    book = services.logbook(caller.reader)
    log = await book.log(site_id, None if year is None else _year(year), before)
    whole = caller.reader.dates is None  # else what this server is doing now is not for this person
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
        older=[proofs.older(item) for item in log.older.heads],
        older_why=proofs.OLDER_WHY.get(log.older.why, ""),
        paged=before is not None,
        anchors=book.anchors,
        unverified_s=round(services.ingest.waiting_s) if whole else None,
        authority=services.cosigning is not None and services.cosigning.stamps is not None,
        hosts={host.key_id: host.host_id for host in await caller.reader.only(site_id).hosts()},
    )


@router.get("/sites/{site_id}/log/{year}/key")
async def log_key(request: Request, site_id: str, year: str) -> Response:
    """The verifier key of one log, as text."""
    caller = await caller_of(request)
    vkey = await services_of(request).logbook(caller.reader).vkey(site_id, _year(year))
    return PlainTextResponse(f"{vkey}\n")


@router.get("/sites/{site_id}/log/{year}/files/{name}")
async def log_file(request: Request, site_id: str, year: str, name: str) -> Response:
    """What an auditor needs beside the log's files: its key for OpenSSL, the policy, and the time-stamping authority."""
    caller, services = await caller_of(request), services_of(request)
    vkey = await services.logbook(caller.reader).vkey(site_id, _year(year))
    stamps = services.cosigning.stamps if services.cosigning is not None else None
    content = {
        "log.pem": crypto.public_pem(services.log_keys.public_bytes).encode(),
        "policy": f"log {vkey}\n{services.policy.lines if services.policy is not None else NOBODY}".encode(),
        "authority.pem": stamps.ca_pem if stamps is not None else None,
    }.get(name)
    if content is None:
        raise HTTPException(404)
    return _file(content, name)


@router.get("/sites/{site_id}/log/{year}/older/{index}")
async def older_checkpoint(request: Request, site_id: str, year: str, index: str) -> Response:
    """The checkpoint that an entry of the log holds, as it was signed."""
    caller, number = await caller_of(request), _index(index)
    book = services_of(request).logbook(caller.reader)
    note = await book.older(site_id, _year(year), number or 0)
    return _file(note, f"checkpoint-at-{number or 0}")


@router.get("/sites/{site_id}/log/{year}/consistency/{size}")
async def consistency(request: Request, site_id: str, year: str, size: str) -> Response:
    """That the newest checkpoint goes on from one of this size: `old <size>`, the path, and the newest checkpoint."""
    caller, old = await caller_of(request), _index(size)
    book = services_of(request).logbook(caller.reader)
    return _file(await book.consistency(site_id, _year(year), old or 0), f"consistency-from-{old or 0}")


def _file(content: bytes, name: str) -> Response:
    return PlainTextResponse(content, headers={"Content-Disposition": f'attachment; filename="{name}"'})


def _index(text: str | None) -> int | None:
    if text is not None and not re.fullmatch(r"[0-9]{1,15}", text, re.ASCII):
        raise HTTPException(404)
    return None if text is None else int(text)


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
