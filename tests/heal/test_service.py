"""The socket of the root side: hostile frames, wrong users, one question at a time, and the real process."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compliance_agent.frames import Asking, Message, Reader, Side
from compliance_agent.heal import service as module
from compliance_agent.heal.protocol import TABLE
from tests.heal.scene import BASELINE, CURE, Scene

HELLO = TABLE.hello()
FIELDS = {"cure": CURE, "baseline": BASELINE}


def frame(number: int, payload: bytes, id_: int = 1) -> bytes:
    return struct.pack(">IBI", 5 + len(payload), number, id_) + payload


def asked(kind: str, blob: bytes = b"", **args: object) -> bytes:
    return b"".join(Asking(TABLE).ask(kind, {**FIELDS, **args}, blob).frames)


def good(**changes: object) -> bytes:
    return json.dumps({**FIELDS, **changes}).encode()


CLOCK = TABLE.kinds["clock"].number
UNIT = TABLE.kinds["unit"].number
WRITE = TABLE.kinds["write"].number
CHMOD = TABLE.kinds["chmod"].number
UPGRADE = TABLE.kinds["upgrade"].number
HOSTILE: dict[str, bytes] = {
    "nothing": b"",
    "one byte": b"\0",
    "http": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "no hello": frame(CLOCK, good()),
    "another protocol": frame(0, b'{"protocol":"uplink","version":1}', 0),
    "another version": frame(0, b'{"protocol":"heal","version":2}', 0),
    "version true": frame(0, b'{"protocol":"heal","version":true}', 0),
    "hello with an id": frame(0, b'{"protocol":"heal","version":1}', 7),
    "hello twice": HELLO + HELLO,
    "length 0": HELLO + struct.pack(">I", 0),
    "length of 4 GB": HELLO + b"\xff\xff\xff\xff",
    "one byte too long": HELLO + struct.pack(">IBI", 65_533, CLOCK, 1),
    "cut": HELLO + frame(CLOCK, good())[:-3],
    "no such row": HELLO + frame(99, good()),
    "row 0": HELLO + frame(0, good()),
    "an answer": HELLO + frame(101, b'{"exit":0,"blob":0}'),
    "a stray chunk": HELLO + frame(255, b"x"),
    "empty payload": HELLO + frame(CLOCK, b""),
    "not json": HELLO + frame(CLOCK, b"run this"),
    "a list": HELLO + frame(CLOCK, b"[]"),
    "utf-16": HELLO + frame(CLOCK, good().decode().encode("utf-16")),
    "bad utf-8": HELLO + frame(CLOCK, b"\xff\xfe"),
    "deep": HELLO + frame(CLOCK, b"[" * 60_000),
    "a key twice": HELLO + frame(CLOCK, good()[:-1] + b',"cure":"x"}'),
    "NaN": HELLO + frame(CHMOD, good(path="/etc/app/app.key", mode=1).replace(b": 1", b": NaN")),
    "1e999": HELLO + frame(CHMOD, good(path="/etc/app/app.key", mode=1).replace(b": 1}", b": 1e999}")),
    "a float": HELLO + frame(CHMOD, good(path="/etc/app/app.key", mode=1).replace(b": 1}", b": 416.0}")),
    "5,000 digits": HELLO
    + frame(CHMOD, good(path="/etc/app/app.key", mode=1).replace(b": 1}", b": " + b"9" * 5_000 + b"}")),
    "mode true": HELLO + frame(CHMOD, good(path="/etc/app/app.key", mode=True)),
    "mode text": HELLO + frame(CHMOD, good(path="/etc/app/app.key", mode="0640")),
    "a field more": HELLO + frame(CLOCK, good(argv=["sh", "-c", "id"])),
    "a field less": HELLO + frame(CLOCK, b'{"cure":"x"}'),
    "cure that is a path": HELLO + frame(CLOCK, good(cure="../../etc/x")),
    "baseline in capitals": HELLO + frame(CLOCK, good(baseline="A" * 64)),
    "a verb that is none": HELLO + frame(UNIT, good(verb="edit", unit="need.service")),
    "a unit that is an option": HELLO + frame(UNIT, good(verb="stop", unit="--all.service")),
    "two units": HELLO + frame(UNIT, good(verb="stop", unit="a.service b.service")),
    "a unit with a newline": HELLO + frame(UNIT, good(verb="stop", unit="a.service\n")),
    "a path with ..": HELLO + frame(CHMOD, good(path="/etc/app/../shadow", mode=0o640)),
    "a path with a newline": HELLO + frame(CHMOD, good(path="/etc/app\n/x", mode=0o640)),
    "a surrogate": HELLO + frame(CHMOD, good(path="/etc/x", mode=1).replace(b"/etc/x", b"/etc/\\ud800")),
    "an option for apt": HELLO + frame(UPGRADE, good(manager="apt", packages=["-o=Dir::Etc=/tmp"])),
    "a package without a version": HELLO + frame(UPGRADE, good(manager="apt", packages=["evil"])),
    "a local package": HELLO + frame(UPGRADE, good(manager="apt", packages=["/tmp/evil.deb"])),
    "too large a blob": HELLO + frame(WRITE, good(path="/etc/app/app.conf", mode=0o644, blob=300_000)),
    "a negative blob": HELLO + frame(WRITE, good(path="/etc/app/app.conf", mode=0o644, blob=-1)),
    "more chunks than said": HELLO
    + frame(WRITE, good(path="/etc/app/app.conf", mode=0o644, blob=1))
    + frame(255, b"xy"),
    "a chunk of another id": HELLO
    + frame(WRITE, good(path="/etc/app/app.conf", mode=0o644, blob=1))
    + frame(255, b"x", 2),
    "id 0": HELLO + frame(CLOCK, good(), 0),
}


def talked(scene: Scene, sent: bytes) -> list[Message]:
    """What is answered to these bytes until the root side closes."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(sent)
        ours.shutdown(socket.SHUT_WR)
        scene.service.talk(theirs)
        theirs.close()
        data = b""
        while piece := ours.recv(65_536):
            data += piece
    return Reader(TABLE, Side.ANSWERS).feed(data)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_frame_ends_the_connection_and_does_nothing(scene: Scene, name: str) -> None:
    """No row runs, no traceback, nothing said back but the hello."""
    assert len(HOSTILE) >= 40
    scene.put("/etc/app/app.key", b"", 0o604)
    assert talked(scene, HOSTILE[name]) == []
    assert scene.calls() == []
    assert scene.path("/etc/app/app.key").stat().st_mode & 0o777 == 0o604


def test_what_comes_after_a_hostile_frame_is_not_read(scene: Scene) -> None:
    assert talked(scene, HOSTILE["not json"] + asked("clock")) == []
    assert scene.calls() == []


def test_good_questions_are_answered_in_order(scene: Scene) -> None:
    asking = Asking(TABLE)
    sent = [HELLO, *asking.ask("clock", FIELDS).frames, *asking.ask("logind", FIELDS).frames]
    assert [(said.id, said.kind) for said in talked(scene, b"".join(sent))] == [(1, "done"), (2, "done")]


def test_an_id_that_was_used_is_not_taken_again(scene: Scene) -> None:
    """A recorded question that is sent again ends the connection."""
    assert [said.id for said in talked(scene, HELLO + asked("clock") + asked("clock"))] == [1]
    assert len(scene.calls()) == 1


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(pieces=st.lists(st.one_of(st.binary(max_size=40), st.sampled_from([HELLO, asked("clock")]),
       st.builds(frame, st.integers(0, 255), st.binary(max_size=60), st.integers(0, 3))), max_size=5))  # fmt: skip
def test_no_bytes_make_it_crash(scene: Scene, pieces: list[bytes]) -> None:
    """Whatever comes: answers of the table, or the end."""
    before = len(scene.calls())
    answers = talked(scene, b"".join(pieces))
    assert len(scene.calls()) - before == sum(said.kind == "done" for said in answers)


@contextmanager
def served(scene: Scene, users: set[int]) -> Iterator[Callable[[], socket.socket]]:
    """A listening socket with the root side behind it, in a thread."""
    path = str(scene.root / "heal.sock")
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(path)
        listener.listen()
        thread = threading.Thread(target=scene.service.serve, args=(listener, users, 0.3), daemon=True)
        thread.start()

        def connect() -> socket.socket:
            made = socket.socket(socket.AF_UNIX)
            made.settimeout(10)
            made.connect(path)
            return made

        try:
            yield connect
        finally:
            thread.join(10)
        assert not thread.is_alive(), "it did not end when nobody asked"


def all_of(connection: socket.socket) -> bytes:
    data = b""
    while piece := connection.recv(65_536):
        data += piece
    return data


def test_the_agents_user_is_served_and_another_is_not(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the kernel's word for who connected; a stranger does not even get the hello."""
    with served(scene, {os.geteuid()}) as connect, connect() as ours:
        ours.sendall(HELLO + asked("clock"))
        ours.shutdown(socket.SHUT_WR)
        assert Reader(TABLE, Side.ANSWERS).feed(all_of(ours))[0].kind == "done"
    (scene.root / "heal.sock").unlink()
    with (
        served(scene, {os.geteuid() + 1}) as connect,
        connect() as ours,
        suppress(ConnectionResetError, BrokenPipeError),
    ):
        ours.sendall(HELLO + asked("clock"))
        assert all_of(ours) == b""
    assert len(scene.calls()) == 1


def test_who_asks_says_nothing_about_who_it_is(scene: Scene) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert module.peer_uid(theirs) == os.geteuid()


def test_an_asker_that_says_nothing_does_not_hold_the_next_one_up(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.Service.talk, "__defaults__", (0.2,))
    with served(scene, {os.geteuid()}) as connect, connect() as silent, connect() as ours:
        ours.sendall(HELLO + asked("clock"))
        ours.shutdown(socket.SHUT_WR)
        assert Reader(TABLE, Side.ANSWERS).feed(all_of(ours))[0].kind == "done"
        assert silent.recv(100) == HELLO


def test_an_asker_that_goes_away_in_the_middle_ends_only_its_own_connection(scene: Scene) -> None:
    with served(scene, {os.geteuid()}) as connect:
        for cut in (HELLO, HELLO + asked("clock")[:7], b""):
            with connect() as ours:
                ours.sendall(cut)
        with connect() as ours:
            ours.sendall(HELLO + asked("clock"))
            ours.shutdown(socket.SHUT_WR)
            assert Reader(TABLE, Side.ANSWERS).feed(all_of(ours))[0].kind == "done"


# The process itself


def started(socket_fd: int, *arguments: str) -> subprocess.Popen[str]:
    """As the service manager starts it: the socket is descriptor 3, and two variables say so."""
    code = (
        f"import os, sys; os.dup2({socket_fd}, 3); os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1');"
        "os.execv(sys.executable, [sys.executable, '-I', '-m', 'compliance_agent.heal', *sys.argv[1:]])"
    )
    return subprocess.Popen(
        [sys.executable, "-I", "-c", code, *arguments], pass_fds=(socket_fd,), text=True, stderr=subprocess.PIPE
    )


def test_the_process_serves_the_socket_it_was_given_and_ends_when_idle(tmp_path: Path) -> None:
    """Socket-activated, hardened, refusing by the real paths: on this machine nothing is permitted under `permits`."""
    path = tmp_path / "heal.sock"
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(path))
        listener.listen()
        permits = tmp_path / "permits.json"
        began = time.monotonic()
        process = started(
            listener.fileno(),
            "--user",
            str(os.geteuid()),
            "--idle",
            "1.5",
            "--permits",
            str(permits),
            "--found",
            str(tmp_path / "f"),
        )
        with closing(socket.socket(socket.AF_UNIX)) as ours:
            ours.settimeout(30)
            ours.connect(str(path))
            ours.sendall(HELLO + asked("clock"))
            reader = Reader(TABLE, Side.ANSWERS)
            while not (answers := reader.feed(ours.recv(65_536))):
                pass
            assert (answers[0].kind, answers[0].fields) == ("refused", {"code": "no_permits"})
            limits = Path(f"/proc/{process.pid}/limits").read_text() if os.geteuid() == 0 else "Max core file size 0 0"
            assert limits.split("Max core file size")[1].split()[:2] == ["0", "0"]
            assert os.geteuid() != 0 or Path(f"/proc/{process.pid}/status").stat().st_uid == 0
        _, err = process.communicate(timeout=30)
        assert (process.returncode, time.monotonic() - began > 1.4) == (0, True), err
        assert "heal.refused row=clock code=no_permits" in err


@pytest.mark.parametrize(
    ("environment", "user"),
    [({}, "0"), ({"LISTEN_PID": "1", "LISTEN_FDS": "1"}, "0"), ({"LISTEN_FDS": "2"}, "0"), ({}, "no-such-user")],
)
def test_the_process_does_not_start_without_one_socket_and_a_user(environment: dict[str, str], user: str) -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-m", "compliance_agent.heal", "--user", user],
        env=environment, capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    assert (done.returncode, "Traceback" in done.stderr) == (78, False)
    assert "cannot start" in done.stderr
