"""Samples and packets of them for people and their scripts: draw, draw again, have a packet built of exactly that, take it.

What is drawn follows from the seed and the log alone (packet/sample.py), so whoever asks the same later gets the same. Drawing by
POST is an act in the site's log; so is each packet that is asked for, built, taken or removed.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from datetime import date
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from compliance_agent.errors import ConfigError, Refusal
from compliance_agent.packet.sample import MOST, USUAL, Asked, Sample
from compliance_agent.packet.sampled import Drawing
from compliance_agent.server.api.deps import allowed, body_of, by_token, services_of
from compliance_agent.server.api.schemas import PacketFile, PacketListed, PacketOut, SampleSent, strict_body
from compliance_agent.server.packet_runner import PIECE, file_of
from compliance_agent.server.records import Dates, SiteReader, User
from compliance_agent.server.records.packets import PacketJob
from compliance_agent.server.services import roles, sampling
from compliance_agent.server.services.packets import FILES, day_or

router = APIRouter(prefix="/api/v1/sites/{site_id}", tags=["samples"])
packets = APIRouter(prefix="/api/v1/packets", tags=["samples"])
TYPES = {"packet.zip": "application/zip", "report.pdf": "application/pdf"}
Looker = Annotated[User, Depends(allowed(roles.Act.LOOK))]
Asker = Annotated[User, Depends(by_token(roles.Act.LOOK))]
Text = Annotated[str | None, Query(max_length=40)]
Labels = Annotated[list[str], Query(max_length=100)]
Day = Annotated[str, Query(pattern=r"^\d{4}-\d\d-\d\d$")]
Filter = Annotated[str | None, Query(max_length=64, pattern=r"^[A-Za-z0-9._-]+$")]
Size = Annotated[int | None, Query(ge=1, le=2**53)]


@router.get("/sample", summary="Draw a sample, or the same one again")
async def sample(
    request: Request,
    user: Looker,
    site_id: str,
    first: Day,
    last: Day,
    seed: Annotated[str, Query(pattern=r"^[A-Za-z0-9._-]{1,64}$")],
    control: Text = None,
    host: Labels = [],  # noqa: B006  FastAPI copies it
    number: Annotated[int, Query(ge=1, le=MOST)] = USUAL,
    size: Size = None,
) -> dict[str, Any]:
    """As `packet sample --json` draws it from a packet; with the size of then, as it was drawn then."""
    services = services_of(request)
    reader = await services.users.reader(user)
    drawing = Drawing(tuple(host), number, seed, size)
    asked = _asked(reader, site_id, control, first, last, drawing)
    return (await services.sampling(reader).sample(asked, size)).as_document()


@router.post(
    "/samples", status_code=201, openapi_extra=body_of(SampleSent), summary="Draw a sample, and have that noted"
)
async def draw(request: Request, user: Asker, site_id: str) -> dict[str, Any]:
    """The same document; `act` is the digest that the entry of the site's log about it names."""
    found, _ = await _drawn(request, user, site_id)
    return {**found.as_document(), "act": sampling.subject_of(found)}


@router.post(
    "/samples/packet",
    status_code=202,
    openapi_extra=body_of(SampleSent),
    summary="Draw a sample, and have its packet built",
)
async def build(request: Request, user: Asker, site_id: str) -> PacketOut:
    """A packet of exactly the records of the sample, with their proofs: `GET /api/v1/packets/{job_id}` says how far it is."""
    found, reader = await _drawn(request, user, site_id)
    asked, log = found.asked, found.log
    drawing = Drawing(asked.hosts, asked.number or MOST, asked.seed, log.size)
    days = Dates(asked.days[0], asked.days[-1])
    return out(await services_of(request).packets.ask(user, reader, site_id, days, asked.control, None, drawing))


@packets.get("", summary="Packets, the newest first")
async def listed(request: Request, user: Looker, site: Filter = None) -> list[PacketListed]:
    """Those that the caller asked for; for an owner those of everybody at these sites, whose files stay with who asked."""
    services = services_of(request)
    found = await services.packets.listed(user, await services.users.reader(user), site)
    return [PacketListed(**dict(out(job)), asked_by=name) for job, name in found]


@packets.get("/{job_id}", summary="How far a packet is")
async def packet(request: Request, user: Looker, job_id: str) -> PacketOut:
    """For who asked for it."""
    services = services_of(request)
    return out(await services.packets.job(user, await services.users.reader(user), job_id))


@packets.post("/{job_id}/remove", summary="Stop a packet, or remove its files")
async def remove(request: Request, user: Asker, job_id: str) -> PacketOut:
    """For who asked for it."""
    services = services_of(request)
    return out(await services.packets.remove(user, await services.users.reader(user), job_id))


@packets.get(
    "/{job_id}/files/{name}",
    summary="A file of a packet that is done",
    response_class=Response,
    responses={200: {"content": {kind: {} for kind in TYPES.values()}, "description": "The bytes"}},
)
async def file(request: Request, user: Looker, job_id: str, name: str) -> Response:
    """`packet.zip` or `report.pdf`; that it was taken is noted first."""
    return await file_response(request, user, await services_of(request).users.reader(user), job_id, name)


async def _drawn(request: Request, user: User, site_id: str) -> tuple[Sample, SiteReader]:
    services, body = services_of(request), await strict_body(request, SampleSent)
    reader = await services.users.reader(user)
    drawing = Drawing(tuple(body.hosts), body.number, body.seed or secrets.token_hex(8), body.size)
    asked = _asked(reader, site_id, body.control, body.first, body.last, drawing)
    desk = services.sampling(reader)
    return await sampling.drawn(services.store, services.clock, user, desk, asked, body.size), reader


def _asked(reader: SiteReader, site_id: str, control: str | None, first: str, last: str, drawing: Drawing) -> Asked:
    if site_id not in reader.sites:
        raise Refusal("no such site", code="not_found", status=404)
    days = day_or(first, date.min), day_or(last, date.min)
    if (days[1] - days[0]).days > 400:
        raise Refusal("days: too many", code="bad_sample", status=422)
    try:
        return drawing.asked(site_id, control, *days)
    except ConfigError as error:
        raise Refusal(str(error), code=error.code, status=422) from error


def out(job: PacketJob) -> PacketOut:
    """A packet, for JSON."""
    files = ((FILES[0], job.size, job.sha256), (FILES[1], job.report_size, job.report_sha256))
    return PacketOut(
        **{
            name: getattr(job, name)
            for name in PacketOut.model_fields
            if name not in {"first", "last", "sample", "files"}
        },
        first=job.days.first,
        last=job.days.last,
        sample=json.loads(job.sample) if job.sample is not None else None,
        files=[
            PacketFile(name=name, size=size, sha256=sha256)
            for name, size, sha256 in files
            if job.state == "done" and size
        ],
    )


async def file_response(request: Request, user: User, reader: SiteReader, job_id: str, name: str) -> Response:
    """A file of a packet, once it is noted that it was taken.

    Raises:
        Refusal: 404 there is no such packet for this person, or it has no such file.
    """
    services = services_of(request)
    job = await services.packets.job(user, reader, job_id)
    size = {FILES[0]: job.size, FILES[1]: job.report_size}.get(name, 0)
    here = file_of(services.settings, job, name) if job.state == "done" and size else None
    if job.state != "done" or not size or (here is None and await reader.packet_part(job_id, name, 0) is None):
        raise Refusal("no such file", code="not_found", status=404)
    await services.packets.taken(user, job, name)
    pieces = _from_file(here) if here is not None else _from_rows(reader, job_id, name)
    days = f"{job.days.first}-{job.days.last}" + ("-sample" if job.sample is not None else "")
    headers = {
        "Content-Disposition": f'attachment; filename="{job.site_id}-{days}-{name}"',
        "Content-Length": str(size),
    }
    return StreamingResponse(pieces, media_type=TYPES[name], headers=headers)


async def _from_file(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as opened:
        while piece := await asyncio.to_thread(opened.read, PIECE):
            yield piece


async def _from_rows(reader: SiteReader, job_id: str, name: str) -> AsyncIterator[bytes]:
    number = 0
    while (piece := await reader.packet_part(job_id, name, number)) is not None:
        yield piece
        number += 1
