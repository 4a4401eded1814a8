"""The socket: who asks, whether that user may, and which page answers. Every refusal is `application/problem+json` (RFC 9457)."""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any, cast

import structlog

from compliance_agent.core.access import Asker, Owner, may
from compliance_agent.dataclass import dataclass
from compliance_agent.documents import read_json
from compliance_agent.errors import AgentError, DocumentError, Refusal
from compliance_agent.local_socket import listen, peer_of
from compliance_agent.logs import where
from compliance_agent.ports import Clock, HttpReply
from compliance_agent.transport.serve import Asked, HttpServer

SOCKET_MODE = 0o660
MAX_BODY_BYTES = 4_096
DEADLINE_S, IDLE_S, MOST_AT_ONCE = 90.0, 30.0, 16
_SO_PEERGROUPS = 59  # not in the socket module
_MOST_GROUPS_BYTES = 1_024  # as much as Python asks for

log = structlog.get_logger()


@dataclass(frozen=True)
class Call:
    """One request that may be answered."""

    uid: int
    headers: Mapping[str, str]
    document: Mapping[str, Any]


Page = Callable[[Call], Awaitable[HttpReply]]


@dataclass(frozen=True)
class Route:
    """One page."""

    method: str
    page: Page

    @property
    def changes(self) -> bool:
        """Whether it changes something."""
        return self.method == "POST"


class Door(HttpServer):
    """Serves the pages on one socket.

    Args:
        routes: by path.
        clock: for the `Date` of a reply.
        owner: whose socket it is; this process's when not given.
        asker: tells who is at the other end; the kernel when not given.
    """

    def __init__(
        self,
        routes: Mapping[str, Route],
        clock: Clock,
        *,
        owner: Owner | None = None,
        asker: Callable[[socket.socket], Asker] | None = None,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        super().__init__(
            _nobody,
            clock.now,
            max_body_bytes=MAX_BODY_BYTES,
            deadline_s=deadline_s,
            idle_s=IDLE_S,
            max_connections=MOST_AT_ONCE,
        )
        self._routes = routes
        self._owner = owner or Owner(os.geteuid(), os.getegid())
        self._who = asker or asker_of
        self.refusal = lambda status: problem(status, "bad_request", HTTPStatus(status).description)
        self._path: Path | None = None

    async def open(self, path: Path) -> bool:
        """Listen; where that cannot be, say so and go on. Whether somebody can come in."""
        try:
            handle = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:  # a path through the handle is short, whatever the state directory is called
                await self.start_on(listen(Path(f"/proc/self/fd/{handle}/{path.name}"), SOCKET_MODE))
            finally:
                os.close(handle)
        except (OSError, AgentError) as error:
            log.error("admin.unavailable", code=getattr(error, "code", type(error).__name__))
            return False
        self._path = path
        return True

    async def close(self) -> None:
        """Take nothing new, and take the socket away."""
        await self.stop(grace_s=1.0)
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            self._path = None

    async def answer_to(self, asked: Asked) -> HttpReply:
        try:
            return await self._answered(asked)
        except Refusal as refusal:
            return problem(refusal.status, refusal.code, str(refusal))
        except AgentError as error:
            log.error("admin.failed", code=error.code, at=where(error))
            return problem(503, error.code, "it could not be done; the log has the place")

    async def _answered(self, asked: Asked) -> HttpReply:
        connection = cast(socket.socket, asked.connection.get_extra_info("socket"))
        who = self._who(connection)
        if not may(who, self._owner, changes=False):
            raise Refusal("only root, the agent's user and its group may ask", code="not_permitted", status=403)
        route = self._routes.get(asked.target)
        if route is None:
            pages = " ".join(sorted(self._routes))
            raise Refusal(f"pages: {pages}", code="no_such_page", status=404)
        method = "GET" if asked.method == "HEAD" else asked.method
        if method != route.method:
            reply = problem(405, "wrong_method", f"expected {route.method}")
            return HttpReply(reply.status, {**reply.headers, "allow": route.method}, reply.body)
        if route.changes and not may(who, self._owner, changes=True):
            log.warning("admin.refused", uid=who.uid, page=asked.target.strip("/"))
            raise Refusal("only root and the agent's own user may change something", code="not_permitted", status=403)
        return await route.page(Call(who.uid, asked.headers, _document(asked.body)))


def _document(body: bytes) -> Mapping[str, Any]:
    if not body:
        return {}
    try:
        found = read_json(body, limit_bytes=MAX_BODY_BYTES)
    except DocumentError as error:
        raise Refusal("expected one JSON object", code=error.code, status=400) from error
    if not isinstance(found, dict):
        raise Refusal("expected one JSON object", code="bad_document", status=400)
    return found


def asker_of(connection: socket.socket) -> Asker:
    """Who is at the other end, as the kernel says.

    Raises:
        NotPermitted: it does not say.
    """
    peer = peer_of(connection)
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _MOST_GROUPS_BYTES)
    except OSError:  # more groups than that, or an old kernel: the first one alone counts
        raw = b""
    return Asker(peer.uid, {peer.gid, *(gid for (gid,) in struct.iter_unpack("I", raw))})


def answer(document: Mapping[str, Any], status: int = 200) -> HttpReply:
    """A JSON object as a reply."""
    body = json.dumps(document, sort_keys=True, default=str).encode() + b"\n"
    return HttpReply(status, {"content-type": "application/json", "cache-control": "no-store"}, body)


def problem(status: int, code: str, detail: str) -> HttpReply:
    """A refusal as RFC 9457 has it."""
    title = HTTPStatus(status).phrase
    body = {
        "type": f"urn:compliance-agent:problem:{code}",
        "title": title,
        "status": status,
        "code": code,
        "detail": detail,
    }
    reply = answer(body, status)
    return HttpReply(status, {**reply.headers, "content-type": "application/problem+json"}, reply.body)


async def _nobody(_method: str, _target: str, _body: bytes) -> HttpReply:
    return problem(404, "no_such_page", "no page")
