"""The network to an OpenID provider: everything bounded, no redirect followed, nothing taken from this process's environment."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import httpx2

from compliance_agent.errors import Refusal

MAX_BYTES = 262_144
DEADLINE_S = 10.0


class ProviderCalls:
    """`services.oidc.Calls` over https.

    Args:
        client: another one in tests, whose provider is in this process.
        deadline_s: for a whole exchange.
    """

    def __init__(self, client: httpx2.AsyncClient | None = None, *, deadline_s: float = DEADLINE_S) -> None:
        self._client = client or httpx2.AsyncClient(follow_redirects=False, trust_env=False, timeout=deadline_s)
        self._deadline_s = deadline_s

    async def get(self, url: str) -> tuple[int, bytes]:
        return await self._exchange("GET", url, None, None)

    async def post(self, url: str, fields: Mapping[str, str], basic: tuple[str, str] | None) -> tuple[int, bytes]:
        return await self._exchange("POST", url, fields, basic)

    async def close(self) -> None:
        """Close kept connections."""
        await self._client.aclose()

    async def _exchange(
        self, method: str, url: str, fields: Mapping[str, str] | None, basic: tuple[str, str] | None
    ) -> tuple[int, bytes]:
        headers = {"Accept": "application/json"}
        try:
            async with (
                asyncio.timeout(self._deadline_s),
                self._client.stream(
                    method, url, data=dict(fields) if fields is not None else None, auth=basic, headers=headers
                ) as reply,
            ):
                body = b""
                async for chunk in reply.aiter_bytes():
                    body += chunk
                    if len(body) > MAX_BYTES:
                        raise Refusal("sign-in: the provider's answer is too long", code="bad_metadata", status=403)
                return reply.status_code, body
        except (httpx2.HTTPError, httpx2.InvalidURL, TimeoutError, OSError) as error:
            raise Refusal(
                f"sign-in: the provider does not answer ({type(error).__name__})",
                code="provider_unreachable",
                status=503,
            ) from error
