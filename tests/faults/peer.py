"""The server in memory (`lab.server.FakeServer`) behind a real socket on loopback, for programs that run on their own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from compliance_agent.errors import Unavailable
from compliance_agent.lab.server import FakeServer


@contextmanager
def listening(server: FakeServer) -> Iterator[str]:
    """The address at which this server answers, one request at a time."""
    mutex = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            with mutex:
                try:
                    reply = asyncio.run(server.request(self.command, self.path, headers=headers, body=body))
                except Unavailable:
                    self.close_connection = True
                    return
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                if name.lower() != "content-length":
                    self.send_header(name, value)
            self.send_header("content-length", str(len(reply.body)))
            self.end_headers()
            self.wfile.write(reply.body)

        do_GET = do_POST = answer

        def handle(self) -> None:
            try:
                super().handle()
            except ConnectionError:  # the other side was killed
                self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listener.daemon_threads = True
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.server_address[1]}"
    finally:
        listener.shutdown()
        thread.join()
        listener.server_close()


def token_file(server: FakeServer, path: Path) -> Path:
    """A fresh one-time token in a file as enrolment wants it."""
    path.write_text(server.new_token() + "\n")
    path.chmod(0o600)
    return path
