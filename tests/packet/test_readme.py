"""Every command of README.txt works as printed, by a shell in the unpacked packet, and fails when what it checks is wrong."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from compliance_agent.packet import archive
from compliance_agent.packet.readme import NOT_PROVEN
from tests.packet.scene import Files, Made


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
    return subprocess.run(
        ["sh", "-eu", "-c", block], cwd=directory, capture_output=True, text=True, check=False, timeout=60
    )


def missing_tool(block: str) -> bool:
    return block.startswith("trestle") and shutil.which("trestle") is None


def test_every_command_works_as_printed(made: Made, tmp_path: Path) -> None:
    directory = unpacked(made.files, tmp_path)
    found = blocks(made.files)
    assert len(found) == 8
    assert sum(map(missing_tool, found)) <= 1
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


def test_the_other_page_is_one_page(made: Made) -> None:
    assert made.files["NOT-PROVEN.txt"] == NOT_PROVEN
    assert len(NOT_PROVEN.splitlines()) <= 60
    assert all(
        len(line) <= 132 for line in made.files["README.txt"].decode().splitlines() if not line.startswith("    ")
    )


def test_it_is_the_page_of_this_packet(made: Made) -> None:
    text = archive.unpack(made.raw)["README.txt"].decode()
    assert "Site clinic-1, 2026-11-22 to 2026-11-22 (UTC): 8 signed records of 3 host(s)" in text
    assert "4 record(s) beside the period" in text
    assert "NOT HERE" not in text
