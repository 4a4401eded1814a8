"""Who is looking, and what they may see: the one place where the viewer meets the rest of the server."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from starlette.requests import Request

from compliance_agent.server.api.deps import services_of, session_cookie
from compliance_agent.server.records import Session, SiteReader, User
from compliance_agent.server.services import roles
from compliance_agent.server.services.fleet import Fleet

FRESH = timedelta(minutes=5)
EVENTS = "text/event-stream"


class SignedOut(Exception):
    """Nobody is signed in. Only `PageRoute` catches it."""


class FactorNeeded(Exception):
    """The person must set up a second factor before anything else. Only `PageRoute` catches it."""


class StepUpNeeded(Exception):
    """The page is for who has shown the second factor just now. Only `PageRoute` catches it.

    Attributes:
        back: where to go on after that; empty is the page itself, or the first page where a form was sent.
    """

    def __init__(self, back: str = "") -> None:
        super().__init__(back)
        self.back = back


@dataclass(frozen=True)
class Caller:
    """A signed-in person, the rows this person may see, and the fleet read from them."""

    user: User
    reader: SiteReader
    fleet: Fleet


def now_of(request: Request) -> datetime:
    """The server's time."""
    return services_of(request).clock()


def session_of(request: Request) -> str | None:
    """The session's secret that the browser holds. Pages are for people: operator tokens open none."""
    return request.cookies.get(session_cookie(request))


async def caller_of(request: Request, act: roles.Act = roles.Act.LOOK) -> Caller:
    """Who is looking, or does more where the page says so.

    Raises:
        SignedOut: nobody, or a session that has ended.
        Refusal: 403, the person's role does not have the act.
    """
    services = services_of(request)
    session = await session_or_out(request)
    user = session.user
    if services.users.lacks_factor(session):
        raise StepUpNeeded if await services.users.factors.has(user.name) else FactorNeeded
    roles.check(user, act)
    reader = await services.users.reader(user)
    return Caller(user, reader, services.fleet(reader))


def by_itself(request: Request) -> bool:
    """Whether a live page asks, as it does whether somebody looks or not."""
    return request.headers.get("hx-request") == "true" or EVENTS in request.headers.get("accept", "")


async def session_or_out(request: Request) -> Session:
    """The live session, also of a person who still has to set up a second factor: for the pages of the own account alone.

    Raises:
        SignedOut: nobody, or a session that has ended.
    """
    session = await services_of(request).users.sessions.of(session_of(request), use=not by_itself(request))
    if session is None:
        raise SignedOut
    return session


async def stepped_up(request: Request, within: timedelta = FRESH, *, back: str = "") -> Session:
    """The session, if its person has shown the second factor within this time: before an order is approved (ASVS 7.5.3).

    Args:
        request: of the page.
        within: this time.
        back: where the browser goes on after showing it, when what it sent was a form.

    Raises:
        SignedOut: nobody is signed in.
        StepUpNeeded: the second factor was not shown, or too long ago; the browser is sent to show it, and back.
    """
    session = await session_or_out(request)
    if not services_of(request).users.sessions.proven(session, within):
        raise StepUpNeeded(back)
    return session
