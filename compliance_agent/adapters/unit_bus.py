"""States of units, asked of the service manager itself over a connection that is kept; no program is started.

One write, one answer to each question in it: ListUnitsByNames for all of them, and two properties of each that it lacks. Answers
that are byte for byte those of the last time mean what they meant then. Root asks over the manager's own socket, others over the
system's message bus. Whatever is not as it should be ends the connection and is an error: the caller then asks by `systemctl`,
unless there was a manager that only said nothing. Blocks.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from compliance_agent.adapters.events import dbus_wire
from compliance_agent.adapters.events.dbus_wire import number_of, object_path, property_of, unit_rows
from compliance_agent.ports import UnitState

ANSWER_S = 10.0
MOST_AT_ONCE = 64  # so that neither side's buffer is full before the other reads
MOST_BYTES = 1 << 22  # of answers to one write
MOST_REMEMBERED = 4096
GATHER_S = 0.001  # the manager writes one answer at a time, and to be woken for each costs more than to read them all
_BUS = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")
_NAME = "org.freedesktop.systemd1"
_MANAGER = (_NAME, "/org/freedesktop/systemd1", f"{_NAME}.Manager")
Value = TypeVar("Value")
_PROPERTIES, _UNIT, _SERVICE = "org.freedesktop.DBus.Properties", f"{_NAME}.Unit", f"{_NAME}.Service"


class _Said:
    """What the manager said of some units the last time, and what it meant. `starts`: where each message begins; only the
    sender's own number (bytes 8 to 11 of each) is another each time.
    """

    def __init__(self, raw: bytes, starts: Sequence[int], states: Sequence[UnitState]) -> None:
        self._starts, self.states = starts, states
        self._masked = self._mask(raw)

    def is_same(self, raw: bytes | bytearray) -> bool:
        """Whether these bytes say it again, all of it."""
        return len(raw) == len(self._masked) and self._mask(raw) == self._masked

    def _mask(self, raw: bytes | bytearray) -> bytearray:
        masked = bytearray(raw)
        for start in self._starts:
            masked[start + 8 : start + 12] = b"...."
        return masked


class UnitBus:
    """One connection, made when it is first needed.

    Args:
        run: the directory that has `systemd/private` and `dbus/system_bus_socket`.
        direct: root asks the manager on its own socket, where only the manager itself answers.
    """

    def __init__(self, run: Path = Path("/run"), *, direct: bool = True) -> None:
        self._run, self._direct = run, direct
        self._socket: socket.socket | None = None
        self._one = threading.Lock()  # question at a time
        self._requests: dict[tuple[str, ...], bytes] = {}
        self._said: dict[tuple[str, ...], _Said] = {}
        self._parsed: dict[bytes, Any] = {}

    def states(self, names: Sequence[str], within_s: float = ANSWER_S) -> list[UnitState]:
        """One for each name, in their order.

        Args:
            names: full names of units.
            within_s: seconds until it gives up, waiting for questions of others included.

        Raises:
            TimeoutError: somebody took the question and has not answered.
            OSError, EOFError: there is nobody to ask.
            ValueError: not the answer that was asked for.
        """
        until = time.monotonic() + within_s
        with self._turn(within_s):
            found: list[UnitState] = []
            for at in range(0, len(names), MOST_AT_ONCE):
                part = tuple(names[at : at + MOST_AT_ONCE])
                found += self._kept_or_new(partial(self._states, part, until))
            return found

    def number(self, destination: str, path: str, interface: str, name: str, within_s: float = ANSWER_S) -> int:
        """A property that is a number, of an object on the bus.

        Raises:
            TimeoutError, OSError, EOFError, ValueError: as of `states`.
        """
        until = time.monotonic() + within_s
        request = dbus_wire.call(1, destination, path, _PROPERTIES, "Get", interface, name)
        with self._turn(within_s):
            return self._kept_or_new(lambda: int(self._answers(self._asked(request, until), 1, until, number_of)[1]))

    def service(self, unit: str, within_s: float = ANSWER_S) -> tuple[str, int]:
        """Of a service its type, and how often the manager has restarted it by itself.

        Raises:
            TimeoutError, OSError, EOFError, ValueError: as of `states`.
        """
        until, place = time.monotonic() + within_s, (_NAME, object_path(unit), _PROPERTIES, "Get", _SERVICE)
        request = dbus_wire.call(1, *place, "Type") + dbus_wire.call(2, *place, "NRestarts")

        def read(answer: dbus_wire.Message) -> Any:
            return property_of(answer) if answer.answers == 1 else number_of(answer)

        with self._turn(within_s):
            told = self._kept_or_new(lambda: self._answers(self._asked(request, until), 2, until, read))
        if not isinstance(told[1], str):
            raise ValueError("a type that is no text")
        return told[1], int(told[2])

    @contextlib.contextmanager
    def _turn(self, within_s: float) -> Iterator[None]:
        if not self._one.acquire(timeout=within_s):
            raise TimeoutError("another question to the service manager has not been answered yet")
        try:
            yield
        except BaseException:
            self.close()
            raise
        finally:
            self._one.release()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """End the connection; the next question makes another."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _kept_or_new(self, ask: Callable[[], Value]) -> Value:
        kept = self._socket is not None
        try:
            return ask()
        except (ConnectionError, EOFError):
            self.close()
            if not kept:
                raise
        return ask()  # the manager ends connections when it is started anew

    def _asked(self, request: bytes, until: float) -> socket.socket:
        """The connection, over which this was asked."""
        if self._socket is None:
            self._socket = self._connected(until)
        self._socket.settimeout(_left(until))
        self._socket.sendall(request)
        return self._socket

    def _states(self, names: tuple[str, ...], until: float) -> Sequence[UnitState]:
        request = self._requests.get(names)
        if request is None:
            self._requests = {names: _request(names)} if len(self._requests) > 16 else self._requests
            request = self._requests[names] = _request(names)
            self._said = {known: self._said[known] for known in self._requests if known in self._said}
        connection = self._asked(request, until)
        if len(names) > 1:
            time.sleep(GATHER_S)
        raw, starts, said = bytearray(), [0], self._said.get(names)
        answers: dict[int, Any] = {}
        while len(answers) < 1 + 2 * len(names):
            self._more(connection, raw, until)
            if said is not None and said.is_same(raw):
                return said.states
            self._told(raw, starts, 1 + 2 * len(names), answers)
        states = _states_of(answers, len(names))
        self._said[names] = _Said(bytes(raw), starts[:-1], states)
        return states

    def _answers(
        self, connection: socket.socket, count: int, until: float, read: Callable[[dbus_wire.Message], Any]
    ) -> dict[int, Any]:
        """What each of the questions 1 to `count` was answered."""
        found: dict[int, Any] = {}
        raw, starts = bytearray(), [0]
        while len(found) < count:
            self._more(connection, raw, until)
            self._told(raw, starts, count, found, read)
        return found

    def _more(self, connection: socket.socket, raw: bytearray, until: float) -> None:
        """Some more of the answers."""
        connection.settimeout(_left(until))
        piece = connection.recv(1 << 18)
        if not piece:
            raise EOFError("the service manager ended the connection")
        raw += piece
        if len(raw) > MOST_BYTES:
            raise ValueError("the service manager's answer is too long")

    def _told(
        self,
        raw: bytearray,
        starts: list[int],
        count: int,
        found: dict[int, Any],
        read: Callable[[dbus_wire.Message], Any] | None = None,
    ) -> None:
        """Take the whole messages from the last of `starts` on; where the next one begins is added. `read` where they are nothing
        of units.
        """
        at = starts[-1]
        while len(raw) - at >= 16:
            whole = dbus_wire.length(bytes(raw[at : at + 16]))
            if len(raw) - at < whole:
                break
            serial, value = self._meant(bytes(raw[at : at + whole]), read)
            at += whole
            starts.append(at)
            if serial in found or serial > count:
                raise ValueError("an answer to no question")
            if serial:
                found[serial] = value

    def _meant(self, message: bytes, read_as: Callable[[dbus_wire.Message], Any] | None) -> tuple[int, Any]:
        """Which question a message answers, 0 for none, and what it says. The same bytes say the same; only the sender's
        own number (bytes 8 to 11) is another each time.
        """
        key = message[:8] + message[12:]
        known = self._parsed.get(key) if read_as is None else None
        if known is None:
            read = dbus_wire.read(message)
            if read.type == dbus_wire.ERROR:
                raise ValueError(f"the service manager refused: {read.error}")
            if read.type != dbus_wire.REPLY:
                return 0, None
            if read_as is not None:
                return read.answers, read_as(read)
            value = unit_rows(read) if read.answers == 1 else property_of(read)
            if len(self._parsed) >= MOST_REMEMBERED:
                self._parsed = {}
            known = self._parsed[key] = (read.answers, value)
        return known

    def _connected(self, until: float) -> socket.socket:
        """A connection past its authentication."""
        private = self._run / "systemd" / "private"
        direct = self._direct and os.geteuid() == 0 and private.exists()
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            made.settimeout(_left(until))
            made.connect(str(private if direct else self._run / "dbus" / "system_bus_socket"))
            made.sendall(b"\0AUTH EXTERNAL " + str(os.geteuid()).encode().hex().encode() + b"\r\n")
            said = bytearray()
            while not said.endswith(b"\r\n"):
                piece = made.recv(1)  # no more than the line: what follows is messages
                if not piece or len(said) > 200:
                    raise ConnectionError("the message bus ended the connection")
                said += piece
            if not said.startswith(b"OK "):
                raise PermissionError("the message bus does not let this user in")
            made.sendall(b"BEGIN\r\n")
            if not direct:
                made.sendall(dbus_wire.call(1, *_BUS, "Hello"))
                self._hello(made)
        except BaseException:
            made.close()
            raise
        return made

    def _hello(self, connection: socket.socket) -> None:
        """Take the answer to it, and nothing after it."""
        head = _exactly(connection, 16)
        read = dbus_wire.read(head + _exactly(connection, dbus_wire.length(head) - 16))
        if read.type != dbus_wire.REPLY or read.answers != 1:
            raise ValueError("the message bus did not greet")


def _states_of(answers: dict[int, Any], count: int) -> list[UnitState]:
    """The answers to the questions of `_request`.

    Raises:
        ValueError: not what was asked for.
    """
    rows = answers[1]
    if len(rows) != count:
        raise ValueError("another number of units than was asked for")
    states = []
    for number, (_, load, active, sub) in enumerate(rows):
        enabled, triggers = answers[2 + 2 * number], answers[3 + 2 * number]
        if not (load and active and sub and isinstance(enabled, str) and isinstance(triggers, tuple)):
            raise ValueError("a state is missing")
        states.append(UnitState(load, active, sub, enabled, tuple(sorted(triggers))))
    return states


def unit_place(unit: str) -> tuple[str, str, str]:
    """Where the manager has a unit: who to ask, the object and the interface."""
    return _NAME, object_path(unit), _UNIT


def _left(until: float) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError("the service manager did not answer in time")
    return left


def _exactly(connection: socket.socket, size: int) -> bytes:
    piece = connection.recv(size, socket.MSG_WAITALL)
    if len(piece) < size:
        raise EOFError("the message bus ended the connection")
    return piece


def _request(names: tuple[str, ...]) -> bytes:
    """Every question about these, numbered from 1."""
    calls = [dbus_wire.call(1, *_MANAGER, "ListUnitsByNames", names)]
    for number, name in enumerate(names):
        for serial, wanted in ((2 + 2 * number, "UnitFileState"), (3 + 2 * number, "TriggeredBy")):
            calls.append(dbus_wire.call(serial, _NAME, object_path(name), _PROPERTIES, "Get", _UNIT, wanted))
    return b"".join(calls)
