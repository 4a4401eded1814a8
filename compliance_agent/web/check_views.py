"""One check of one host: how it stands and stood, why it did or did not fix, the plan, what the last cure did, and the records."""

from __future__ import annotations

from datetime import timedelta

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from compliance_agent.core.accepted import MEASURES, REASONS
from compliance_agent.server.api.deps import services_of
from compliance_agent.server.records import BundleQuery
from compliance_agent.server.services import roles
from compliance_agent.server.services.exceptions import digest
from compliance_agent.server.services.fleet import document_of
from compliance_agent.server.services.planning import proposal_of
from compliance_agent.web import beats, exceptions, plans, present, timeline, words
from compliance_agent.web.caller import caller_of, now_of
from compliance_agent.web.routing import PageRoute, page

RECORDS = 50
SHOWN = 10

router = APIRouter(route_class=PageRoute, include_in_schema=False, default_response_class=Response)


@router.get("/hosts/{key_id}/checks/{check}")
async def check(request: Request, key_id: str, check: str) -> Response:
    """One check of one host."""
    caller = await caller_of(request)
    now = now_of(request)
    standing = await caller.fleet.host(key_id)
    item = next((item for item in standing.checks if item.check == check), None)
    if item is None:
        raise HTTPException(404)
    host, row = present.host_row(standing), present.check_row(item)
    found = await caller.fleet.evidence_of(BundleQuery(key_id=key_id, check=check, limit=RECORDS))
    rows = [present.bundle_row(bundle) for bundle in found.items]
    newest = await caller.fleet.newest(standing.host, ("heartbeat",), RECORDS * 4)
    beat = beats.beat_of(newest, timeline.start_of(rows, now))
    bodies = await caller.fleet.bodies([one for one in (beat, item.remediation) if one is not None])
    base = beats.base_from(beat, bodies.get(beat.number)) if beat is not None else None
    body = bodies.get(item.remediation.number) if item.remediation is not None else None
    accepted = [one for one in standing.recorded if one.about(key_id, check)]
    known = words.registry().get(check, {})
    return page(
        request,
        "check.html",
        user=caller.user.name,
        host=host,
        row=row,
        rationale=str(known.get("rationale", "")),
        citations=tuple(known.get("citations", ())),
        exceptions=[
            (one, one.stands(now), exceptions.baseline_line(one, item.verdict.reason), digest(one))
            for one in reversed(accepted[-SHOWN:])
        ],
        reasons=REASONS,
        measures=MEASURES,
        waits=any(one.state(now) == "waiting" for one in accepted),
        person_id=caller.user.person_id,
        may_except=roles.may(caller.user, roles.Act.APPROVE_ORDER),
        plan=plans.plan_page(proposal_of(standing, item, now)),
        cure=plans.cure_page(check, document_of(body)) if body is not None else None,
        timeline=timeline.draw(
            (row,),
            rows,
            base=base,
            last_seen=host.last_seen,
            silent=host.silent,
            now=now,
            heard=beats.heard((*newest, *found.items), newest),
            quiet=timedelta(seconds=services_of(request).silence.stale_after_s),
        ),
        records=rows[:SHOWN],
        may_order=roles.may(caller.user, roles.Act.DRAFT_ORDER) and not host.revoked,
    )
