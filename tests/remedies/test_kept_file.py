"""Files written by actions: exactly the content, the owner kept, and exactly the former bytes and mode back."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compliance_agent.adapters.subprocess_host import RealHost
from compliance_agent.errors import CannotTell, StepFailed
from compliance_agent.lab.clock import FakeClock
from compliance_agent.lab.host import FakeHost, Node
from compliance_agent.remedies import actions
from compliance_agent.remedies.kept_file import capture_file, put_file, restore_file

PLACE = "/etc/toy.d/50-compliance.conf"
FORMER = st.none() | st.tuples(st.binary(max_size=64), st.sampled_from([0o600, 0o640, 0o644, 0o755]))


@given(former=FORMER, content=st.binary(max_size=64))
async def test_written_and_brought_back(former: tuple[bytes, int] | None, content: bytes) -> None:
    host = FakeHost(FakeClock())
    host.place("/etc/toy.d", Node("directory", mode=0o755))
    if former is not None:
        host.put(PLACE, former[0], mode=former[1], uid=7)
    captured = await capture_file(host, PLACE)
    for _ in range(2):
        await put_file(host, PLACE, content)
    node = host.files[PLACE]
    assert (node.content, node.mode, node.uid) == (content, 0o644, 7 if former is not None else 0)
    for _ in range(2):
        await restore_file(host, PLACE, captured)
    if former is None:
        assert PLACE not in host.files
    else:
        node = host.files[PLACE]
        assert (node.content, node.mode, node.uid) == (*former, 7)


async def test_on_a_real_file_system(tmp_path: Path) -> None:
    host, path = RealHost(), tmp_path / "50-compliance.conf"
    path.write_bytes(b"before\n")
    path.chmod(0o640)
    captured = await capture_file(host, str(path))
    await put_file(host, str(path), b"after\n")
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"after\n", 0o644)
    await restore_file(host, str(path), captured)
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"before\n", 0o640)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


async def test_a_hard_link_keeps_its_content(tmp_path: Path) -> None:
    """Somebody linked our file's inode elsewhere: that name goes on with what it held."""
    host, path, other = RealHost(), tmp_path / "50-compliance.conf", tmp_path / "elsewhere"
    other.write_bytes(b"theirs\n")
    os.link(other, path)
    await put_file(host, str(path), b"ours\n")
    assert (path.read_bytes(), other.read_bytes()) == (b"ours\n", b"theirs\n")


@pytest.mark.parametrize("kind", ["symlink", "dangling", "directory", "fifo"])
async def test_what_is_no_regular_file_is_left_alone(tmp_path: Path, kind: str) -> None:
    host, path, aim = RealHost(), tmp_path / "50-compliance.conf", tmp_path / "aim"
    if kind == "symlink":
        aim.write_bytes(b"theirs\n")
    if kind in {"symlink", "dangling"}:
        path.symlink_to(aim)
    elif kind == "directory":
        path.mkdir()
    else:
        os.mkfifo(path)
    with pytest.raises(CannotTell):
        await capture_file(host, str(path))
    with pytest.raises(StepFailed) as caught:
        await put_file(host, str(path), b"ours\n")
    assert caught.value.code == "not_a_regular_file"
    assert aim.exists() == (kind == "symlink")
    assert kind != "symlink" or aim.read_bytes() == b"theirs\n"


async def test_a_directory_that_others_may_write_is_not_trusted(tmp_path: Path) -> None:
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    (open_to_all / "key").write_text("k")
    with pytest.raises(StepFailed) as caught:
        await put_file(RealHost(), str(open_to_all / "50-compliance.conf"), b"ours\n")
    assert caught.value.code == "unsafe_directory"
    with pytest.raises(StepFailed) as caught:
        await actions()["set_mode"].apply(RealHost(), {"path": str(open_to_all / "key"), "mode": "0600"})
    assert caught.value.code == "unsafe_directory"


MODES = st.integers(0, 0o777)


@given(before=MODES, after=MODES)
async def test_a_mode_is_set_and_brought_back(before: int, after: int) -> None:
    host, action, args = FakeHost(FakeClock()), actions()["set_mode"], {"path": "/etc/key", "mode": f"0{after:03o}"}
    host.put("/etc/key", b"k", mode=before)
    captured = await action.capture(host, args)
    for _ in range(2):
        await action.apply(host, args)
    assert host.files["/etc/key"].mode == after
    for _ in range(2):
        await action.undo(host, args, captured)
    assert host.files["/etc/key"].mode == before


@pytest.mark.parametrize("mode", ["600", "0999", "04755", "", "u+s"])
async def test_a_mode_that_is_none_is_refused(mode: str) -> None:
    host = FakeHost(FakeClock())
    host.put("/etc/key", b"k", mode=0o644)
    with pytest.raises(StepFailed) as caught:
        await actions()["set_mode"].apply(host, {"path": "/etc/key", "mode": mode})
    assert (caught.value.code, host.changed) == ("bad_arguments", [])


async def test_a_mode_that_was_never_set_is_not_taken_back() -> None:
    """Where the host refuses to set a mode it refuses the undo too, and nothing has to be undone."""
    host, action, args = FakeHost(FakeClock()), actions()["set_mode"], {"path": "/etc/key", "mode": "0600"}
    host.put("/etc/key", b"x", mode=0o644)
    await action.undo(host, args, await action.capture(host, args))
    assert host.changed == []
