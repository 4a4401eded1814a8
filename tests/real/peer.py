"""A server that answers what it is told to: raw bytes, over real sockets, one connection for each request.

By default it answers as a good server does, with a key of its own; a test puts its own answer in place of one path's.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from compliance_agent.crypto import Ed25519Signer
from compliance_agent.evidence.canonical import canonical

TIME = "2026-11-22T12:00:00.000000Z"
CHALLENGE, ENROL, EVIDENCE, CHECKIN = (
    "/api/v1/enrol/challenge", "/api/v1/enrol", "/api/v1/evidence", "/api/v1/checkin",
)  # fmt: skip
Answer = Callable[[dict[str, Any]], bytes]


def http(body: bytes, status: int = 200, *more: str) -> bytes:
    """A whole answer."""
    head = [f"HTTP/1.1 {status} X", "content-type: application/json", f"content-length: {len(body)}", *more]
    return "\r\n".join([*head, "connection: close", "", ""]).encode() + body


class Peer:
    """Listens on a free port of loopback until closed. `answers` is what each path says, given the request's document."""

    def __init__(self, directory: Path) -> None:
        self.signer = Ed25519Signer(directory / "peer.pem")
        self.answers: dict[str, Answer] = {}
        self.asked: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError, ValueError):
            connection.settimeout(10)
            file = connection.makefile("rb")
            path = file.readline().split()[1].decode()
            length = 0
            while (line := file.readline().strip()) != b"":
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            document = json.loads(file.read(length) or b"{}")
            self.asked.append(path)
            connection.sendall(self.answers.get(path, self._good(path))(document))

    def _good(self, path: str) -> Answer:
        return lambda asked: http(json.dumps(self.good(path, asked)).encode(), 201 if path == ENROL else 200)

    def good(self, path: str, asked: dict[str, Any]) -> dict[str, Any]:
        """What a good server answers."""
        if path == CHALLENGE:
            return {"nonce": base64.b64encode(bytes(32)).decode()}
        if path == ENROL:
            key_id = hashlib.sha256(base64.b64decode(asked["public_key"])).hexdigest()
            return {"site_id": "clinic-1", "client_id": "msp", "host_id": asked["host_id"], "key_id": key_id,
                    "api_key": "k" * 43, "server_key": base64.b64encode(self.signer.public_bytes).decode(),
                    "server_name": "peer", "min_interval_s": 1}  # fmt: skip
        if path == CHECKIN:
            return {"server_time": TIME, "known": None, "min_interval_s": 1, "orders": []}
        bodies = [base64.b64decode(item["bundle"]) for item in asked.get("bundles", [])]
        return {"ack": self.signed(self.ack(*bodies)), "stopped": None, "min_interval_s": None}

    def ack(self, *bodies: bytes) -> dict[str, Any]:
        """The acknowledgement of some bundles of one host, not yet signed."""
        bundles = [json.loads(body) for body in bodies]
        named = [{"bundle_sha256": hashlib.sha256(body).hexdigest(), "epoch": bundle["epoch"], "seq": bundle["seq"],
                  "status": "stored"} for body, bundle in zip(bodies, bundles, strict=True)]  # fmt: skip
        return {"schema": "compliance-agent/ack/v2", "key_id": bundles[0]["host"]["key_id"], "received_at": TIME,
                "bundles": named}  # fmt: skip

    def signed(self, ack: dict[str, Any] | bytes) -> dict[str, str]:
        """An acknowledgement as it travels."""
        raw = ack if isinstance(ack, bytes) else canonical(ack)
        return {"document": base64.b64encode(raw).decode(), "sig": base64.b64encode(self.signer.sign(raw)).decode()}


@contextlib.contextmanager
def listening(directory: Path) -> Iterator[Peer]:
    """A peer, closed at the end."""
    peer = Peer(directory)
    try:
        yield peer
    finally:
        peer.close()


MIB = 1_048_576
# Answers that are none, whatever was asked.
NO_REPLY: dict[str, bytes] = {
    "closed at once": b"",
    "not HTTP": b"220 mail.example.com ESMTP\r\n",
    "a status line only": b"HTTP/1.1 200 OK\r\n",
    "HTTP/9": b"HTTP/9.9 200 OK\r\ncontent-length: 2\r\n\r\n{}",
    "a head of 64 KB": b"HTTP/1.1 200 OK\r\nx: " + b"a" * 65_536 + b"\r\ncontent-length: 2\r\n\r\n{}",
    "a negative length": b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n{}",
    "two lengths": b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}",
    "a length in full-width digits": "HTTP/1.1 200 OK\r\ncontent-length: \uff12\r\n\r\n{}".encode(),
    "a body cut": b"HTTP/1.1 200 OK\r\ncontent-length: 200\r\n\r\n{",
    "a body of 100 MB": b"HTTP/1.1 200 OK\r\ncontent-length: 104857600\r\n\r\n" + b" " * (3 * MIB),
    "a chunked body without an end": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + b"fffff\r\n" * 9,
    "compressed": http(b"\x1f\x8b\x08\x00" + bytes(100), 200, "content-encoding: gzip"),
    "redirected": http(b"", 302, "location: http://127.0.0.1:1/elsewhere"),
    "no content": b"HTTP/1.1 204 X\r\n\r\n",
    "not allowed": http(b'{"code":"not_enrolled"}', 401),
    "a page of HTML": http(b"<html><title>502 Bad Gateway</title></html>", 502),
    "wait for ever": http(b'{"code":"busy"}', 503, "retry-after: 99999999999999999999"),
    "a code that is text": http(b'{"code":"x\\u001b[31m says who?"}', 409),
    "expected nonsense": http(b'{"code":"seq_gap","expected":{"epoch":-1,"seq":"1","prev":[]}}', 409),
    "empty": http(b""),
    "one byte": http(b"{"),
    "NUL": http(b'{"a":"\0"}'),
    "byte order mark": http(b"\xef\xbb\xbf{}"),
    "UTF-16": http("{}".encode("utf-16")),
    "bad UTF-8": http(b'{"a":"\xff"}'),
    "encoded surrogate": http(b'{"a":"\xed\xa0\x80"}'),
    "depth 200,000": http(b'{"a":' * 200_000),
    "duplicate keys": http(b'{"nonce":1,"nonce":1}'),
    "a list": http(b"[]"),
    "text": http(b'"ok"'),
    "an empty object": http(b"{}"),
}
