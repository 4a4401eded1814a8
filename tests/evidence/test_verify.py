"""The auditor's side names every way a record can be altered, and does not cry over an honest one."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from compliance_agent.cli.verify import command
from compliance_agent.crypto import Ed25519Signer
from compliance_agent.errors import AgentError, NoInput
from compliance_agent.evidence.canonical import canonical
from compliance_agent.evidence.verify import verify_paths
from tests.evidence.conftest import BOOT, Clinic, bundle, seen

Change = Callable[[Clinic, list[Path]], None]


def codes(clinic: Clinic) -> set[str]:
    return {problem.code for problem in verify_paths([clinic.evidence], clinic.keys).problems}


def signed_again(path: Path, signer: Ed25519Signer, **change: object) -> None:
    """What somebody with the host's key can do."""
    raw = canonical({**json.loads(path.read_bytes()), **change})
    path.write_bytes(raw)
    path.with_name("bundle.sig").write_bytes(signer.sign(raw))


def flip(path: Path, bit: int = 800) -> None:
    raw = bytearray(path.read_bytes())
    raw[bit // 8 % len(raw)] ^= 1 << bit % 8
    path.write_bytes(raw)


def pretty(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_bytes()), indent=1))


def swap_numbers(signer: Ed25519Signer, one: Path, other: Path) -> None:
    for path, seq in ((one, 4), (other, 3)):
        signed_again(path, signer, seq=seq)


def set_clock_back(path: Path, signer: Ed25519Signer) -> None:
    clock = {**json.loads(path.read_bytes())["clock"], "monotonic_ns": 5}
    signed_again(path, signer, clock=clock)


def rename(path: Path) -> None:
    path.parent.rename(path.parent.with_name("00000000"))


def garble(path: Path) -> None:
    path.write_bytes(b"\xff\xfe")


CHANGES: dict[str, tuple[Change, set[str]]] = {
    "nothing": (lambda _, paths: None, set()),
    "bit in the bundle": (lambda _, paths: flip(paths[2]), {"bad_signature", "missing"}),
    "bit in the signature": (lambda _, paths: flip(paths[2].with_name("bundle.sig")), {"bad_signature", "missing"}),
    "deleted": (lambda _, paths: shutil.rmtree(paths[2].parent), {"missing"}),
    "bundle.json deleted": (lambda _, paths: paths[2].unlink(), {"unreadable", "missing"}),
    "bundle.sig deleted": (lambda _, paths: paths[2].with_name("bundle.sig").unlink(), {"unreadable", "missing"}),
    "first deleted": (lambda _, paths: shutil.rmtree(paths[0].parent), {"missing_start"}),
    "pretty printed": (lambda _, paths: pretty(paths[2]), {"not_canonical", "missing"}),
    "rewritten with the key": (lambda c, paths: signed_again(paths[2], c.signer, recovered=True), {"broken_link"}),
    "free text with the key": (
        lambda c, paths: signed_again(paths[2], c.signer, reason="Jane Doe"),
        {"bad_schema", "missing"},
    ),
    "reordered with the key": (
        lambda c, paths: swap_numbers(c.signer, paths[2], paths[3]),
        {"broken_link", "clock_ran_back"},
    ),
    "clock set back within a boot": (lambda c, paths: set_clock_back(paths[4], c.signer), {"clock_ran_back"}),
    "moved to another name": (lambda _, paths: rename(paths[2]), {"misplaced", "missing"}),
    "not JSON": (lambda _, paths: garble(paths[2]), {"not_json", "missing"}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_change_is_named(clinic: Clinic, name: str) -> None:
    change, expected = CHANGES[name]
    paths = [item.bundle_path for item in clinic.record(5)]
    change(clinic, paths)
    assert codes(clinic) == expected


def test_two_bundles_in_one_place_are_named(clinic: Clinic) -> None:
    paths = [item.bundle_path for item in clinic.record(3)]
    twin = paths[1].parent.with_name("11111111-2222-4333-8444-555555555555")
    shutil.copytree(paths[1].parent, twin)
    signed_again(twin / "bundle.json", clinic.signer, bundle_id=twin.name)
    assert codes(clinic) == {"duplicate"}


def test_an_exact_copy_says_the_same_thing_once(clinic: Clinic, tmp_path: Path) -> None:
    """A bundle that an auditor has twice is not two bundles."""
    item = clinic.record(3)[1]
    shutil.copytree(item.bundle_path.parent, tmp_path / "copy" / item.bundle_id)
    assert verify_paths([clinic.evidence, tmp_path / "copy"], clinic.keys).ok


def test_a_foreign_key_is_not_believed(clinic: Clinic, tmp_path: Path) -> None:
    clinic.record(2)
    other = Ed25519Signer(tmp_path / "other.pem")
    report = verify_paths([clinic.evidence], {other.key_id: other.public_bytes})
    assert {problem.code for problem in report.problems} == {"no_key"}
    assert report.exit_status == 65


def test_a_forged_bundle_under_the_hosts_name_is_refused(clinic: Clinic, tmp_path: Path) -> None:
    """key_id names the right key, another key signed."""
    item = clinic.record()[0]
    signed_again(item.bundle_path, Ed25519Signer(tmp_path / "other.pem"))
    assert codes(clinic) == {"bad_signature"}


def test_epochs_follow_each_other(clinic: Clinic) -> None:
    last = clinic.record(2)[-1]
    clinic.store.new_epoch(last.digest)
    clinic.record(2)
    report = verify_paths([clinic.evidence], clinic.keys)
    assert report.ok, report.problems
    assert (report.chains[0].epochs, report.chains[0].last) == (2, (1, 2))


def test_a_new_epoch_that_hides_a_tail_is_named(clinic: Clinic) -> None:
    stored = clinic.record(3)
    clinic.store.new_epoch(stored[1].digest)
    clinic.record(1)
    assert codes(clinic) == {"broken_link"}


def test_a_reboot_starts_the_monotonic_clock_again(clinic: Clinic) -> None:
    clinic.record(2)
    rebooted = seen(clinic.signer.key_id, 2)
    clock = rebooted.clock.__class__("chrony", True, 0, 2, BOOT.replace("0b", "1c"), 5)
    clinic.store.record(
        bundle(2), rebooted.__class__(rebooted.key_id, rebooted.created_at, clock, rebooted.agent, None)
    )
    assert codes(clinic) == set()


def test_one_bundle_alone_claims_nothing_about_the_others(clinic: Clinic) -> None:
    stored = clinic.record(4)
    for path in (stored[2].bundle_path, stored[2].bundle_path.parent):
        assert verify_paths([path], clinic.keys).ok
    assert verify_paths([stored[1].bundle_path, stored[3].bundle_path], clinic.keys).ok


def test_any_flipped_bit_anywhere_is_named(clinic: Clinic) -> None:
    """Sampled with a seed: 200 single-bit flips over bundles and signatures, all refused."""
    files = [file for item in clinic.record(3) for file in (item.bundle_path, item.signature_path)]
    rng = random.Random(20261122)
    for _ in range(200):
        file = rng.choice(files)
        raw = file.read_bytes()
        flip(file, rng.randrange(len(raw) * 8))
        assert not verify_paths([clinic.evidence], clinic.keys).ok
        file.write_bytes(raw)
    assert verify_paths([clinic.evidence], clinic.keys).ok


# The command


def run(*arguments: str | Path) -> tuple[int, str]:
    done = CliRunner().invoke(command, [str(argument) for argument in arguments])
    if isinstance(done.exception, AgentError):
        return done.exception.exit_status, str(done.exception)
    return done.exit_code, done.output


@pytest.fixture
def kept(clinic: Clinic) -> Path:
    """As `make demo --keep` leaves a host: evidence beside keys/HOST.pub.pem."""
    clinic.record(3)
    (clinic.root / "keys" / "host-1.pub.pem").write_text(clinic.signer.public_pem())
    return clinic.root


def test_a_kept_host_directory_verifies_with_its_own_keys(kept: Path) -> None:
    status, output = run(kept)
    assert status == 0
    assert "3 of 3 bundles of 1 host(s) verified; every chain is whole" in output
    assert "--key" in output, "says that the keys came from the same place"
    assert run(kept / "evidence")[0] == 0
    (kept / "demo" / "hosts").mkdir(parents=True)
    (kept / "evidence").rename(kept / "demo" / "hosts" / "evidence")
    (kept / "keys").rename(kept / "demo" / "hosts" / "keys")
    assert run(kept / "demo")[0] == 0, "a demo's whole directory"


def test_a_key_from_elsewhere(kept: Path, tmp_path: Path) -> None:
    key = shutil.copy(kept / "keys" / "host-1.pub.pem", tmp_path / "trusted.pem")
    assert run(kept / "evidence", "--key", key)[0] == 0
    other = tmp_path / "other.pub.pem"
    other.write_text(Ed25519Signer(tmp_path / "o.pem").public_pem())
    assert run(kept, "--key", other)[0] == 65
    other.write_text("no key")
    assert run(kept, "--key", other)[0] == 65
    assert run(kept, "--key", tmp_path / "nowhere")[0] == 66


def test_findings_are_printed_and_the_status_is_65(kept: Path) -> None:
    second = [path for path in (kept / "evidence").rglob("bundle.json") if json.loads(path.read_bytes())["seq"] == 2]
    shutil.rmtree(second[0].parent)
    status, output = run(kept)
    assert status == 65
    assert "missing" in output
    status, output = run(kept, "--json")
    document = json.loads(output.partition("note:")[0])
    assert status == 65
    assert document["schema"] == "compliance-agent/verify/v1"
    assert document["ok"] is False
    assert [problem["code"] for problem in document["problems"]] == ["missing"]


@pytest.mark.parametrize("what", ["empty", "absent", "fifo"])
def test_nothing_to_verify_is_no_success(tmp_path: Path, what: str) -> None:
    path = tmp_path / "there"
    if what == "empty":
        path.mkdir()
    elif what == "fifo":
        os.mkfifo(path)
    assert run(path)[0] == NoInput.exit_status


BAD = (b"", b"\x00", b"\xef\xbb\xbf{}", b"[" * 60_000, b"1e999", b'{"a":1,"a":1}', b"x" * 70_000, b"[]", b"null")


@pytest.mark.parametrize("content", [*BAD, b'{"host":{"key_id":7}}', b'{"host":{"key_id":"x"}}'])
def test_bad_bytes_are_one_problem_and_never_a_traceback(clinic: Clinic, content: bytes) -> None:
    item = clinic.record()[0]
    item.bundle_path.write_bytes(content)
    report = verify_paths([clinic.evidence], clinic.keys)
    assert len(report.problems) == 1
    assert report.verified == 0
