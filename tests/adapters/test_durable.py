"""A file is there when the call returns, whole or not at all; and what is read is a bounded, regular, trusted file."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compliance_agent.adapters import durable
from compliance_agent.adapters.durable import create_file, make_directory, read_file, write_file
from compliance_agent.errors import AgentError, NoInput, NotPermitted, StorageError, StorageFull

STEPS = ("open", "fchmod", "write", "fsync", "rename", "fsync_directory")


class Crash(BaseException):
    """The process dies here: nothing after this line runs, no cleanup of ours either (it is not an Exception)."""


def fail_at(monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException) -> None:
    """Let one step of `write_file` fail."""

    def fail(*_: Any, **__: Any) -> Any:
        raise error

    if step == "rename":
        monkeypatch.setattr(Path, "rename", fail)
    elif step == "fsync_directory":
        monkeypatch.setattr(durable, "fsync_directory", fail)
    else:
        monkeypatch.setattr(os, step, fail)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS, errno.EMFILE])
def test_a_failed_write_is_ours_and_leaves_the_old_or_the_new_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, number: int
) -> None:
    path = tmp_path / "state"
    write_file(path, b"old")
    with monkeypatch.context() as patched:
        fail_at(patched, step, OSError(number, "planted"))
        with pytest.raises(StorageError) as failed:
            write_file(path, b"new")
    assert isinstance(failed.value, StorageFull) == (number in {errno.ENOSPC, errno.EDQUOT})
    assert errno.errorcode[number] in str(failed.value)
    assert path.read_bytes() == (b"new" if step == "fsync_directory" else b"old")
    assert [entry.name for entry in tmp_path.iterdir()] == ["state"], "a temporary file was left behind"


@pytest.mark.parametrize("step", STEPS)
def test_a_crash_at_any_step_leaves_the_old_or_the_new_file_never_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "state"
    write_file(path, b"old" * 1000)
    with monkeypatch.context() as patched:
        fail_at(patched, step, Crash())
        with pytest.raises(Crash):
            write_file(path, b"new" * 1000)
    assert path.read_bytes() in (b"old" * 1000, b"new" * 1000)
    write_file(path, b"later")  # what the crash left behind is in nobody's way
    assert path.read_bytes() == b"later"
    assert [entry.name for entry in tmp_path.iterdir()] == ["state"]


def test_the_content_is_synced_before_the_name_and_the_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, rename, directory = os.fsync, Path.rename, durable.fsync_directory

    def note(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any) -> Any:
            calls.append(name)
            return real(*args)

        return noted

    monkeypatch.setattr(durable, "fsync_directory", note("directory", directory))
    monkeypatch.setattr(os, "fsync", note("fsync", fsync))
    monkeypatch.setattr(Path, "rename", note("rename", rename))
    write_file(tmp_path / "state", b"x")
    assert calls == ["fsync", "rename", "directory", "fsync"]


@pytest.mark.parametrize(
    ("number", "status"),
    [(errno.EACCES, 77), (errno.EPERM, 77), (errno.EROFS, 74), (errno.ENOSPC, 73), (errno.EIO, 74)],
)
def test_a_failed_write_ends_with_the_status_that_is_documented_for_it(number: int, status: int) -> None:
    error = durable.storage_error(OSError(number, ""), "opening the state")
    assert (error.exit_status, errno.errorcode[number] in str(error)) == (status, True)


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, bytes(data[:3])))
    write_file(tmp_path / "state", b"0123456789")
    assert (tmp_path / "state").read_bytes() == b"0123456789"


def test_a_planted_link_in_place_of_the_temporary_file_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / f".state.{os.getpid()}-{durable.RUN}.tmp").symlink_to(victim)
    with pytest.raises(StorageError, match="ELOOP"):
        write_file(tmp_path / "state", b"x")
    assert victim.read_bytes() == b"precious"


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_the_mode_holds_whatever_the_umask(tmp_path: Path, mode: int) -> None:
    before = os.umask(0o077)
    try:
        write_file(tmp_path / "state", b"x", mode)
    finally:
        os.umask(before)
    assert (tmp_path / "state").stat().st_mode & 0o777 == mode


def test_create_never_replaces(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "key"
    assert create_file(path, b"first")
    assert not create_file(path, b"second")
    assert path.read_bytes() == b"first"
    assert [entry.name for entry in path.parent.iterdir()] == ["key"]


def test_create_loses_a_race_quietly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process makes the name after the look and before the link."""
    path = tmp_path / "key"
    link = os.link

    def late(source: Any, target: Any, **options: Any) -> None:
        path.write_bytes(b"theirs")
        link(source, target, **options)

    monkeypatch.setattr(os, "link", late)
    assert not create_file(path, b"ours")
    assert path.read_bytes() == b"theirs"
    assert [entry.name for entry in tmp_path.iterdir()] == ["key"]


def test_a_directory_is_made_with_its_parents_for_one_user(tmp_path: Path) -> None:
    make_directory(tmp_path / "a" / "b")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o700
    make_directory(tmp_path / "a" / "b")


@pytest.mark.parametrize("below", [".", "sub"])
def test_a_file_where_a_directory_should_be_is_an_error(tmp_path: Path, below: str) -> None:
    (tmp_path / "state").write_bytes(b"")
    with pytest.raises(StorageError, match="creating directory"):
        make_directory(tmp_path / "state" / below)


def test_a_link_to_nowhere_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "state").symlink_to(tmp_path / "gone")
    with pytest.raises(StorageError):
        make_directory(tmp_path / "state")


def _fifo(path: Path) -> None:
    os.mkfifo(path)


BAD: dict[str, Callable[[Path], Any]] = {
    "absent": lambda path: None,
    "directory": lambda path: path.mkdir(),
    "fifo": _fifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "loop": lambda path: path.symlink_to(path),
    "too large": lambda path: path.write_bytes(b"x" * 101),
    "name too long": lambda path: None,
    "NUL in the name": lambda path: None,
}


@pytest.mark.parametrize("name", BAD)
def test_only_a_bounded_regular_file_is_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / {"name too long": "x" * 300, "NUL in the name": "a\0b"}.get(name, "file")
    BAD[name](path)
    with pytest.raises(NoInput) as refused:
        read_file(path, limit_bytes=100)
    assert refused.value.exit_status == 66


@pytest.mark.parametrize(
    ("mode", "plain", "trusted", "secret"),
    [(0o600, True, True, True), (0o644, True, True, False), (0o664, True, False, False), (0o602, True, False, False)],
)
def test_modes_decide_what_a_file_may_be_used_for(
    tmp_path: Path, mode: int, plain: bool, trusted: bool, secret: bool
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    path.chmod(mode)

    def readable(**rules: bool) -> bool:
        try:
            return read_file(path, limit_bytes=100, **rules) == b"content"
        except NotPermitted as error:
            assert "chmod" in error.line
            return False

    assert (readable(), readable(trusted=True), readable(secret=True)) == (plain, trusted, secret)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's files are the service manager's")
def test_a_loaded_credential_shows_the_mask_of_its_acl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """systemd gives the service's user its leave as an ACL; the file then looks as if its group could read it."""
    path = tmp_path / "api-key"
    path.write_bytes(b"content")
    path.chmod(0o440)
    with pytest.raises(NotPermitted):
        read_file(path, limit_bytes=100, secret=True)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert read_file(path, limit_bytes=100, secret=True) == b"content"
    for mode, uid in ((0o444, 0), (0o460, 0), (0o440, 4_321)):
        os.chown(path, uid, uid)
        path.chmod(mode)
        with pytest.raises(NotPermitted):
            read_file(path, limit_bytes=100, secret=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_does_not_steer_the_agent(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    path.chmod(0o600)
    os.chown(path, 4_321, 4_321)
    with pytest.raises(NotPermitted, match="owned by uid 4321"):
        read_file(path, limit_bytes=100, trusted=True)
    assert read_file(path, limit_bytes=100) == b"content"


def test_every_refusal_is_one_line(tmp_path: Path) -> None:
    for name, plant in BAD.items():
        path = tmp_path / name.replace(" ", "-")
        plant(path)
        try:
            read_file(path, limit_bytes=100)
        except AgentError as error:
            assert "\n" not in error.line and error.code
