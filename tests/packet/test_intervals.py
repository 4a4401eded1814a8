"""Between which two moments a packet's records came to be, by the times in its log and the keys that an auditor brings."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

from compliance_agent.crypto import Ed25519Signer
from compliance_agent.entries.leaf import time_leaf
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.merkle import hash_leaf
from compliance_agent.log.note import KeyType, Note, VerifierKey
from compliance_agent.log.tree import Edge
from compliance_agent.packet import archive
from compliance_agent.packet.verify import verify_files
from tests.cli.command import run
from tests.log.builder import signer
from tests.packet.scene import Files, Made, built, copied
from tests.packet.test_verify import relogged
from tests.server.builder import START

WITNESS = signer("witness.example/w1", KeyType.COSIGNATURE)


def timed(made: Made, hours: float) -> Files:
    """The packet over a log that ends in an entry of a time: so many hours after the second day's noon a witness saw the rest."""
    key = VerifierKey.parse(made.files["policy"].decode().split()[1])
    sign = Ed25519Signer(made.data_dir / "keys" / "log.pem").sign

    def change(entries: list[bytes]) -> list[bytes]:
        edge, _ = Edge().grow(map(hash_leaf, entries))
        text = Checkpoint(key.name, edge.size, edge.root()).text
        at = int((START + timedelta(hours=hours)).timestamp())
        return [*entries, time_leaf(Note(text, (key.sign(text, sign), WITNESS.line(text, at))).encode(), [])]

    return relogged(made, change)


def policy(made: Made) -> bytes:
    return made.files["policy"].replace(b"quorum", f"witness w1 {WITNESS.key}\nquorum".encode())


def test_a_witness_bounds_every_record_from_above(made: Made) -> None:
    report = verify_files(timed(made, 48), policy(made))
    assert report.times.counts == {"after_only": 12}
    assert "postdated" not in {problem.code for problem in report.problems}


def test_a_record_that_is_dated_after_somebody_saw_it_is_named(made: Made) -> None:
    """The records of the third day say a time at which the log, with them in it, had been seen for hours."""
    report = verify_files(timed(made, 12), policy(made))
    named = {problem.where for problem in report.problems if problem.code == "postdated"}
    assert len(named) == 2
    assert all("/2026/11/23/" in where for where in named)


def test_a_witness_that_nobody_vouches_for_says_nothing(made: Made) -> None:
    report = verify_files(timed(made, 12))
    assert report.times.counts == {"none": 12}
    assert "postdated" not in {problem.code for problem in report.problems}


def test_the_command(made: Made, tmp_path: Path) -> None:
    path, trusted = tmp_path / "packet.zip", tmp_path / "policy"
    path.write_bytes(archive.pack(timed(made, 48)))
    trusted.write_bytes(policy(made))
    for words in (("packet", "verify", path), ("verify", path)):
        done = run(*words, "--policy", trusted, "--times", "--json")
        page = json.loads(done.out)
        assert (page["schema"], page["cosignatures"]) == ("compliance-agent/packet-verify/v1", 1)
        assert len(page["times"]["records"]) == 12
        assert {record["not_before"] for record in page["times"]["records"]} == {None}
        shown = run(*words, "--policy", trusted)
        assert "times: 12 record(s) with no lower bound" in shown.out
        assert "not after" not in shown.out


async def at_once(seconds: float) -> None:
    """Nobody is going to answer."""


def test_the_packet_brings_what_the_server_asks(made: Made, tmp_path: Path) -> None:
    """Witnesses and authority of the server stand in the packet; a checkpoint without the quorum it asks for is named."""
    changed = copied(made, tmp_path / "server")
    (changed.data_dir / "keys" / "witnesses.policy").write_text(f"witness w1 {WITNESS.key}\nquorum w1\n")
    (changed.data_dir / "keys" / "tsa-ca.pem").write_text("no certificate")
    result = built(changed.data_dir, tmp_path / "packet.zip", sleep=at_once)
    files = archive.unpack(result.path.read_bytes())
    assert files["policy"].endswith(f"witness w1 {WITNESS.key}\nquorum w1\n".encode())
    assert files["time/ca.pem"] == b"no certificate"
    assert [(problem.code, problem.where) for problem in result.report.problems] == [("no_quorum", "log/checkpoint")]
    note = files["log/checkpoint"].decode()
    line = WITNESS.line(Note.parse(note.encode()).text, int(START.timestamp()) + 10**6)
    witnessed = {path: content.replace(note.encode(), f"{note}{line}\n".encode()) for path, content in files.items()}
    report = verify_files(made.signed_again(witnessed))
    assert [(problem.code, problem.where) for problem in report.problems] == [("wrong_export", "README.txt")], (
        "the page lacks the command for that line, and that is all"
    )
    assert report.times.counts == {"after_only": 12}
