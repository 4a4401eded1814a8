"""An uplink beside its agent in one process: the real frames over a real socket pair, and the server's fake behind it."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

from compliance_agent.ports import Transport
from compliance_agent.uplink.link import Link, UplinkTransport
from compliance_agent.uplink.process import ApiKey
from compliance_agent.uplink.serve import Doors, Uplink

Hostile = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Beside:
    """An uplink, and the ways that agents have to it.

    Args:
        server: what is behind it.
        api_key_file: its own; agents do not read it.
    """

    def __init__(self, server: Transport, api_key_file: Path | None) -> None:
        key = ApiKey(api_key_file)
        self.doors = Doors(server, key.text, key.forget)
        self.uplink = Uplink(self.doors, {os.geteuid()})
        self.hostile: Hostile | None = None  # takes the place of uplink from the next connection on
        self.connections = 0
        self._links: list[Link] = []
        self._served: list[asyncio.Task[None]] = []

    def transport(self) -> UplinkTransport:
        """A way of an agent to the server."""
        self._links.append(Link(self._opened))
        return UplinkTransport(self._links[-1])

    async def _opened(self) -> socket.socket:
        self.connections += 1
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setblocking(False)
        self._served.append(asyncio.create_task(self._serve(theirs, self.hostile)))
        return ours

    async def _serve(self, end: socket.socket, hostile: Hostile | None) -> None:
        if hostile is None:
            await self.uplink.talk(end)
            return
        reader, writer = await asyncio.open_unix_connection(sock=end)
        try:
            await hostile(reader, writer)
        except OSError:
            pass  # the agent has had enough
        finally:
            writer.transport.abort()

    async def kill(self) -> None:
        """End the uplink's side of every connection, as its death does."""
        for task in self._served:
            task.cancel()
        await asyncio.gather(*self._served, return_exceptions=True)
        self._served.clear()

    async def close(self) -> None:
        """Close everything."""
        for link in self._links:
            await link.close()
        await self.kill()
        await asyncio.sleep(0)
