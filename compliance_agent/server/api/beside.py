"""FastAPI, and beside it what hosts call all the time: its layers and its router would cost more than the answer.

Such a route is answered in one of two ways, from outside the same. `answer_beside` takes it out of FastAPI and keeps ASGI, with
what stands around the whole app. `whole` is a step further: where a request has come whole, the connection itself
(`server/whole.py`) calls the endpoint, with the edge for that, and no ASGI in between.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

Endpoint = Callable[[Request], Awaitable[Response]]
Answer = Callable[[MutableMapping[str, Any], bytes], Awaitable[Response]]


class App(FastAPI):
    """An app that answers a POST to certain paths by itself. Every other method and path is FastAPI's."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._beside: dict[str, ASGIApp] = {}
        self.whole: dict[bytes, Answer] = {}

    def answer_beside(
        self, routes: Iterable[Route], around: Callable[[ASGIApp], ASGIApp], whole: Callable[[Endpoint, str], Answer]
    ) -> None:
        """Answer these.

        Args:
            routes: of endpoints that take a request.
            around: what stands around the whole app, too: its edge and its headers.
            whole: the same for an endpoint, with its path, whose requests come whole.
        """
        for route in routes:
            self._beside[route.path] = around(_answering(route.endpoint))
            self.whole[route.path.encode()] = self._mine(whole(route.endpoint, route.path))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = self._beside.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if answer is None:
            await super().__call__(scope, receive, send)
        else:
            scope["app"] = self
            await answer(scope, receive, send)

    def _mine(self, answer: Answer) -> Answer:
        def answering(scope: MutableMapping[str, Any], body: bytes) -> Awaitable[Response]:
            scope["app"] = self
            return answer(scope, body)

        return answering


def _answering(endpoint: Endpoint) -> ASGIApp:
    async def answering(scope: Scope, receive: Receive, send: Send) -> None:
        response = await endpoint(Request(scope, receive))
        await response(scope, receive, send)

    return answering
