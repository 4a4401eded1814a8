"""The OpenAPI 3.1 document: what FastAPI sees, the raw evidence route, what agents send, and problem+json for every error.

`docs/openapi.json` is this document, committed; a test compares. `python -m compliance_agent.server.app FILE` writes it.
"""

from __future__ import annotations

import json
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from compliance_agent.server.api.problems import MEDIA_TYPE
from compliance_agent.server.api.schemas import AGENT_MODELS, EvidenceReply, Problem

_REF = "#/components/schemas/{model}"
_AGENT = (
    "/api/v1/enrol/challenge",
    "/api/v1/enrol",
    "/api/v1/checkin",
    "/api/v1/evidence",
    "/api/v1/receipts",
    "/api/v1/keys/rotate",
    "/api/v1/leases",
    "/api/v1/certificates",
)
_OPEN = (*_AGENT[:2], "/healthz", "/readyz", "/metrics", "/ca.pem", "/log/{site_id}/{year}/cosignature")


def install(app: FastAPI) -> None:
    """Make `app.openapi()` give the whole document."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = build(app)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def build(app: FastAPI) -> dict[str, Any]:
    """The document from the app's routes."""
    document = get_openapi(title=app.title, version=app.version, openapi_version="3.1.0", routes=app.routes)
    document["info"]["description"] = "Enrolment, check-in and evidence for hosts; sites, hosts and bundles for people."
    document["paths"]["/api/v1/evidence"] = {"post": _evidence()}
    components = document.setdefault("components", {}).setdefault("schemas", {})
    models: list[type[BaseModel]] = [*AGENT_MODELS, EvidenceReply, Problem]
    _, described = models_json_schema([(model, "validation") for model in models], ref_template=_REF)
    components.update(described["$defs"])
    for name in ("HTTPValidationError", "ValidationError"):
        components.pop(name, None)
    document["components"]["securitySchemes"] = {
        "host": {"type": "http", "scheme": "bearer", "description": "A host's API key, from enrolment."},
        "operator": {"type": "http", "scheme": "bearer", "description": "An operator token."},
        "session": {"type": "apiKey", "in": "cookie", "name": "__Host-session", "description": "A signed-in session."},
    }
    for path, operations in document["paths"].items():
        for operation in operations.values():
            _complete(path, operation)
    return document


def _evidence() -> dict[str, Any]:
    return {
        "tags": ["agent"],
        "summary": "Deliver signed bundles, in the order of the chain",
        "description": "Stored durably before the answer. Taken up to the first bundle that cannot be; `stopped` names it.",
        "operationId": "take_evidence",
        "requestBody": {"required": True, "content": {"application/json": {"schema": _ref("EvidenceRequest")}}},
        "responses": {
            "200": {"description": "Acknowledged", "content": {"application/json": {"schema": _ref("EvidenceReply")}}}
        },
    }


def _ref(model: str) -> dict[str, str]:
    return {"$ref": _REF.format(model=model)}


def _complete(path: str, operation: dict[str, Any]) -> None:
    """Say how an operation refuses, and who may call it."""
    responses = operation["responses"]
    responses.pop("422", None)
    problem = {"content": {MEDIA_TYPE: {"schema": _ref("Problem")}}}
    responses["4XX"] = {"description": "Refused; `code` says why", **problem}
    responses.setdefault("5XX", {"description": "Failed, or not available now", **problem})
    if (path in _AGENT and path not in _OPEN) or path == "/api/v1/baselines/{sha256}":
        operation["security"] = [{"host": []}]
    elif path.startswith("/log/") and path not in _OPEN:
        operation["security"] = [{"host": []}, {"session": []}, {"operator": []}]
    elif path not in _OPEN:
        operation["security"] = [{"session": []}, {"operator": []}]


def text(app: FastAPI) -> str:
    """The document as it is committed."""
    return json.dumps(app.openapi(), indent=2, sort_keys=True) + "\n"
