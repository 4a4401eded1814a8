"""`compliance-agent server alerts`: what is open, whether the channels work, and who looks after it."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

from compliance_agent.server.opening import opened
from compliance_agent.server.records.alarms import Cause
from compliance_agent.server.settings import ServerSettings
from tests.cli.command import run
from tests.cli.test_json import problems

TAKEN: list[dict[str, Any]] = []


class Taking(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        TAKEN.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_arguments: Any) -> None:
        pass


@contextmanager
def hook() -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), Taking) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def made(tmp_path: Path, port: int) -> Path:
    """A server's settings file with one channel."""
    (tmp_path / "secret").write_text("0123456789abcdef")
    channel = {"name": "hook", "kind": "webhook", "private": True, "url": f"http://127.0.0.1:{port}/"}
    (tmp_path / "alerts.yaml").write_text(
        json.dumps({"channels": [{**channel, "secret_file": str(tmp_path / "secret")}]})
    )
    config = {"data_dir": str(tmp_path / "data"), "alerts_file": str(tmp_path / "alerts.yaml")}
    (tmp_path / "server.yaml").write_text(json.dumps(config))
    for path in tmp_path.iterdir():
        path.chmod(0o600)
    assert run("server", "--config", tmp_path / "server.yaml", "init").status == 0
    return tmp_path / "server.yaml"


def test_alerts_are_listed_and_acknowledged(tmp_path: Path) -> None:
    config = made(tmp_path, 9)
    settings = ServerSettings(data_dir=tmp_path / "data", alerts_file=tmp_path / "alerts.yaml")

    async def fork() -> None:
        async with opened(settings) as services:
            await services.alarms.opened(Cause("fork", "clinic-1", "f" * 64), 1)

    alerts = ("server", "--config", config, "alerts")
    assert run(*alerts, "list").status == 0
    asyncio.run(fork())
    ended = run(*alerts, "list", "--json")
    document = json.loads(ended.out)
    assert ended.status == 1 and problems(document) == []
    [found] = document["alerts"]
    assert (found["kind"], found["site_id"], found["closed_at"]) == ("fork", "clinic-1", None)
    assert document["outbox"] == [{"channel": "hook", "state": "waiting", "count": 1}]
    assert "hook: 1 waiting" in run(*alerts, "list").err
    done = run(*alerts, "ack", found["alert_id"], "--actor", "op-1", "--json")
    assert done.status == 0 and problems(json.loads(done.out)) == []
    ended = run(*alerts, "list", "--json")
    assert ended.status == 0 and json.loads(ended.out)["alerts"][0]["acked_by"] == "op-1"
    assert run(*alerts, "ack", found["alert_id"]).status == 66


def test_a_test_goes_through_every_channel_and_says_what_failed(tmp_path: Path) -> None:
    with hook() as port:
        config = made(tmp_path, port)
        ended = run("server", "--config", config, "alerts", "test", "--json")
        document = json.loads(ended.out)
        assert problems(document) == []
        assert document["channels"] == [{"channel": "hook", "taken": True, "code": None}] and ended.status == 0
    assert [item["transition"] for item in TAKEN] == ["open", "close"] and TAKEN[0]["kind"] == "test"
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        (tmp_path / "alerts.yaml").write_text(
            (tmp_path / "alerts.yaml").read_text().replace(str(port), str(nobody.getsockname()[1]))
        )
        ended = run("server", "--config", config, "alerts", "test", "--json")
    assert ended.status == 1
    assert json.loads(ended.out)["channels"] == [{"channel": "hook", "taken": False, "code": "cut"}]


def test_without_channels_a_test_is_refused(tmp_path: Path) -> None:
    assert run("server", "init", "--data-dir", tmp_path / "data").status == 0
    ended = run("server", "alerts", "test", "--data-dir", tmp_path / "data")
    assert ended.status == 78 and "no channel" in ended.err
