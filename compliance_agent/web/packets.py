"""Packets in the viewer: ask for one, see how far it is, take it with its report, remove it.

GET  /sites/{site_id}/packets       what one has asked for, and the form
POST /sites/{site_id}/packets       ask
GET  /packets/{job_id}              how far it is; keeps itself fresh, without scripts too
POST /packets/{job_id}/remove       stop it, or remove its files
GET  /packets/{job_id}/{name}       packet.zip or report.pdf
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from urllib.parse import quote

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from compliance_agent.core.citations import SECTIONS, Reach
from compliance_agent.errors import Refusal
from compliance_agent.packet.sampled import Drawing
from compliance_agent.server.api.deps import services_of
from compliance_agent.server.api.samples import file_response
from compliance_agent.server.records import Dates
from compliance_agent.server.records.packets import PacketJob
from compliance_agent.server.services.packets import FILES, KEPT, MOST_DAYS, day_or
from compliance_agent.web.caller import caller_of, now_of
from compliance_agent.web.forms import form_of
from compliance_agent.web.routing import PageRoute, page

router = APIRouter(route_class=PageRoute, include_in_schema=False, default_response_class=Response)
# What is done at a stage, and from which to which part of the whole it leads; about, as it was seen with 75,000 records.
STAGES: Mapping[str, tuple[str, int, int]] = {
    "waiting": ("Waits for its turn", 0, 0),
    "reading": ("Reads the records and the log", 0, 25),
    "writing": ("Writes the records with their proofs", 25, 60),
    "telling": ("Writes the exports", 60, 65),
    "checking": ("Verifies all of it, as an auditor would", 65, 90),
    "printing": ("Prints the report", 90, 97),
    "copying": ("Puts it where every replica finds it", 97, 100),
}
FAILED: Mapping[str, str] = {
    "worker_died": "It ended before it was done, more than once or without a word. Ask again; a shorter period needs less.",
    "no_room": "The server's disk has no room for it beside the evidence, which comes first.",
    "no_input": "There is no evidence of these days in the log of that year.",
    "pruned": "The records of these days were destroyed when their time was over.",
    "bad_tile": "The log as it is served does not hold together. That is for whoever runs the server.",
}
REFUSED: Mapping[str, str] = {
    "bad_period": f"The days are none, or not in order, or more than {MOST_DAYS}.",
    "outside_dates": "Not all of these days are days that you may see.",
    "unknown_control": "There is no such section of the rule here.",
    "too_many_packets": "There are as many as there may be at a time. Wait for one, or remove one that you have.",
    "not_found": "There is no such host at this site.",
    "bad_sample": "It does not say how the sample is drawn; draw it again first.",
}
STATES: Mapping[str, tuple[str, str, str]] = {  # tone, icon, word
    "waiting": ("none", "none", "Waits"),
    "running": ("none", "none", "Being built"),
    "done": ("pass", "pass", "Ready"),
    "failed": ("fail", "fail", "Failed"),
    "cancelled": ("none", "none", "Stopped"),
    "gone": ("none", "none", "Removed"),
}


@dataclass(frozen=True)
class PacketRow:
    """A packet, worded. `percent` is of the whole; `files` are (name, bytes, SHA-256)."""

    job: PacketJob
    tone: str
    icon: str
    word: str
    stage: str
    percent: int
    sentence: str
    files: tuple[tuple[str, int, str], ...]


def row_of(job: PacketJob) -> PacketRow:
    """One packet for a page."""
    stage, start, stop = STAGES.get(job.stage or "waiting", STAGES["reading"])
    part = min(1.0, job.at / job.total) if job.total else 0.0
    percent = 100 if job.state == "done" else int(start + part * (stop - start))
    files = ((FILES[0], job.size, job.sha256), (FILES[1], job.report_size, job.report_sha256))
    sentence = FAILED.get(job.code, FAILED["worker_died"]) if job.state == "failed" else ""
    if job.total and job.open:
        stage = f"{stage}: {job.at:,} of {job.total:,}"
    return PacketRow(job, *STATES[job.state], stage, percent, sentence, tuple(one for one in files if one[1]))


@router.get("/sites/{site_id}/packets")
async def packets(request: Request, site_id: str) -> Response:
    """What one has asked for of a site."""
    return await _list(request, site_id)


async def _list(
    request: Request, site_id: str, problem: str = "", chosen: Mapping[str, str] | None = None, status: int = 200
) -> Response:
    caller = await caller_of(request)
    jobs = await services_of(request).packets.jobs(caller.user, caller.reader, site_id)
    month = _month(request, caller.reader.dates)
    given = {"from": month.first.isoformat(), "to": month.last.isoformat(), "control": "", "host": "", **(chosen or {})}
    hosts = sorted({host.host_id for host in await caller.reader.only(site_id).hosts()})
    controls = [(name, known.title) for name, known in SECTIONS.items() if known.reach != Reach.NONE]
    return page(
        request, "packets.html", user=caller.user.name, status_code=status, site_id=site_id, rows=list(map(row_of, jobs)),
        chosen=given, hosts=hosts, controls=controls, problem=problem, dates=caller.reader.dates, kept_h=KEPT // timedelta(hours=1),
    )  # fmt: skip


def _month(request: Request, dates: Dates | None) -> Dates:
    """The last thirty days that one may see."""
    today = now_of(request).date()
    last = today if dates is None else min(today, dates.last)
    first = last - timedelta(days=29)
    return Dates(first if dates is None else min(max(first, dates.first), last), last)


@router.post("/sites/{site_id}/packets")
async def ask(request: Request, site_id: str) -> Response:
    """Ask for one; the page that says how far it is follows."""
    caller = await caller_of(request)
    form = await form_of(request)
    month = _month(request, caller.reader.dates)
    try:
        days = Dates(day_or(form.get("from", ""), month.first), day_or(form.get("to", ""), month.last))
        control, host = form.get("control") or None, form.get("host") or None
        drawing = _drawing(form, host) if form.get("seed") else None
        if drawing is not None:
            host = None  # it is drawn from that host, and the packet names every host of the site
        job = await services_of(request).packets.ask(caller.user, caller.reader, site_id, days, control, host, drawing)
    except Refusal as refusal:
        if site_id not in caller.reader.sites or refusal.code not in REFUSED:
            raise
        chosen = {name: form.get(name, "")[:64] for name in ("from", "to", "control", "host")}
        return await _list(request, site_id, REFUSED[refusal.code], chosen, refusal.status)
    return RedirectResponse(f"/packets/{job.job_id}", status_code=303)


def _drawing(form: Mapping[str, str], host: str | None) -> Drawing:
    """How a sample is drawn, as the page of the sample says it."""
    numbers = [form.get(name, "") for name in ("number", "size")]
    if not all(re.fullmatch(r"[0-9]{1,15}", text, re.ASCII) for text in numbers):
        raise Refusal("sample: expected its number and the size of the log", code="bad_sample", status=422)
    return Drawing((host,) if host else (), int(numbers[0]), form["seed"], int(numbers[1]))


@router.get("/packets/{job_id}")
async def packet(request: Request, job_id: str) -> Response:
    """How far it is, and what came of it."""
    caller = await caller_of(request)
    job = await services_of(request).packets.job(caller.user, caller.reader, job_id)
    kept_until = job.ended_at + KEPT if job.state == "done" and job.ended_at else None
    return page(request, "packet.html", user=caller.user.name, row=row_of(job), job=job, kept_until=kept_until,
                drawing=Drawing.parse(job.sample) if job.sample else None)  # fmt: skip


@router.post("/packets/{job_id}/remove")
async def remove(request: Request, job_id: str) -> Response:
    """Stop it, or remove its files."""
    caller = await caller_of(request)
    await form_of(request)
    job = await services_of(request).packets.remove(caller.user, caller.reader, job_id)
    return RedirectResponse(f"/sites/{quote(job.site_id, safe='')}/packets", status_code=303)


@router.get("/packets/{job_id}/{name}")
async def file(request: Request, job_id: str, name: str) -> Response:
    """One of its files; that it was taken is noted first."""
    caller = await caller_of(request)
    return await file_response(request, caller.user, caller.reader, job_id, name)
