"""What handlers are given: the services of this app, who is signed in, and what they may see."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import Depends
from pydantic import BaseModel
from starlette.requests import Request

from compliance_agent.errors import Refusal
from compliance_agent.server.api.edge import CLIENT_CERTIFICATE
from compliance_agent.server.desks import Services
from compliance_agent.server.records import Host, User
from compliance_agent.server.services import roles
from compliance_agent.server.services.fleet import Fleet


def services_of(request: Request) -> Services:
    """The services of the app that answers this request."""
    services = request.app.state.services
    if not isinstance(services, Services):
        raise RuntimeError("the app has not started")
    return services


async def host_of(request: Request, *, fresh: bool = False, may_lack_certificate: bool = False) -> Host:
    """The host that calls; see `HostAccess.caller`."""
    return await services_of(request).access.caller(
        request.headers.get("authorization"),
        request.scope.get(CLIENT_CERTIFICATE),
        fresh=fresh,
        may_lack_certificate=may_lack_certificate,
    )


def body_of(model: type[BaseModel]) -> dict[str, Any]:
    """A request body for the OpenAPI document: read by `strict_body`, so FastAPI does not see it."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def session_cookie(request: Request) -> str:
    """Name of the cookie that holds the session: bound to this origin wherever the connection is https."""
    return "__Host-session" if request.url.scheme == "https" else "session"


async def user_or_none(request: Request) -> User | None:
    """Who is signed in, by session cookie or operator token."""
    users = services_of(request).users
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return await users.tokens.user_of(secret)
    return await users.of_session(
        request.cookies.get(session_cookie(request)), use=request.headers.get("hx-request") != "true"
    )


async def current_user(request: Request) -> User:
    """Who is signed in.

    Raises:
        Refusal: 401, nobody is.
    """
    user = await user_or_none(request)
    if user is None:
        raise Refusal("sign in, or send an operator token", code="not_signed_in", status=401)
    return user


def allowed(act: roles.Act) -> Callable[[Request], Awaitable[User]]:
    """A dependency: who is signed in, and has this act; Refusal 401 or 403."""

    async def user_with_act(request: Request) -> User:
        user = await current_user(request)
        roles.check(user, act)
        return user

    return user_with_act


def by_token(act: roles.Act) -> Callable[[Request], Awaitable[User]]:
    """As `allowed`, with an operator token: a browser's cookie alone is sent by any page that asks for it."""
    of_act = allowed(act)

    async def user_with_token(request: Request) -> User:
        if not request.headers.get("authorization"):
            raise Refusal("send an operator token", code="not_signed_in", status=401)
        return await of_act(request)

    return user_with_token


async def current_fleet(request: Request, user: Annotated[User, Depends(allowed(roles.Act.LOOK))]) -> Fleet:
    """What the signed-in user may see."""
    services = services_of(request)
    return services.fleet(await services.users.reader(user))


CurrentFleet = Annotated[Fleet, Depends(current_fleet)]
