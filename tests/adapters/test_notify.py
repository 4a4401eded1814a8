"""sd_notify over a real datagram socket: what is sent is what systemd reads; a manager that is gone stops nothing."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from compliance_agent.adapters.notify import LONGEST_LINE, Notify


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    name = str(tmp_path / "notify") if request.param == "path" else f"@agent-{os.getpid()}-{time.monotonic_ns()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(name.replace("@", "\0", 1) if name.startswith("@") else name)
        listening.settimeout(5)
        yield listening, name


def heard(listening: socket.socket) -> dict[str, str]:
    lines = listening.recv(4_096).decode().split("\n")
    return dict(line.split("=", 1) for line in lines)


def test_one_datagram_of_lines(manager: tuple[socket.socket, str]) -> None:
    listening, name = manager
    Notify({"NOTIFY_SOCKET": name}).tell(READY="1", STATUS="a\nWATCHDOG=1\x1b[0m" + "x" * 300)
    told = heard(listening)
    assert list(told) == ["READY", "STATUS"], "a status must not smuggle in another line"
    assert told["STATUS"].startswith("a WATCHDOG=1 [0mx") and len(told["STATUS"]) == LONGEST_LINE


def test_a_reload_carries_the_clock_that_the_manager_compares(manager: tuple[socket.socket, str]) -> None:
    listening, name = manager
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1_000
    Notify({"NOTIFY_SOCKET": name}).reloading()
    told = heard(listening)
    assert told["RELOADING"] == "1"
    assert before <= int(told["MONOTONIC_USEC"]) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1_000


@pytest.mark.parametrize("address", ["", "vsock:2:1", "@", "/nowhere/at/all"])
def test_no_manager_stops_nothing(address: str) -> None:
    manager = Notify({"NOTIFY_SOCKET": address})
    manager.tell(READY="1")
    manager.reloading()


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "\uff11\uff12"}, None),
    ],
)
def test_whose_watchdog_it_is(environ: dict[str, str], expected: float | None) -> None:
    assert Notify(environ).watchdog_s == expected
