"""`compliance-agent verify URL` as a person runs it, against files that a plain web server serves."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from click.testing import CliRunner, Result

from compliance_agent.cli.verify import command
from compliance_agent.crypto import public_pem
from compliance_agent.entries.leaf import KeyEvent, key_leaf, shard_leaf
from compliance_agent.errors import AgentError
from compliance_agent.log.note import KeyType, VerifierKey
from tests.evidence.world import LOG, ORIGIN, RECORDS, WITNESS, World, posix
from tests.log.builder import Signer


class Handler(SimpleHTTPRequestHandler):
    """Files below a directory; with a token, only for who has it."""

    protocol_version = "HTTP/1.1"
    token = ""
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.token and self.headers.get("authorization") != f"Bearer {self.token}":
            self.send_error(401)
            return
        super().do_GET()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""


@dataclass
class Site:
    """A directory that is served, and its address."""

    root: Path
    url: str
    handler: type[Handler]
    world: World = field(default_factory=World.live)

    def put(self, world: World, year: int = 2026) -> None:
        place = self.root / "log" / "clinic-1" / str(year)
        shutil.rmtree(place, ignore_errors=True)
        for path, content in world.served().items():
            (place / path).parent.mkdir(parents=True, exist_ok=True)
            (place / path).write_bytes(content)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    handler = type("Here", (Handler,), {"asked": []})
    (tmp_path / "served").mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(tmp_path / "served")))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    made = Site(tmp_path / "served", f"http://127.0.0.1:{server.server_port}/log/clinic-1", handler)
    made.put(made.world)
    yield made
    server.shutdown()
    thread.join()
    server.server_close()


def run(*words: object) -> Result:
    return CliRunner().invoke(command, [str(word) for word in words])


def policy(tmp_path: Path) -> Path:
    file = tmp_path / "policy"
    file.write_text(f"log {LOG.key}\nwitness w1 {WITNESS.key}\nquorum w1\n")
    return file


def test_a_log_alone(site: Site, tmp_path: Path) -> None:
    done = run(f"{site.url}/2026/", "--log-key", LOG.key)
    assert done.exit_code == 0, done.output
    assert f"log {ORIGIN}: 11 entries, 1 key(s)" in done.output
    document = json.loads(run(f"{site.url}/2026", "--policy", policy(tmp_path), "--json").stdout)
    assert document["logs"][0]["cosignatures"] == 2 and document["ok"] and document["found"] == 0
    assert site.handler.asked[-4:] == [f"/log/clinic-1/2026/{name}" for name in (
        "checkpoint", "retention.json", "tile/entries/000.p/11", "tile/0/000.p/11")]  # fmt: skip


def test_records_against_their_log_with_intervals(site: Site, tmp_path: Path) -> None:
    evidence = site.world.write(tmp_path)
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "ws-01.pub.pem").write_text(public_pem(site.world.host.public))
    words = (f"{site.url}/2026/", evidence, "--policy", policy(tmp_path))
    done = run(*words)
    assert done.exit_code == 0, done.output
    assert "times: 5 record(s) between two proven moments; the widest 1651 s" in done.output
    assert "times: 3 record(s) with no lower bound" in done.output
    assert "not before" not in done.output
    document = json.loads(run(*words, "--times", "--json").stdout.partition("note:")[0])
    assert len(document["times"]["records"]) == RECORDS
    last = document["times"]["records"][-1]
    assert (last["not_before"], last["not_after"]) == ("2026-11-22T12:02:30.000000Z", "2026-11-22T12:30:01.000000Z")
    assert "not after 2026-11-22T12:30:01.000000Z" in run(*words, "--times").output
    assert "records" not in json.loads(run(*words, "--json").stdout.partition("note:")[0])["times"]


def test_what_is_remembered_is_held_against_the_next_one(site: Site, tmp_path: Path) -> None:
    kept = tmp_path / "checkpoint"
    words = (f"{site.url}/2026/", "--log-key", LOG.key, "--remember", kept)
    assert run(*words).exit_code == 0
    assert kept.read_bytes() == site.world.note()
    older = site.world.copy()
    site.world.entries.append(key_leaf("enrol", "ab" * 32, b"k" * 32, "2026-11-22T12:00:00Z"))
    site.put(site.world)
    assert run(*words).exit_code == 0
    newest = kept.read_bytes()
    older.entries.append(key_leaf("enrol", "cd" * 32, b"k" * 32, "2026-11-22T12:00:00Z"))
    for entries, code in ((older.entries[:-2], "log_rolled_back"), (older.entries, "log_forked")):
        lying = older.copy()
        lying.entries = entries
        site.put(lying)
        done = run(*words)
        assert done.exit_code == 65 and code in done.output
        assert kept.read_bytes() == newest, "what was kept is not given up for a lie"
    assert "log_forked" in run(f"{site.url}/2026/", "--log-key", LOG.key, "--since", kept).output


def test_a_site_with_two_years(site: Site, tmp_path: Path) -> None:
    """The newer log binds the last checkpoint of the older one; the server's key is pinned, the year is read."""
    old = World(log=Signer(VerifierKey("evidence.example/clinic-1/2025", KeyType.ED25519, LOG.key.public), LOG.private))
    old.entries = [shard_leaf("evidence.example/clinic-1/2025", None, "2025-01-01T00:00:00Z")]
    bound = _note_of(old)
    new = World()
    new.entries = [shard_leaf(ORIGIN, bound, "2026-01-01T00:00:00Z")]
    site.put(new)
    _serve(site, old, bound)
    done = run(f"{site.url}/", "--log-key", LOG.key)
    assert done.exit_code == 0, done.output
    assert "evidence.example/clinic-1/2025" in done.output and ORIGIN in done.output
    old.entries = [shard_leaf("evidence.example/clinic-1/2025", None, "2025-01-02T00:00:00Z")]
    _serve(site, old, _note_of(old))
    done = run(f"{site.url}/", "--log-key", LOG.key)
    assert done.exit_code == 65 and "log_forked" in done.output
    shutil.rmtree(site.root / "log" / "clinic-1" / "2025")
    done = run(f"{site.url}/", "--log-key", LOG.key)
    assert done.exit_code == 65 and "wrong_checkpoint" in done.output


@pytest.mark.parametrize("event", ["revoke", "enrol"])
def test_a_key_that_ended_last_year_signs_nothing_this_year(site: Site, event: KeyEvent) -> None:
    """Each year is a log of its own: the newer one does not say that the key was revoked, and the older one does."""
    origin, host = "evidence.example/clinic-1/2025", site.world.host
    old = World(log=Signer(VerifierKey(origin, KeyType.ED25519, LOG.key.public), LOG.private))
    old.entries = [
        shard_leaf(origin, None, "2025-01-01T00:00:00Z"), key_leaf(event, host.key_id, host.public, "2025-12-01T00:00:00Z"),
    ]  # fmt: skip
    bound = _note_of(old)
    site.world.entries[0] = shard_leaf(ORIGIN, bound, "2026-01-01T00:00:00Z")
    site.world.entries = [site.world.entries[0], *map(site.world.leaf, site.world.records)]
    site.put(site.world)
    _serve(site, old, bound)
    done = run(f"{site.url}/", "--log-key", LOG.key)
    named = f"key_not_valid: {host.key_id}: log entry 1 of {ORIGIN}" in done.output
    assert (done.exit_code, named) == ((65, True) if event == "revoke" else (0, False)), done.output


def _note_of(old: World) -> bytes:
    from compliance_agent.log.checkpoint import Checkpoint
    from compliance_agent.log.note import Note

    edge, _ = old.edge()
    text = Checkpoint("evidence.example/clinic-1/2025", edge.size, edge.root()).text
    return Note(text, (old.log.line(text),)).encode()


def _serve(site: Site, old: World, note: bytes) -> None:
    old.files["checkpoint"] = note
    site.put(old, 2025)


def refused(*words: object) -> tuple[str, int]:
    done = run(*words)
    assert isinstance(done.exception, AgentError), done.output
    return done.exception.code, done.exception.exit_status


def test_what_is_refused_says_so(site: Site, tmp_path: Path) -> None:
    url = f"{site.url}/2026/"
    assert refused(url) == ("no_log_key", 78)
    assert refused(f"{site.url}/2024/", "--log-key", LOG.key) == ("no_checkpoint", 65)
    stranger = VerifierKey(ORIGIN, KeyType.ED25519, site.world.host.public)
    assert refused(url, "--log-key", stranger) == ("no_known_signature", 65)
    other = tmp_path / "other"
    other.write_bytes(site.world.note().replace(ORIGIN.encode(), b"evidence.example/clinic-2/2026"))
    assert refused(url, "--log-key", LOG.key, "--since", other) == ("foreign_log", 65)
    assert run("http://evidence.example/log/clinic-1/2026/", "--log-key", LOG.key).exit_code == 2
    assert refused("https://127.0.0.1:1/log/clinic-1/2026/", "--log-key", LOG.key)[1] == 69
    site.handler.token = "cak1.secret"
    assert refused(url, "--log-key", LOG.key)[1] == 77
    token = tmp_path / "token"
    token.write_text("cak1.secret\n")
    token.chmod(0o600)
    assert run(url, "--log-key", LOG.key, "--token-file", token).exit_code == 0


def test_a_missing_tile_is_named_by_its_path(site: Site) -> None:
    (site.root / "log" / "clinic-1" / "2026" / "tile" / "entries" / "000.p" / "11").unlink()
    done = run(f"{site.url}/2026/", "--log-key", LOG.key)
    assert done.exit_code == 65 and "no_tile: tile/entries/000.p/11" in done.output


# --- time stamps of an authority, as openssl makes them -------------------------------------------------------

CONFIG = """
[tsa]
default_tsa = here
[here]
dir = {directory}
serial = $dir/serial
signer_cert = $dir/tsa.pem
signer_key = $dir/tsa.key
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = sha256
accuracy = secs:1
ess_cert_id_alg = sha256
[ext]
extendedKeyUsage = critical,timeStamping
keyUsage = critical,digitalSignature
[ca]
basicConstraints = critical,CA:true
keyUsage = critical,keyCertSign
"""


def openssl(*words: object) -> None:
    done = subprocess.run(["openssl", *map(str, words)], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def authority(at: Path) -> Path:
    at.mkdir()
    (at / "ts.cnf").write_text(CONFIG.format(directory=at))
    (at / "serial").write_text("01")
    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", at / "ca.key", "-out", at / "ca.pem", "-subj",
            "/CN=stamp ca", "-days", "3650", "-addext", "keyUsage=critical,keyCertSign")  # fmt: skip
    openssl(
        "req", "-newkey", "rsa:2048", "-nodes", "-keyout", at / "tsa.key", "-out", at / "tsa.csr", "-subj", "/CN=tsa"
    )
    openssl("x509", "-req", "-in", at / "tsa.csr", "-CA", at / "ca.pem", "-CAkey", at / "ca.key", "-CAcreateserial", "-out",
            at / "tsa.pem", "-days", "3650", "-extfile", at / "ts.cnf", "-extensions", "ext")  # fmt: skip
    return at


def stamped(at: Path, note: bytes) -> bytes:
    (at / "note").write_bytes(note)
    openssl("ts", "-query", "-data", at / "note", "-sha256", "-cert", "-out", at / "q.tsq")
    openssl(
        "ts", "-reply", "-config", at / "ts.cnf", "-section", "here", "-queryfile", at / "q.tsq", "-out", at / "r.tsr"
    )
    return (at / "r.tsr").read_bytes()


def test_time_stamps_count_only_where_they_verify(site: Site, tmp_path: Path) -> None:
    tsa, other = authority(tmp_path / "tsa"), authority(tmp_path / "other")
    world = site.world
    token = stamped(tsa, world.note(cosigned_at=posix(9)))
    world.entries.append(world.time_entry(posix(9), [token]))
    site.put(world)
    words = (f"{site.url}/2026/", "--log-key", LOG.key)
    done = run(*words)
    assert done.exit_code == 0 and "1 time stamp(s) not checked" in done.output
    done = run(*words, "--tsa-ca", tsa / "ca.pem", "--json")
    assert json.loads(done.stdout)["logs"][0]["tokens"] == 1, done.output
    done = run(*words, "--tsa-ca", other / "ca.pem")
    assert done.exit_code == 65 and "bad_token: log entry 11" in done.output
    world.entries.pop()
    world.entries.append(world.time_entry(posix(10), [token]))
    site.put(world)
    done = run(*words, "--tsa-ca", tsa / "ca.pem")
    assert done.exit_code == 65 and "bad_token" in done.output, "a token over another note"
