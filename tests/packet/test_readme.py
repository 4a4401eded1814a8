"""Every command of README.txt works as printed, by a shell in the unpacked packet, and fails when what it checks is wrong."""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from compliance_agent.packet import archive
from compliance_agent.packet.readme import NOT_PROVEN
from tests.packet.scene import Files, Made, copied
from tests.packet.test_verify import flip
from tests.packet.witnessed import built_again
from tests.server.authority import made as new_authority

AUDITOR = Path(__file__).resolve().parents[2] / ".tools" / "auditor"


def blocks(files: Files) -> list[str]:
    """The commands of README.txt, indented block by indented block."""
    text = files["README.txt"].decode()
    found = re.findall(r"(?:^    .*\n)+", text, re.MULTILINE)
    return [re.sub(r"^    ", "", block, flags=re.MULTILINE) for block in found]


def unpacked(files: Files, directory: Path) -> Path:
    for path, content in files.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(content)
    return directory


def run(block: str, directory: Path) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PATH": f"{AUDITOR / 'bin'}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(AUDITOR)}
    return subprocess.run(
        ["sh", "-eu", "-c", block], cwd=directory, env=environ, capture_output=True, text=True, check=False, timeout=60
    )


def missing_tool(block: str) -> bool:
    """The two that the page calls optional; tests/real has both."""
    there = {"trestle": shutil.which("trestle") is not None, "aics-tlog": (AUDITOR / "bin" / "aics-tlog").exists()}
    return not there.get(block.split(maxsplit=1)[0], True)


def test_every_command_works_as_printed(made: Made, tmp_path: Path) -> None:
    directory = unpacked(made.files, tmp_path)
    found = blocks(made.files)
    assert len(found) == 9
    assert sum(map(missing_tool, found)) <= 2
    for block in found:
        if not missing_tool(block):
            done = run(block, directory)
            assert done.returncode == 0, (block, done.stdout, done.stderr)
    digests = run(found[4], directory).stdout.split()
    assert len(digests) == 2
    assert len(set(digests)) == 1
    roots = run(found[5], directory).stdout.split()
    assert len(roots) == 2
    assert len(set(roots)) == 1


def test_unzip_unpacks_it(made: Made, tmp_path: Path) -> None:
    """The tool that an auditor has, not ours."""
    (tmp_path / "packet.zip").write_bytes(made.raw)
    shutil.unpack_archive(tmp_path / "packet.zip", tmp_path / "out")
    assert run(blocks(made.files)[0], tmp_path / "out").returncode == 0


@pytest.mark.parametrize(
    ("number", "ending"),
    [(0, "evidence.csv"), (0, "MANIFEST.sig"), (1, "log/checkpoint"), (2, "bundle.sig"), (3, "bundle.json"),
     (5, "leaf.json"), (5, "bundle.tlog-proof"), (6, "assessment-results.json"), (6, "assessment-results.dsse.json")],
)  # fmt: skip
def test_each_fails_when_what_it_checks_is_wrong(made: Made, tmp_path: Path, number: int, ending: str) -> None:
    block = blocks(made.files)[number]
    path = next((path for path in re.findall(r"evidence/[\w./-]+", block) if path.endswith(ending)), None)
    path = (
        path or next((f"{found}/{ending}" for found in re.findall(r"record=(\S+)", block)), None) or made.pick(ending)
    )
    content = bytearray(made.files[path])
    at = content.index(b"=\n", 40) - 9 if ending == "bundle.tlog-proof" else len(content) // 2
    content[at] ^= 1
    directory = unpacked({**made.files, path: bytes(content)}, tmp_path)
    assert run(block, directory).returncode != 0


# --- third parties --------------------------------------------------------------------------------

WITNESS, STAMP, EVERY_STAMP, ENTRY, TLOG, GREW = range(8, 14)  # blocks of the packet that has them


def test_every_command_about_third_parties_works_as_printed(seen: Made, tmp_path: Path) -> None:
    directory, found = unpacked(seen.files, tmp_path), blocks(seen.files)
    assert len(found) == GREW + 1
    for block in found:
        if not missing_tool(block):
            done = run(block, directory)
            assert done.returncode == 0, (block, done.stdout, done.stderr)
    assert "Fri Nov 22 14:00:00 UTC 2024" in run(f"export LC_ALL=C\n{found[WITNESS]}", directory).stdout
    said = run(found[STAMP], directory)
    assert "Verification: OK" in said.stdout + said.stderr
    assert "Time stamp: " in said.stdout
    assert "--quorum 1" in found[TLOG], "aics-tlog knows nothing of ML-DSA"


def spoiled(start: str, where: Callable[[bytes], int] = lambda content: len(content) // 2) -> Callable[[Files], Files]:
    """A bit of the last file whose path begins so."""

    def spoil(files: Files) -> Files:
        path = [path for path in sorted(files, key=lambda path: (len(path), path)) if path.startswith(start)][-1]
        return {**files, path: flip(files[path], where(files[path]))}

    return spoil


def of_another_hour(files: Files) -> Files:
    """A good token, over another checkpoint."""
    tokens = sorted((path for path in files if path.endswith(".tsr")), key=len)
    return {**files, tokens[-1]: files[tokens[0]], tokens[0]: files[tokens[-1]]}


def of_another_time(files: Files) -> Files:
    """The witness's line says one second later, under the same signature."""
    note = files["log/checkpoint"]
    line = next(line for line in note.splitlines() if b" witness.example/w1 " in line and len(line) < 300)
    head, _, encoded = line.rpartition(b" ")
    raw = bytearray(base64.b64decode(encoded))
    raw[11] += 1
    return {**files, "log/checkpoint": note.replace(line, head + b" " + base64.b64encode(raw))}


def of_another_authority(files: Files, directory: Path) -> Files:
    return {**files, "time/ca.pem": new_authority(directory / "stranger").ca_file.read_bytes()}


def of_another_tree(files: Files) -> Files:
    """The oldest checkpoint says another root."""
    path = min((path for path in files if path.startswith("log/older/")), key=len)
    return {**files, path: flip(files[path], files[path].index(b"=\n") - 9)}


@pytest.mark.parametrize(
    ("number", "fault"),
    [
        (WITNESS, spoiled("log/checkpoint", lambda note: note.index(b"\n") + 1)),
        (WITNESS, of_another_time),
        (WITNESS, lambda files: {**files, "keys/witness-w1.pem": files["keys/log.pem"]}),
        (WITNESS, lambda files: {**files, "log/checkpoint": files["log/checkpoint"].replace(b" witness.", b" w.")}),
        (STAMP, spoiled("log/older/")),
        (STAMP, spoiled("time/", lambda token: len(token) - 20)),
        (STAMP, of_another_hour),
        (EVERY_STAMP, of_another_hour),
        (ENTRY, of_another_hour),
        (ENTRY, spoiled("log/older/")),
        (TLOG, spoiled("log/tile/0/")),
        (TLOG, of_another_time),
        (GREW, of_another_tree),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)  # fmt: skip
def test_each_about_third_parties_fails_on_its_fault(
    seen: Made, tmp_path: Path, number: int, fault: Callable[[Files], Files]
) -> None:
    block = blocks(seen.files)[number]
    spoilt = fault(seen.files)
    assert spoilt != seen.files
    assert missing_tool(block) or run(block, unpacked(spoilt, tmp_path)).returncode != 0


def test_a_stamp_of_another_authority_fails(seen: Made, tmp_path: Path) -> None:
    directory = unpacked(of_another_authority(seen.files, tmp_path), tmp_path / "packet")
    for number in (STAMP, EVERY_STAMP):
        assert run(blocks(seen.files)[number], directory).returncode != 0


def test_a_stamp_can_be_checked_when_its_certificate_has_expired(seen: Made, tmp_path: Path) -> None:
    """As the page says: at a moment when it was valid."""
    directory = unpacked(seen.files, tmp_path)
    block = blocks(seen.files)[STAMP].splitlines()[0]
    now = int(run("date +%s", directory).stdout)
    assert run(f"{block} -attime {now}", directory).returncode == 0
    assert run(f"{block} -attime {now + 11 * 366 * 86_400}", directory).returncode != 0, (
        "the test's authority lasts ten years"
    )


def test_an_authority_with_a_new_root_keeps_the_old_one_behind_it(seen: Made, tmp_path: Path) -> None:
    """Then tokens from before it still verify, by the page's commands and by ours."""
    copy = copied(seen, tmp_path / "server")
    ca = copy.data_dir / "keys" / "tsa-ca.pem"
    old, new = ca.read_bytes(), new_authority(tmp_path / "new").ca_file.read_bytes()
    for content, right in ((new + old, True), (new, False)):
        ca.write_bytes(content)
        result = built_again(copy.data_dir, tmp_path / "packet.zip")
        assert result.report.ok is right
        files = archive.unpack(result.path.read_bytes())
        directory = unpacked(files, tmp_path / f"{right}")
        assert (run(blocks(files)[EVERY_STAMP], directory).returncode == 0) is right


def test_without_certificates_the_page_has_no_command_for_stamps(seen: Made, tmp_path: Path) -> None:
    copy = copied(seen, tmp_path / "server")
    (copy.data_dir / "keys" / "tsa-ca.pem").unlink()
    result = built_again(copy.data_dir, tmp_path / "packet.zip")
    files = archive.unpack(result.path.read_bytes())
    assert result.report.ok, result.report.problems
    assert result.report.said.tokens_unchecked == 3
    assert "openssl ts" not in "".join(blocks(files))


def test_the_other_page_is_one_page(made: Made, seen: Made) -> None:
    assert made.files["NOT-PROVEN.txt"] == seen.files["NOT-PROVEN.txt"] == NOT_PROVEN
    assert len(NOT_PROVEN.splitlines()) <= 60
    pages = [page.files["README.txt"].decode().splitlines() for page in (made, seen)]
    assert all(len(line) <= 132 for page in pages for line in page if not line.startswith("    "))


def test_it_is_the_page_of_this_packet(made: Made) -> None:
    text = archive.unpack(made.raw)["README.txt"].decode()
    assert "Site clinic-1, 2026-11-22 to 2026-11-22 (UTC): 8 signed records of 3 host(s)" in text
    assert "4 record(s) beside the period" in text
    assert "NOT HERE" not in text
