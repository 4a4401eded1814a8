"""What whoever runs the server asks: does it live, is it ready, its figures, its certificate authority."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from compliance_agent.errors import AgentError, Refusal
from compliance_agent.server.api.deps import services_of

router = APIRouter(tags=["operations"])


@router.get("/healthz", summary="The process lives")
async def healthz() -> dict[str, str]:
    """No I/O: an answer is the answer."""
    return {"status": "ok"}


@router.get(
    "/readyz", summary="The server can do its work", responses={503: {"description": "Not ready, with reasons"}}
)
async def readyz(request: Request, only: Literal["database"] | None = None) -> Response:
    """Database readable and of our schema version; every log goes on.

    Evidence is taken in while a log stands still: a load balancer asks `only=database`.
    """
    services = services_of(request)
    reasons: list[dict[str, Any]] = []
    try:
        await services.store.ready()
    except AgentError as error:
        reasons.append({"name": "database", "code": error.code})
    if only is None:
        reasons += [{"name": "log", "code": code} for code in services.board.reasons()]
    status = 503 if reasons else 200
    return JSONResponse({"status": "not ready" if reasons else "ok", "reasons": reasons}, status)


@router.get(
    "/metrics",
    summary="Figures for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}, "description": "The text format"}},
)
async def metrics(request: Request) -> Response:
    """Totals only: no host, site or user is named."""
    body, media_type = await request.app.state.metrics.exposition(services_of(request))
    return Response(body, media_type=media_type)


@router.get(
    "/ca.pem",
    summary="The server's own certificate authority",
    response_class=Response,
    responses={200: {"content": {"application/x-pem-file": {}}, "description": "The certificate"}},
)
async def ca_pem(request: Request) -> Response:
    """For a host that enrols: its token holds the SHA-256 of this certificate, so it need not trust this answer."""
    pem = services_of(request).ca_pem
    if pem is None:
        raise Refusal("this server does not serve TLS itself", code="not_found", status=404)
    return Response(pem, media_type="application/x-pem-file")
