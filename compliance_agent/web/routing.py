"""What every page has in common: how it is answered when it fails, when nobody is signed in, and when it does not exist."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any
from urllib.parse import quote

import structlog
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Match, Route
from starlette.types import Scope

from compliance_agent.errors import AgentError, Refusal
from compliance_agent.logs import where
from compliance_agent.web import security
from compliance_agent.web.caller import FactorNeeded, SignedOut, StepUpNeeded, by_itself, now_of
from compliance_agent.web.rendering import render

log = structlog.get_logger()

_PROBLEMS = {
    400: ("That cannot be asked", "The address of this page says something it cannot say."),
    403: (
        "That form has expired",
        "It did not come from a page of this site, or the page was open for too long. Reload it.",
    ),
    404: ("Not here", "There is no such page, or it belongs to a site you may not see."),
    406: ("Not for reading", "This address is for the pages that keep themselves fresh."),
    409: ("It has changed meanwhile", "Things no longer stand as the page said. Nothing was done; look again."),
    410: ("Not held any more", "It was destroyed when its time was over; its digest is in the log."),
    413: ("That is too large", "The form holds more than it should."),
    422: ("That cannot be done", "Something of what was sent is not of the form that it must have. Nothing was done."),
    429: ("Too many tries", "Wait a while and try again."),
    500: (
        "Something failed",
        "This page could not be made. The failure was noted; nothing that was stored is affected.",
    ),
    503: ("Not available now", "The server cannot read its records at the moment. Nothing is lost; try again shortly."),
}


_REFUSED = {
    "not_allowed": ("Not for your role", "Your role may not do this. An owner can give you another one."),
    "exception_stands": (
        "One stands already",
        "An exception about this check stands, or waits for a second person. Withdraw it first, or let it end.",
    ),
    "same_person": (
        "Another person is needed",
        "You recorded it. Somebody else who may approve has to say yes as well.",
    ),
    "no_baseline": (
        "Not for this host yet",
        "It has not said which baseline it is held to, and this order says something only about that one.",
    ),
    "no_such_baseline": (
        "No such baseline",
        "Nobody has brought a baseline with this digest for this site: `compliance-agent server order baseline` does.",
    ),
}


def error_page(request: Request, status: int, code: str = "") -> HTMLResponse:
    """The page that says what went wrong, in words that name nothing of the inside."""
    known = status if status in _PROBLEMS else 500
    heading, sentence = _REFUSED.get(code, _PROBLEMS[known])
    response = page(
        request, "error.html", status_code=known, user=None, status=known, heading=heading, sentence=sentence
    )
    if known == 503:
        response.headers["Retry-After"] = "5"
    return response


def page(request: Request, template: str, *, user: str | None, status_code: int = 200, **values: Any) -> HTMLResponse:
    """A rendered page with the token its forms need."""
    token = security.form_token(request)
    text = render(template, user=user, form_token=token, now=now_of(request), here=_here(request), **values)
    response = HTMLResponse(text, status_code=status_code)
    security.remember_form_token(request, response, token)
    return response


def _here(request: Request) -> str:
    query = request.url.query
    return quote(request.url.path, safe="/") + (f"?{query}" if query else "")


def to_login(request: Request) -> Response:
    """Send a visitor to the login page and back again. A live page that asks for itself is told to load anew instead."""
    if by_itself(request):
        return Response(status_code=401, headers={"HX-Refresh": "true"})
    back = f"?next={quote(_here(request), safe='')}" if request.method == "GET" and request.url.path != "/" else ""
    return RedirectResponse(f"/login{back}", status_code=303)


def status_of(error: Exception) -> int:
    """The HTTP status that an error of the services stands for."""
    if isinstance(error, Refusal):
        return error.status
    if isinstance(error, HTTPException):
        return error.status_code
    return 503 if isinstance(error, AgentError) and error.retryable else 500


class PageRoute(APIRoute):
    """A route whose every failure is a page too, never a traceback and never JSON."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            try:
                return await answer(request)
            except SignedOut:
                return to_login(request)
            except FactorNeeded:
                return RedirectResponse("/account/factor", status_code=303)
            except StepUpNeeded as needed:
                back = needed.back or (_here(request) if request.method == "GET" else "/")
                return RedirectResponse(f"/account/prove?next={quote(back, safe='')}", status_code=303)
            except (
                Exception
            ) as error:  # the edge: whatever it is, the reader gets a page and the log the kind of failure
                status = status_of(error)
                if status >= 500:
                    log.error("web.failed", route=self.path, error=type(error).__name__, where=where(error))
                return error_page(request, status, error.code if isinstance(error, Refusal) else "")

        return guarded


class Fallback(Route):
    """Answers what no other route does, for browsers: a GET that wants HTML. Everything else is left to the API's own 404."""

    def __init__(self) -> None:
        super().__init__("/{path:path}", self._not_found, methods=["GET", "HEAD"], include_in_schema=False)

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if scope["type"] == "http" and not scope["path"].startswith("/api/"):
            accepts = dict(scope["headers"]).get(b"accept", b"")
            if b"text/html" in accepts and scope["method"] in {"GET", "HEAD"}:
                return super().matches(scope)
        return Match.NONE, {}

    @staticmethod
    async def _not_found(request: Request) -> Response:
        return error_page(request, 404)
