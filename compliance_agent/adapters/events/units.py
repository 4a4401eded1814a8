"""Units of the service manager, by the signals it sends over the system's message bus.

One connection: subscribe, then one match rule for each unit, so that the bus itself keeps back what nobody asked for.
`UnitFilesChanged` and the end of a reload concern every unit. A connection that ends is made again, with growing pauses, and then
every unit is told of: what was missed cannot be known. While there is none, that is the trouble that `trouble` names.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Collection
from pathlib import Path

from compliance_agent.adapters.events import dbus_wire
from compliance_agent.adapters.events.dbus_wire import Message, object_path
from compliance_agent.core.waking import Breath

SYSTEM_BUS = Path("/run/dbus/system_bus_socket")
CONNECT_S = 2.0
FIRST_PAUSE_S, MOST_PAUSE_S = 1.0, 60.0
MOST_UNITS = 400  # the bus allows a connection 512 rules by default
_BUS = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")
_MANAGER = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager")
_FROM = "type='signal',sender='org.freedesktop.systemd1'"
_ALL = ("UnitFilesChanged", "Reloading")
_UNIT = "interface='org.freedesktop.DBus.Properties',member='PropertiesChanged',arg0='org.freedesktop.systemd1.Unit'"


class Units:
    """The teller of units.

    Args:
        told: called with the units concerned, None for all.
        bus: socket of the system's message bus.
    """

    def __init__(self, told: Callable[[Collection[str] | None], None], bus: Path = SYSTEM_BUS) -> None:
        self.trouble: str | None = None
        self._tell = told
        self._bus = bus
        self._names: dict[str, str] = {}  # by object path
        self._listening: asyncio.Task[None] | None = None
        self._settled = asyncio.Event()

    async def watch(self, names: Collection[str]) -> None:
        await self.close()
        self._names = {object_path(name): name for name in sorted(names)[:MOST_UNITS]}
        if not self._names:
            return
        self._settled.clear()
        self._listening = asyncio.get_running_loop().create_task(self._listen(len(names) > MOST_UNITS))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CONNECT_S):
                await self._settled.wait()

    async def close(self) -> None:
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.wait({self._listening}, timeout=1.0)
            self._listening = None

    async def _listen(self, too_many: bool) -> None:
        """Listen until cancelled, over one connection after another."""
        pause, first = FIRST_PAUSE_S, True
        while True:
            try:
                self.trouble = self.trouble or "no_bus"
                async with _Connection(self._bus) as connection:
                    async with asyncio.timeout(CONNECT_S):
                        await self._subscribe(connection)
                    self.trouble, pause = "too_many" if too_many else None, FIRST_PAUSE_S
                    self._settled.set()
                    if not first:
                        self._tell(None)
                    first = False
                    await self._hear(connection)
            except PermissionError:
                self.trouble = "not_permitted"
            except (OSError, EOFError, ValueError, TimeoutError):
                self.trouble = "no_bus"
            self._settled.set()
            await asyncio.sleep(pause)
            pause = min(2 * pause, MOST_PAUSE_S)

    async def _subscribe(self, connection: _Connection) -> None:
        await connection.ask(*_BUS, "Hello")
        rules = [f"{_FROM},{_UNIT},path='{path}'" for path in self._names]
        rules += [f"{_FROM},interface='{_MANAGER[2]}',member='{member}'" for member in _ALL]
        for rule in rules:
            await connection.ask(*_BUS, "AddMatch", rule)
        await connection.ask(*_MANAGER, "Subscribe")

    async def _hear(self, connection: _Connection) -> None:
        breath, loop = Breath(), asyncio.get_running_loop()
        while True:
            message = await connection.receive()
            if message.type != dbus_wire.SIGNAL:
                continue
            if message.member in _ALL:
                self._tell(None)
            elif message.path in self._names:
                self._tell({self._names[message.path]})
            rest = breath.after(loop.time())
            if rest > 0.01:  # a manager that says much is heard in pieces; the socket holds it meanwhile
                await asyncio.sleep(rest)


class _Connection:
    """A connection to a message bus, past its authentication."""

    def __init__(self, bus: Path) -> None:
        self._bus = bus
        self._serial = 0
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter

    async def __aenter__(self) -> _Connection:
        async with asyncio.timeout(CONNECT_S):
            self._reader, self._writer = await asyncio.open_unix_connection(str(self._bus))
            try:
                self._writer.write(b"\0AUTH EXTERNAL " + str(os.geteuid()).encode().hex().encode() + b"\r\n")
                if not (await self._reader.readline()).startswith(b"OK "):
                    raise PermissionError("the message bus does not let this user in")
                self._writer.write(b"BEGIN\r\n")
            except BaseException:
                self._writer.transport.abort()
                raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.transport.abort()

    async def ask(self, destination: str, path: str, interface: str, member: str, *arguments: str) -> None:
        """Call a method and wait for its answer, whose content does not matter.

        Raises:
            PermissionError: it was refused.
        """
        self._serial += 1
        self._writer.write(dbus_wire.call(self._serial, destination, path, interface, member, *arguments))
        await self._writer.drain()
        while True:
            message = await self.receive()
            if message.answers == self._serial and message.type == dbus_wire.ERROR:
                raise PermissionError(message.error) if "AccessDenied" in message.error else ValueError(message.error)
            if message.answers == self._serial and message.type == dbus_wire.REPLY:
                return

    async def receive(self) -> Message:
        """The next message.

        Raises:
            EOFError: the connection has ended.
            ValueError: it does not follow the protocol.
        """
        head = await self._reader.readexactly(16)
        return dbus_wire.read(head + await self._reader.readexactly(dbus_wire.length(head) - 16))
