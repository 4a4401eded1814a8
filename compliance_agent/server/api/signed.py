"""Answers that decide something by themselves: signed for a caller who sent a nonce, because another process carries them."""

from __future__ import annotations

import base64
import re

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from compliance_agent.server.api.deps import services_of
from compliance_agent.transport.protocol import NONCE, REPLY_SIGNATURE, reply_message

_NONCE = re.compile(r"[0-9a-f]{32}")


async def signed(request: Request, path: str, reply: BaseModel) -> Response:
    """The reply as it is sent, with the server's signature over it and over what was asked, where that is wanted.

    Args:
        request: the question, whose body was read.
        path: of the route, whatever a proxy before the server makes of it.
        reply: the answer.
    """
    answer = reply.model_dump_json().encode("utf-8")
    response = Response(answer, media_type="application/json")
    nonce = request.headers.get(NONCE, "")
    if _NONCE.fullmatch(nonce):
        message = reply_message(path, nonce, await request.body(), answer)
        response.headers[REPLY_SIGNATURE] = base64.b64encode(services_of(request).sign(message)).decode("ascii")
    return response
