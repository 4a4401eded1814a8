"""The root side's hands against a local user's tricks: links, hard links, pipes, swapped names, programs that will not end."""

from __future__ import annotations

import os
import re
import stat
import time
from pathlib import Path

import pytest

from compliance_agent.heal.machine import Machine
from compliance_agent.heal.protocol import PATH, UNIT
from compliance_agent.heal.trouble import Failed, Unclear
from tests.heal.scene import CONF, KEY, Scene

OURS = b"# ours\nCiphers a,c\n"


def code_of(scene: Scene, kind: str, **args: object) -> str:
    said = scene.ask(kind, **args)  # type: ignore[arg-type]
    assert said[0] in {"failed", "refused"}, said
    return str(said[1]["code"])


@pytest.fixture
def aim(scene: Scene) -> Path:
    """What the trick is after."""
    return scene.put("/etc/shadow", b"root:$y$hash\n", 0o600)


def test_a_link_in_place_of_the_file_is_left_alone(scene: Scene, aim: Path) -> None:
    scene.path(CONF).symlink_to(aim)
    assert code_of(scene, "write", path=CONF, mode=0o644, blob=OURS) == "not_a_regular_file"
    scene.path(KEY).symlink_to(aim)
    assert code_of(scene, "chmod", path=KEY, mode=0o640) in {"not_a_regular_file", "not_verified"}
    assert (aim.read_bytes(), stat.S_IMODE(aim.stat().st_mode)) == (b"root:$y$hash\n", 0o600)


def test_a_link_on_the_way_is_not_followed(scene: Scene, aim: Path) -> None:
    """Also one to a directory that is as safe as the one it stands for."""
    scene.path("/etc/app").rename(scene.path("/etc/other"))
    scene.path("/etc/app").symlink_to(scene.path("/etc/other"))
    assert code_of(scene, "write", path=CONF, mode=0o644, blob=OURS) == "unsafe_directory"
    assert not scene.path("/etc/other/app.conf").exists()


def test_a_hard_link_is_left_alone(scene: Scene, aim: Path) -> None:
    """`chmod` on it would open the file that it is another name of, and what it holds would become what was found."""
    os.link(aim, scene.path(KEY))
    os.link(aim, scene.path(CONF))
    assert code_of(scene, "chmod", path=KEY, mode=0o640) == "not_a_regular_file"
    assert code_of(scene, "write", path=CONF, mode=0o644, blob=OURS) == "not_a_regular_file"
    assert stat.S_IMODE(aim.stat().st_mode) == 0o600


@pytest.mark.parametrize("kind", ["pipe", "directory"])
def test_what_is_no_file_is_left_alone(scene: Scene, kind: str) -> None:
    """Nor waited for: a pipe that nobody reads would hold the root side up."""
    for path in (CONF, KEY):
        os.mkfifo(scene.path(path)) if kind == "pipe" else scene.path(path).mkdir()
    assert code_of(scene, "write", path=CONF, mode=0o644, blob=OURS) == "not_a_regular_file"
    assert code_of(scene, "chmod", path=KEY, mode=0o640) == "not_a_regular_file"


@pytest.mark.parametrize("mode", [0o777, 0o757, 0o1777])
def test_a_directory_that_others_may_write_is_not_trusted(scene: Scene, mode: int) -> None:
    scene.path("/etc/app").chmod(mode)
    assert code_of(scene, "write", path=CONF, mode=0o644, blob=OURS) == "unsafe_directory"
    scene.path("/etc/app").chmod(0o755)
    scene.does("write", path=CONF, mode=0o644, blob=OURS)
    scene.path("/etc").chmod(mode)
    if mode == 0o1777:  # on the way, sticky is enough: names in it belong to whoever made them
        scene.does("write", path=CONF, mode=0o644, blob=OURS)
    else:
        assert code_of(scene, "write", path=CONF, mode=0o644, blob=OURS) == "permits_not_roots"  # they stand there too


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away, which root alone can")
def test_a_directory_of_another_user_is_not_trusted(scene: Scene) -> None:
    os.chown(scene.path("/etc/app"), 65534, 65534)
    assert code_of(scene, "write", path=CONF, mode=0o644, blob=OURS) == "unsafe_directory"


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away, which root alone can")
def test_a_file_keeps_its_owner_there_and_back(scene: Scene) -> None:
    os.chown(scene.put(CONF, b"old\n"), 7, 8)
    scene.does("write", path=CONF, mode=0o644, blob=OURS)
    assert scene.path(CONF).stat()[4:6] == (7, 8)
    os.chown(scene.path(CONF), 0, 0)
    scene.does("write", path=CONF, mode=0o644, blob=b"old\n")
    assert scene.path(CONF).stat()[4:6] == (7, 8)


def test_a_write_that_fails_leaves_the_former_file_and_nothing_else(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.put(CONF, b"old\n")
    scene.does("write", path=CONF, mode=0o644, blob=OURS)
    monkeypatch.setattr(os, "rename", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "full")))
    assert code_of(scene, "write", path=CONF, mode=0o644, blob=b"old\n") == "storage_full"
    assert [path.name for path in scene.path("/etc/app").iterdir()] == ["app.conf"]


def test_a_new_file_is_synced_before_it_takes_the_place_and_its_directory_after(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []
    sync, rename = os.fsync, os.rename

    def synced(handle: int) -> None:
        happened.append("directory" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        sync(handle)

    def renamed(*args: object, **kwargs: object) -> None:
        happened.append("rename")
        rename(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    scene.does("write", path=CONF, mode=0o644, blob=OURS)
    assert happened == ["file", "rename", "directory"] * 2  # what was found, then the file


@pytest.mark.parametrize(
    "path",
    ["", "/", "etc/x", "/etc/../etc/shadow", "/etc/./x", "/etc//x", "/etc/x/", "/etc/x/..", "/..", "/etc/a\nb", "/etc/a\0b",
     "/etc/" + "x" * 256, "//etc/x", "/etc/\x1b[2J", "/etc/\ud800"],
)  # fmt: skip
def test_a_path_that_is_not_plain_is_none(path: str) -> None:
    """Names with a newline, `..` and the like are refused by the form of the frame, before anything looks."""
    assert not PATH.fits(path)


@pytest.mark.parametrize("path", ["/etc/x", "/etc/...", "/etc/..x", "/etc/a b", "/a/b/c.d-e"])
def test_a_plain_path_is_one(path: str) -> None:
    assert PATH.fits(path)


@pytest.mark.parametrize(
    "unit",
    ["-x.service", "--now", "a.service b.service", "*.service", "a", "../a.service", "a.service\n", "a.servicex"],
)
def test_what_systemctl_would_take_for_more_than_a_unit_is_none(unit: str) -> None:
    assert not UNIT.fits(unit)


# Programs


def test_a_program_that_does_not_end_is_killed_with_all_it_started(scene: Scene) -> None:
    """A grandchild that ignores SIGTERM and holds standard output open does not keep the answer waiting."""
    scene.program("stuck", "trap '' TERM; (trap '' TERM; sleep 60) & echo $! > ROOT/child; wait; sleep 60")
    began = time.monotonic()
    with pytest.raises(Unclear, match="timed_out"):
        scene.service.machine.run(("stuck",), timeout_s=0.3)
    assert time.monotonic() - began < 8
    child = Path(f"/proc/{scene.path('/child').read_text().strip()}/stat")
    for _ in range(200):
        if not child.exists() or child.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.01)
    pytest.fail("the grandchild lives on")


def test_a_grandchild_that_holds_the_output_does_not_hold_the_answer(scene: Scene) -> None:
    scene.program("leaves", "sleep 60 & echo said")
    began = time.monotonic()
    assert scene.service.machine.run(("leaves",), timeout_s=30).out == b"said\n"
    assert time.monotonic() - began < 8


def test_a_flood_is_cut_off(scene: Scene) -> None:
    scene.program("flood", "while :; do head -c 1000000 /dev/zero; done")
    with pytest.raises(Unclear, match="output_too_large"):
        scene.service.machine.run(("flood",), timeout_s=30)


def test_a_program_gets_a_fixed_environment_and_its_input(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD_TEST", "/tmp/evil.so")
    monkeypatch.setenv("PYTHONPATH", "/tmp")
    scene.program("shows", "env; pwd; umask; cat")
    said = scene.service.machine.run(("shows",), stdin=b"given").text
    names = set(re.findall(r"^([A-Z_]+)=", said, re.MULTILINE))
    assert names - {"_", "SHLVL", "OLDPWD", "PWD"} == {"PATH", "LC_ALL", "LANG", "TZ", "DEBIAN_FRONTEND", "HOME"}
    assert said.endswith("/\n0022\ngiven")


def test_a_signal_that_ends_a_program_is_its_status(scene: Scene) -> None:
    scene.program("dies", "kill -9 $$")
    assert scene.service.machine.run(("dies",)).exit == 137


def test_a_program_that_others_may_write_is_not_started(scene: Scene) -> None:
    scene.program("apt-get", "")
    scene.path("/bin/apt-get").chmod(0o757)
    assert scene.ask("refresh", manager="apt")[:2] == ("unclear", {"reason": "not_permitted"})
    scene.path("/bin/apt-get").chmod(0o755)
    scene.path("/bin").chmod(0o757)
    assert scene.ask("refresh", manager="apt")[:2] == ("unclear", {"reason": "not_permitted"})
    assert scene.calls() == []


def test_a_program_that_is_not_there_is_said_so(scene: Scene) -> None:
    scene.path("/bin/chronyc").unlink()
    assert scene.ask("clock")[:2] == ("unclear", {"reason": "tool_missing"})


def test_a_file_that_is_too_long_is_not_read(scene: Scene) -> None:
    scene.put(CONF, b"x" * 300_000)
    with pytest.raises(Failed, match="not_a_regular_file"):
        scene.service.machine.read(CONF)
    assert Machine().read("/etc/does-not-exist") is None
