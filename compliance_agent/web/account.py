"""The pages of the own account: sessions, and the second factor; there also for who must set one up before anything else."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from fastapi import APIRouter
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from compliance_agent.errors import Refusal
from compliance_agent.server.api.deps import services_of, session_cookie
from compliance_agent.server.records import Session
from compliance_agent.server.services import totp
from compliance_agent.web import security
from compliance_agent.web.caller import session_of, session_or_out
from compliance_agent.web.forms import form_of, inside
from compliance_agent.web.routing import PageRoute, page

ALL_OTHERS = "others"

router = APIRouter(route_class=PageRoute, include_in_schema=False, default_response_class=Response)


@router.get("/account")
async def account(request: Request) -> Response:
    """Who I am here, what I may see, and where I am signed in."""
    session = await session_or_out(request)
    users = services_of(request).users
    user = session.user
    return page(
        request,
        "account.html",
        user=user.name,
        person=user,
        sites=sorted(user.sites) if user.sites is not None else None,
        this=session.id,
        sessions=await users.sessions.all_of(user.name),
        idle=in_words(users.sessions.limits.idle),
        has_factor=await users.factors.has(user.name),
    )


@router.post("/account/sessions/end")
async def end_sessions(request: Request) -> Response:
    """End one of my sessions, or all but this one."""
    form = await form_of(request)
    session = await session_or_out(request)
    sessions, name = services_of(request).users.sessions, session.user.name
    chosen = form.get("session", "")
    if chosen == ALL_OTHERS:
        await sessions.end_named(name, None, by=session.user, but=session.id)
    else:
        await sessions.end_named(name, chosen, by=session.user)
    response = RedirectResponse("/account", status_code=303)
    if chosen == session.id:
        security.drop_cookie(request, response, session_cookie(request))
    return response


@router.get("/account/factor")
async def factor(request: Request) -> Response:
    """The second factor: whether there is one, and the way to it."""
    return await _factor(request, await session_or_out(request), 200)


async def _factor(request: Request, session: Session, status_code: int, **shown: Any) -> Response:
    users, user = services_of(request).users, session.user
    values = {"secret": None, "problem": "", "codes": (), **shown}
    secret = values["secret"]
    uri = totp.uri(secret, services_of(request).settings.name, user.name) if secret else ""
    return page(
        request,
        "factor.html",
        user=user.name,
        status_code=status_code,
        has_factor=await users.factors.has(user.name),
        demanded=users.lacks_factor(session),
        uri=uri,
        picture=picture_of(uri) if uri else "",
        **{**values, "secret": totp.spelled(secret) if secret else ""},
    )


def picture_of(uri: str) -> Markup:
    """The address of a second factor as a QR code (ISO/IEC 18004): SVG without style or script, black on white in every theme."""
    import segno  # a few times in a person's life, and no part of every start

    code = segno.make_qr(uri, error="m")
    # A quiet zone of four modules, which readers need; the size is the style sheet's.
    drawn = code.svg_inline(
        border=4, light="#fff", omitsize=True, svgclass="qr", lineclass=None, title="QR code of the secret"
    )
    return Markup(drawn)  # noqa: S704  # drawn from squares; the address itself does not stand in it


@router.post("/account/factor/begin")
async def begin_factor(request: Request) -> Response:
    """A secret for the app, for who knows the password: a session alone, left open somewhere, sets up nothing."""
    form = await form_of(request)
    session = await session_or_out(request)
    users = services_of(request).users
    try:
        if not await users.password_is(session.user, form.get("password", "")):
            return await _factor(request, session, 403, problem="The password is wrong.")
        secret = await users.factors.begin(session.user.name)
    except Refusal as refusal:
        if refusal.code == "factor_exists":
            return RedirectResponse("/account/factor", status_code=303)
        raise
    return await _factor(request, session, 200, secret=secret)


@router.post("/account/factor/confirm")
async def confirm_factor(request: Request) -> Response:
    """The app makes the right codes: the factor counts from now on."""
    form = await form_of(request)
    session = await session_or_out(request)
    users, name = services_of(request).users, session.user.name
    try:
        codes = await users.confirm_factor(session, session_of(request) or "", form.get("code", ""))
    except Refusal as refusal:
        if refusal.code != "bad_code":
            raise
        problem = "That code is wrong, or from another minute. Look whether the phone's clock is right."
        return await _factor(request, session, 422, secret=await users.factors.begun(name), problem=problem)
    return await _factor(request, session, 200, codes=codes)


@router.get("/account/prove")
async def prove_page(request: Request) -> Response:
    """The form in which the second factor is shown again."""
    session = await session_or_out(request)
    return await _prove(request, session, inside(request.query_params.get("next", "")), 200)


async def _prove(request: Request, session: Session, back: str, status_code: int, problem: str = "") -> Response:
    name = session.user.name
    has_factor = await services_of(request).users.factors.has(name)
    return page(
        request,
        "prove.html",
        user=name,
        status_code=status_code,
        next=back,
        problem=problem,
        has_factor=has_factor,
    )


@router.post("/account/prove")
async def prove(request: Request) -> Response:
    """Show the second factor again, for what needs it fresh."""
    form = await form_of(request)
    session = await session_or_out(request)
    back = inside(form.get("next", ""))
    try:
        await services_of(request).users.step_up(session, session_of(request) or "", form.get("code", ""))
    except Refusal as refusal:
        if refusal.code == "too_many_attempts":
            return await _prove(request, session, back, 429, "Too many attempts. Wait a quarter of an hour.")
        return await _prove(request, session, back, 403, "That code is wrong, was used, or is from another minute.")
    return RedirectResponse(back, status_code=303)


def in_words(limit: timedelta) -> str:
    """A limit of whole minutes, in hours where it is of whole hours."""
    minutes = int(limit.total_seconds()) // 60
    count, unit = (minutes // 60, "hour") if minutes and minutes % 60 == 0 else (minutes, "minute")
    return f"{count} {unit}{'' if count == 1 else 's'}"
