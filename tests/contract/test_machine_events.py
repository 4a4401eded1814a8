"""The real side of the Events port against what only a kernel, a message bus or an opponent can do to it."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Collection
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compliance_agent.adapters.events import MachineEvents, dbus_wire, inotify, kernel, paths
from compliance_agent.adapters.events.inotify import Event, Inotify
from compliance_agent.adapters.events.paths import Paths
from compliance_agent.adapters.events.units import Units
from compliance_agent.ports import Source

pytestmark = pytest.mark.anyio
as_root = pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root's namespaces")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Told:
    """What a teller has told."""

    def __init__(self) -> None:
        self.all: list[frozenset[str] | None] = []
        self.over: set[str] = set()  # of the last time

    def __call__(self, names: Collection[str] | None, over: Collection[str] = ()) -> None:
        self.all.append(None if names is None else frozenset(names))
        self.over = set(over)

    async def wait_for(self, wanted: str | None) -> None:
        async with asyncio.timeout(5):
            while not any(one is None or wanted in one for one in self.all):
                await asyncio.sleep(0.002)


def followed(teller: Paths) -> bool:
    """Whether a path was followed anew."""
    return teller._following is not None


def said(teller: Paths) -> str | None:
    return teller.trouble


# -- inotify


async def test_a_file_that_its_writer_has_closed_is_told_so_and_followed_no_more(tmp_path: Path) -> None:
    """Its directory is read as well, which has its events with its name in them."""
    told, file = Told(), tmp_path / "file"
    file.write_bytes(b"as it was")
    teller = Paths(told)
    await teller.watch({str(file), str(tmp_path)})
    with file.open("wb") as writer:
        await told.wait_for(str(file))
        assert told.over == set()
        writer.write(b"other")
    async with asyncio.timeout(5):
        while told.over != {str(file), str(tmp_path)}:
            await asyncio.sleep(0.002)
    assert not followed(teller)
    told.all.clear()
    file.rename(tmp_path / "gone")
    await told.wait_for(str(file))
    assert str(file) not in told.over and followed(teller)
    await teller.close()


async def test_a_queue_that_was_full_means_everything(tmp_path: Path) -> None:
    told = Told()
    teller = Paths(told)
    names = {str(tmp_path / name) for name in ("one", "two")}
    await teller.watch(names)
    teller._heard([Event(-1, inotify.OVERFLOW, "")])
    for name in names:
        await told.wait_for(name)
    await teller.close()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
async def test_no_instance_left_is_said(number: int, tmp_path: Path) -> None:
    def make() -> Inotify:
        raise OSError(number, os.strerror(number))

    teller = Paths(Told(), make)
    await teller.watch({str(tmp_path)})
    assert teller.trouble == "no_watches_left"
    await teller.close()


async def test_no_watch_left_is_said_and_recovers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add = Inotify.add
    made: list[str] = []

    def full(self: Inotify, path: str, mask: int) -> int:
        if len(made) >= 2:
            raise OSError(errno.ENOSPC, "no space")
        made.append(path)
        return add(self, path, mask)

    teller = Paths(told := Told())
    with monkeypatch.context() as patch:
        patch.setattr(Inotify, "add", full)
        await teller.watch({str(tmp_path / "file")})
        assert said(teller) == "no_watches_left"
    await teller.watch({str(tmp_path / "file")})
    assert said(teller) is None
    (tmp_path / "file").write_text("x")
    await told.wait_for(str(tmp_path / "file"))
    await teller.close()


async def test_watches_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "MOST_WATCHES", len(tmp_path.parts) + 5)
    for number in range(20):
        (tmp_path / str(number)).touch()
    teller = Paths(Told())
    await teller.watch({str(tmp_path / str(number)) for number in range(20)})
    assert teller.trouble == "too_many"
    assert teller._inotify is not None
    lines = Path(f"/proc/self/fdinfo/{teller._inotify.fd}").read_text().splitlines()
    assert sum(line.startswith("inotify ") for line in lines) <= len(tmp_path.parts) + 5
    await teller.close()


async def test_watches_that_nobody_needs_are_given_back(tmp_path: Path) -> None:
    teller = Paths(told := Told())
    await teller.watch({str(tmp_path / "file")})
    assert teller._inotify is not None
    place = Path(f"/proc/self/fdinfo/{teller._inotify.fd}")

    def count() -> int:
        return sum(line.startswith("inotify ") for line in place.read_text().splitlines())

    before = count()
    for number in range(5):
        (tmp_path / "new").write_text(str(number))
        (tmp_path / "new").replace(tmp_path / "file")
        told.all.clear()
        await told.wait_for(str(tmp_path / "file"))
        await asyncio.sleep(paths.FOLLOW_GAP_S)
    assert count() <= before + 1
    await teller.close()


async def test_a_dead_mount_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path whose look-up hangs in the kernel: said, and the loop has gone on meanwhile."""
    monkeypatch.setattr(paths, "FOLLOW_TIMEOUT_S", 0.1)

    def dead(*_: object) -> int:
        time.sleep(1)
        return 1

    monkeypatch.setattr(Inotify, "add", dead)
    teller = Paths(Told())
    began, longest = time.monotonic(), 0.0
    watching = asyncio.ensure_future(teller.watch({str(tmp_path)}))
    while not watching.done():
        before = time.monotonic()
        await asyncio.sleep(0.001)
        longest = max(longest, time.monotonic() - before)
    assert time.monotonic() - began < 0.9
    assert longest < 0.2
    assert teller.trouble == "timed_out"
    await teller.close()


async def test_a_flood_in_a_watched_directory_is_no_load(tmp_path: Path) -> None:
    """Ten thousand changes a second beside the watched file: a small part of one core, and the file's own change is told."""
    (tmp_path / "file").touch()
    teller = Paths(told := Told())
    await teller.watch({str(tmp_path / "file")})
    code = (
        "import os, sys\nos.chdir(sys.argv[1])\n"
        "while True:\n open('x', 'w').close(); os.rename('x', 'y'); os.unlink('y')\n"
    )
    flood = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    try:
        await asyncio.sleep(0.2)
        cpu, began = time.process_time(), time.monotonic()
        await asyncio.sleep(1.5)
        share = (time.process_time() - cpu) / (time.monotonic() - began)
        (tmp_path / "file").write_text("changed")
        await told.wait_for(str(tmp_path / "file"))
    finally:
        flood.kill()
        flood.wait()
    await teller.close()
    assert share < 0.25


async def test_an_idle_teller_wakes_nobody(tmp_path: Path) -> None:
    """No descriptor stays readable: half a second of nothing costs next to nothing."""
    events = MachineEvents(bus=tmp_path / "none")
    await events.watch({Source("path", str(tmp_path)), Source("mounts"), Source("ruleset")})
    cpu = time.process_time()
    await asyncio.sleep(0.5)
    assert time.process_time() - cpu < 0.05
    await events.close()


async def test_descriptors_are_given_back(tmp_path: Path) -> None:
    def count() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = count()
    for _ in range(3):
        events = MachineEvents(bus=tmp_path / "none")
        await events.watch(
            {Source("path", str(tmp_path)), Source("mounts"), Source("ruleset"), Source("unit", "a.service")}
        )
        await events.close()
    assert count() == before


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 2**31 - 1), st.text("abc", max_size=20)), max_size=5))
def test_pieces_of_events_are_read_as_they_were_written(events: list[tuple[int, int, str]]) -> None:
    raw = b""
    for watch, mask, name in events:
        padded = name.encode() + bytes(16 - len(name) % 16) if name else b""
        raw += struct.pack("iIII", watch, mask, 0, len(padded)) + padded
    assert list(inotify.parsed(raw)) == [Event(*event) for event in events]


# -- the kernel's own tables, in namespaces of the test's own

_LISTENING = """
import asyncio, subprocess, sys, time
from compliance_agent.adapters.events import MachineEvents
from compliance_agent.ports import Source

async def main():
    events = MachineEvents()
    await events.watch({Source(sys.argv[1])})
    assert events.trouble() == {}, events.trouble()
    for command in sys.argv[2:]:
        began = asyncio.ensure_future(events.told())
        await asyncio.sleep(0.05)
        assert not began.done(), "told before anything happened"
        subprocess.run(command.split(), check=True)
        told = await asyncio.wait_for(began, 5)
        assert told == {Source(sys.argv[1])} and [each.over for each in told] == [sys.argv[1] == "ruleset"]
        print("told", flush=True)
    subprocess.run(["nft", "list", "ruleset"] if sys.argv[1] == "ruleset" else ["cat", "/proc/self/mountinfo"], check=True,
                   stdout=subprocess.DEVNULL)
    try:
        print(await asyncio.wait_for(events.told(), 0.2))
    except TimeoutError:
        print("looking tells nothing")
    await events.close()

asyncio.run(main())
"""


def listening(kind: str, *commands: str) -> list[str]:
    argv = ["unshare", "--mount", "--net", sys.executable, "-c", _LISTENING, kind, *commands]
    ran = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


@as_root
@pytest.mark.skipif(shutil.which("nft") is None, reason="needs nft")
def test_a_transaction_of_the_ruleset_is_told() -> None:
    said = listening("ruleset", "nft add table inet one", "nft add chain inet one in", "nft flush ruleset")
    assert said == ["told", "told", "told", "looking tells nothing"]


@as_root
def test_a_mount_is_told(tmp_path: Path) -> None:
    said = listening("mounts", f"mount -t tmpfs x {tmp_path}", f"umount {tmp_path}")
    assert said == ["told", "told", "looking tells nothing"]


async def test_a_netlink_queue_that_was_full_is_a_change() -> None:
    class Full:
        def recvfrom(self, _: int) -> object:
            raise OSError(errno.ENOBUFS, "no buffer space")

    teller = kernel.Ruleset(Told())
    teller._open = Full()
    assert teller._changed()


async def test_what_this_user_may_not_watch_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: kernel.Ruleset) -> object:
        raise PermissionError(errno.EPERM, "not permitted")

    monkeypatch.setattr(kernel.Ruleset, "_opened", refused)
    events = MachineEvents()
    await events.watch({Source("ruleset")})
    assert events.trouble() == {"ruleset": "not_permitted"}
    await events.close()


@given(st.binary(max_size=200))
def test_netlink_nonsense_ends(piece: bytes) -> None:
    assert isinstance(kernel.kinds(piece), set)


# -- units, over a real message bus with a service manager of the test's own

CONFIG = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>system</type><listen>unix:path={path}</listen><auth>EXTERNAL</auth>
<policy context="default"><allow user="*"/><allow own="*"/><allow send_type="method_call"/><allow send_type="signal"/>
<allow send_requested_reply="true" send_type="method_return"/><allow send_requested_reply="true" send_type="error"/>
<allow receive_type="method_call"/><allow receive_type="method_return"/><allow receive_type="error"/>
<allow receive_type="signal"/></policy></busconfig>"""


class Bus:
    """A private bus, and on it whoever owns the service manager's name."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "bus"
        self._config = directory / "bus.conf"
        self._config.write_text(CONFIG.format(path=self.path))
        self._daemon: asyncio.subprocess.Process | None = None
        self._manager: asyncio.Task[None] | None = None
        self._writer: asyncio.StreamWriter
        self.subscribed = asyncio.Event()
        self._serial = 100

    async def start(self) -> None:
        self._daemon = await asyncio.create_subprocess_exec(
            "dbus-daemon", f"--config-file={self._config}", "--nofork", "--nopidfile", "--nosyslog", stderr=-3
        )
        reader, self._writer = await self._connected()
        self._writer.write(b"\0AUTH EXTERNAL " + str(os.geteuid()).encode().hex().encode() + b"\r\n")
        await reader.readline()
        bus = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")
        self._writer.write(b"BEGIN\r\n" + dbus_wire.call(1, *bus, "Hello"))
        self._writer.write(dbus_wire.call(2, *bus, "RequestName", "org.freedesktop.systemd1", 4))
        self._manager = asyncio.create_task(self._answer(reader))

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection, as soon as the daemon listens; until then there is no socket, or one that nobody listens at."""
        async with asyncio.timeout(10):
            while True:
                try:
                    return await asyncio.open_unix_connection(str(self.path))
                except OSError:
                    await asyncio.sleep(0.005)

    async def _answer(self, reader: asyncio.StreamReader) -> None:
        while True:
            head = await reader.readexactly(16)
            raw = head + await reader.readexactly(dbus_wire.length(head) - 16)
            message = dbus_wire.read(raw)
            if message.type == dbus_wire.CALL and message.member == "Subscribe":
                (serial,) = struct.unpack_from("<I", raw, 8)
                self._send(dbus_wire.REPLY, answers=serial, to=message.fields[7])
                self.subscribed.set()

    def signal(self, path: str, interface: str, member: str, argument: str = "") -> None:
        self._send(dbus_wire.SIGNAL, path=path, interface=interface, member=member, argument=argument)

    def unit_changed(self, unit: str) -> None:
        self.signal(
            dbus_wire.object_path(unit), "org.freedesktop.DBus.Properties", "PropertiesChanged",
            "org.freedesktop.systemd1.Unit",
        )  # fmt: skip

    def _send(
        self, kind: int, *, path: str = "", interface: str = "", member: str = "", argument: str = "", answers: int = 0,
        to: str = "",
    ) -> None:  # fmt: skip
        self._serial += 1
        texts = [(1, b"o", path), (2, b"s", interface), (3, b"s", member), (6, b"s", to)]
        head = bytearray()
        for code, signature, value in texts:
            if value:
                head += bytes(-len(head) % 8) + bytes([code, 1]) + signature + b"\0"
                head += bytes(-len(head) % 4) + struct.pack("<I", len(value)) + value.encode() + b"\0"
        if answers:
            head += bytes(-len(head) % 8) + b"\x05\x01u\0" + struct.pack("<I", answers)
        body = b""
        if argument:
            head += bytes(-len(head) % 8) + b"\x08\x01g\0\x01s\0"
            body = struct.pack("<I", len(argument)) + argument.encode() + b"\0"
        message = struct.pack("<cBBBIII", b"l", kind, 1, 1, len(body), self._serial, len(head)) + head
        self._writer.write(message + bytes(-len(message) % 8) + body)

    async def stop(self) -> None:
        if self._manager is not None:
            self._manager.cancel()
            self._writer.transport.abort()
        if self._daemon is not None and self._daemon.returncode is None:
            self._daemon.send_signal(signal.SIGKILL)
            await self._daemon.wait()
            self.path.unlink(missing_ok=True)
        self.subscribed.clear()


@pytest.fixture
async def bus(tmp_path: Path) -> AsyncIterator[Bus]:
    if shutil.which("dbus-daemon") is None:
        pytest.skip("needs dbus-daemon")
    made = Bus(tmp_path)
    await made.start()
    yield made
    await made.stop()


async def test_a_unit_that_changes_is_told_and_no_other(bus: Bus) -> None:
    teller = Units(told := Told(), bus.path)
    await teller.watch({"ssh.service", "2fa@x-1.service"})
    assert teller.trouble is None
    assert bus.subscribed.is_set()
    bus.unit_changed("cron.service")
    bus.unit_changed("2fa@x-1.service")
    await told.wait_for("2fa@x-1.service")
    bus.unit_changed("ssh.service")
    await told.wait_for("ssh.service")
    assert told.all == [frozenset({"2fa@x-1.service"}), frozenset({"ssh.service"})]
    await teller.close()


async def test_unit_files_concern_every_unit(bus: Bus) -> None:
    teller = Units(told := Told(), bus.path)
    await teller.watch({"ssh.service"})
    bus.signal("/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager", "UnitFilesChanged")
    await told.wait_for(None)
    assert told.all == [None]
    await teller.close()


async def test_a_bus_that_ends_is_said_and_found_again(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it is away nothing is told, and that is known; then everything is looked at."""
    monkeypatch.setattr("compliance_agent.adapters.events.units.FIRST_PAUSE_S", 0.05)
    teller = Units(told := Told(), bus.path)
    await teller.watch({"ssh.service"})
    await bus.stop()
    await until(lambda: teller.trouble == "no_bus")
    await bus.start()
    await told.wait_for(None)
    assert teller.trouble is None
    bus.unit_changed("ssh.service")
    await until(lambda: frozenset({"ssh.service"}) in told.all)
    await teller.close()


async def test_where_there_is_no_bus_that_is_said(tmp_path: Path) -> None:
    teller = Units(Told(), tmp_path / "none")
    await teller.watch({"ssh.service"})
    assert teller.trouble == "no_bus"
    await teller.close()


async def test_a_bus_that_answers_nothing_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compliance_agent.adapters.events.units.CONNECT_S", 0.1)
    server = await asyncio.start_unix_server(_mute, tmp_path / "mute")
    teller = Units(Told(), tmp_path / "mute")
    async with asyncio.timeout(2):
        await teller.watch({"ssh.service"})
    assert teller.trouble == "no_bus"
    await teller.close()
    server.close()


async def _mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
    writer.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


@given(st.binary(max_size=300))
def test_dbus_nonsense_is_refused(raw: bytes) -> None:
    """Whatever a bus sends is a message or a `ValueError`."""
    head = b"l\x04\0\x01" + raw[:12].ljust(12, b"\0")
    try:
        length = dbus_wire.length(head)
        dbus_wire.read((head + raw).ljust(min(length, 1_000), b"\0"))
    except ValueError:
        pass


@given(st.lists(st.text(max_size=30), max_size=3), st.text("abc/_", min_size=1), st.integers(1, 2**32 - 1))
def test_a_call_reads_as_it_was_written(arguments: list[str], path: str, serial: int) -> None:
    raw = dbus_wire.call(serial, "a.b", path, "c.d", "Member", *arguments)
    assert dbus_wire.length(raw) == len(raw)
    message = dbus_wire.read(raw)
    assert (message.type, message.path, message.member) == (dbus_wire.CALL, path, "Member")


def test_unit_names_are_escaped_as_the_manager_does() -> None:
    """As `systemd-escape`'s bus label: seen on a Debian 12 host."""
    assert dbus_wire.object_path("ssh.service").endswith("/ssh_2eservice")
    assert dbus_wire.object_path("2fa@x-1.service").endswith("/_32fa_40x_2d1_2eservice")
