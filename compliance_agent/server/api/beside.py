"""FastAPI, and beside it what hosts call all the time: its layers and its router would cost more than the answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send


class App(FastAPI):
    """An app that answers a POST to certain paths by itself. Every other method and path is FastAPI's."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._beside: dict[str, ASGIApp] = {}

    def answer_beside(self, routes: Iterable[Route], around: Callable[[ASGIApp], ASGIApp]) -> None:
        """Answer these; `around` is what stands around the whole app, too: its edge and its headers."""
        for route in routes:
            self._beside[route.path] = around(_answering(route.endpoint))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = self._beside.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if answer is None:
            await super().__call__(scope, receive, send)
        else:
            scope["app"] = self
            await answer(scope, receive, send)


def _answering(endpoint: Callable[[Request], Awaitable[Response]]) -> ASGIApp:
    async def answering(scope: Scope, receive: Receive, send: Send) -> None:
        response = await endpoint(Request(scope, receive))
        await response(scope, receive, send)

    return answering
