"""`POST /api/v1/evidence`, the hot route: a raw Starlette route, strict JSON in, orjson out, no model in between."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from compliance_agent.documents import read_json
from compliance_agent.errors import Refusal
from compliance_agent.server.api.deps import host_of, services_of
from compliance_agent.server.api.edge import MOST_BODY_BYTES
from compliance_agent.server.api.log import shown
from compliance_agent.server.services.ingest import MOST_BUNDLES, Taken
from compliance_agent.server.services.receipts import Receipt

WAIT_S = 1.0  # for receipts; who does not get one asks later
_WAIT = re.compile(r"wait=([0-9]{1,6})")  # RFC 7240 4.3


def _bad(field: str, expected: str) -> Refusal:
    return Refusal(f"{field}: expected {expected}", code="bad_request", status=422)


# How the agent spells a request (RFC 8785). Base64 holds neither quotes nor backslashes, so where all that stands between these is
# base64, the bytes say this and nothing else.
_OPENS, _BETWEEN = b'{"bundles":[{"bundle":"', b'"},{"bundle":"'
_THEN, _CLOSES = b'","sig":"', b'"}],"gaps":[],"protocol":1}'


def _plainly(raw: bytes) -> list[tuple[bytes, bytes]] | None:
    """The same for a body that is spelled as agents do; None for any other, which is read in full."""
    if not raw.startswith(_OPENS) or not raw.endswith(_CLOSES):
        return None
    try:
        pairs = [item.split(_THEN) for item in raw[len(_OPENS) : -len(_CLOSES)].split(_BETWEEN)]
        found = [(base64.b64decode(body, validate=True), base64.b64decode(sig, validate=True)) for body, sig in pairs]
    except ValueError:
        return None
    return found if len(found) <= MOST_BUNDLES and all(len(sig) == 64 for _, sig in found) else None


def read_envelope(raw: bytes) -> tuple[list[tuple[bytes, bytes]], Any]:
    """The bundles and signatures of a request body, and what it says of their traces, which nobody has looked at.

    Raises:
        DocumentError: not strict JSON.
        Refusal: 422, names the field.
    """
    plain = _plainly(raw) if len(raw) <= MOST_BODY_BYTES else None
    if plain is not None:
        return plain, None
    document = read_json(raw, limit_bytes=MOST_BODY_BYTES)
    if not isinstance(document, dict):
        raise _bad("body", "a JSON object")
    for key in document:
        if key not in {"protocol", "bundles", "gaps", "traces"}:
            raise _bad(key[:40], "no such field")
    if document.get("protocol") != 1 or isinstance(document.get("protocol"), bool):
        raise _bad("protocol", "1")
    if document.get("gaps", []) != []:
        raise _bad("gaps", "an empty list in protocol 1")
    bundles = document.get("bundles")
    if not isinstance(bundles, list) or not 1 <= len(bundles) <= MOST_BUNDLES:
        raise _bad("bundles", f"a list of 1 to {MOST_BUNDLES}")
    return [_signed(item, f"bundles[{index}]") for index, item in enumerate(bundles)], document.get("traces")


def _signed(item: Any, where: str) -> tuple[bytes, bytes]:
    if not isinstance(item, dict) or item.keys() != {"bundle", "sig"}:
        raise _bad(where, 'an object with "bundle" and "sig"')
    body, sig = _bytes(item["bundle"], f"{where}.bundle"), _bytes(item["sig"], f"{where}.sig")
    if len(sig) != 64:
        raise _bad(f"{where}.sig", "64 bytes in base64")
    return body, sig


def _bytes(text: Any, where: str) -> bytes:
    if not isinstance(text, str):
        raise _bad(where, "base64 text")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _bad(where, "base64 text") from error


def written(taken: Taken, receipts: list[Receipt | None]) -> bytes:
    """The reply's body."""
    stopped = None
    if taken.stopped is not None:
        refusal = taken.stopped.refusal
        stopped = {"index": taken.stopped.index, "code": refusal.code, "expected": refusal.expected}
    document, sig = (base64.b64encode(raw).decode() for raw in (taken.ack.document, taken.ack.sig))
    proofs = [None if item is None else shown(item) for item in receipts]
    return orjson.dumps(
        {
            "ack": {"document": document, "sig": sig},
            "receipts": proofs,
            "stopped": stopped,
            "min_interval_s": None,
        }
    )


def _patience_s(preference: str) -> float:
    """How long the answer waits for receipts: less than usual for a host that would rather have it now."""
    found = _WAIT.fullmatch(preference.strip().lower())
    return WAIT_S if found is None else min(WAIT_S, float(found[1]))


async def take_evidence(request: Request) -> Response:
    """Verify, store and acknowledge a host's bundles; with receipts, if the log is quick enough."""
    request.scope["route"] = ROUTE  # as FastAPI does for its own, for the figures
    services = services_of(request)
    caller = await host_of(request)
    with services.limits.in_flight(caller):
        bundles, traces = read_envelope(await request.body())
        services.limits.bundles(caller, len(bundles))
        with services.tracing.arrives(traces, len(bundles)) as arrival:
            taken = await services.ingest.submit(caller, bundles, arrival)
    services.sequencer.notify(sum(held.new for held in taken.held))
    receipts = await services.receipts.soon(caller, taken.held, _patience_s(request.headers.get("prefer", "")))
    return Response(written(taken, receipts), media_type="application/json")


ROUTE = Route("/api/v1/evidence", take_evidence, methods=["POST"])
