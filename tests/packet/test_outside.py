"""What third parties said stands in a packet as files that openssl can check, exactly as policy and log say, and nothing else."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from compliance_agent.entries.leaf import time_leaf
from compliance_agent.errors import BadEvidence
from compliance_agent.evidence.stamped import stamps_under
from compliance_agent.log.note import KeyType, Note
from compliance_agent.packet import archive, verify
from compliance_agent.packet.opening import LOOKS
from compliance_agent.packet.outside import Stamped, outside
from compliance_agent.packet.report import Report
from compliance_agent.packet.verify import verify_files
from tests.cli.command import run
from tests.log.builder import LOG, MemoryLog, signer
from tests.packet.scene import SITE, Files, Made, copied
from tests.packet.test_verify import flip
from tests.packet.witnessed import DAY, HOURS, built_again
from tests.server.authority import made as new_authority
from tests.witness.builder import checkpoint_of, note_of


def named(report: Report) -> set[tuple[str, str]]:
    return {(problem.code, problem.where) for problem in report.problems}


def third(files: Files) -> list[str]:
    """Paths of what third parties said, and of what it is checked with."""
    return sorted(path for path in files if path.startswith(("keys/witness-", "log/older/", "time/")))


# --- what is there --------------------------------------------------------------------------------


def test_a_packet_without_third_parties_has_nothing_of_them(made: Made) -> None:
    assert third(made.files) == []
    report = verify_files(made.files)
    assert (report.quorum, report.own_authority) == ("not_asked", False)


def test_all_that_they_said_is_there_and_verifies(seen: Made) -> None:
    assert seen.built.report.ok, seen.built.report.problems
    files = seen.files
    sizes = [path.removeprefix("log/older/") for path in third(files) if path.startswith("log/older/")]
    assert len(sizes) == HOURS
    there = [f"log/older/{size}" for size in sizes] + [f"time/{size}.tsr" for size in sizes]
    assert third(files) == sorted(["keys/witness-w1.pem", "time/ca.pem", *there])
    for size in sizes:
        note = Note.parse(files[f"log/older/{size}"])
        assert note.text.split("\n")[1] == size
        assert len(note.signatures) == 3, "the log's, and both of the witness"
    report = verify_files(files)
    assert (report.quorum, report.own_authority, report.own_policy) == ("met", True, True)
    assert (report.said.tokens, report.said.tokens_unchecked) == (HOURS, 0)
    assert report.said.cosignatures == 2 * (HOURS + 1)


def test_built_twice_it_is_the_same_bytes(seen: Made, tmp_path: Path) -> None:
    assert built_again(seen.data_dir, tmp_path / "again.zip").path.read_bytes() == seen.raw


# --- what is wrong is named -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "code"), [("keys/witness-", "bad_key"), ("log/older/", "wrong_checkpoint"), ("time/", "bad_token")]
)
def test_another_file_is_named_though_the_manifest_was_made_again(seen: Made, start: str, code: str) -> None:
    paths = [path for path in third(seen.files) if path.startswith(start) and path != "time/ca.pem"]
    assert paths
    for path in paths:
        held = seen.files[path]
        for content in (flip(held, 0), flip(held, len(held) // 2), held[:-1], b"", held + b"\n"):
            assert (code, path) in named(verify_files(seen.signed_again({**seen.files, path: content})))
        rest = {name: content for name, content in seen.files.items() if name != path}
        assert ("missing_file", path) in named(verify_files(seen.signed_again(rest)))


@pytest.mark.parametrize("path", ["keys/witness-w2.pem", "log/older/9", "log/older/x", "time/9.tsr", "time/other.pem"])
def test_a_file_of_nobody_is_named(made: Made, seen: Made, path: str) -> None:
    """Also one that would be right elsewhere."""
    source = next(name for name in third(seen.files) if name.startswith(path.rpartition("/")[0]))
    for one in (made, seen):
        files = one.signed_again({**one.files, path: seen.files[source]})
        assert ("extra_file", path) in named(verify_files(files))


def test_a_verifier_that_does_not_make_them_again_is_caught(seen: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    path = next(path for path in third(seen.files) if path.startswith("log/older/"))
    files = seen.signed_again({**seen.files, path: flip(seen.files[path], 0)})
    assert ("wrong_checkpoint", path) in named(verify_files(files))
    monkeypatch.setattr(verify._Verification, "_outside", lambda *_: None)
    assert ("wrong_checkpoint", path) not in named(verify_files(files))


# --- the quorum -----------------------------------------------------------------------------------


def without_line(seen: Made, number: int) -> Files:
    """One signature line of the checkpoint taken out, and of every receipt."""
    note = seen.files["log/checkpoint"]
    lines = note.splitlines(keepends=True)
    shorter = b"".join(line for line in lines if line != lines[-number])
    return seen.signed_again({path: content.replace(note, shorter) for path, content in seen.files.items()})


@pytest.mark.parametrize("number", [1, 2])
def test_without_its_quorum_a_checkpoint_is_unwitnessed(seen: Made, tmp_path: Path, number: int) -> None:
    files = without_line(seen, number)
    report = verify_files(files)
    assert report.quorum == "unwitnessed"
    assert ("no_quorum", "log/checkpoint") in named(report)
    path = tmp_path / "packet.zip"
    path.write_bytes(archive.pack(files))
    done = run("packet", "verify", path)
    assert (done.status, "witnesses: unwitnessed, the checkpoint lacks the quorum" in done.out) == (65, True)
    assert json.loads(run("packet", "verify", path, "--json").out)["quorum"] == "unwitnessed"


def test_what_is_said_of_witnesses_and_authority(made: Made, seen: Made, tmp_path: Path) -> None:
    path, trusted, ca = tmp_path / "packet.zip", tmp_path / "policy", tmp_path / "ca.pem"
    path.write_bytes(seen.raw)
    done = run("verify", path)
    assert (done.status, "witnesses: the quorum of the policy cosigned the checkpoint" in done.out) == (0, True)
    assert "time stamps were checked under certificates of the packet" in done.err
    trusted.write_bytes(seen.files["policy"])
    ca.write_bytes(seen.files["time/ca.pem"])
    done = run("packet", "verify", path, "--policy", trusted, "--tsa-ca", ca)
    assert (done.status, done.err) == (0, "")
    page = json.loads(run("packet", "verify", path, "--policy", trusted, "--tsa-ca", ca, "--json").out)
    assert (page["quorum"], page["keys_from_packet"], page["time_ca_from_packet"]) == ("met", False, False)
    page = json.loads(run("packet", "verify", path, "--json").out)
    assert (page["quorum"], page["keys_from_packet"], page["time_ca_from_packet"]) == ("met", True, True)
    path.write_bytes(made.raw)
    assert "witnesses: unwitnessed, the policy asks for none" in run("packet", "verify", path).out


def test_the_authority_of_the_caller_decides(seen: Made, tmp_path: Path) -> None:
    stranger = new_authority(tmp_path / "stranger").ca_file.read_bytes()
    report = verify_files(seen.files, stamps=stamps_under(stranger))
    assert (report.own_authority, report.said.tokens) == (False, 0)
    assert {code for code, _ in named(report)} == {"bad_token"}
    report = verify_files(seen.signed_again({**seen.files, "time/ca.pem": stranger}))
    assert "bad_token" in {code for code, _ in named(report)}, "nor does another in the packet pass"


def test_a_policy_of_the_caller_counts_and_the_packets_own_is_still_read(seen: Made) -> None:
    own = seen.files["policy"]
    alone = own[: own.index(b"witness ")] + b"quorum none\n"
    assert verify_files(seen.files, alone).quorum == "not_asked"
    for broken in (b"quorum none", own[own.index(b"witness ") :]):
        report = verify_files(seen.signed_again({**seen.files, "policy": broken}), own)
        assert "policy" in {where for _, where in named(report)}


class Later:
    """A published checkpoint without its witnesses, who answer while somebody sleeps for the nth time; with 0 never."""

    def __init__(self, made: Made, answered: int) -> None:
        self.path = made.data_dir / "log" / SITE / "2024" / "checkpoint"
        self.note, self.answered, self.slept = self.path.read_bytes(), answered, 0
        self.path.write_bytes(b"".join(self.note.splitlines(keepends=True)[:-2]))

    async def __call__(self, seconds: float) -> None:
        self.slept += 1
        if self.slept == self.answered:
            self.path.write_bytes(self.note)


def test_a_packet_waits_for_the_witnesses_of_a_checkpoint_that_is_new(seen: Made, tmp_path: Path) -> None:
    copy = copied(seen, tmp_path / "server")
    later = Later(copy, 3)
    result = built_again(copy.data_dir, tmp_path / "packet.zip", later)
    assert (result.report.ok, result.report.quorum, later.slept) == (True, "met", 3)
    assert result.path.read_bytes() == seen.raw


def test_it_does_not_wait_for_ever(seen: Made, tmp_path: Path) -> None:
    copy = copied(seen, tmp_path / "server")
    later = Later(copy, 0)
    result = built_again(copy.data_dir, tmp_path / "packet.zip", later)
    assert (result.report.quorum, later.slept) == ("unwitnessed", LOOKS)
    assert named(result.report) == {("no_quorum", "log/checkpoint")}


# --- names ----------------------------------------------------------------------------------------

WITNESS = signer("witness.example/w1", KeyType.COSIGNATURE)


def told(*entries: bytes) -> list[tuple[int, dict[str, object]]]:
    return [(at, json.loads(entry)) for at, entry in enumerate(entries, 10)]


def test_a_second_checkpoint_of_a_size_and_a_second_token_have_names_of_their_own() -> None:
    log = MemoryLog(9)
    note = note_of(checkpoint_of(log, 5))
    text = checkpoint_of(log, 5).text
    cosigned = Note(text, (LOG.line(text), WITNESS.line(text))).encode()
    times = told(
        time_leaf(note, [b"one", b"two"]), time_leaf(cosigned, [b"three"]), time_leaf(note, []), time_leaf(note, [b"4"])
    )
    found = outside(f"log {LOG.key}\nquorum none\n".encode(), note, times)
    assert found.files == {
        "log/older/5": note, "time/5.tsr": b"one", "time/5-2.tsr": b"two", "time/5-3.tsr": b"4",
        "log/older/5.2": cosigned, "time/5.2.tsr": b"three",
    }  # fmt: skip
    assert found.stamps[2:] == (Stamped("time/5.2.tsr", "log/older/5.2"), Stamped("time/5-3.tsr", "log/older/5"))


@pytest.mark.parametrize("entry", [{"checkpoint": "?", "tokens": ["AAAA"]}, {"checkpoint": "AAAA", "tokens": ["AAAA"]}])
def test_an_entry_that_cannot_be_read_has_no_files(entry: dict[str, object]) -> None:
    note = note_of(checkpoint_of(MemoryLog(9), 5))
    good = json.loads(time_leaf(note, [b"one"]))
    for bad in (entry, {**good, "tokens": [1]}, {**good, "tokens": ["AAA"]}):
        assert outside(f"log {LOG.key}\nquorum none\n".encode(), note, [(3, bad)]).files == {}


def test_a_witness_may_have_any_name_and_a_file_may_not() -> None:
    """What cannot stand in a path, or in a command, does not."""
    odd = [signer(f"w{at}", KeyType.COSIGNATURE) for at in range(4)] + [signer("$(id)", KeyType.COSIGNATURE)]
    names = ["../../etc", "a/b", "ünï", ".hidden", "plain"]
    lines = "".join(f"witness {name} {one.key}\n" for name, one in zip(names, odd, strict=True))
    text = checkpoint_of(MemoryLog(9), 5).text
    note = Note(text, (LOG.line(text), *(one.line(text) for one in odd))).encode()
    found = outside(f"log {LOG.key}\n{lines}quorum none\n".encode(), note, [])
    assert sorted(found.files) == sorted(
        [*(f"keys/witness-_{one.key.id.hex()}.pem" for one in odd[:4]), "keys/witness-plain.pem"]
    )
    assert archive.unpack(archive.pack(found.files)) == found.files
    assert [line.key.name for line in found.cosigned] == ["w0", "w1", "w2", "w3"]
    with pytest.raises(BadEvidence, match="names no key"):
        outside(b"quorum none\n", note, [])


def test_the_scene_is_before_any_real_time() -> None:
    """Else its records would be dated after the authority's word on them."""
    assert datetime.now(UTC).date() > DAY
