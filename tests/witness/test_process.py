"""The command itself: a real process, a real socket, a log that grows from 1 to 600 entries, kills and signals."""

from __future__ import annotations

import contextlib
import hashlib
import signal
import threading
import time
from pathlib import Path

import nacl.signing
import pytest
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PublicKey

from compliance_agent.errors import AgentError
from compliance_agent.log.cosignature import ed25519_message, mldsa44_message
from compliance_agent.log.note import KeyType, Note
from compliance_agent.log.policy import Policy
from compliance_agent.transport.http import HttpTransport
from compliance_agent.witnessing import witnessed
from tests.cli.command import run
from tests.log.builder import LOG, ORIGIN, MemoryLog
from tests.witness.builder import HASH, NAME, checkpoint_of, note_of, policy_file, running, step, tree_of


def now() -> int:
    return int(time.time())


pytestmark = pytest.mark.xdist_group("witness-process")


async def test_a_log_grows_from_1_to_600(tmp_path: Path) -> None:
    """Every growth is cosigned by both keys, each line holds for two other libraries, and the latest is there to read."""
    log, size, latest = MemoryLog(), 0, b""
    with running(tmp_path / "w", policy_file(tmp_path), "--ml-dsa") as witness:
        text = "".join(f"witness w{at} {key} {witness.url}\n" for at, key in enumerate(witness.keys))
        policy = Policy.parse(f"log {LOG.key}\n{text}group g all w0 w1\nquorum g\n".encode())
        transport = HttpTransport(witness.url)
        old: dict[str, int] = {}
        while size < 600:
            growth = min(1 + size // 4, 600 - size)
            log.append(growth)
            size += growth
            note = note_of(checkpoint_of(log, size))
            found = await witnessed(note, policy, {witness.url: transport}, log.tree().consistency, old, now)
            assert found.quorum_met and not found.failed and found.old == {witness.url: size}
            old, latest = dict(found.old), found.note
        reply = await transport.request("GET", f"/{hashlib.sha256(ORIGIN.encode()).hexdigest()}/checkpoint")
        assert reply.body == latest
        await transport.close()
        seen = Note.parse(latest)
        ed25519, mldsa = witness.keys
        for key, line in zip(witness.keys, seen.signatures[1:], strict=True):
            at, raw = int.from_bytes(line.signature[:8], "big"), line.signature[8:]
            if key.type == KeyType.COSIGNATURE:
                nacl.signing.VerifyKey(ed25519.public).verify(ed25519_message(seen.text, at), raw)
            else:
                public = MLDSA44PublicKey.from_public_bytes(mldsa.public)
                public.verify(raw, mldsa44_message(NAME, seen.text, at))
        assert run("witness", "vkey", "--state-dir", tmp_path / "w").out == f"{ed25519}\n{mldsa}\n"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
async def test_it_ends_at_a_signal(tmp_path: Path, number: int, status: int) -> None:
    with running(tmp_path / "w", policy_file(tmp_path)) as witness:
        transport = HttpTransport(witness.url)
        assert (await transport.request("POST", "/add-checkpoint", body=step(MemoryLog(5), 0, 5))).status == 200
        witness.process.send_signal(number)  # the kept connection does not hold the end up
        assert witness.process.wait(timeout=5) == status
        await transport.close()


async def test_kill_9_while_it_cosigns(tmp_path: Path) -> None:
    """Killed at some moment of its work again and again, it never remembers less than a cosignature that has left."""
    log, said = MemoryLog(600), 0
    for number in range(4):
        with running(tmp_path / "w", policy_file(tmp_path)) as witness:
            transport = HttpTransport(witness.url)
            latest = await transport.request("GET", f"/{HASH}/checkpoint")
            size = int(latest.body.split(b"\n")[1]) if latest.status == 200 else 0
            assert said <= size <= said + 1
            said = size
            timer = threading.Timer(0.1 + number * 0.037, witness.process.kill)
            timer.start()
            with contextlib.suppress(AgentError):
                while said < 600:
                    body = step(log, said, said + 1)
                    reply = await transport.request("POST", "/add-checkpoint", body=body, timeout_s=5)
                    assert reply.status == 200
                    said += 1
            timer.join()
            await transport.close()
    assert said > 4


async def test_two_processes_and_a_wrong_name(tmp_path: Path) -> None:
    policy = policy_file(tmp_path)
    words: list[str | Path] = ["witness", "--state-dir", tmp_path / "w", "--policy", policy, "--port", "0"]
    with running(tmp_path / "w", policy):
        assert run(*words).status == 75
    assert run(*words, "--name", "witness.example/other").status == 78
    (tmp_path / "w" / "marks").unlink()
    ended = run(*words)
    assert ended.status == 74 and "begins again under a new name" in ended.err


async def test_with_tls(tmp_path: Path) -> None:
    cert, key = _certificate(tmp_path)
    with running(tmp_path / "w", policy_file(tmp_path), "--cert", str(cert), "--key", str(key)) as witness:
        assert witness.url.startswith("https://")
        transport = HttpTransport(witness.url, ca_file=cert)
        reply = await transport.request("POST", "/add-checkpoint", body=step(MemoryLog(5), 0, 5))
        await transport.close()
        assert reply.status == 200


def _certificate(directory: Path) -> tuple[Path, Path]:
    import datetime
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "witness")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (directory / "cert.pem").write_bytes(made.public_bytes(pem))
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (directory / "key.pem").write_bytes(private)
    return directory / "cert.pem", directory / "key.pem"


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    policy = policy_file(tmp_path)
    state: list[str | Path] = ["--state-dir", tmp_path / "w", "--name", NAME]
    assert run("witness").status == 2
    assert run("witness", *state, "--policy", policy, "--cert", policy).status == 2
    assert run("witness", *state, "--policy", tmp_path / "absent").status == 78
    (tmp_path / "bad").write_text("log x\nquorum none\n")
    assert run("witness", *state, "--policy", tmp_path / "bad").status == 78
    (tmp_path / "none").write_text("quorum none\n")
    assert run("witness", *state, "--policy", tmp_path / "none").status == 78
    assert not (tmp_path / "w").exists()
    assert run("witness", "vkey").status == 2
    assert run("witness", "vkey", "--state-dir", tmp_path / "w").status == 66
    made = run("witness", "vkey", *state)
    assert made.status == 0 and made.out.startswith(f"{NAME}+")
    assert run("witness", "--state-dir", tmp_path / "w", "vkey").out == made.out


async def test_policies_of_several_logs_of_one_server(tmp_path: Path) -> None:
    """One key may stand only once in a policy file, and a server signs all its logs with one: so there may be several files."""
    second = LOG.key.__class__("evidence.example/clinic-b/2026", LOG.key.type, LOG.key.public)
    (tmp_path / "second").write_text(f"log {second}\nquorum none\n")
    with running(tmp_path / "w", policy_file(tmp_path), "--policy", str(tmp_path / "second")) as witness:
        transport = HttpTransport(witness.url)
        log = MemoryLog(9)
        text = checkpoint_of(log, 9).text.replace(ORIGIN, second.name)
        other = Note(text, (second.sign(text, LOG.private),)).encode()
        for note in (note_of(checkpoint_of(log, 9)), other):
            reply = await transport.request("POST", "/add-checkpoint", body=b"old 0\n\n" + note)
            assert reply.status == 200
        await transport.close()
    assert tree_of(log, 9).root() == log.edge.root()
