"""Signing in at an OpenID provider: the way there, and the way back.

The way back comes from another site, so the browser holds back the session's strict cookie until a page of ours leads on: the
page that says "You are signed in" does. The cookie of a sign-in under way is `Lax` for the same reason, lives for ten minutes, and
opens nothing.
"""

from __future__ import annotations

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from compliance_agent.errors import Refusal
from compliance_agent.server.api.deps import services_of, session_cookie
from compliance_agent.server.services.oidc import FLOW_LIFE, Oidc
from compliance_agent.web import security
from compliance_agent.web.caller import session_of
from compliance_agent.web.forms import inside
from compliance_agent.web.routing import PageRoute, page

SENTENCES = {
    "bad_state": "It was not begun in this browser, was finished already, or took longer than ten minutes.",
    "bad_issuer": "The answer came from another provider than the one that was asked.",
    "provider_refused": "The provider let nobody in.",
    "code_refused": "The provider did not take back its own code; it may have been used already.",
    "provider_redirected": "The provider wanted to send us elsewhere, which is not followed.",
    "provider_unreachable": "The provider does not answer. Try again, or sign in with a password.",
    "bad_metadata": "What the provider says of itself cannot be used.",
    "bad_token": "What the provider signed cannot be verified.",
    "wrong_audience": "The provider's word was meant for somebody else.",
    "wrong_nonce": "The provider's word was meant for another sign-in.",
    "token_expired": "The provider's word is too old, or from the future.",
    "busy": "Too many sign-ins are under way. Try again in a minute.",
}

router = APIRouter(route_class=PageRoute, include_in_schema=False, default_response_class=Response)


def _provider(request: Request) -> Oidc:
    oidc = services_of(request).oidc
    if oidc is None:
        raise HTTPException(404)
    return oidc


def _cookie(request: Request) -> str:
    return "__Host-flow" if request.url.scheme == "https" else "flow"


@router.get("/login/oidc")
async def begin(request: Request) -> Response:
    """Off to the provider."""
    oidc = _provider(request)
    try:
        address, browser = await oidc.begin(inside(request.query_params.get("next", "")))
    except Refusal as refusal:
        return _refused(request, refusal)
    response = RedirectResponse(address, status_code=303)
    secure, life = request.url.scheme == "https", int(FLOW_LIFE.total_seconds())
    response.set_cookie(_cookie(request), browser, life, path="/", secure=secure, httponly=True, samesite="lax")
    return response


@router.get("/login/oidc/callback")
async def finish(request: Request) -> Response:
    """Back from the provider."""
    oidc = _provider(request)
    try:
        query = dict(request.query_params)
        if any(len(request.query_params.getlist(name)) > 1 for name in query):
            raise Refusal("sign-in: a word of the answer came twice", code="bad_state", status=403)
        secret, back = await oidc.finish(query, request.cookies.get(_cookie(request), ""))
    except Refusal as refusal:
        response = _refused(request, refusal)
        security.drop_cookie(request, response, _cookie(request))
        return response
    before = session_of(request)
    if before:
        await services_of(request).users.logout(before)
    response = page(request, "signed_in.html", user=None, next=back)
    security.drop_cookie(request, response, _cookie(request))
    security.set_cookie(request, response, session_cookie(request), secret)
    return response


def _refused(request: Request, refusal: Refusal) -> Response:
    sentence = SENTENCES.get(refusal.code, str(refusal))
    return page(
        request,
        "error.html",
        user=None,
        status_code=refusal.status,
        status=refusal.status,
        heading="You are not signed in",
        sentence=f"{sentence} ({refusal.code})",
    )
