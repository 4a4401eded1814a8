"""Unix sockets of one host: who is at the other end, and frames over a real one."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from compliance_agent.errors import BadFrame, ConfigError, NotPermitted, Unavailable
from compliance_agent.frames import Asking, Flag, Kind, Message, Side, Table
from compliance_agent.local_socket import Wire, activated, adopted, listen, peer_of, require_peer

TABLE = Table(
    "test",
    1,
    Kind("ask", 1, Side.ASKS, most_blob_bytes=2_000_000, answers=("done",)),
    Kind("done", 2, Side.ANSWERS, {"changed": Flag()}, most_blob_bytes=2_000_000),
)
Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    one, other = socket.socketpair()
    yield one, other
    one.close()
    other.close()


def test_a_question_and_its_answer_of_2_mb_over_a_real_pair(pair: Pair) -> None:
    blob = os.urandom(1_900_000)

    def serve() -> None:
        with Wire(pair[1], TABLE, Side.ANSWERS) as wire:
            wire.greet(5)
            asked = wire.receive(5)
            assert asked is not None
            wire.send(TABLE.frames(Message("done", asked.id, {"changed": True}, asked.blob)), 5)
            assert wire.receive(5) is None

    server = threading.Thread(target=serve)
    server.start()
    with Wire(pair[0], TABLE, Side.ASKS) as wire:
        wire.greet(5)
        asking = Asking(TABLE)
        question = asking.ask("ask", {}, blob)
        wire.send(question.frames, 5)
        answer = wire.receive(5)
    server.join()
    assert answer == Message("done", question.id, {"changed": True}, blob)


def test_silence_ends_in_time(pair: Pair) -> None:
    with pytest.raises(Unavailable) as refused:
        Wire(pair[0], TABLE, Side.ASKS).greet(0.02)
    assert refused.value.code == "timed_out"


def test_a_reader_that_takes_nothing_is_not_waited_for(pair: Pair) -> None:
    with pytest.raises(Unavailable) as refused:
        Wire(pair[0], TABLE, Side.ASKS).send(Asking(TABLE).ask("ask", {}, bytes(1_900_000)).frames, 0.05)
    assert refused.value.code == "timed_out"


def test_a_connection_that_ends_is_not_an_answer(pair: Pair) -> None:
    pair[1].close()
    with pytest.raises((BadFrame, Unavailable)) as refused:
        Wire(pair[0], TABLE, Side.ASKS).greet(1)
    assert getattr(refused.value, "code", "") == "cut"


def test_an_end_within_a_message_is_a_cut(pair: Pair) -> None:
    pair[1].sendall(TABLE.hello() + b"\x00\x00")
    pair[1].close()
    wire = Wire(pair[0], TABLE, Side.ASKS)
    with pytest.raises((BadFrame, Unavailable)):
        wire.receive(1)


def test_the_kernel_says_who_is_at_the_other_end(tmp_path: Path) -> None:
    with listen(tmp_path / "s") as listener, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as one:
        one.connect(str(tmp_path / "s"))
        other, _ = listener.accept()
        with other:
            assert peer_of(other).pid == os.getpid()
            assert require_peer(other, {os.geteuid()}).uid == os.geteuid()
            assert require_peer(one, {os.geteuid()}).gid == os.getegid()
            with pytest.raises(NotPermitted, match="expected 12345 or 12346"):
                require_peer(other, {12345, 12346})


def test_who_is_at_the_other_end_of_a_network_nobody_knows() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as one, pytest.raises(NotPermitted):
        require_peer(one, {os.geteuid()})


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_another_user_is_told_from_ours(tmp_path: Path) -> None:
    path = tmp_path / "s"
    code = (
        "import os, socket; s = socket.socket(socket.AF_UNIX); os.setresuid(65534, 65534, 65534)\n"
        f"s.connect({str(path)!r}); s.recv(1)"
    )
    with listen(path, 0o666) as listener:
        for directory in [tmp_path, *tmp_path.parents]:
            if not directory.stat().st_mode & stat.S_IXOTH:
                directory.chmod(0o755)
        child = subprocess.Popen([sys.executable, "-I", "-c", code])
        other, _ = listener.accept()
        with other, pytest.raises(NotPermitted, match="user 65534 is at the other end"):
            require_peer(other, {0})
        child.wait()


def test_a_socket_has_its_mode_from_its_first_moment(tmp_path: Path) -> None:
    with listen(tmp_path / "s", 0o600):
        assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o600


def test_a_socket_that_nobody_answers_is_replaced_and_one_that_lives_is_not(tmp_path: Path) -> None:
    path = tmp_path / "s"
    listen(path).close()
    with listen(path), pytest.raises(ConfigError, match="another process listens"):
        listen(path)


def test_what_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("mine")
    with pytest.raises(ConfigError, match="something else"):
        listen(path)
    assert path.read_text() == "mine"


def test_a_directory_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot listen"):
        listen(tmp_path / "no" / "s")


# The service manager's descriptors, in a process of its own: they have fixed numbers.


def in_a_child(pair: Pair, environment: str, then: str) -> str:
    """Run a line in a process that has the pair as descriptors 3 and 4."""
    code = (
        "import os, sys\nfrom compliance_agent.local_socket import activated, adopted\n"
        f"os.dup2({pair[0].fileno()}, 3); os.dup2({pair[1].fileno()}, 4)\n"
        f"given = {{{environment}}}\n{then}"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        pass_fds=[pair[0].fileno(), pair[1].fileno()],
        capture_output=True,
        text=True,
        check=False,
    )
    return (done.stdout + done.stderr.strip().split("\n")[-1]).strip()


GIVEN = "'LISTEN_PID': str(os.getpid()), 'LISTEN_FDS': '2', 'LISTEN_FDNAMES': 'uplink:heal'"


def test_descriptors_are_taken_by_their_names_and_not_inherited(pair: Pair) -> None:
    then = "found = activated(given, os.getpid()); print(found, os.get_inheritable(3), adopted(4).family.name)"
    assert in_a_child(pair, GIVEN, then) == "{'uplink': [3], 'heal': [4]} False AF_UNIX"


def test_descriptors_without_names_are_unknown_and_a_closed_one_is_refused(pair: Pair) -> None:
    nameless = "'LISTEN_PID': str(os.getpid()), 'LISTEN_FDS': '1'"
    assert in_a_child(pair, nameless, "print(activated(given, os.getpid()))") == "{'unknown': [3]}"
    assert "is not open" in in_a_child(pair, GIVEN.replace("'2'", "'99'"), "activated(given, os.getpid())")


@pytest.mark.parametrize("environ", [{}, {"LISTEN_PID": "1", "LISTEN_FDS": "1"}])
def test_descriptors_of_another_process_are_not_ours(environ: dict[str, str]) -> None:
    assert activated(environ, os.getpid()) == {}


def test_a_number_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="LISTEN_FDS"):
        activated({"LISTEN_PID": "7", "LISTEN_FDS": "two"}, 7)


def test_a_descriptor_that_is_no_unix_stream_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "f").open("w") as file, pytest.raises(ConfigError, match="not a socket"):
        adopted(file.fileno())
    with socket.socket(socket.AF_INET) as one, pytest.raises(ConfigError, match="not a unix stream"):
        adopted(one.fileno())
