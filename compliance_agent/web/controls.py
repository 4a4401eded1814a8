"""The controls of a site: what the rule asks for, section by section, against hosts and days; the proposed rule as a second view.

GET /sites/{site_id}/controls        a table whose every cell says a number, and leads to its records
GET /sites/{site_id}/controls.csv    the same cells
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from urllib.parse import quote, urlencode

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from compliance_agent.core.citations import SECTIONS, Reach
from compliance_agent.core.proposed_rule import PROPOSED, STATUS
from compliance_agent.server.api.deps import services_of
from compliance_agent.server.records import Dates
from compliance_agent.server.services.controls import Cell, Cube, Machine
from compliance_agent.web import words
from compliance_agent.web.caller import caller_of
from compliance_agent.web.routing import PageRoute, page
from compliance_agent.web.table_files import csv_file

router = APIRouter(route_class=PageRoute, include_in_schema=False, default_response_class=Response)
HEAD = (
    "site", "rule", "section", "title", "force", "evidence_of_hosts", "checks", "from", "to", "host", "passing", "judged",
    "pass", "fail", "unknown", "no_record", "not_looked_at", "exception", "not_applicable", "fail_under_exception",
)  # fmt: skip
COUNTED = ("pass", "fail", "unknown", "none", "unlooked", "exception", "not_applicable")


@dataclass(frozen=True)
class Claim:
    """One thing that a rule asks for.

    Attributes:
        key: its citation, or its number in the proposal.
        force: required or addressable; empty in the proposal.
        reach: how far a host's own state is evidence for it.
        checks: that look at it.
        shows, missing: what that proves, and what it does not, as (check, sentence) and sentences.
    """

    key: str
    title: str
    force: str
    reach: str
    checks: tuple[str, ...]
    shows: str = ""
    missing: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Column:
    """A day over hosts, or a host over days."""

    label: str
    title: str
    first: date
    last: date
    host: str = ""


@dataclass(frozen=True)
class Line:
    """One claim with its cells, each with the address of its records."""

    claim: Claim
    cells: tuple[tuple[Cell, str], ...]


@dataclass(frozen=True)
class Asked:
    """What of it is to be shown."""

    cube: Cube
    span: Dates
    rule: str
    by: str
    host: str

    @property
    def machines(self) -> list[Machine]:
        """All, or the one that was asked for."""
        return [one for one in self.cube.machines if self.host in {"", one.host.key_id}]

    @property
    def columns(self) -> list[Column]:
        """Days, or hosts."""
        if self.by == "host":
            span = (self.span.first, self.span.last)
            return [Column(one.host.host_id, one.host.key_id[:16], *span, one.host.key_id) for one in self.machines]
        return [Column(f"{day:%d %b}", day.isoformat(), day, day, self.host) for day in self.cube.days]

    def lines(self, claims: Sequence[Claim]) -> list[Line]:
        """The claims that some check looks at, with their cells."""
        count, machines = self.cube.by_host if self.by == "host" else self.cube.by_day, self.machines
        places = [self._place(column) for column in self.columns]
        return [
            Line(
                claim,
                tuple(
                    (cell, f"/evidence?{self._what(claim)}&{place}")
                    for cell, place in zip(count(claim.checks, machines), places, strict=True)
                ),
            )
            for claim in claims
            if claim.checks
        ]

    def _what(self, claim: Claim) -> str:
        return urlencode({"citation" if self.rule == "force" else "proposed": claim.key})

    def _place(self, column: Column) -> str:
        """Where the records of a column are."""
        host = {"key": column.host} if column.host else {}
        days = {"from": column.first.isoformat(), "to": column.last.isoformat()}
        return urlencode({"site": self.cube.site.site_id, **host, **days})


def in_force() -> list[Claim]:
    """The Security Rule as it stands."""
    checks = words.registry()
    return [
        Claim(
            section,
            known.title,
            known.force.value,
            known.reach.value,
            looking := tuple(sorted(name for name, check in checks.items() if section in check["citations"])),
            missing=tuple((name, checks[name]["does_not_prove"][section]) for name in looking),
        )
        for section, known in SECTIONS.items()
    ]


def proposed() -> list[Claim]:
    """The rule that was proposed in 2025."""
    return [
        Claim(
            str(number),
            item.requirement,
            "",
            (Reach.PARTIAL if item.checks else Reach.NONE).value,
            item.checks,
            item.shows,
            (("", item.missing),),
        )
        for number, item in enumerate(PROPOSED, start=1)
    ]


def checks_of(citation: str = "", proposal: str = "") -> tuple[str, ...] | None:
    """The checks that look at a section, or at a line of the proposal; None when nothing was asked for, or it does not exist."""
    claims, key = (in_force(), citation) if citation else (proposed(), proposal)
    return next((claim.checks for claim in claims if claim.key == key), None)


@router.get("/sites/{site_id}/controls")
async def controls(request: Request, site_id: str) -> Response:
    """Sections of the rule against days, or against hosts, of one site."""
    asked, user = await _asked(request, site_id)
    claims = in_force() if asked.rule == "force" else proposed()
    lines = asked.lines(claims)
    chosen = {
        "rule": asked.rule,
        "by": asked.by,
        "host": asked.host,
        "from": asked.span.first.isoformat(),
        "to": asked.span.last.isoformat(),
    }
    return page(
        request,
        "controls.html",
        user=user,
        site_id=site_id,
        status=STATUS,
        chosen=chosen,
        machines=asked.cube.machines,
        columns=asked.columns,
        groups=[(reach, [line for line in lines if line.claim.reach == reach]) for reach in Reach],
        unlooked=[claim for claim in claims if not claim.checks and claim.reach != Reach.NONE],
        beyond=[claim for claim in claims if claim.reach == Reach.NONE],
        export=f"/sites/{quote(site_id, safe='')}/controls.csv?{urlencode(chosen)}",
    )


@router.get("/sites/{site_id}/controls.csv")
async def exported(request: Request, site_id: str) -> Response:
    """The cells of that page."""
    asked, _ = await _asked(request, site_id)
    columns, rows = asked.columns, list[Sequence[object]]()
    for line in asked.lines(in_force() if asked.rule == "force" else proposed()):
        claim = line.claim
        said = (claim.key, claim.title, claim.force, claim.reach, " ".join(claim.checks))
        for column, (cell, _) in zip(columns, line.cells, strict=True):
            host = column.label if asked.by == "host" else asked.host
            counts = (cell.counts.get(word, 0) for word in COUNTED)
            rule = "in force" if asked.rule == "force" else "proposed"
            rows.append(
                (
                    site_id,
                    rule,
                    *said,
                    column.first,
                    column.last,
                    host,
                    cell.passed,
                    cell.judged,
                    *counts,
                    cell.excepted,
                )
            )
    return csv_file(f"controls-{site_id}-{asked.span.first}-{asked.span.last}.csv", HEAD, rows)


async def _asked(request: Request, site_id: str) -> tuple[Asked, str]:
    caller, query = await caller_of(request), request.query_params
    desk = services_of(request).controls(caller.reader)
    span = desk.span(day_of(query.get("from")), day_of(query.get("to")))
    cube = await desk.cube(site_id, span)
    host = query.get("host", "")
    if host and host not in {one.host.key_id for one in cube.machines}:
        raise HTTPException(404)
    by = "host" if query.get("by") == "host" else "day"
    rule = "proposed" if query.get("rule") == "proposed" else "force"
    return Asked(cube, span, rule, by, host), caller.user.name


def day_of(text: str | None) -> date | None:
    """A day as forms give it; 400 for anything else."""
    if not text:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise HTTPException(400) from None
