"""Answers of programs that are kept: no change of anything that a program reads is missed, and what is not sure is run.

Each change here is planted behind the back of an answer that is kept.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from compliance_agent.adapters import program_reads
from compliance_agent.adapters.kept_answers import FULL_S, KeptAnswers
from compliance_agent.adapters.program_reads import Reads, may_be_kept, reads_of
from compliance_agent.adapters.subprocess_host import RealHost
from compliance_agent.adapters.undisturbed import Undisturbed
from compliance_agent.core import file_lists, packages, sshd
from compliance_agent.ports import Ran

HOUR_NS = 3_600 * 10**9
ARGV = ("restic", "version")
RESTIC = ("restic", "--repo", "/r", "--password-file", "/p", "--no-lock", "--no-cache", "snapshots", "--json")


class World(Undisturbed):
    """A kernel's word that a test can choose."""

    def __init__(self, *paths: str) -> None:
        super().__init__()
        self.devices = frozenset(Path(path).stat().st_dev for path in paths)
        self.settled_s, self.disturbed = 120.0, False

    def still(self) -> bool:
        was, self.disturbed = self.disturbed, False
        return not was


class Scene:
    """A program that says what is in a directory's files, and in the one that a list names."""

    def __init__(self, place: Path) -> None:
        self.place, self.boot_s, self.ahead_ns = place, 1_000.0, HOUR_NS
        self.directory, self.listed, self.program = place / "conf", place / "listed", place / "bin" / "restic"
        for directory in (self.directory, place / "lists", self.program.parent):
            directory.mkdir()
        self.program.write_text(f"#!/bin/sh\ncat {self.directory}/* {self.listed}; echo x >>{place}/ran\n", "ascii")
        self.program.chmod(0o755)
        (self.directory / "a").write_text("right\n", "ascii")
        self.listed.write_text("right\n", "ascii")
        (place / "lists" / "p.list").write_text(f"/.\n{self.listed}\n{place}/gone\n", "ascii")
        self.world = World(str(place), "/etc")
        reads = Reads((str(self.directory),), (str(place / "needed"),), str(place / "lists"))
        self.answers = KeptAnswers(
            lambda _: reads, lambda: time.time_ns() + self.ahead_ns, lambda: self.boot_s, self.world
        )
        self.host = RealHost(directories=(str(self.program.parent), "/usr/bin", "/bin"), answers=self.answers)

    async def look(self) -> tuple[str, bool]:
        """What it says, and whether it had to be run for it."""
        before = self._runs()
        ran = await self.host.run(ARGV)
        return ran.text, self._runs() > before

    def _runs(self) -> int:
        return (self.place / "ran").stat().st_size if (self.place / "ran").exists() else 0


@pytest.fixture
async def scene(tmp_path: Path) -> Scene:
    made = Scene(tmp_path)
    looks = [(await made.look())[1] for _ in range(4)]
    assert looks == [True, True, False, False]  # so each test below begins with an answer that is kept
    return made


def later(path: Path, change: Callable[[], object]) -> None:
    """Change it at a moment that its file system tells from the one before, and set its modification time back."""
    before = path.stat()
    while True:
        change()
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        if path.stat().st_ctime_ns != before.st_ctime_ns:
            return


def _rewrite(path: Path) -> None:
    later(path, lambda: path.write_text("wrong\n", "ascii"))


CHANGES: dict[str, Callable[[Scene], object]] = {
    "same size and time": lambda scene: _rewrite(scene.directory / "a"),
    "another file in its place": lambda scene: _replaced(scene.directory / "a"),
    "a file more": lambda scene: (scene.directory / "b").write_text("wrong\n", "ascii"),
    "a file less": lambda scene: (scene.directory / "a").unlink(),
    "a listed file": lambda scene: _rewrite(scene.listed),
    "a listed file that was not there": lambda scene: (scene.place / "gone").touch(),
    "another list": lambda scene: _rewrite(scene.place / "lists" / "p.list"),
    "a mode": lambda scene: scene.listed.chmod(0o600),
    "the program": lambda scene: later(
        scene.program, lambda: scene.program.write_text(f"#!/bin/sh\necho wrong; echo x >>{scene.place}/ran\n", "ascii")
    ),
    "what it needs": lambda scene: (scene.place / "needed").mkdir(),
    "a clock set, or a mount": lambda scene: setattr(scene.world, "disturbed", True),
    "fifteen minutes": lambda scene: setattr(scene, "boot_s", scene.boot_s + FULL_S),
    "told to": lambda scene: scene.host.read_anew(),
}


def _replaced(path: Path) -> None:
    other = path.parent.parent / "other"
    other.write_text("wrong\n", "ascii")
    info = path.stat()
    os.utime(other, ns=(info.st_atime_ns, info.st_mtime_ns))
    other.rename(path)


@pytest.mark.parametrize("change", CHANGES)
async def test_after_a_change_the_program_runs(scene: Scene, change: str) -> None:
    CHANGES[change](scene)
    truth = subprocess.run((scene.program,), check=False, capture_output=True, text=True).stdout
    assert await scene.look() == (truth, True)


async def test_a_file_that_was_touched_just_now_keeps_nothing(tmp_path: Path) -> None:
    """For it may be changed once more within the granularity of its times."""
    scene = Scene(tmp_path)
    scene.ahead_ns = 0
    assert [(await scene.look())[1] for _ in range(4)] == [True] * 4
    scene.world.settled_s = -3_600.0
    assert [(await scene.look())[1] for _ in range(2)] == [True, False]


async def test_a_file_system_with_times_of_another_keeps_nothing(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.world.devices = frozenset()
    assert [(await scene.look())[1] for _ in range(4)] == [True] * 4


@pytest.mark.parametrize("spoil", ["echo no >&2", "exit 3", "echo wrong >>CONF/a", "rm CONF/a"])
async def test_no_answer_is_kept_that_failed_complained_or_came_while_something_changed(
    tmp_path: Path, spoil: str
) -> None:
    scene = Scene(tmp_path)
    scene.program.write_text(
        f"#!/bin/sh\necho x >>{tmp_path}/ran\n{spoil.replace('CONF', str(scene.directory))}\n", "ascii"
    )
    assert [(await scene.look())[1] for _ in range(4)] == [True] * 4


async def test_what_is_asked_more_rarely_is_not_printed(tmp_path: Path) -> None:
    scene, printed = Scene(tmp_path), list[Sequence[str]]()
    scene.answers._reads = printed.append
    for _ in range(3):
        scene.boot_s += FULL_S
        await scene.look()
    assert printed == []


async def test_what_must_be_there_and_is_not_has_the_program_run(scene: Scene) -> None:
    scene.answers._reads = lambda _: Reads((str(scene.place / "nowhere"),))
    assert [(await scene.look())[1] for _ in range(2)] == [True, True]


def test_only_what_is_foreseen_is_ever_kept() -> None:
    kept = [
        packages.DPKG_STATES,
        packages.APT_UPGRADABLE,
        file_lists.VERIFY,
        sshd.EFFECTIVE,
        sshd.for_user("root"),
        RESTIC,
    ]
    assert all(map(may_be_kept, kept))
    for argv in (("sshd", "-t"), ("apt", "list"), ("dpkg", "--verify"), ("nft", "-s", "-j", "list", "ruleset")):
        assert not may_be_kept(argv)
    never = [("restic", "check"), ("restic", "--repo", "sftp:x", *RESTIC[3:]), (*RESTIC[:5], "restore", *RESTIC[6:])]
    for words in never:
        assert reads_of(words) is None
    assert reads_of(RESTIC) == Reads(("/r/config", "/r/keys", "/r/snapshots", "/p"))


def _ssh(place: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (place / "d").mkdir()
    (place / "d" / "x.conf").write_text("PermitRootLogin no\n", "ascii")
    (place / "sshd_config").write_text(text.replace("HERE", str(place)), "ascii")
    monkeypatch.setattr(sshd, "CONFIG", str(place / "sshd_config"))
    monkeypatch.setattr(program_reads, "_SSH", str(place))


def test_sshd_reads_what_it_includes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _ssh(tmp_path, monkeypatch, "Include HERE/d/*.conf\nHostKey HERE/key\n")
    found = reads_of(sshd.EFFECTIVE)
    assert found is not None
    assert {str(tmp_path), str(tmp_path / "sshd_config"), str(tmp_path / "d"), str(tmp_path / "d/x.conf")} == set(
        found.whole
    )


@pytest.mark.parametrize(
    ("text", "of_user"),
    [
        ("HostKey /elsewhere/key\n", False),
        ("Include HERE/*/x.conf\n", False),
        ("Match Group staff\n PasswordAuthentication yes\n", True),
        ("what is this\n=\n", False),
    ],
)
def test_settings_of_sshd_that_lead_elsewhere_have_it_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, of_user: bool
) -> None:
    _ssh(tmp_path, monkeypatch, text)
    assert reads_of(sshd.for_user("root") if of_user else sshd.EFFECTIVE) is None


def test_apt_with_other_places_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program_reads, "_APT", (str(tmp_path), str(tmp_path)))
    (tmp_path / "01").write_text('APT::Periodic::Unattended-Upgrade "1";\n', "ascii")
    assert reads_of(packages.APT_UPGRADABLE) is not None
    (tmp_path / "02").write_text('Dir::State::status "/elsewhere";\n', "ascii")
    assert reads_of(packages.APT_UPGRADABLE) is None


async def test_a_kept_answer_is_the_same_answer(scene: Scene) -> None:
    assert await scene.host.run(ARGV) == Ran(0, b"right\nright\n", b"")
