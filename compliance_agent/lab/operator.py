"""An operator's script against the server's read API, for the demo and its check."""

from __future__ import annotations

import json
from typing import Any

from compliance_agent.errors import BadReply, ServerRefused
from compliance_agent.transport.http import HttpTransport


class Operator:
    """Reads the API at `url` with an operator token."""

    def __init__(self, url: str, token: str) -> None:
        self._transport = HttpTransport(url)
        self._headers = {"authorization": f"Bearer {token}", "accept": "application/json"}

    async def get(self, path: str) -> Any:
        """The JSON at a path.

        Raises:
            ServerRefused: any status but 200.
            BadReply: not JSON.
        """
        reply = await self._transport.request("GET", path, headers=self._headers)
        if reply.status != 200:
            raise ServerRefused(
                f"GET {path.partition('?')[0]}: the server answered {reply.status}", status=reply.status
            )
        try:
            return json.loads(reply.body)
        except ValueError as error:
            raise BadReply(f"GET {path}: not JSON") from error

    async def close(self) -> None:
        """Close the connection."""
        await self._transport.close()
