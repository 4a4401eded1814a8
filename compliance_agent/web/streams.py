"""Server-sent events for live pages: a word that something changed at the reader's sites, and nothing of what.

A page that is told loads itself anew, so a stream shows nothing that the page would not. Between two looks it holds nothing but
its connection; each look asks once whether the session still lives and what it may see, and the stream ends with it. It also ends
by itself after ten minutes (the browser opens another), and at once when the server stops. What a page asks this way is no use of
the session.

    GET /live                   all the reader's sites
    GET /live?site=clinic-1     one of them
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from compliance_agent.errors import Refusal
from compliance_agent.server.api.deps import services_of
from compliance_agent.server.desks import Services
from compliance_agent.server.services import roles
from compliance_agent.web.caller import EVENTS, caller_of, session_of
from compliance_agent.web.routing import PageRoute

MOST_OF_A_PERSON = 4  # a browser has six connections to one server, and other pages need some
MOST = 256
LIFE_S = 600.0
CHANGE = b"event: change\ndata: 1\n\n"
END = b"event: end\ndata: 1\n\n"

router = APIRouter(route_class=PageRoute, include_in_schema=False, default_response_class=Response)


@dataclass
class Streams:
    """The open streams of one process.

    Attributes:
        look_s: least time between two looks.
        tick_s: a page is told after this long although nothing changed: times grow, and silence is a change.
    """

    look_s: float = 5.0
    tick_s: float = 15.0
    _open: Counter[str] = field(default_factory=Counter)
    _closing: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def count(self) -> int:
        """How many are open."""
        return self._open.total()

    def take(self, person: str) -> Callable[[], None]:
        """A place for one more stream of this person; call what comes back to give it up.

        Raises:
            Refusal: 429, there is none, or the server is stopping.
        """
        if self._open[person] >= MOST_OF_A_PERSON or self.count >= MOST or self._closing.is_set():
            raise Refusal("live: too many pages are open", code="too_many_streams", status=429, retry_after_s=30)
        self._open[person] += 1

        def leave() -> None:
            self._open[person] -= 1
            self._open += Counter()  # forgets who has none

        return leave

    def close(self) -> None:
        """End every stream now, and open no more: the server stops."""
        self._closing.set()

    async def rest(self, services: Services, seconds: float, *, all_of_it: bool) -> bool:
        """Wait until something is published, or `seconds` are over (`all_of_it`: only that); whether the server goes on."""
        waits: set[asyncio.Task[object]] = {asyncio.create_task(self._closing.wait())}
        if not all_of_it:
            waits.add(asyncio.create_task(services.board.turned()))
        try:
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waits:
                one.cancel()
        return not self._closing.is_set()


class _Taken(StreamingResponse):
    """A stream that gives its place up however it ends."""

    def __init__(self, content: AsyncIterator[bytes], leave: Callable[[], None]) -> None:
        super().__init__(content, media_type=EVENTS, headers={"X-Accel-Buffering": "no"})
        self._leave = leave

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._leave()


@router.get("/live")
async def live(request: Request) -> Response:
    """The stream of one page."""
    caller = await caller_of(request)
    site = request.query_params.get("site")
    if site is not None and site not in caller.reader.sites:
        raise Refusal("site: no such site", code="not_found", status=404)
    if EVENTS not in request.headers.get("accept", ""):
        raise Refusal(f"accept: expected {EVENTS}", code="not_acceptable", status=406)
    streams: Streams = request.app.state.streams
    leave = streams.take(caller.user.name)
    return _Taken(told(streams, services_of(request), session_of(request), site), leave)


async def told(streams: Streams, services: Services, secret: str | None, site: str | None) -> AsyncIterator[bytes]:
    """What one page is told, from now on."""
    clock = asyncio.get_running_loop().time
    began = last = clock()
    yield b"retry: 5000\n\n"
    seen: Mapping[tuple[str, int], int] | None = None
    while clock() - began < LIFE_S:
        sites = await _sites(services, secret, site)
        if sites is None:
            yield END
            return
        sizes = {place: head.size for place, head in services.board.heads.items() if place[0] in sites}
        if (seen is not None and sizes != seen) or clock() - last >= streams.tick_s:
            yield CHANGE
            last = clock()
        seen = sizes
        looked = clock()
        going = await streams.rest(services, streams.tick_s / 3, all_of_it=False)
        # A busy server publishes all the time; a page is not loaded more often than this.
        going = going and await streams.rest(services, max(0.0, looked + streams.look_s - clock()), all_of_it=True)
        if not going:
            yield END
            return


async def _sites(services: Services, secret: str | None, site: str | None) -> frozenset[str] | None:
    """The sites that this session may see now; None when it may see none of this any more."""
    session = await services.users.sessions.of(secret, use=False)
    if session is None or services.users.lacks_factor(session) or not roles.may(session.user, roles.Act.LOOK):
        return None
    sites = (await services.users.reader(session.user)).sites
    if site is None:
        return sites
    return frozenset({site}) if site in sites else None
