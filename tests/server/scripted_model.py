"""A model's server on loopback: it answers what the test says, and keeps what it was sent."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Script = Callable[[BaseHTTPRequestHandler], None]


@dataclass
class ScriptedModel:
    """The server; `script` writes one answer."""

    script: Script
    bodies: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    url: str = ""
    end: threading.Event = field(default_factory=threading.Event)


def says(body: bytes, status: int = 200, **headers: str) -> Script:
    """An answer with these bytes."""

    def write(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "Content-Type": "application/json", **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        with contextlib.suppress(OSError):
            handler.wfile.write(body)

    return write


@contextlib.contextmanager
def scripted(script: Script) -> Iterator[ScriptedModel]:
    """A server that runs while the block does."""
    model = ScriptedModel(script)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            model.headers.append({name.lower(): value for name, value in self.headers.items()})
            model.bodies.append(self.rfile.read(int(self.headers.get("Content-Length", "0"))))
            model.script(self)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    model.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield model
    finally:
        model.end.set()
        server.shutdown()
        server.server_close()
        thread.join()
