"""Every error as `application/problem+json` (RFC 9457): a stable `code`, a sentence that names the field, a trace id.

What went wrong inside is never said: an unexpected error is logged with its type and our line, and answered with its trace id.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import orjson
import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from compliance_agent.errors import AgentError, DocumentError, Refusal, StorageError
from compliance_agent.logs import where

MEDIA_TYPE = "application/problem+json"
log = structlog.get_logger()


def problem(
    status: int,
    code: str,
    detail: str,
    *,
    trace_id: str,
    headers: Mapping[str, str] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Response:
    """One problem document. `type` is a URN of its code, which is what programs look at."""
    title = HTTPStatus(status).phrase
    document = {
        "type": f"urn:compliance-agent:problem:{code}",
        "title": title,
        "status": status,
        "detail": _plain(detail),
        "code": code,
        "trace_id": trace_id,
        **(extra or {}),
    }
    return Response(orjson.dumps(document), status, headers=dict(headers or {}), media_type=MEDIA_TYPE)


def _plain(text: str) -> str:
    """One printable line: a detail may quote a key that a caller made up."""
    return "".join(character if character.isascii() and character.isprintable() else "?" for character in text)[:300]


def trace_id_of(request: Request) -> str:
    """The id of this request, in its log lines and in its problem document."""
    return str(request.scope.get("trace_id", ""))


def of_agent_error(error: AgentError, trace_id: str) -> Response:
    """The problem for any error of our own tree."""
    match error:
        case Refusal():
            return _of_refusal(error, trace_id)
        case DocumentError():
            status = 413 if error.code == "too_large" else 400
            return problem(status, error.code, f"body: {error}", trace_id=trace_id)
        case StorageError():
            log.error("request.storage_failed", code=error.code, where=where(error), trace_id=trace_id)
            return problem(503, error.code, "storage is not available", trace_id=trace_id, headers={"Retry-After": "5"})
    return of_unexpected(error, trace_id)


def _of_refusal(refusal: Refusal, trace_id: str) -> Response:
    headers = {}
    if refusal.retry_after_s is not None:
        headers["Retry-After"] = str(refusal.retry_after_s)
    if refusal.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if refusal.status in {408, 413}:
        headers["Connection"] = "close"  # the rest of the body is not read
    extra = {"expected": refusal.expected} if refusal.expected is not None else {}
    return problem(refusal.status, refusal.code, str(refusal), trace_id=trace_id, headers=headers, extra=extra)


def of_unexpected(error: BaseException, trace_id: str) -> Response:
    """The problem for a bug: logged by type and line, answered by trace id alone."""
    log.error("request.crashed", error=type(error).__name__, where=where(error), trace_id=trace_id)
    return problem(500, "internal_error", "this is a bug in the server; it was logged", trace_id=trace_id)


def of_http_exception(error: HTTPException, trace_id: str) -> Response:
    """The problem for what the framework refuses: no such route, wrong method."""
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, f"http_{error.status_code}")
    title = HTTPStatus(error.status_code).phrase
    return problem(error.status_code, code, title, trace_id=trace_id, headers=error.headers)


def first_error(errors: list[Any]) -> str:
    """One sentence for what pydantic refused: the field's path and what was expected, never the value."""
    error = errors[0]
    path = ".".join(str(part)[:40] for part in error["loc"] if part not in {"body", "query", "path"})
    return f"{path or 'body'}: {error['msg']}"


def install(app: FastAPI) -> None:
    """Answer every error of the app as a problem document."""

    async def agent_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, AgentError)  # noqa: S101  registered for this class alone
        return of_agent_error(error, trace_id_of(request))

    async def http_exception(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101
        return of_http_exception(error, trace_id_of(request))

    async def validation(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)  # noqa: S101
        return problem(422, "bad_request", first_error(list(error.errors())), trace_id=trace_id_of(request))

    app.add_exception_handler(AgentError, agent_error)
    app.add_exception_handler(HTTPException, http_exception)
    app.add_exception_handler(RequestValidationError, validation)
