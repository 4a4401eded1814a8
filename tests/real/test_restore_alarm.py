"""A server that was restored from yesterday's backup, whole: its process, an agent's process that nobody stops, and who is alarmed.

`test_restore.py` has the numbers of it; here time passes as it does, and the alert goes out over a real connection.
"""

from __future__ import annotations

import json
import re
import socketserver
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from compliance_agent.server.services.watching import LOOK_S, LOOKS
from tests.real.stage import (
    EnrolledHost,
    Server,
    arrived,
    end,
    enrolled,
    environment,
    rows,
    serving,
    stored,
    succeed,
    troubles,
    until,
)

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(300)]
BEATS_S = 10  # the least that a heartbeat can be set to
ALARMED_S = LOOKS * LOOK_S + 20
BASELINE = 'version: "1"\nmode: audit\nchecks:\n  time_sync: {}\n'  # looks, and changes nothing of this machine


class Syslog(socketserver.ThreadingTCPServer):
    """Takes what the server's alerts send, framed by octets."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        self.said: list[dict[str, str]] = []
        super().__init__(("127.0.0.1", 0), _Frame)


class _Frame(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        server = self.server
        assert isinstance(server, Syslog)
        size, _, text = self.rfile.read().partition(b" ")
        assert int(size) == len(text)
        server.said.append(dict(re.findall(r'(\w+)="([^"]*)"', text.decode())))


@contextmanager
def receiver() -> Iterator[Syslog]:
    with Syslog() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def agent(host: EnrolledHost) -> Iterator[subprocess.Popen[bytes]]:
    words = [sys.executable, "-m", "compliance_agent.agent", "--config", str(host.config_file), "--log-level", "ERROR"]
    with (host.directory / "agent.log").open("ab") as output:
        process = subprocess.Popen(words, env=environment(), stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        yield process
    finally:
        if process.poll() is None:
            end(process)


def codes(server: Server) -> list[str]:
    try:
        with urllib.request.urlopen(f"{server.url}/readyz", timeout=5) as answer:
            found = answer.read()
    except urllib.error.HTTPError as error:
        found = error.read()
    return [reason["code"] for reason in json.loads(found)["reasons"]]


def test_hosts_send_again_nothing_is_overwritten_and_one_alarm_goes_out(tmp_path: Path) -> None:
    with receiver() as syslog:
        channels = tmp_path / "alerts.yaml"
        port = syslog.server_address[1]
        channels.write_text(
            f"channels: [{{name: siem, kind: syslog, host: 127.0.0.1, port: {port}, tls: false, private: true}}]\n"
        )
        with serving(tmp_path / "server", MSP_SERVER_ALERTS_FILE=str(channels)) as server:
            (tmp_path / "baseline.yaml").write_text(BASELINE)
            host = enrolled(
                server, tmp_path / "host", "ws-01", "clinic-1",
                heartbeat_interval_sec=BEATS_S, baseline_path=str(tmp_path / "baseline.yaml"),
            )  # fmt: skip
            with agent(host) as process:
                restored(tmp_path, server, host, syslog)
                assert process.poll() is None, "the agent ran through all of it"
                assert end(process) == 0
            server.stop()
            assert arrived(server, host) == host.recorded(), "each once, in its place, those of before the backup too"
            assert troubles(server)["forks"] == 0
            assert rows(server.database, "SELECT count(*) FROM gaps WHERE closed_at IS NULL") == [(0,)]
            told = [(item["kind"], item["transition"]) for item in syslog.said]
            assert told == [("log_still", "open"), ("log_still", "close")]
            assert len({item["alert_id"] for item in syslog.said}) == 1
            found = json.loads(succeed("server", "fsck", "--json", "--data-dir", server.data_dir))
            assert found["valid"] is True


def restored(tmp_path: Path, server: Server, host: EnrolledHost, syslog: Syslog) -> None:
    """Yesterday's backup comes back under an agent that goes on; ends when all is well again and everybody was told."""
    at = ("--data-dir", server.data_dir)
    until(lambda: len(arrived(server, host)) >= 2, 60, "records before the backup", every_s=0.2)
    made = json.loads(succeed("server", "backup", "--out", tmp_path / "backup", "--json", *at))
    yesterday = stored(server, host)
    until(lambda: len(arrived(server, host)) >= len(yesterday) + 2, 60, "records since", every_s=0.2)
    server.stop()
    today, published = stored(server, host), next((server.data_dir / "log/clinic-1").glob("*/checkpoint")).read_bytes()
    assert made["logs"][0]["durable"] < int(published.split(b"\n")[1])
    succeed("server", "restore", "--from", tmp_path / "backup", "--force", *at)
    assert stored(server, host) == today[: len(yesterday)] == yesterday

    server.start(ready=False)
    until(lambda: len(syslog.said) == 1, ALARMED_S, "somebody is told", every_s=0.2)
    assert codes(server) == ["log_restored"]
    until(
        lambda: stored(server, host)[: len(today)] == today, 60, "taken again while the log stands still", every_s=0.2
    )
    assert next((server.data_dir / "log/clinic-1").glob("*/checkpoint")).read_bytes() == published
    server.stop()
    succeed("server", "readopt", *at)
    server.start()
    until(lambda: len(syslog.said) == 2, ALARMED_S, "and told that it is over", every_s=0.2)
    until(lambda: arrived(server, host) == host.recorded(), 60, "all of it is there", every_s=0.2)
    pending = "SELECT count(*) FROM evidence WHERE state = 'pending'"
    until(lambda: rows(host.state_dir / "agent.db", pending) == [(0,)], 60, "delivered and acknowledged", every_s=0.2)
    assert stored(server, host)[: len(today)] == today
    assert codes(server) == []
