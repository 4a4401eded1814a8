"""A time-stamping authority of the test's own: `openssl ts` behind a small HTTP server on loopback."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

CONFIG = """
[tsa]
default_tsa = one
[one]
serial = {root}/serial
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = sha256
accuracy = secs:1
ordering = no
tsa_name = no
ess_cert_id_alg = sha256
[ca]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign
subjectKeyIdentifier = hash
[leaf]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = critical, timeStamping
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
[req]
distinguished_name = name
[name]
"""


@dataclass
class Authority:
    """Its files, and what it does with a query; `spoil` changes the query before it is answered, `answer` replaces the answer."""

    root: Path
    url: str = ""
    asked: int = 0
    spoil: list[bytes] = field(default_factory=list)
    answer: tuple[int, bytes] | None = None

    @property
    def ca_file(self) -> Path:
        return self.root / "ca.pem"

    def reply(self, query: bytes) -> tuple[int, bytes]:
        self.asked += 1
        if self.answer is not None:
            return self.answer
        (self.root / "query.tsq").write_bytes(self.spoil.pop() if self.spoil else query)
        argv = [
            "-reply",
            "-config",
            "conf",
            "-section",
            "one",
            "-queryfile",
            "query.tsq",
            "-signer",
            "tsa.pem",
            "-inkey",
            "tsa.key",
        ]
        openssl(self.root, "ts", *argv, "-out", "reply.tsr")
        return 200, (self.root / "reply.tsr").read_bytes()


def openssl(directory: Path, *argv: str) -> str:
    done = subprocess.run(["openssl", *argv], cwd=directory, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, done.stderr
    return done.stdout


def made(root: Path) -> Authority:
    """A root, and a certificate under it that may only stamp time."""
    root.mkdir()
    (root / "conf").write_text(CONFIG.format(root=root))
    (root / "serial").write_text("01\n")
    new = ["req", "-new", "-newkey", "rsa:2048", "-nodes", "-config", "conf"]
    openssl(
        root,
        *new,
        "-x509",
        "-days",
        "3650",
        "-subj",
        "/CN=root",
        "-extensions",
        "ca",
        "-keyout",
        "ca.key",
        "-out",
        "ca.pem",
    )
    openssl(root, *new, "-subj", "/CN=tsa", "-keyout", "tsa.key", "-out", "tsa.csr")
    sign = ["x509", "-req", "-in", "tsa.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "3650"]
    openssl(root, *sign, "-extfile", "conf", "-extensions", "leaf", "-out", "tsa.pem")
    return Authority(root)


@contextmanager
def stamping(root: Path) -> Iterator[Authority]:
    """The authority, reachable at its URL."""
    authority = made(root)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            query = self.rfile.read(int(self.headers["content-length"]))
            status, body = authority.reply(query)
            self.send_response(status)
            self.send_header("content-type", "application/timestamp-reply")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    authority.url = f"http://127.0.0.1:{server.server_address[1]}/tsr"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield authority
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
