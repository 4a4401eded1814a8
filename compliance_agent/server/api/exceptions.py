"""Exceptions for people and their scripts: list, record, approve, end. A host's verdict stays what it is (services/exceptions.py).

What changes something wants an operator token of somebody who may approve orders.
"""

from __future__ import annotations

import secrets
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from starlette.requests import Request

from compliance_agent.errors import Refusal
from compliance_agent.server.api.deps import allowed, body_of, by_token, services_of
from compliance_agent.server.api.schemas import ExceptionOut, ExceptionSent, strict_body
from compliance_agent.server.records import User
from compliance_agent.server.records.exceptions import RecordedException
from compliance_agent.server.services import roles
from compliance_agent.server.services.exceptions import Wanted, digest

router = APIRouter(prefix="/api/v1/exceptions", tags=["exceptions"])
Looker = Annotated[User, Depends(allowed(roles.Act.LOOK))]
Approver = Annotated[User, Depends(by_token(roles.Act.APPROVE_ORDER))]
Filter = Annotated[str | None, Query(max_length=64, pattern=r"^[A-Za-z0-9._-]+$")]


@router.get("", summary="Exceptions, in the order in which they were recorded")
async def exceptions(request: Request, user: Looker, site: Filter = None, host: Filter = None) -> list[ExceptionOut]:
    """Those that ended too; of one site, or those that are about one host."""
    reader = await services_of(request).users.reader(user)
    if host is not None and await reader.host(host) is None:
        raise Refusal("host: no such host", code="no_such_host", status=404)
    if site is not None and site not in reader.sites:
        raise Refusal("site: no such site", code="no_such_site", status=404)
    found = await services_of(request).exceptions().listed(reader, site, host)
    return [_out(request, one) for one in found]


@router.get("/{exception_id}", summary="One exception")
async def exception(request: Request, user: Looker, exception_id: str) -> ExceptionOut:
    """What it accepts, why, what is done instead, by whom, and until when."""
    services = services_of(request)
    return _out(request, await services.exceptions().find(await services.users.reader(user), exception_id))


@router.post("", status_code=201, openapi_extra=body_of(ExceptionSent), summary="Record an exception")
async def record(request: Request, user: Approver) -> ExceptionOut:
    """From now on, or once a second person approved it.

    One about the same stands or waits already: 409 `exception_stands`, so that asking twice makes one.
    """
    services, body = services_of(request), await strict_body(request, ExceptionSent)
    reader = await services.users.reader(user)
    wanted = Wanted(body.host, body.check, body.reason, body.measure, body.reference, body.days, body.whole_site)
    return _out(request, await services.exceptions().record(user, reader, wanted, secrets.token_hex(16)))


@router.post("/{exception_id}/approve", summary="Approve what waits for a second person")
async def approve(request: Request, user: Approver, exception_id: str) -> ExceptionOut:
    """Where its site asks for two people: by another person than who recorded it. It counts from now on."""
    services = services_of(request)
    reader = await services.users.reader(user)
    return _out(request, await services.exceptions().approve(user, reader, exception_id))


@router.post("/{exception_id}/end", summary="End an exception now")
async def end(request: Request, user: Approver, exception_id: str) -> ExceptionOut:
    """It is kept, with who ended it and when."""
    services = services_of(request)
    reader = await services.users.reader(user)
    return _out(request, await services.exceptions().withdraw(user, reader, exception_id))


def _out(request: Request, made: RecordedException) -> ExceptionOut:
    named: dict[str, Any] = {name: getattr(made, name, None) for name in ExceptionOut.model_fields}
    return ExceptionOut(**{**named, "state": made.state(services_of(request).clock()), "sha256": digest(made)})
