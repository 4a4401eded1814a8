"""The network to a model's server: one address, one request and reply, everything bounded, no redirect followed.

The address is https, or on this machine. Nothing is taken from this process's environment, and the reply is not unpacked.
"""

from __future__ import annotations

import asyncio

import httpx2

from compliance_agent.core.advice import MAX_REPLY_BYTES, REASONS
from compliance_agent.errors import Refusal

DEADLINE_S = 30.0


class ModelCalls:
    """`services.advising.Model` over HTTP.

    Args:
        url: of an OpenAI-compatible server; `/chat/completions` is added.
        model: which of its models.
        key: bearer token, where it wants one.
        deadline_s: for the whole exchange.
    """

    def __init__(self, url: str, model: str, key: str | None = None, *, deadline_s: float = DEADLINE_S) -> None:
        self.model = model
        self._url = f"{url.rstrip('/')}/chat/completions"
        self._headers = {
            "accept": "application/json",
            "accept-encoding": "identity",
            "content-type": "application/json",
        }
        if key is not None:
            self._headers["authorization"] = f"Bearer {key}"
        self._deadline_s = deadline_s

    async def complete(self, body: bytes) -> bytes:
        """The reply's exact bytes.

        Raises:
            Refusal: 503 `model_unreachable`, 502 `model_reply` when it is too long or packed.
        """
        try:
            async with (
                asyncio.timeout(self._deadline_s),
                httpx2.AsyncClient(follow_redirects=False, trust_env=False, timeout=self._deadline_s) as client,
                client.stream("POST", self._url, content=body, headers=self._headers) as reply,
            ):
                if reply.status_code != 200:
                    raise _unreachable(f"status {reply.status_code}")
                if reply.headers.get("content-encoding", "identity") != "identity":
                    raise Refusal(f"model: {REASONS['model_reply']} (packed)", code="model_reply", status=502)
                return await _bounded(reply)
        except (httpx2.HTTPError, httpx2.InvalidURL, TimeoutError, OSError) as error:
            raise _unreachable(type(error).__name__) from error


async def _bounded(reply: httpx2.Response) -> bytes:
    body = b""
    async for chunk in reply.aiter_raw():
        body += chunk
        if len(body) > MAX_REPLY_BYTES:
            raise Refusal(f"model: {REASONS['model_reply']} (too_large)", code="model_reply", status=502)
    return body


def _unreachable(why: str) -> Refusal:
    return Refusal(f"model: {REASONS['model_unreachable']} ({why})", code="model_unreachable", status=503)
