"""The root side over an inherited socket pair: one connection for many questions, and two real processes that end together."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from compliance_agent.adapters.heal_host import Held
from compliance_agent.cli.run import command
from compliance_agent.errors import BadFrame, ConfigError, NotPermitted, StepFailed
from compliance_agent.frames import Answering, Reader, Side
from compliance_agent.heal.protocol import TABLE
from tests.heal.scene import BASELINE, CONF, CURE, Scene

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up root")
ROOT = Path(__file__).resolve().parents[2]
ASKED = {"cure": CURE, "baseline": BASELINE}
GOOD, OTHER = b"# ours\nCiphers a\n", b"# ours\nCiphers b\n"
# Starts the agent as `nobody`, over a scene below a directory.
BEGIN = """
import sys
from pathlib import Path
from compliance_agent import pair
from tests.heal.scene import Scene
pair.LEAVE_S = 0.2
scene = Scene(Path(sys.argv[1]))
sys.exit(pair.serve((*pair.as_user("nobody"), sys.executable, "-c", sys.argv[2]), scene.service))
"""
# The agent's part: `ask` gives the kind and the code of an answer.
AGENT = f"""
import asyncio, json, os, signal, sys
from compliance_agent.adapters.heal_host import held
from compliance_agent.frames import HANDLE
root = held(os.environ[HANDLE])
def ask(kind, blob=b"", **more):
    answer = asyncio.run(root.ask(kind, {{**{ASKED!r}, **more}}, blob))
    return [answer.kind, *answer.fields.values()]
def tried(what, *words):
    try:
        what(*words)
    except OSError as error:
        return type(error).__name__
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines())
"""


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


@pytest.fixture
def pair(scene: Scene) -> Iterator[tuple[Held, socket.socket]]:
    ours, theirs = socket.socketpair()
    serving = threading.Thread(target=scene.service.talk, args=(ours, None))
    serving.start()
    yield Held(theirs), ours
    theirs.close()
    serving.join(10)
    assert not serving.is_alive()
    ours.close()


async def test_one_connection_takes_one_question_after_the_other(
    scene: Scene, pair: tuple[Held, socket.socket]
) -> None:
    root, _ = pair
    for content in (GOOD, OTHER, GOOD):
        answer = await root.ask("write", {**ASKED, "path": CONF, "mode": 0o644}, content)
        assert (answer.kind, answer.fields) == ("done", {"exit": 0})
        assert scene.path(CONF).read_bytes() == content
    refused = await root.ask("write", {**ASKED, "path": "/etc/passwd", "mode": 0o644}, b"x\n")
    assert (refused.kind, refused.fields) == ("refused", {"code": "not_permitted_here"})
    assert not scene.path("/etc/passwd").exists()


async def test_a_question_that_is_none_leaves_the_pair_as_it_is(pair: tuple[Held, socket.socket]) -> None:
    root, _ = pair
    with pytest.raises(BadFrame):
        await root.ask("write", {**ASKED, "path": "../x", "mode": 0o644}, b"")
    assert (await root.ask("write", {**ASKED, "path": CONF, "mode": 0o644}, GOOD)).kind == "done"


async def test_a_root_side_that_has_gone_is_never_taken_for_an_answer() -> None:
    ours, theirs = socket.socketpair()
    ours.close()
    root = Held(theirs)
    for _ in range(2):
        with pytest.raises(StepFailed) as refused:
            await root.ask("clock", ASKED, b"")
        assert refused.value.code == "heal_unreachable"


@pytest.mark.parametrize("spoil", ["another question's", "silence"])
async def test_an_answer_to_no_question_ends_the_pair(spoil: str) -> None:
    ours, theirs = socket.socketpair()

    def lies() -> None:
        reader, answering = Reader(TABLE, Side.ASKS), Answering(TABLE)
        ours.sendall(TABLE.hello())
        while data := ours.recv(65_536):
            for question in reader.feed(data):
                answering.take(question)
                frames = b"".join(answering.answer(question.id, "done", {"exit": 0}))
                if spoil == "another question's":
                    ours.sendall(frames[:5] + (question.id + 7).to_bytes(4, "big") + frames[9:])

    lying = threading.Thread(target=lies)
    lying.start()
    root = Held(theirs, lambda _kind: 0.2)
    for _ in range(2):
        with pytest.raises(StepFailed) as refused:
            await root.ask("clock", ASKED, b"")
        assert refused.value.code == "heal_unreachable"
    lying.join(10)
    assert not lying.is_alive()
    ours.close()


def begun(place: Path, agent: str) -> subprocess.Popen[str]:
    """Both processes, really."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = (sys.executable, "-c", BEGIN, str(place), AGENT + agent)
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@needs_root
def test_the_agent_has_no_root_and_root_does_what_was_permitted(tmp_path: Path) -> None:
    """It can ask, and can do nothing of it by itself, nor have root's rights back."""
    passwd = tmp_path / "etc/passwd"
    started = begun(
        tmp_path,
        f"""
said = {{
    "done": ask("write", {GOOD!r}, path={CONF!r}, mode=0o644),
    "refused": ask("write", b"x", path="/etc/passwd", mode=0o644),
    "by itself": tried(open, {str(passwd)!r}, "w"),
    "back": tried(os.setuid, 0),
    "user": os.getuid(), "rights": status["CapEff"], "bounds": status["CapBnd"],
    "handle": os.get_inheritable(int(os.environ[HANDLE])),
}}
print(json.dumps(said))
sys.exit(7)
""",
    )
    out, err = started.communicate(timeout=60)
    assert started.returncode == 7, err
    said = json.loads(out)
    assert said["done"] == ["done", 0] and (tmp_path / CONF[1:]).read_bytes() == GOOD
    assert said["refused"] == ["refused", "not_permitted_here"] and not passwd.exists()
    assert (said["by itself"], said["back"]) == ("PermissionError", "PermissionError")
    assert said["user"] != 0 and said["handle"] is False
    assert int(said["rights"], 16) & ~(1 << 2 | 1 << 12) == int(said["bounds"], 16) & ~(1 << 2 | 1 << 12) == 0
    assert "heal.done row=write" in err and "heal.refused row=write code=not_permitted_here" in err


@needs_root
def test_whoever_breaks_a_rule_of_the_pair_is_ended(tmp_path: Path) -> None:
    started = begun(tmp_path, "os.write(int(os.environ[HANDLE]), b'GET / HTTP/1.1')\nsignal.pause()")
    _, err = started.communicate(timeout=60)
    assert started.returncode == 128 + signal.SIGTERM
    assert "heal.bad_frame" in err and "pair.agent_told_to_end" in err


@needs_root
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_passed_on_and_the_agent_says_how_it_ended(tmp_path: Path, number: signal.Signals) -> None:
    heard = f"signal.signal({int(number)}, lambda *_: sys.exit(5))\nprint('ready', flush=True)\nsignal.pause()"
    started = begun(tmp_path, heard)
    assert started.stdout is not None and started.stdout.readline() == "ready\n"
    started.send_signal(number)
    started.communicate(timeout=60)
    assert started.returncode == 5


@needs_root
def test_an_agent_without_its_root_side_is_ended_too(tmp_path: Path) -> None:
    started = begun(tmp_path, "print(os.getpid(), flush=True)\nsignal.pause()")
    assert started.stdout is not None
    agent = int(started.stdout.readline())
    watched = os.pidfd_open(agent)
    try:
        started.kill()
        started.communicate(timeout=60)
        assert select.select([watched], [], [], 60)[0]  # it has ended
    finally:
        os.close(watched)


@pytest.mark.parametrize(
    ("words", "said"),
    [(("--user", "no-such-user", "--", "true"), "no-such-user"), (("--user", "nobody"), "agent")],
)
def test_what_cannot_be_started_is_said(words: tuple[str, ...], said: str) -> None:
    done = subprocess.run(
        (sys.executable, "-I", "-m", "compliance_agent.pair", *words),
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode in {2, 78} and said in done.stderr and "Traceback" not in done.stderr


class Executed(Exception):
    """The process would be another program now."""


def given_up(config: str, tmp_path: Path) -> Any:
    path = tmp_path / "agent.yaml"
    path.write_text(f"client_id: m\nsite_id: c\nhost_id: h\nstate_dir: {tmp_path}\n{config}", "utf-8")
    return CliRunner().invoke(command, ["--give-up-root", "--config", str(path)])


def test_the_command_becomes_the_root_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executed: list[list[str]] = []

    def execute(_program: str, words: list[str]) -> None:
        executed.append(words)
        raise Executed

    monkeypatch.setattr(os, "execv", execute)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert isinstance(given_up("run_user: clinic\n", tmp_path).exception, Executed)
    (words,) = executed
    python, agent = [sys.executable, "-I", "-m"], str(tmp_path / "agent.yaml")
    assert words == [
        *python, "compliance_agent.pair", "--user", "clinic", "--",
        *python, "compliance_agent", "run", "--config", agent,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("config", "uid", "error"),
    [("privileges: split\n", 0, ConfigError), ("heal_socket: /run/x\n", 0, ConfigError), ("", 1, NotPermitted)],
)
def test_it_is_refused_where_it_has_no_meaning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: str, uid: int, error: type[Exception]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("executed"))
    assert isinstance(given_up(config, tmp_path).exception, error)
