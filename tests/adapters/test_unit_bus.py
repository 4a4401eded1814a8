"""Units asked over the manager's bus, against a manager of the test's own that answers, lies, hangs or goes away.

The real manager answers in the lab, whose faults of `services` are made with `systemctl`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from compliance_agent.adapters import unit_bus
from compliance_agent.adapters.events import dbus_wire
from compliance_agent.adapters.events.dbus_wire import Message, _Body, object_path
from compliance_agent.adapters.execute import Programs
from compliance_agent.adapters.offload import Offload
from compliance_agent.adapters.subprocess_host import RealHost
from compliance_agent.adapters.systemd import Systemd
from compliance_agent.adapters.unit_bus import UnitBus
from compliance_agent.core import idle
from compliance_agent.ports import Ran, UnitState
from compliance_agent.remedies import staying_up
from tests.contract.expect import reason_of

CHRONY = UnitState("loaded", "active", "running", "enabled", ("a.timer", "b.socket"))
ABSENT = UnitState("not-found", "inactive", "dead", "")


def text(value: str, *, at: int = 4) -> bytes:
    raw = value.encode()
    return bytes(-at % 4) + struct.pack("<I", len(raw)) + raw + b"\0"


def texts(values: tuple[str, ...]) -> bytes:
    items = b""
    for value in values:
        items += text(value, at=len(items))
    return struct.pack("<I", len(items)) + items


def row(name: str, state: UnitState) -> bytes:
    made = b""
    for value in (name, "A unit.", state.load, state.active, state.sub, "", object_path(name)):
        made += text(value, at=len(made))
    made += bytes(-len(made) % 4) + struct.pack("<I", 0)
    for value in ("", "/"):
        made += text(value, at=len(made))
    return made


def rows(*units: tuple[str, UnitState]) -> bytes:
    made = b""
    for name, state in units:
        made += bytes(-len(made) % 8) + row(name, state)
    return struct.pack("<II", len(made), 0) + made


def answer(to: int, signature: str, body: bytes, *, kind: int = dbus_wire.REPLY, serial: int = 77) -> bytes:
    head = b"\x05\x01u\0" + struct.pack("<I", to)
    head += b"\x08\x01g\0" + bytes([len(signature)]) + signature.encode() + b"\0"
    if kind == dbus_wire.ERROR:
        head += bytes(-len(head) % 8) + b"\x04\x01s\0" + text("org.freedesktop.DBus.Error.Failed")
    message = struct.pack("<cBBBIII", b"l", kind, 0, 1, len(body), serial, len(head)) + head
    return message + bytes(-len(message) % 8) + body


class Manager:
    """What it knows of units, and how it answers; `spoil` may change an answer."""

    def __init__(self, run: Path, *, direct: bool = True) -> None:
        self.path = run / ("systemd/private" if direct and os.geteuid() == 0 else "dbus/system_bus_socket")
        self.path.parent.mkdir(parents=True)
        self.units = {"chrony.service": CHRONY}
        self.numbers: dict[tuple[str, str], int] = {}
        self.services = {"chrony.service": ("notify", 0)}
        self.connections = self.answered = self.serial = 0
        self.spoil: Callable[[int, bytes], bytes] = lambda _serial, raw: raw
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(self.path))
        self._listening.listen()
        self.open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._begin(self._accept)

    def _begin(self, run: Callable[..., None], *given: socket.socket) -> None:
        self._threads.append(threading.Thread(target=run, args=given, daemon=True))
        self._threads[-1].start()

    def drop(self) -> None:
        """As when it is started anew."""
        for connection in self.open:
            with contextlib.suppress(OSError):  # the other side was faster
                connection.shutdown(socket.SHUT_RDWR)
        self.open = []

    def close(self) -> None:
        with contextlib.suppress(OSError):  # closed already
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self.drop()
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()

    def _accept(self) -> None:
        try:
            while True:
                connection, _ = self._listening.accept()
                self.connections += 1
                self.open.append(connection)
                self._begin(self._serve, connection)
        except OSError:
            return

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError), connection, connection.makefile("rb") as file:
            assert file.readline().startswith(b"\0AUTH EXTERNAL ")
            connection.sendall(b"OK 0123\r\n")
            assert file.readline() == b"BEGIN\r\n"
            while head := file.read(16):
                raw = head + file.read(dbus_wire.length(head) - 16)
                serial = struct.unpack_from("<I", raw, 8)[0]
                connection.sendall(self.spoil(serial, self._answer(serial, dbus_wire.read(raw))))
                self.answered += 1

    def _answer(self, serial: int, call: Message) -> bytes:
        self.serial += 1  # of its own messages, another each time
        if call.member == "Hello":
            return answer(serial, "s", text(":1.1"), serial=self.serial)
        if call.member == "ListUnitsByNames":
            known = rows(*((name, self.units.get(name, ABSENT)) for name in _Body(call).texts()))
            return answer(serial, "a(ssssssouso)", known, serial=self.serial)
        body = _Body(call)
        interface, wanted = body.text(), body.text()
        if (interface, wanted) in self.numbers:
            number = struct.pack("<Q", self.numbers[interface, wanted])
            return answer(serial, "v", b"\x01t\0" + bytes(5) + number, serial=self.serial)
        if interface == "org.freedesktop.systemd1.Service":
            kind, restarts = next(one for name, one in self.services.items() if object_path(name) == call.path)
            told = {"Type": b"\x01s\0" + text(kind, at=3), "NRestarts": b"\x01u\0\0" + struct.pack("<I", restarts)}
            return answer(serial, "v", told[wanted], serial=self.serial)
        assert interface == "org.freedesktop.systemd1.Unit"
        state = next((one for name, one in self.units.items() if object_path(name) == call.path), ABSENT)
        if wanted == "UnitFileState":
            return answer(serial, "v", b"\x01s\0" + text(state.enabled, at=3), serial=self.serial)
        return answer(serial, "v", b"\x02as\0" + texts(state.triggered_by), serial=self.serial)


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(tmp_path)
    yield made
    made.close()


@pytest.fixture
def bus(tmp_path: Path, manager: Manager) -> UnitBus:
    return UnitBus(tmp_path)


def test_all_units_are_told_over_one_connection(bus: UnitBus, manager: Manager) -> None:
    for _ in range(3):
        assert bus.states(["absent.service", "chrony.service"]) == [ABSENT, CHRONY]
    assert manager.connections == 1


def test_what_has_changed_since_is_told(bus: UnitBus, manager: Manager) -> None:
    """Answers that are alike are read once; one that is another is another."""
    assert bus.states(["chrony.service"]) == [CHRONY]
    for state in (
        UnitState("loaded", "failed", "failed", "enabled", ("a.timer", "b.socket")),
        UnitState("loaded", "active", "running", "disabled", ("a.timer", "b.socket")),
        UnitState("masked", "inactive", "dead", "masked"),
        CHRONY,
    ):
        manager.units["chrony.service"] = state
        assert bus.states(["chrony.service"]) == [state]


def test_of_answers_as_long_as_the_last_the_one_that_differs_is_told(bus: UnitBus, manager: Manager) -> None:
    """Words of one length, in each place where one may stand, among others that stay."""
    names = ["absent.service", "chrony.service", "third.service"]
    manager.units["third.service"] = CHRONY
    assert bus.states(names) == [ABSENT, CHRONY, CHRONY]
    for state in (
        UnitState("loaded", "failed", "running", "enabled", ("a.timer", "b.socket")),
        UnitState("masked", "active", "running", "enabled", ("a.timer", "b.socket")),
        UnitState("loaded", "active", "stopped", "enabled", ("a.timer", "b.socket")),
        UnitState("loaded", "active", "running", "unknown", ("a.timer", "b.socket")),
        UnitState("loaded", "active", "running", "enabled", ("a.timer", "c.socket")),
    ):
        manager.units["chrony.service"] = state
        assert bus.states(names) == [ABSENT, state, CHRONY]
        assert bus.states(names) == [ABSENT, state, CHRONY]


def test_the_same_answer_to_others_is_not_taken_for_theirs(bus: UnitBus, manager: Manager) -> None:
    manager.units["onions.service"] = ABSENT
    assert bus.states(["absent.service", "chrony.service"]) == [ABSENT, CHRONY]
    assert bus.states(["onions.service", "chrony.service"]) == [ABSENT, CHRONY]
    manager.spoil = lambda serial, raw: raw.replace(b"onions", b"absent") if serial == 1 else raw
    assert bus.states(["absent.service", "chrony.service"]) == [ABSENT, CHRONY]


def test_what_is_said_again_is_not_read_again(bus: UnitBus, manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    names, held = ["absent.service", "chrony.service"], bytearray()

    def at_once(serial: int, raw: bytes) -> bytes:
        held.extend(raw)
        if serial < 1 + 2 * len(names):
            return b""
        whole = bytes(held)
        held.clear()
        return whole

    manager.spoil = at_once
    assert bus.states(names) == [ABSENT, CHRONY]
    monkeypatch.setattr(bus, "_meant", lambda *_: pytest.fail("read again"))
    assert [bus.states(names) for _ in range(3)] == [[ABSENT, CHRONY]] * 3


def test_more_units_than_one_question_may_have(bus: UnitBus, manager: Manager) -> None:
    names = [f"unit-{number}.service" for number in range(2 * unit_bus.MOST_AT_ONCE + 1)]
    manager.units[names[-1]] = CHRONY
    assert bus.states(names) == [ABSENT] * (len(names) - 1) + [CHRONY]


def test_a_manager_that_was_started_anew_is_asked_again(bus: UnitBus, manager: Manager) -> None:
    assert bus.states(["chrony.service"]) == [CHRONY]
    manager.drop()
    assert bus.states(["chrony.service"]) == [CHRONY]
    assert manager.connections == 2


SPOILS: dict[str, Callable[[int, bytes], bytes]] = {
    "an error": lambda serial, raw: answer(2, "", b"", kind=dbus_wire.ERROR) if serial == 2 else raw,
    "nonsense": lambda _serial, raw: b"\xff" * len(raw),
    "cut": lambda serial, raw: raw[:-8] + bytes(8) if serial == 1 else raw,
    "no rows": lambda serial, raw: answer(1, "a(ssssssouso)", bytes(8)) if serial == 1 else raw,
    "other types": lambda serial, raw: answer(2, "v", b"\x01u\0\0\x05\0\0\0") if serial == 2 else raw,
    "a list for a text": lambda serial, raw: answer(2, "v", b"\x02as\0" + texts(("enabled",))) if serial == 2 else raw,
    "a text with a NUL": lambda serial, raw: raw.replace(b"active", b"\0ctive") if serial == 1 else raw,
    "an empty state": lambda serial, raw: (
        answer(1, "a(ssssssouso)", rows(("chrony.service", UnitState("loaded", "", "running", ""))))
        if serial == 1
        else raw
    ),
    "one unit more": lambda serial, raw: (
        answer(1, "a(ssssssouso)", rows(*[("chrony.service", CHRONY)] * 2)) if serial == 1 else raw
    ),
    "the same answer twice": lambda serial, raw: raw * 2,
    "an answer to no question": lambda serial, raw: answer(99, "v", b"\x01s\0" + text("enabled", at=3)) + raw,
    "a message without end": lambda serial, raw: struct.pack("<cBBBIII", b"l", 2, 0, 1, 1 << 30, 7, 8) + raw,
    "one answer less": lambda serial, raw: b"" if serial == 3 else raw,
}


@pytest.mark.parametrize("name", SPOILS)
def test_what_is_no_answer_is_an_error_and_ends_the_connection(bus: UnitBus, manager: Manager, name: str) -> None:
    manager.spoil = SPOILS[name]
    with pytest.raises((OSError, EOFError, ValueError)):
        bus.states(["chrony.service"], within_s=0.3)
    assert bus._socket is None
    manager.spoil = lambda _serial, raw: raw
    assert bus.states(["chrony.service"]) == [CHRONY]


@pytest.mark.parametrize("name", ["nonsense", "an error", "nobody"])
async def test_where_the_bus_gives_no_answer_systemctl_is_asked(tmp_path: Path, name: str) -> None:
    """And what it cannot tell either is unknown, as ever."""
    run = tmp_path / "run"
    manager = Manager(run)
    (run / "systemd/system").mkdir(parents=True, exist_ok=True)
    (tmp_path / "bin").mkdir(mode=0o755)
    host = RealHost(directories=(str(tmp_path / "bin"),), booted=run / "systemd/system")
    if name == "nobody":
        manager.close()
        manager.path.unlink()
    else:
        manager.spoil = SPOILS[name]
    assert await reason_of(host.units(["chrony.service"])) == "tool_missing"
    shown = "LoadState=loaded\nActiveState=inactive\nSubState=dead\nUnitFileState=disabled\n"
    program = tmp_path / "bin/systemctl"
    program.write_text(f"#!/bin/sh\nprintf '{shown}'\n")
    program.chmod(0o755)
    assert await host.units(["chrony.service"]) == {
        "chrony.service": UnitState("loaded", "inactive", "dead", "disabled")
    }
    manager.close()


async def test_a_manager_that_says_nothing_is_unknown_and_no_program_is_started(tmp_path: Path) -> None:
    """It hangs, and so would `systemctl`. Once it answers again, it is asked again."""
    run = tmp_path / "run"
    manager = Manager(run)
    (tmp_path / "bin").mkdir(mode=0o755)
    program = tmp_path / "bin/systemctl"
    program.write_text(
        "#!/bin/sh\nprintf 'LoadState=loaded\nActiveState=active\nSubState=running\nUnitFileState=enabled\n'\n"
    )
    program.chmod(0o755)
    systemd = Systemd(Programs(Offload(), (str(tmp_path / "bin"),)), run / "systemd/system")
    assert await systemd.units(["chrony.service"]) == {"chrony.service": CHRONY}
    manager.spoil = lambda _serial, _raw: b""
    assert await reason_of(systemd.units(["chrony.service"], timeout_s=0.3)) == "timed_out"
    manager.drop()
    manager.spoil = lambda _serial, raw: raw
    for _ in range(1000):  # the thread that was given up comes back first
        if not systemd._offload.abandoned:
            break
        await asyncio.sleep(0.01)
    assert await systemd.units(["chrony.service"]) == {"chrony.service": CHRONY}
    manager.close()


def test_who_waits_for_a_question_of_another_gives_up_in_time(bus: UnitBus, manager: Manager) -> None:
    assert bus._one.acquire()
    with pytest.raises(TimeoutError):
        bus.states(["chrony.service"], within_s=0.05)
    bus._one.release()
    assert bus.states(["chrony.service"]) == [CHRONY]


async def test_no_program_is_started_where_the_bus_answers(tmp_path: Path) -> None:
    run = tmp_path / "run"
    manager = Manager(run)
    host = RealHost(directories=(str(tmp_path),), booted=run / "systemd/system")
    assert await host.units(["chrony.service"]) == {"chrony.service": CHRONY}
    manager.close()


STAMP = ("systemctl", "show", "--property=StateChangeTimestamp", "--", "chrony.service")


@pytest.mark.parametrize(("micros", "moment"), [(1_764_412_500_999_999, "Sat 2025-11-29 10:35:00 UTC"), (0, "")])
async def test_a_moment_is_printed_as_systemctl_would(tmp_path: Path, micros: int, moment: str) -> None:
    manager = Manager(tmp_path / "run")
    manager.numbers["org.freedesktop.systemd1.Unit", "StateChangeTimestamp"] = micros
    host = RealHost(directories=(str(tmp_path),), booted=tmp_path / "run/systemd/system")
    assert (await host.run(STAMP)).text == f"StateChangeTimestamp={moment}\n"
    manager.close()


KIND = (*staying_up.ASKED, "chrony.service")


@pytest.mark.parametrize(("kind", "restarts"), [("notify", 0), ("simple", 0), ("notify", 2**32 - 1)])
async def test_what_a_service_says_of_itself_is_printed_as_systemctl_would(
    tmp_path: Path, kind: str, restarts: int
) -> None:
    manager = Manager(tmp_path / "run")
    manager.services["chrony.service"] = (kind, restarts)
    host = RealHost(directories=(str(tmp_path),), booted=tmp_path / "run/systemd/system")
    assert (await host.run(KIND)).text == f"Type={kind}\nNRestarts={restarts}\n"
    assert manager.connections == 1
    manager.close()


@pytest.mark.parametrize(
    "body", [b"\x01u\0\0" + bytes(4), b"\x02as\0" + texts(("notify",)), b"\x01s\0" + text("notify", at=3)]
)
@pytest.mark.parametrize("serial", [1, 2])
def test_a_type_that_is_no_text_and_a_number_that_is_none_are_errors(
    bus: UnitBus, manager: Manager, serial: int, body: bytes
) -> None:
    """So that no unit is believed at once for what was not understood."""
    right = body.startswith(b"\x01s" if serial == 1 else b"\x01u")
    manager.spoil = lambda asked, raw: answer(serial, "v", body) if asked == serial else raw
    if right:
        assert bus.service("chrony.service") == ("notify", 0)
    else:
        with pytest.raises(ValueError, match=r"propert|text"):
            bus.service("chrony.service")


@pytest.mark.parametrize("number", [900_000_000, 2**64 - 1])
async def test_a_span_of_logind_is_printed_as_busctl_would(tmp_path: Path, number: int) -> None:
    manager = Manager(tmp_path / "run", direct=False)
    manager.numbers["org.freedesktop.login1.Manager", "StopIdleSessionUSec"] = number
    host = RealHost(directories=(str(tmp_path),), booted=tmp_path / "run/systemd/system")
    assert (await host.run(idle.LOGIND)).text == f"t {number}\n"
    manager.close()


@pytest.mark.parametrize("name", ["nonsense", "other types", "an error", "nobody"])
async def test_where_a_property_is_not_told_the_program_says_why(tmp_path: Path, name: str) -> None:
    """An old logind, a bus that is gone, a property of another type: what `busctl` says of it counts."""
    manager = Manager(tmp_path / "run", direct=False)
    spoils: dict[str, Callable[[int, bytes], bytes]] = {
        "nonsense": SPOILS["nonsense"],
        "other types": lambda _serial, _raw: answer(1, "v", b"\x01s\0" + text("900", at=3)),
        "an error": lambda _serial, _raw: answer(1, "", b"", kind=dbus_wire.ERROR),
    }
    manager.numbers["org.freedesktop.login1.Manager", "StopIdleSessionUSec"] = 1
    # `Hello` and the question have the same number; the first answer of a connection greets.
    manager.spoil = lambda serial, raw: raw if manager.answered % 2 == 0 else spoils[name](serial, raw)
    if name == "nobody":
        manager.close()
        manager.path.unlink()
    (tmp_path / "bin").mkdir(mode=0o755)
    program = tmp_path / "bin/busctl"
    program.write_text("#!/bin/sh\necho 'Unknown property' >&2\nexit 1\n", "ascii")
    program.chmod(0o755)
    host = RealHost(directories=(str(program.parent),), booted=tmp_path / "run/systemd/system")
    assert await host.run(idle.LOGIND) == Ran(1, b"", b"Unknown property\n")
    manager.close()
