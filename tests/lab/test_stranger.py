"""The host that is set up by the page: the lines are the page's own, and the later version is one, with other code."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from compliance_agent.lab.real import network, stranger
from compliance_agent.lab.real.install import newer
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.merkle import RootHash
from compliance_agent.log.tiles import encode_entries, written

ROOT = Path(__file__).resolve().parents[2]
FORMER = b"x = 1\n"
PAGE = (ROOT / "docs/install.md").read_text("utf-8")


def summed(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def test_the_lines_are_those_of_the_page() -> None:
    lines = stranger.commands(PAGE)
    assert [line.split()[:2] for line in lines] == [
        ["apt", "install"],
        ["compliance-agent", "enrol"],
        ["compliance-agent", "baseline"],
        ["compliance-agent", "config"],
        ["systemctl", "enable"],
    ]
    assert f"https://{network.NAMED}:8443" in lines[1] and "--token-file /root/token" in lines[1]


def test_the_first_page_has_the_same_lines() -> None:
    """So what the lab does is what a reader of either does."""
    block = (ROOT / "README.md").read_text("utf-8").partition("# on a host")[2].partition("```")[0]
    bare = [re.sub(r" +#.*", "", line) for line in stranger.commands(PAGE)]
    assert block.splitlines()[1:] == bare


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="no Debian: dpkg-deb is not here")
def test_the_later_package_is_later_and_its_code_is_other_code(tmp_path: Path) -> None:
    tree, code = tmp_path / "tree", "usr/lib/compliance-agent/lib/python3.11/site-packages/compliance_agent/__init__.py"
    for name, text in (
        (code, FORMER.decode()),
        ("DEBIAN/control", "Package: a\nVersion: 1~b\nArchitecture: all\nMaintainer: m <m@m>\nDescription: d\n"),
        ("DEBIAN/md5sums", f"{summed(FORMER)}  {code}\n"),
    ):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text, "ascii")
    built = tmp_path / "a.deb"
    subprocess.run(["dpkg-deb", "--build", str(tree), str(built)], check=True, capture_output=True)
    made, out = newer(built), tmp_path / "out"
    subprocess.run(["dpkg-deb", "--raw-extract", str(made), str(out)], check=True)
    version = subprocess.run(
        ["dpkg-deb", "-f", str(made), "Version"], capture_output=True, text=True, check=True
    ).stdout
    assert subprocess.run(["dpkg", "--compare-versions", version.strip(), "gt", "1~b"], check=False).returncode == 0
    assert (out / code).read_bytes() != FORMER
    assert (out / "DEBIAN/md5sums").read_text("ascii") == f"{summed((out / code).read_bytes())}  {code}\n"


def test_every_entry_of_a_log_is_read_once(tmp_path: Path) -> None:
    """Also where a tile was served before it was full."""
    made = network.Network(tmp_path, tmp_path)
    log = made.data / "log" / network.SITE / "2026"
    entries = [f"entry {number}".encode() for number in range(300)]
    for before, size in ((0, 280), (280, 300)):
        for tile in written(before, size):
            if tile.level < 0:
                start = tile.index * 256
                (log / tile.path).parent.mkdir(parents=True, exist_ok=True)
                (log / tile.path).write_bytes(encode_entries(entries[start : start + tile.width]))
    (log / "checkpoint").write_text(Checkpoint("o", 300, RootHash(bytes(32))).text)
    assert made.entries() == entries
