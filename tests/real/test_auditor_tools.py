"""A packet that the demo made, checked as EVIDENCE 4 says: by openssl, aics-tlog, trestle and libraries, none of them ours.

Each command succeeds on the packet, and fails when the one thing it is there to check was changed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import nacl.exceptions
import nacl.signing
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import SSlibKey  # type: ignore[attr-defined]

from tests.real.conftest import Scene

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.xdist_group("demo"), pytest.mark.timeout(150)]
ROOT = Path(__file__).resolve().parents[2]
SITE = "riverside-clinic"


@pytest.fixture
def packet(scene: Scene, tmp_path: Path) -> Path:
    """The packet of one site, unpacked; a copy to damage."""
    shutil.unpack_archive(scene.directory / "packets" / f"{SITE}.zip", tmp_path / "packet")
    return tmp_path / "packet"


def flip(path: Path, at: int | None = None) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if at is None else at] ^= 1
    path.write_bytes(content)


def records(packet: Path) -> list[Path]:
    return sorted(path.parent for path in packet.glob("evidence/**/bundle.json"))


def run(directory: Path, *argv: str | Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environ = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT / ".tools" / "auditor")}
    return subprocess.run(
        [str(item) for item in argv],
        cwd=directory,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def good(directory: Path, *argv: str | Path) -> bool:
    return run(directory, *argv).returncode == 0


def openssl(packet: Path, key: str, body: Path, sig: Path) -> bool:
    """`openssl pkeyutl -verify` as printed in EVIDENCE 4."""
    argv: list[str | Path] = ["-verify", "-pubin", "-inkey", f"keys/{key}.pem", "-rawin", "-in", body, "-sigfile", sig]
    done = run(packet, "openssl", "pkeyutl", *argv)
    return done.returncode == 0 and "Verified Successfully" in done.stdout


def key_of(record: Path) -> str:
    return str(json.loads((record / "bundle.json").read_bytes())["host"]["key_id"])


def policy(packet: Path, word: str, at: int) -> list[str]:
    """The verifier keys of the packet's policy: `log` lines have theirs second, `witness` lines third."""
    lines = [line.split() for line in (packet / "policy").read_text("utf-8").splitlines()]
    return [line[at] for line in lines if line[:1] == [word]]


def tlog(packet: Path, command: str, *argv: str | Path, vkey: str | None = None) -> dict[str, object] | None:
    """What aics-tlog says of the log in the packet; None when it refuses."""
    key = vkey or policy(packet, "log", 1)[0]
    done = run(packet, sys.executable, "-m", "aics_tlog", command, "--tiles", "log", "--log-key", key, *argv)
    return json.loads(done.stdout) if done.returncode == 0 else None


def ed25519_witnesses(packet: Path) -> list[str]:
    """Options for the witnesses whose lines aics-tlog can check: type 0x04; it knows nothing of ML-DSA."""
    keys = [key for key in policy(packet, "witness", 2) if key.split("+", 2)[2].startswith("B")]  # base64 has a + too
    return [option for key in keys for option in ("--witness-key", key)]


def test_openssl_verifies_each_record_and_refuses_a_changed_one(packet: Path) -> None:
    found = records(packet)
    assert found
    for record in found:
        assert openssl(packet, key_of(record), record / "bundle.json", record / "bundle.sig")
    key = key_of(found[0])
    flip(found[0] / "bundle.json")
    assert not openssl(packet, key, found[0] / "bundle.json", found[0] / "bundle.sig")


def test_pynacl_verifies_each_record_and_refuses_a_changed_signature(packet: Path) -> None:
    for record in records(packet):
        public = load_pem_public_key((packet / "keys" / f"{key_of(record)}.pem").read_bytes())
        key = nacl.signing.VerifyKey(public.public_bytes(Encoding.Raw, PublicFormat.Raw))
        body, sig = (record / "bundle.json").read_bytes(), bytearray((record / "bundle.sig").read_bytes())
        key.verify(body, bytes(sig))
        sig[3] ^= 1
        with pytest.raises(nacl.exceptions.BadSignatureError):
            key.verify(body, bytes(sig))


@pytest.mark.parametrize("changed", [False, True])
def test_openssl_verifies_the_checkpoint(packet: Path, changed: bool) -> None:
    """The two shell lines of EVIDENCE 4, then openssl."""
    if changed:
        flip(packet / "log" / "checkpoint", at=(packet / "log" / "checkpoint").read_bytes().index(b"\n") + 1)
    script = """
        sed '/^$/,$d' log/checkpoint > body
        grep -m1 "^— compliance-server" log/checkpoint | cut -d' ' -f3 | base64 -d | tail -c +5 > sig
    """
    assert good(packet, "sh", "-eu", "-c", script)
    assert openssl(packet, "log", Path("body"), Path("sig")) is not changed


def test_aics_tlog_verifies_checkpoint_and_tiles(packet: Path) -> None:
    witnesses = ed25519_witnesses(packet)
    assert witnesses, "the demo has a witness, and its word is the quorum"
    quorum = str(len(witnesses) // 2)
    said = tlog(packet, "verify-checkpoint", *witnesses, "--quorum", quorum)
    assert said is not None
    assert (said["ok"], said["tiles_ok"], str(said["cosignatures"])) == (True, True, quorum)
    assert tlog(packet, "verify-checkpoint", *witnesses, "--quorum", str(len(witnesses) // 2 + 1)) is None
    name, _, key = policy(packet, "log", 1)[0].partition("+")
    assert tlog(packet, "verify-checkpoint", vkey=f"{name}+{key[:-2]}AA") is None, "another key"
    tile = next((packet / "log" / "tile" / "0").rglob("[0-9]*.p/*"))
    flip(tile)
    assert tlog(packet, "verify-checkpoint") is None


def test_aics_tlog_finds_each_record_in_the_log_at_its_index(packet: Path) -> None:
    for record in records(packet):
        index = re.search(r"^index (\d+)$", (record / "bundle.tlog-proof").read_text("utf-8"), re.MULTILINE)
        assert index is not None
        leaf: list[str | Path] = ["--leaf", record / "leaf.json", "--index"]
        assert tlog(packet, "verify-inclusion", *leaf, index[1]) is not None
        assert tlog(packet, "verify-inclusion", *leaf, str(int(index[1]) + 1)) is None, "another place"
        flip(record / "leaf.json")
        assert tlog(packet, "verify-inclusion", *leaf, index[1]) is None, "another entry"


def test_aics_tlog_shows_that_the_log_only_grew_since_the_first_receipt(packet: Path) -> None:
    proofs = [(record / "bundle.tlog-proof").read_text("utf-8").partition("\n\n")[2] for record in records(packet)]
    oldest = min(proofs, key=lambda note: int(note.split("\n")[1]))
    (packet / "old").write_text(oldest, "utf-8")
    said = tlog(packet, "verify-consistency", "--old-checkpoint", "old")
    assert said is not None
    assert said["ok"] is True
    lines = oldest.split("\n")
    lines[2] = f"{'B' if lines[2][0] == 'A' else 'A'}{lines[2][1:]}"
    (packet / "old").write_text("\n".join(lines), "utf-8")
    assert tlog(packet, "verify-consistency", "--old-checkpoint", "old") is None


def test_openssl_verifies_the_witness_as_the_page_of_the_packet_says(packet: Path) -> None:
    """And refuses the key of somebody else."""
    blocks = re.findall(r"(?:^    .*\n)+", (packet / "README.txt").read_text("utf-8"), re.MULTILINE)
    (block,) = [block for block in blocks if "keys/witness-w1.pem" in block]
    assert good(packet, "sh", "-eu", "-c", block)
    shutil.copy(packet / "keys" / "log.pem", packet / "keys" / "witness-w1.pem")
    assert not good(packet, "sh", "-eu", "-c", block)


TRESTLE: Sequence[str] = ("trestle", "verify", "--beta", "-f", "export/assessment-results.json",
    "--signature", "export/assessment-results.dsse.json", "--public-key", "keys/packet.pem")  # fmt: skip


def test_trestle_reads_and_verifies_the_export(packet: Path) -> None:
    assert good(packet, *TRESTLE)
    export = packet / "export" / "assessment-results.json"
    before = export.read_bytes()
    export.write_bytes(before.replace(b"satisfied", b"satisfyed", 1))
    assert not good(packet, *TRESTLE)
    export.write_bytes(before)
    shutil.copy(packet / "keys" / "log.pem", packet / "keys" / "packet.pem")
    assert not good(packet, *TRESTLE)


def test_trestle_takes_the_export_for_oscal(packet: Path, tmp_path: Path) -> None:
    """Imported into a workspace of its own, it validates as OSCAL assessment-results; without a required field it does not."""
    work = tmp_path / "workspace"
    work.mkdir()
    assert good(work, "trestle", "init", "--local")
    taken = run(work, "trestle", "import", "-f", packet / "export" / "assessment-results.json", "-o", "ours")
    assert taken.returncode == 0, taken.stderr
    assert good(work, "trestle", "validate", "-t", "assessment-results", "-n", "ours")
    document = json.loads((packet / "export" / "assessment-results.json").read_bytes())
    del document["assessment-results"]["import-ap"]
    (tmp_path / "lacking.json").write_text(json.dumps(document), "utf-8")
    assert not good(work, "trestle", "import", "-f", tmp_path / "lacking.json", "-o", "lacking")


def test_securesystemslib_verifies_the_envelope(packet: Path) -> None:
    envelope = json.loads((packet / "export" / "assessment-results.dsse.json").read_bytes())
    public = load_pem_public_key((packet / "keys" / "packet.pem").read_bytes())
    key = SSlibKey.from_crypto(public)
    envelope["signatures"][0]["keyid"] = key.keyid  # a hint; this library takes no other for the key
    Envelope.from_dict(json.loads(json.dumps(envelope))).verify([key], 1)
    envelope["payload"] = envelope["payload"][:-8] + "AAAAAA=="
    with pytest.raises(VerificationError):
        Envelope.from_dict(envelope).verify([key], 1)
