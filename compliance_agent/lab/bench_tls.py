"""What a TLS connection costs whoever ends it: a new one in processor time, an idle one in memory (PERFORMANCE S5, S6).

Ended by the server itself, by nginx and by Caddy, the two that are usual in front of it, with the same certificate, TLS 1.3 alone
and the agent's own transport at the other end. A proxy that is not installed is left out, and said so by its absence.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import shutil
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from compliance_agent.errors import Unavailable
from compliance_agent.lab.bench_verify import memory
from compliance_agent.transport.http import HttpTransport

NEW = 400
IDLE = 2_000
_NGINX = """daemon off; master_process off; pid {here}/nginx.pid; error_log /dev/null crit; worker_rlimit_nofile 8192;
events {{ worker_connections 8000; }}
http {{ access_log off; client_body_temp_path {here}/body; proxy_temp_path {here}/proxy; fastcgi_temp_path {here}/fastcgi;
uwsgi_temp_path {here}/uwsgi; scgi_temp_path {here}/scgi; keepalive_timeout 150s;
upstream server {{ server 127.0.0.1:{plain}; keepalive 16; }}
server {{ listen 127.0.0.1:{port} ssl backlog=2048; ssl_protocols TLSv1.3; ssl_certificate {cert}; ssl_certificate_key {key};
location / {{ proxy_pass http://server; proxy_http_version 1.1; proxy_set_header Connection ""; }} }} }}
"""
_CADDY = """{{
  admin off
  auto_https off
  log {{
    output discard
  }}
}}
https://127.0.0.1:{port} {{
  bind 127.0.0.1
  tls {cert} {key} {{
    protocols tls1.3
  }}
  reverse_proxy 127.0.0.1:{plain}
}}
"""


@dataclass(frozen=True)
class Cost:
    """What one kind of front costs.

    Attributes:
        front: who ends the TLS connection.
        new_us: processor time of a new connection, beyond that of the request on it.
        request_us: processor time of a request on a kept connection.
        idle_bytes: memory (PSS) of one idle connection.
    """

    front: str
    new_us: float
    request_us: float
    idle_bytes: float


def costs(directory: Path) -> list[Cost]:
    """Measure every front that this machine has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 3 * IDLE), hard))
    try:
        with _serving(directory, "--tls") as (pid, port):
            found = [_cost("the server itself", pid, port, directory)]
        with _serving(directory) as (_, plain):
            for name, template in (("nginx", _NGINX), ("caddy", _CADDY)):
                if program := shutil.which(name):
                    with _proxy(name, program, template, directory, plain) as (pid, port):
                        found.append(_cost(name, pid, port, directory))
        return found
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _cost(front: str, pid: int, port: int, directory: Path) -> Cost:
    url, authority = f"https://127.0.0.1:{port}", directory / "tls" / "ca.pem"
    asyncio.run(_requests(url, authority, NEW, anew=False))  # warm: threads, arenas, tickets
    before = _cpu_s(pid)
    asyncio.run(_requests(url, authority, NEW, anew=False))
    kept = _cpu_s(pid) - before
    before = _cpu_s(pid)
    asyncio.run(_requests(url, authority, NEW, anew=True))
    new = _cpu_s(pid) - before
    held = asyncio.run(_idle(port, authority, pid))
    return Cost(front, (new - kept) / NEW * 1e6, kept / NEW * 1e6, held / IDLE)


async def _requests(url: str, authority: Path, count: int, *, anew: bool) -> None:
    transport = HttpTransport(url, ca_file=authority)
    for _ in range(count):
        reply = await transport.request("GET", "/healthz")
        if reply.status != 200:
            raise Unavailable(f"bench: /healthz answered {reply.status}")
        if anew:
            await transport.close()
    await transport.close()


async def _idle(port: int, authority: Path, pid: int) -> int:
    """Bytes that so many idle connections take, each after one request."""
    tls = ssl.create_default_context(cafile=str(authority))
    tls.minimum_version = ssl.TLSVersion.TLSv1_3
    before, kept = memory(pid, "Pss"), list[asyncio.StreamWriter]()
    for _ in range(IDLE):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls, server_hostname="127.0.0.1")
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        kept.append(writer)
    held = memory(pid, "Pss") - before
    for writer in kept:
        writer.transport.abort()
    return held


@contextlib.contextmanager
def _serving(directory: Path, *options: str) -> Iterator[tuple[int, int]]:
    words = [sys.executable, "-m", "compliance_agent", "server", "--data-dir", str(directory), "--port", "0", *options]
    server = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        line = server.stdout.readline() if server.stdout else ""
        if not line.startswith("listening on "):
            raise Unavailable("bench: the server did not start")
        yield server.pid, int(line.rpartition(":")[2])
    finally:
        _end(server)


@contextlib.contextmanager
def _proxy(name: str, program: str, template: str, directory: Path, plain: int) -> Iterator[tuple[int, int]]:
    here = (directory / name).absolute()
    here.mkdir(parents=True, exist_ok=True)
    port, tls = plain + 1 if plain < 65_000 else plain - 1, (directory / "tls").absolute()
    config = here / "config"
    config.write_text(
        template.format(here=here, plain=plain, port=port, cert=tls / "server.pem", key=tls / "server-key.pem"), "utf-8"
    )
    words = {
        "nginx": [program, "-e", "/dev/null", "-p", str(here), "-c", str(config)],
        "caddy": [program, "run", "--adapter", "caddyfile", "--config", str(config)],
    }[name]
    home = {**os.environ, "HOME": str(here), "XDG_DATA_HOME": str(here), "XDG_CONFIG_HOME": str(here)}
    proxy = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=home)
    try:
        asyncio.run(_reached(port))
        yield proxy.pid, port
    finally:
        _end(proxy)


async def _reached(port: int) -> None:
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.transport.abort()
            return
        await asyncio.sleep(0.1)
    raise Unavailable(f"bench: nothing listens on port {port}")


def _end(process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait(15)
    if process.stdout:
        process.stdout.close()


def _cpu_s(pid: int) -> float:
    """Processor seconds of all threads, to the nanosecond: /proc's stat counts in hundredths."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        total += int((task / "schedstat").read_text("ascii").split()[0])
    return total / 1e9
