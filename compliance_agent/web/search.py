"""Evidence of every site one may see: found by host, check, section of the rule, verdict, outcome, day and id.

    GET /evidence?site=&host=&check=&citation=&kind=&result=&outcome=&from=&to=&id=&before=

Newest arrival first, a page at a time; `before` is the arrival number that the page goes on from, so nothing is shown twice or left
out however much arrives meanwhile. `key` names one host by its key; `host` all with a label.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date
from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from compliance_agent.core.citations import SECTIONS, Reach
from compliance_agent.server.records import BundleQuery, Dates, Host
from compliance_agent.web import present, words
from compliance_agent.web.caller import caller_of
from compliance_agent.web.controls import checks_of, day_of
from compliance_agent.web.pages import BundleRow
from compliance_agent.web.routing import PageRoute, page

router = APIRouter(route_class=PageRoute, include_in_schema=False, default_response_class=Response)
PER_PAGE = 50
FIELDS = ("site", "host", "key", "check", "citation", "proposed", "kind", "result", "outcome", "from", "to", "id")
_ID = re.compile(r"[0-9A-Fa-f-]{1,64}", re.ASCII)


@dataclass(frozen=True)
class Found:
    """One record and whose it is."""

    row: BundleRow
    host: Host


@router.get("/evidence")
async def evidence(request: Request) -> Response:
    """A form, and what matches it."""
    caller = await caller_of(request)
    chosen = {name: request.query_params.get(name, "").strip() for name in FIELDS}
    before = _number(request.query_params.get("before"))
    sites = sorted(site.site_id for site in await caller.reader.site_rows())
    reader = caller.reader.only(chosen["site"]) if chosen["site"] else caller.reader
    query = _query(chosen, before)
    items = await reader.bundles(query) if query is not None else []
    shown = items[:PER_PAGE]
    hosts = await reader.hosts_of({item.key_id for item in shown}) if shown else {}
    kept = {name: value for name, value in chosen.items() if value}
    more = {"before": str(shown[-1].number)} if len(items) > PER_PAGE else {}
    return page(
        request,
        "search.html",
        user=caller.user.name,
        found=[Found(present.bundle_row(item), hosts[item.key_id]) for item in shown if item.key_id in hosts],
        chosen=chosen,
        filtered=bool(kept),
        options=_choices(sites),
        first_href=f"/evidence?{urlencode(kept)}" if before is not None else "",
        older_href=f"/evidence?{urlencode({**kept, **more})}" if more else "",
    )


def _query(chosen: dict[str, str], before: int | None) -> BundleQuery | None:
    """What to ask for; None where nothing can match."""
    checks = None
    if chosen["citation"] or chosen["proposed"]:
        checks = checks_of(chosen["citation"], chosen["proposed"])
        if not checks or (chosen["check"] and chosen["check"] not in checks):
            return None
    if chosen["id"] and not _ID.fullmatch(chosen["id"]):
        return None
    return BundleQuery(
        key_id=chosen["key"] or None,
        label=chosen["host"] or None,
        bundle_id=chosen["id"].lower() or None,
        check=chosen["check"] or None,
        checks=None if chosen["check"] else checks,
        kind=chosen["kind"] or None,
        result=chosen["result"] or None,
        outcome=chosen["outcome"] or None,
        days=_days(day_of(chosen["from"]), day_of(chosen["to"])),
        before=before,
        limit=PER_PAGE + 1,
    )


def _days(first: date | None, last: date | None) -> Dates | None:
    if first is None and last is None:
        return None
    return Dates(first or date.min, last or date(9998, 12, 31))


def _choices(sites: list[str]) -> dict[str, list[tuple[str, str]]]:
    named = [(section, f"{section} {known.title}") for section, known in SECTIONS.items() if known.reach != Reach.NONE]
    return {
        "site": [(site, site) for site in sites],
        "check": [(check, check) for check in sorted(words.registry())],
        "citation": named,
        "kind": _options(words.KINDS),
        "result": _options(words.VERDICTS),
        "outcome": _options(words.OUTCOMES),
    }


def _options(table: Any) -> list[tuple[str, str]]:
    return [(token, word.label) for token, word in table.items()]


def _number(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        raise HTTPException(400)
    return int(text)
