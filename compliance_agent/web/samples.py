"""A sample in the viewer: a section of the rule, hosts and days, and what is drawn from them (packet/sample.py).

GET /sites/{site_id}/sample        the form, and once a seed stands in the address, the sample with links to each record
GET /sites/{site_id}/sample.csv    the same as a table

The address holds all that it takes to draw the same again: section, host, days, number, seed, and the size of the log.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from compliance_agent.core.citations import SECTIONS, Reach
from compliance_agent.errors import ConfigError, Refusal
from compliance_agent.packet.sample import MOST, NAME, USUAL, Asked, Sample, span_of
from compliance_agent.server.api.deps import services_of
from compliance_agent.server.services.sampling import month_before
from compliance_agent.web.caller import Caller, caller_of, now_of
from compliance_agent.web.controls import day_of
from compliance_agent.web.routing import PageRoute, page
from compliance_agent.web.table_files import csv_file

router = APIRouter(route_class=PageRoute, include_in_schema=False, default_response_class=Response)
FIELDS = ("control", "host", "from", "to", "number", "seed", "size")
HEAD = (
    "site", "section", "log_origin", "log_size", "log_root", "method", "seed", "population", "population_sha256", "sample_sha256",
    "drawn", "host", "date", "state", "records", "pass", "fail", "unknown", "not_applicable", "exception", "record_id", "kind",
    "sha256", "log_index", "recorded_at", "path_in_a_packet",
)  # fmt: skip
REFUSED: Mapping[str, str] = {
    "outside_dates": "Not all of these days are days that you may see.",
    "unknown_control": "There is no such section of the rule here.",
    "unknown_host": "There is no such host at this site on these days.",
    "no_log": "Nothing of that year is in a log yet.",
    "log_unusable": "The log as it is served does not verify. Nothing is drawn from it; that is for whoever runs the server.",
    "bad_sample": "The days are none, not in order or more than 366, the number is not 1 to 100, the log has no such size, "
    "or the seed holds other than letters, digits, dots, dashes and underscores.",
}


@router.get("/sites/{site_id}/sample")
async def sample(request: Request, site_id: str) -> Response:
    """The form, and the sample."""
    caller = await caller_of(request)
    chosen = _chosen(request, caller, site_id)
    drawn: Sample | None = None
    problem, status = "", 200
    if request.query_params.get("seed"):
        try:
            drawn = await _drawn(request, caller, site_id, chosen)
        except Refusal as refusal:
            if refusal.code not in REFUSED:
                raise
            problem, status = REFUSED[refusal.code], refusal.status
    if drawn is not None:
        chosen["size"] = str(drawn.log.size)
    address = f"/sites/{quote(site_id, safe='')}/sample"
    return page(
        request,
        "sample.html",
        user=caller.user.name,
        status_code=status,
        site_id=site_id,
        chosen=chosen,
        problem=problem,
        drawn=drawn,
        said=drawn.as_document() if drawn else None,
        method=NAME,
        most=MOST,
        dates=caller.reader.dates,
        hosts=sorted({host.host_id for host in await caller.reader.only(site_id).hosts()}),
        controls=[(name, known.title) for name, known in SECTIONS.items() if known.reach != Reach.NONE],
        again=f"{address}?{urlencode(chosen)}",
        export=f"{address}.csv?{urlencode(chosen)}",
    )


@router.get("/sites/{site_id}/sample.csv")
async def exported(request: Request, site_id: str) -> Response:
    """The sample as a table, a line for each instance; those without a record too."""
    caller = await caller_of(request)
    drawn = await _drawn(request, caller, site_id, _chosen(request, caller, site_id))
    said, rows = drawn.as_document(), list[tuple[object, ...]]()
    log, among = said["log"], said["population"]
    for at, one in enumerate(drawn.pulled, start=1):
        what, shown = (one.instance.host, one.instance.day), one.shown
        counts = (one.counts[word] for word in ("pass", "fail", "unknown", "not_applicable", "exception"))
        record: tuple[object, ...] = ("",) * 6
        if shown is not None:
            record = (shown.bundle_id, shown.kind, shown.sha256, shown.index, shown.created_at, shown.directory)
        rows.append(
            (site_id, said["control"] or "all", log["origin"], log["size"], log["root"], said["method"], said["seed"],
             among["instances"], among["sha256"], said["sample"]["sha256"], at, *what,
             "recorded" if shown else "no record on that date", len(one.items), *counts, *record)
        )  # fmt: skip
    return csv_file(f"sample-{site_id}-{said['days'][0]}-{said['days'][-1]}-{said['seed']}.csv", HEAD, rows)


def _chosen(request: Request, caller: Caller, site_id: str) -> dict[str, str]:
    """What was asked for, with the usual where nothing was."""
    if site_id not in caller.reader.sites:
        raise HTTPException(404)
    month = month_before(now_of(request).date(), caller.reader.dates)
    usual = {
        "from": month.first.isoformat(),
        "to": month.last.isoformat(),
        "number": str(USUAL),
        "seed": secrets.token_hex(8),
    }
    asked = {name: request.query_params.get(name, "").strip()[:64] for name in FIELDS}
    return {name: asked[name] or usual.get(name, "") for name in FIELDS}


async def _drawn(request: Request, caller: Caller, site_id: str, chosen: Mapping[str, str]) -> Sample:
    first, last = day_of(chosen["from"]), day_of(chosen["to"])
    if first is None or last is None:
        raise HTTPException(400)
    values: dict[str, Any] = {
        "control": chosen["control"] or None,
        "hosts": (chosen["host"],) if chosen["host"] else (),
    }
    try:
        if (last - first).days > 400:
            raise ConfigError("days: too many", code="bad_sample")
        asked = Asked(
            site_id, days=span_of(first, last), number=_number(chosen["number"]), seed=chosen["seed"], **values
        )
    except ConfigError as error:
        raise Refusal(str(error), code=error.code, status=422) from error
    size = _number(chosen["size"]) if chosen["size"] else None
    return await services_of(request).sampling(caller.reader).sample(asked, size)


def _number(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,15}", text, re.ASCII):
        raise HTTPException(400)
    return int(text)
