"""Exceptions in the viewer: asked for, read back, recorded, approved by a second person, withdrawn. Each is an act, with step-up.

One address does it all: without a question it is the form, with one it reads back what is about to be done, and the post does it.
How many people have to approve at a site is read and set the same way, at `/sites/{site_id}/exception-rule`.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from datetime import datetime, timedelta
from urllib.parse import quote, urlencode

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from compliance_agent.core.accepted import DAYS, MEASURES, REASONS
from compliance_agent.errors import Refusal
from compliance_agent.server.api.deps import services_of
from compliance_agent.server.records import Site
from compliance_agent.server.records.exceptions import RecordedException
from compliance_agent.server.services import roles
from compliance_agent.server.services.exceptions import Wanted, check_wanted, people_now
from compliance_agent.server.services.fleet import CheckStanding, HostStanding
from compliance_agent.web import asking, present
from compliance_agent.web.caller import Caller, caller_of, now_of, stepped_up
from compliance_agent.web.forms import form_of
from compliance_agent.web.routing import PageRoute, page

ASKED = ("reason", "measure", "reference", "days", "whole")

WAYS = ("withdraw", "approve")  # what is done about one that there is
PEOPLE = {"1": 1, "2": 2}

router = APIRouter(route_class=PageRoute, include_in_schema=False, default_response_class=Response)


@router.get("/hosts/{key_id}/checks/{check}/exception")
async def ask(request: Request, key_id: str, check: str) -> Response:
    """The form; or what is about to be recorded, approved or withdrawn, read back."""
    caller = await caller_of(request, roles.Act.APPROVE_ORDER)
    standing, item = await _place(caller, key_id, check)
    given = {name: request.query_params[name] for name in ASKED if name in request.query_params}
    named, wanted = None, None
    way = next((way for way in WAYS if way in request.query_params), "")
    if way:
        named = await _standing(request, caller, standing, request.query_params[way], check)
    elif given:
        wanted = _wanted(key_id, check, given)
    if named is not None or wanted is not None:
        await stepped_up(request)
    [site] = await caller.reader.only(standing.host.site_id).site_rows()
    return page(
        request,
        "exception.html",
        user=caller.user.name,
        host=present.host_row(standing),
        row=present.check_row(item),
        ending=named if way == "withdraw" else None,
        seconding=named if way == "approve" else None,
        people=site.exception_people,
        wanted=wanted,
        expires=now_of(request) + timedelta(days=wanted.days) if wanted else None,
        given=given,
        once=secrets.token_urlsafe(16),
        reasons=REASONS,
        measures=MEASURES,
        days=DAYS,
    )


@router.post("/hosts/{key_id}/checks/{check}/exception")
async def act(request: Request, key_id: str, check: str) -> Response:
    """Record it, once however often the form is sent; or approve or withdraw one."""
    caller = await caller_of(request, roles.Act.APPROVE_ORDER)
    form = await form_of(request)
    standing, _ = await _place(caller, key_id, check)
    desk, place = services_of(request).exceptions(), f"/hosts/{key_id}/checks/{check}"
    way = next((way for way in WAYS if way in form), "")
    if way:
        found = await _standing(request, caller, standing, form[way], check)
        await stepped_up(request, back=f"{place}/exception?{way}={found.exception_id}")
        done = desk.withdraw if way == "withdraw" else desk.approve
        await done(caller.user, caller.reader, found.exception_id)
        return RedirectResponse(place, status_code=303)
    given = {name: form[name] for name in ASKED if name in form}
    wanted = _wanted(key_id, check, given)
    await stepped_up(request, back=f"{place}/exception?{urlencode(given)}")
    once = form.get("once", "")
    if asking.ONCE.fullmatch(once) is None:
        raise Refusal("once: expected that of the page", code="bad_exception", status=422)
    named = hashlib.sha256(f"{caller.user.person_id} {key_id} {check} {once}".encode()).hexdigest()[:32]
    await desk.record(caller.user, caller.reader, wanted, named)
    return RedirectResponse(place, status_code=303)


@router.get("/sites/{site_id}/exception-rule")
async def rule(request: Request, site_id: str) -> Response:
    """How many people have to approve an exception of a site; for an owner also the form, and what is about to change.

    Who is limited to days that do not hold this one is told where the changes of the rule stand, and not what it is now.
    """
    asked = request.query_params.get("people")
    caller = await caller_of(request, roles.Act.LOOK if asked is None else roles.Act.PEOPLE)
    site = await _site(caller, site_id)
    if asked is not None:
        _people(asked)
        await stepped_up(request)
    now = now_of(request)
    people = people_now(caller.reader, site, now)
    held = await caller.reader.only(site_id).exceptions() if people is not None else []
    waiting = [one for one in held if one.state(now) == "waiting"]
    return page(
        request,
        "exception_rule.html",
        user=caller.user.name,
        site_id=site.site_id,
        people=people,
        asked=_people(asked) if asked is not None else 0,
        waiting=len(waiting),
        may_rule=roles.may(caller.user, roles.Act.PEOPLE),
    )


@router.post("/sites/{site_id}/exception-rule")
async def set_rule(request: Request, site_id: str) -> Response:
    """Change it, if it is not so already."""
    caller = await caller_of(request, roles.Act.PEOPLE)
    form = await form_of(request)
    site, place = await _site(caller, site_id), f"/sites/{quote(site_id, safe='')}/exception-rule"
    people = _people(form.get("people", ""))
    await stepped_up(request, back=f"{place}?people={people}")
    if site.exception_people != people:
        await services_of(request).exceptions().set_people(caller.user, caller.reader, site_id, people)
    return RedirectResponse(place, status_code=303)


async def _site(caller: Caller, site_id: str) -> Site:
    if site_id not in caller.reader.sites:
        raise HTTPException(404)
    [site] = await caller.reader.only(site_id).site_rows()
    return site


def _people(text: str) -> int:
    if text not in PEOPLE:
        raise Refusal("people: expected 1 or 2", code="bad_exception", status=422)
    return PEOPLE[text]


async def _place(caller: Caller, key_id: str, check: str) -> tuple[HostStanding, CheckStanding]:
    standing = await caller.fleet.host(key_id)
    item = next((item for item in standing.checks if item.check == check), None)
    if item is None:
        raise HTTPException(404)
    return standing, item


async def _standing(
    request: Request, caller: Caller, host: HostStanding, exception_id: str, check: str
) -> RecordedException:
    found = await services_of(request).exceptions().find(caller.reader.only(host.host.site_id), exception_id)
    if not found.about(host.host.key_id, check):
        raise HTTPException(404)
    if not found.open(now_of(request)):
        raise Refusal("exception: it has ended", code="exception_ended", status=409)
    return found


def _wanted(key_id: str, check: str, given: dict[str, str]) -> Wanted:
    days, reference = given.get("days", ""), given.get("reference", "").strip()
    wanted = Wanted(
        key_id,
        check,
        given.get("reason", ""),
        given.get("measure", ""),
        reference,
        int(days) if days in {str(number) for number in DAYS} else 0,
        given.get("whole") == "1",
    )
    check_wanted(wanted)
    return wanted


def baseline_line(made: RecordedException, reason: str) -> str:
    """The same as a line of a baseline, for who wants the agent itself to honour it. JSON is YAML too."""
    return json.dumps(
        {
            "id": f"exc-{made.exception_id[:12]}",
            "check": made.check,
            "reasons": [reason],
            "approver": made.approver,
            "measure": made.reference,
            "created": _time(made.created_at),
            "expires": _time(made.expires_at),
        }
    )


def _time(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")
