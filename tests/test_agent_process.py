"""The agent as a process of its own: started, signalled, ended within ten seconds, whatever hangs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.command import configured, environment, run

WITHIN_S = 10.0


@contextlib.contextmanager
def agent(*words: str, code: str | None = None) -> Iterator[subprocess.Popen[str]]:
    """The process; killed at the end if it still runs."""
    command = [sys.executable, "-c", code] if code else [sys.executable, "-m", *words]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment())
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=10)


def wait_for(process: subprocess.Popen[str], event: str) -> list[str]:
    """Read its log up to this event."""
    lines: list[str] = []
    killer = threading.Timer(30, process.kill)
    killer.start()
    try:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line)
            if f'"{event}"' in line:
                return lines
    finally:
        killer.cancel()
    raise AssertionError(f"no {event} in:\n{''.join(lines)}")


def ended(process: subprocess.Popen[str], number: int) -> tuple[int, float, str]:
    """Signal it and wait: status, seconds, the rest of its log."""
    began = time.monotonic()
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    return process.returncode, time.monotonic() - began, err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("entry", ["compliance_agent.agent", "compliance_agent run"])
def test_a_signal_ends_it_cleanly(tmp_path: Path, number: int, entry: str) -> None:
    path = configured(tmp_path)
    with agent(*entry.split(), "--config", str(path)) as process:
        wait_for(process, "cycle.completed")
        status, seconds, err = ended(process, number)
    assert status == 0
    assert seconds < WITHIN_S
    assert '"agent.stopped"' in err and "Traceback" not in err
    document = json.loads(run("status", "--json", "--config", path).out)
    assert document["running"] is False
    assert document["statistics"]["loops_completed"] == 1
    assert document["queue"]["pending"] == 2, "a verdict and a heartbeat"


HUNG_CHECK = """if True:
    import asyncio, sys, threading, time
    from compliance_agent.adapters import runner
    from compliance_agent import agent, drift

    async def hang(entry, host):
        {body}

    drift._asked = hang
    sys.argv = ["agent", "--config", {config!r}, "--log-level", "DEBUG"]
    agent.log.info("hung.ready")
    runner.program(agent.main())
"""
HANGS = {
    "waits for ever": "await asyncio.Event().wait()",
    "ignores its cancellation": """
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                pass""",
    "sits in a thread that never returns": "await asyncio.to_thread(time.sleep, 3600)",
}


@pytest.mark.parametrize("name", HANGS)
def test_a_hung_check_does_not_keep_the_process(tmp_path: Path, name: str) -> None:
    baseline = 'version: "1"\nchecks:\n  time_sync: {deadline_s: 600}\n'
    code = HUNG_CHECK.format(body=HANGS[name], config=str(configured(tmp_path, baseline=baseline)))
    with agent(code=code) as process:
        wait_for(process, "agent.started")
        time.sleep(0.3)  # it is in the middle of its look
        status, seconds, err = ended(process, signal.SIGTERM)
    assert (status, "Traceback" in err) == (0, False), err
    assert seconds < WITHIN_S
    assert '"agent.stopped"' in err and '"evidence.stored"' not in err, "nothing is said of what was not seen"


def test_a_hung_upload_does_not_keep_the_process_and_loses_nothing(tmp_path: Path) -> None:
    """The server takes the connection and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        keys = tmp_path / "keys"
        keys.mkdir(mode=0o700)
        for name, content in (("api-key", "k"), ("server-key", "0" * 64)):
            (keys / name).write_text(content)
            (keys / name).chmod(0o600)
        path = configured(
            tmp_path,
            mcp_url=f"http://127.0.0.1:{server.getsockname()[1]}",
            mcp_api_key_file="keys/api-key",
            mcp_server_key_file="keys/server-key",
        )
        with agent("compliance_agent.agent", "--config", str(path)) as process:
            wait_for(process, "evidence.stored")
            server.settimeout(20)
            connection, _ = server.accept()
            status, seconds, err = ended(process, signal.SIGTERM)
            connection.close()
    assert (status, "Traceback" in err) == (0, False), err
    assert seconds < WITHIN_S
    assert json.loads(run("status", "--json", "--config", path).out)["queue"]["pending"] >= 1


def test_a_second_agent_on_the_same_state_is_refused(tmp_path: Path) -> None:
    path = configured(tmp_path)
    with agent("compliance_agent.agent", "--config", str(path)) as process:
        wait_for(process, "cycle.completed")
        refused = run("run", "--config", path)
        assert refused.status == 75
        assert "in use" in refused.err.splitlines()[-1]
        assert ended(process, signal.SIGTERM)[0] == 0


def test_the_log_may_go_nowhere(tmp_path: Path) -> None:
    """Who reads our log may leave; the agent stays."""
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "compliance_agent.agent", "--config", str(configured(tmp_path, mcp_poll_interval_sec=1))],
        stderr=writer, env=environment(),
    )  # fmt: skip
    os.close(writer)
    os.read(reader, 1)
    os.close(reader)
    time.sleep(2.5)
    assert process.poll() is None
    process.terminate()
    assert process.wait(timeout=15) == 0


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["--config", "/nonexistent/agent.yaml"], 78, "agent.yaml"),
        ([], 78, "required"),
        (["--log-level", "LOUD"], 2, "invalid choice"),
    ],
)
def test_the_specifications_entry_point_refuses_in_one_line(words: list[str], status: int, said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "compliance_agent.agent", *words],
        capture_output=True, text=True, env=environment(), timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == status
    assert said in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
