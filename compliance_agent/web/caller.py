"""Who is looking, and what they may see: the one place where the viewer meets the rest of the server."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from starlette.requests import Request

from compliance_agent.server.api.deps import services_of, session_cookie
from compliance_agent.server.records import SiteReader, User
from compliance_agent.server.services import roles
from compliance_agent.server.services.fleet import Fleet


class SignedOut(Exception):
    """Nobody is signed in. Only `PageRoute` catches it."""


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
    user = await services.users.of_session(session_of(request))
    if user is None:
        raise SignedOut
    roles.check(user, act)
    reader = await services.users.reader(user)
    return Caller(user, reader, services.fleet(reader))
