"""The real program: started, called over sockets, stopped, killed in the middle of its work, and started again."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import random
import re
import signal
import sqlite3
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import httpx2
import pytest

from compliance_agent.evidence.canonical import canonical
from compliance_agent.server.store.packing import unpacked
from tests.real.test_server_kills import Nursery, nursery
from tests.server.builder import FakeHost, Signed, ack_of, acknowledged, b64

ROUNDS = 20


def command(*arguments: str, said: str | None = None) -> subprocess.CompletedProcess[str]:
    words = [*_program(), *arguments]
    return subprocess.run(
        words, input=said, capture_output=True, text=True, timeout=60, check=False, env=_environment()
    )


def _program() -> list[str]:
    return [sys.executable, "-c", "from compliance_agent.cli import main; main()"]


def _environment() -> dict[str, str]:
    # Without .pyc files every start would cost a second more.
    dropped = ("MSP_", "PYTHONDONTWRITEBYTECODE")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    return {**clean, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}


@dataclass
class Running:
    """A server process and where it listens."""

    process: subprocess.Popen[str]
    url: str
    directory: Path

    def token(self, site: str = "clinic-1") -> str:
        done = command("server", "enrol-token", "--site", site, "--data-dir", str(self.directory))
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def enrolled(self, host: FakeHost, token: str, verify: ssl.SSLContext | bool = True) -> FakeHost:
        with httpx2.Client(base_url=self.url, verify=verify) as client:
            challenge = {"protocol": 1, "public_key": b64(host.public)}
            nonce = base64.b64decode(
                client.post("/api/v1/enrol/challenge", content=canonical(challenge)).json()["nonce"]
            )
            body = {**challenge, "token": token, "host_id": host.host_id, "nonce": b64(nonce)}
            body["proof"] = b64(host.proof(nonce, token))
            reply = client.post("/api/v1/enrol", content=canonical(body))
            assert reply.status_code == 201, reply.text
        host.api_key, host.server_key = reply.json()["api_key"], base64.b64decode(reply.json()["server_key"])
        return host


@contextmanager
def running(directory: Path, *options: str) -> Iterator[Running]:
    with subprocess.Popen(
        [*_program(), "server", "--data-dir", str(directory), "--port", "0", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=_environment(),
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.fullmatch(r"listening on (https?://\S+)\n", line)
            assert found, line + (process.stderr.read() if process.stderr and process.poll() is not None else "")
            yield Running(process, found[1], directory)
        finally:
            if process.poll() is None:
                process.kill()


def stopped(server: Running, number: int = signal.SIGTERM) -> tuple[int, str]:
    """The exit status and what was said, after a signal; within five seconds."""
    began = time.monotonic()
    server.process.send_signal(number)
    _, said = server.process.communicate(timeout=10)
    assert time.monotonic() - began < 5
    return server.process.returncode, said


def test_it_runs_enrols_and_ends_at_a_signal(tmp_path: Path) -> None:
    with running(tmp_path / "data") as server:
        host = server.enrolled(FakeHost(now=datetime.now(UTC)), server.token())  # the server has a real clock
        with httpx2.Client(base_url=server.url, headers=host.headers) as client:
            bundle = host.next()
            body = canonical({"protocol": 1, "bundles": [bundle.item], "gaps": []})
            reply = client.post("/api/v1/evidence", content=body)
            assert acknowledged(reply, host, [bundle]) == ["stored"]
            listed = command("server", "hosts", "--json", "--data-dir", str(tmp_path / "data"))
            [found] = json.loads(listed.stdout)["hosts"]
            assert (found["host_id"], found["state"], found["counts"]["pass"]) == ("ws-01", "live", 1)
            revoked = command("server", "hosts", "revoke", host.key_id[:16], "--data-dir", str(tmp_path / "data"))
            assert revoked.returncode == 0, revoked.stderr
            reply = client.post("/api/v1/evidence", content=body)  # the kept connection does not hold the end up
            assert reply.status_code == 403
            status, said = stopped(server)
    assert status == 0
    assert "Traceback" not in said and host.api_key not in said


def test_an_open_request_does_not_hold_the_end_up(tmp_path: Path) -> None:
    import socket

    with running(tmp_path / "data") as server:
        address = server.url.removeprefix("http://").split(":")
        with socket.create_connection((address[0], int(address[1]))) as half:
            half.sendall(b"POST /api/v1/enrol HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
            time.sleep(0.3)
            status, said = stopped(server)
    assert status == 0 and "Traceback" not in said


def test_what_stops_it_from_starting_is_one_line(tmp_path: Path) -> None:
    with running(tmp_path / "data") as server:
        port = server.url.rpartition(":")[2]
        cases = {
            "already runs": (["--data-dir", str(tmp_path / "data"), "--port", "0"], 74, "another server"),
            "port taken": (["--data-dir", str(tmp_path / "b"), "--port", port], 69, "EADDRINUSE"),
            "open without tls": (["--data-dir", str(tmp_path / "b"), "--host", "0.0.0.0"], 78, "tls"),
            "no such option": (["--prot", "1"], 2, "--port"),
        }
        for name, (options, status, word) in cases.items():
            done = command("server", *options)
            assert (done.returncode, "Traceback" in done.stderr) == (status, False), (name, done.stderr)
            assert word in done.stderr, (name, done.stderr)


def test_commands_say_what_is_wrong(tmp_path: Path) -> None:
    directory = str(tmp_path / "data")
    assert command("server", "init", "--data-dir", directory).returncode == 0
    out = tmp_path / "token"
    done = command("server", "enrol-token", "--site", "clinic-1", "--out", str(out), "--data-dir", directory)
    assert (done.returncode, done.stdout) == (0, "")
    assert out.stat().st_mode & 0o777 == 0o600 and out.read_text().startswith("cae1.")
    again = command("server", "enrol-token", "--site", "clinic-1", "--out", str(out), "--data-dir", directory)
    assert again.returncode == 77 and "not written over" in again.stderr
    for arguments, status in (
        (["enrol-token", "--site", "../x"], 2),
        (["enrol-token", "--site", "a", "--expires", "forever"], 2),
        (["hosts", "revoke", "xyz"], 2),
        (["hosts", "revoke", "0" * 64], 66),
    ):
        done = command("server", *arguments, "--data-dir", directory)
        assert (done.returncode, "Traceback" in done.stderr) == (status, False), done.stderr
    added = command("server", "user", "add", "j.doe", "--data-dir", directory, said="correct horse battery\n")
    assert added.returncode == 0, added.stderr
    token = command("server", "operator-token", "create", "j.doe", "--data-dir", directory)
    assert token.stdout.startswith("cao1.")


def test_tls_is_pinned_by_the_token(tmp_path: Path) -> None:
    """TLS 1.3 only, under an authority whose digest the token holds; `/ca.pem` gives the certificate."""
    with running(tmp_path / "data", "--tls") as server:
        token = server.token()
        body = token.removeprefix("cae1.")
        pinned = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))["ca_sha256"]
        with httpx2.Client(verify=False) as careless:
            pem = careless.get(f"{server.url}/ca.pem").text
        assert hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest() == pinned
        trusting = ssl.create_default_context(cadata=pem)
        server.enrolled(FakeHost(), token, verify=trusting)
        with pytest.raises(httpx2.ConnectError):
            httpx2.get(f"{server.url}/healthz")  # the system's own authorities do not know it
        old = ssl.create_default_context(cadata=pem)
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises(httpx2.ConnectError):
            httpx2.get(f"{server.url}/healthz", verify=old)
        assert stopped(server)[0] == 0


# --- kill -9 --------------------------------------------------------------------------------------


@dataclass
class Load:
    """Hosts that deliver as fast as they can, what they have sent and what was acknowledged; `strike` is the kill."""

    hosts: list[FakeHost]
    rng: random.Random
    acked: set[str] = field(default_factory=set)
    sent: dict[str, list[Signed]] = field(default_factory=dict)

    def run_until_killed(self, server: Nursery) -> None:
        """Kill the server a random while (0 to 10 ms) after a random number of acknowledgements."""
        assert server.process.stdin is not None
        url, kill = f"http://127.0.0.1:{server.port}", partial(server.process.stdin.write, b"kill\n")
        enough, struck = len(self.acked) + self.rng.randint(1, 60), False

        def strike() -> None:
            nonlocal struck
            if len(self.acked) >= enough and not struck:
                struck = True
                asyncio.get_running_loop().call_later(self.rng.uniform(0, 0.01), kill)

        async def all_hosts() -> None:
            await asyncio.gather(*(self._deliver(host, url, strike) for host in self.hosts))

        asyncio.run(all_hosts())
        server.said("E -9")

    async def _deliver(self, host: FakeHost, url: str, strike: Callable[[], None]) -> None:
        chain, at = self.sent.setdefault(host.key_id, []), len(self.sent[host.key_id])
        async with httpx2.AsyncClient(base_url=url, headers=host.headers, timeout=20) as client:
            while True:
                chain += [host.next() for _ in range(3)]
                again = max(0, at - self.rng.randint(0, 3))  # some are sent twice on purpose
                items = [bundle.item for bundle in chain[again:]]
                body = canonical({"protocol": 1, "bundles": items, "gaps": []})
                try:
                    reply = await client.post("/api/v1/evidence", content=body)
                except httpx2.TransportError:
                    return
                self._believe(reply, host)
                strike()
                at = len(chain)

    def _believe(self, reply: httpx2.Response, host: FakeHost) -> None:
        self.acked |= {named["bundle_sha256"] for named in ack_of(reply, host)["bundles"]}

    def go_on_from(self, rows: list[tuple[str, int, int, str, str, bytes]]) -> None:
        """Continue each chain where the server stands, as an agent does after its check-in."""
        for host in self.hosts:
            chain = self.sent[host.key_id]
            del chain[sum(row[0] == host.key_id for row in rows) :]
            host.seq, host.prev = len(chain), chain[-1].sha256 if chain else "0" * 64


def stored_rows(directory: Path) -> list[tuple[str, int, int, str, str, bytes]]:
    database = sqlite3.connect(f"file:{directory}/server.db?mode=ro", uri=True)
    try:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        found = database.execute(
            "SELECT key_id, epoch, seq, prev, sha256, body FROM bundles ORDER BY key_id, epoch, seq"
        )
        return [(*row[:5], unpacked(row[5])) for row in found]
    finally:
        database.close()


def check_nothing_lost(
    rows: list[tuple[str, int, int, str, str, bytes]], sent: dict[str, list[Signed]], acked: set[str]
) -> None:
    """All that was acknowledged is there, once, in an unbroken chain, and nothing that nobody sent."""
    digests = [row[4] for row in rows]
    assert acked <= set(digests)
    assert len(digests) == len(set(digests))
    for key_id, chain in sent.items():
        mine = [row for row in rows if row[0] == key_id]
        assert [row[5] for row in mine] == [bundle.body for bundle in chain[: len(mine)]]
        assert [row[2] for row in mine] == list(range(1, len(mine) + 1))


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_killed_at_random_moments_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    """One server after the other; each is forked, for how a program is read is not what is asked about."""
    directory, load = tmp_path / "data", Load([], random.Random(20_261_122))
    with running(directory) as first:
        load.hosts = [first.enrolled(FakeHost(f"ws-{n}"), first.token()) for n in range(4)]
        assert stopped(first)[0] == 0
    with nursery(directory) as server:
        for _ in range(ROUNDS):
            server.order("start", "R")
            load.run_until_killed(server)
            rows = stored_rows(directory)
            check_nothing_lost(rows, load.sent, load.acked)
            load.go_on_from(rows)
    assert len(load.acked) >= ROUNDS


def test_a_lost_and_a_doubled_row_are_caught() -> None:
    """The check of the test above sees what it is there for."""
    host = FakeHost()
    chain = [host.next() for _ in range(3)]
    rows = [
        (host.key_id, 0, n + 1, bundle.document["prev"], bundle.sha256, bundle.body) for n, bundle in enumerate(chain)
    ]
    acked = {bundle.sha256 for bundle in chain}
    check_nothing_lost(rows, {host.key_id: chain}, acked)
    for wrong in (rows[:2], [rows[0], rows[2]], [*rows, rows[2]], [rows[0], rows[0], rows[2]]):
        with pytest.raises(AssertionError):
            check_nothing_lost(wrong, {host.key_id: chain}, acked)
