"""deploy/Caddyfile: read by our own check, and, where Caddy is installed, by Caddy, which then stands before two real servers."""

from __future__ import annotations

import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx2
import pytest

from compliance_agent.server.api.edge import BODY_DEADLINE_S
from compliance_agent.server.guard import GRACE_S, HEAD_DEADLINE_S
from compliance_agent.server.runner import KEEP_ALIVE_S
from tests.deploy.product import DEPLOY, routes
from tests.server.test_process import Running, running

CADDY = shutil.which("caddy")
needs_caddy = pytest.mark.skipif(CADDY is None, reason="Caddy is not installed here")
TEXT = (DEPLOY / "Caddyfile").read_text("utf-8")
Block = list[tuple[list[str], "Block"]]


def block(text: str) -> Block:
    """The lines of a Caddyfile as words, each with the block that it opens."""
    stack: list[Block] = [[]]
    for number, line in enumerate(text.splitlines(), 1):
        words = re.sub(r"(^|\s)#.*", "", line).split()
        if not words:
            continue
        if words == ["}"]:
            assert len(stack) > 1, f"line {number}: closes nothing"
            stack.pop()
            continue
        opens = words[-1] == "{"
        inner: Block = []
        stack[-1].append((words[:-1] if opens else words, inner))
        if opens:
            stack.append(inner)
    assert len(stack) == 1, "a block is not closed"
    return stack[0]


def everywhere(found: Block) -> Iterator[list[str]]:
    for words, inner in found:
        yield words
        yield from everywhere(inner)


def inside(found: Block, *path: str) -> Block:
    for name in path:
        found = next(inner for words, inner in found if words[:1] == [name] or (not words and name == ""))
    return found


def test_it_keeps_connections_and_hands_on_to_both() -> None:
    """A connection of a host is kept longer than it waits between two calls; one to a server ends before the server ends it."""
    found = block(TEXT)
    idle = dict(words[:2] for words, _ in inside(found, "", "servers", "timeouts") if len(words) == 2)
    assert seconds(idle["idle"]) >= 2 * 60
    upstream = {words[0]: words[1:] for words, _ in inside(found, "(servers)", "transport")}
    assert 0 < seconds(upstream["keepalive"][0]) < KEEP_ALIVE_S
    [public] = [inner for words, inner in found if words == [":8443"]]
    assert [words[1:] for words, _ in public if words[0] == "reverse_proxy"] == [
        ["https://server-1:8443", "https://server-2:8443"]
    ]
    assert ["respond", "@inside", "404"] in [words for words, _ in public]
    used = {
        word for words in everywhere(found) for word in words if word.startswith("/") and not word.startswith("/pki/")
    }
    assert used - {"/server-1", "/server-2", "/metrics/*"} == {"/healthz", "/metrics"} <= routes()


def seconds(text: str) -> int:
    found = re.fullmatch(r"(\d+)(s|m)", text)
    assert found, text
    return int(found[1]) * {"s": 1, "m": 60}[found[2]]


@pytest.mark.parametrize("text", ["a {", "}", "a {\n}\n}"])
def test_what_does_not_close_is_not_read(text: str) -> None:
    with pytest.raises(AssertionError):
        block(text)


# --- by Caddy itself ------------------------------------------------------------------------------


def placed(directory: Path, servers: list[Running], ports: tuple[int, int]) -> Path:
    """The shipped file with places of this machine for those of the containers, and nothing else changed."""
    text = TEXT.replace("/pki/", f"{servers[0].directory}/tls/")
    for number, server in enumerate(servers, 1):
        text = text.replace(f"https://server-{number}:8443", server.url)
    text = text.replace("\n:8443 {", f"\nhttps://:{ports[0]} {{").replace("http://:9180 {", f"http://:{ports[1]} {{")
    path = directory / "Caddyfile"
    path.write_text(text.replace("admin off", f"admin off\n\tstorage file_system {directory}/caddy"))
    return path


@contextmanager
def caddy(config: Path) -> Iterator[subprocess.Popen[bytes]]:
    assert CADDY is not None
    words = [CADDY, "run", "--config", str(config), "--adapter", "caddyfile"]
    environment = {"HOME": str(config.parent), "PATH": "/usr/bin:/bin"}
    with subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.terminate()
            process.wait(10)


def free_ports() -> tuple[int, int]:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        return one.getsockname()[1], two.getsockname()[1]


def settled(url: str, verify: ssl.SSLContext | bool) -> None:
    for _ in range(100):
        try:
            if httpx2.get(f"{url}/healthz", verify=verify).status_code == 200:
                return
        except httpx2.HTTPError:
            pass
        time.sleep(0.1)  # a process of its own, which tells nobody when it is ready
    raise AssertionError("caddy does not hand anything on")


@needs_caddy
def test_caddy_formats_it_as_it_stands() -> None:
    assert CADDY is not None
    done = subprocess.run([CADDY, "fmt", str(DEPLOY / "Caddyfile")], capture_output=True, text=True, check=False)
    assert done.stdout == TEXT


@needs_caddy
def test_it_stands_before_two_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TLS 1.3 with the server's own authority, figures for the inner port alone, connections kept, one server killed."""
    settings = tmp_path / "server.yaml"
    settings.write_text("public_url: https://server:8443\nlog_level: ERROR\n")
    ports = free_ports()
    with ExitStack() as stack:
        first = stack.enter_context(running(tmp_path / "one", "--tls", "--config", str(settings)))
        shutil.copytree(tmp_path / "one" / "tls", tmp_path / "two" / "tls")  # one authority, as the volume of both
        shutil.copytree(tmp_path / "one" / "keys", tmp_path / "two" / "keys")
        second = stack.enter_context(running(tmp_path / "two", "--tls", "--config", str(settings)))
        stack.enter_context(caddy(placed(tmp_path, [first, second], ports)))
        trusted = ssl.create_default_context(cafile=str(tmp_path / "one/tls/ca.pem"))
        url, inner = f"https://localhost:{ports[0]}", f"http://127.0.0.1:{ports[1]}"
        settled(url, trusted)
        with httpx2.Client(base_url=url, verify=trusted) as client:
            assert client.get("/metrics").status_code == client.get("/metrics/x").status_code == 404
            assert client.get("/readyz").status_code == 200
            assert client.get("/api/v1/openapi.json").json()["openapi"].startswith("3.1")
            streams = {client.get("/healthz").extensions.get("network_stream") for _ in range(5)}
            assert len(streams) == 1  # one connection for all of it
        older = ssl.create_default_context(cafile=str(tmp_path / "one/tls/ca.pem"))
        older.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises(httpx2.HTTPError):
            httpx2.get(f"{url}/healthz", verify=older)
        for path in ("/server-1", "/server-2"):
            assert "compliance_server_build_info" in httpx2.get(inner + path).text
        assert httpx2.get(f"{inner}/healthz").status_code == 404
        first.process.kill()
        first.process.wait(5)
        answers = [httpx2.get(f"{url}/healthz", verify=trusted).status_code for _ in range(10)]
        assert answers == [200] * 10


def test_the_proxy_is_as_patient_as_the_server() -> None:
    """What the server would still wait for, Caddy waits for too: the server's own words reach a slow host."""
    found = block(TEXT)
    limits = dict(words[:2] for words, _ in inside(found, "", "servers", "timeouts") if len(words) == 2)
    assert seconds(limits["read_header"]) >= HEAD_DEADLINE_S
    assert seconds(limits["read_body"]) >= BODY_DEADLINE_S + GRACE_S
