"""The real side of the Host port against what only a kernel, a program or another user can do to it."""

from __future__ import annotations

import asyncio
import os
import queue
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from compliance_agent.adapters import batch, execute, file_looks, subprocess_host
from compliance_agent.adapters.file_digests import FileDigests
from compliance_agent.adapters.offload import MOST_ABANDONED, Offload
from compliance_agent.adapters.subprocess_host import RealHost
from compliance_agent.adapters.systemd import check_unit_name, parse_show
from compliance_agent.errors import CannotTell
from compliance_agent.ports import FileDigest, FileStat
from tests.contract.expect import code_of, reason_of


@pytest.fixture
def bin_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "bin"
    directory.mkdir(mode=0o755)
    return directory


@pytest.fixture
def real(bin_dir: Path, tmp_path: Path) -> RealHost:
    return RealHost(directories=(str(bin_dir), "/usr/bin", "/bin"), file_timeout_s=0.2, booted=tmp_path)


def script(bin_dir: Path, name: str, text: str, mode: int = 0o755) -> Path:
    path = bin_dir / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(mode)
    return path


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


async def gone(pid: int) -> bool:
    for _ in range(200):
        if not alive(pid):
            return True
        await asyncio.sleep(0.01)
    return False


async def written(path: Path, task: asyncio.Task[Any]) -> None:
    """Wait until a program that runs has written to a file."""
    for _ in range(1000):
        if path.exists() and path.read_text().strip():
            return
        assert not task.done(), task.result()
        await asyncio.sleep(0.01)
    pytest.fail(f"{path.name} was not written")


async def timed(call: Awaitable[object]) -> tuple[str, float]:
    before = time.monotonic()
    return await reason_of(call), time.monotonic() - before


@pytest.mark.real
async def test_a_hung_program_and_all_it_started_are_killed(real: RealHost, bin_dir: Path, tmp_path: Path) -> None:
    script(bin_dir, "tool", f"sleep 600 & echo $! > {tmp_path}/pid; trap '' TERM; while :; do sleep 600; done")
    reason, took = await timed(real.run(["tool"], timeout_s=0.3))
    assert reason == "timed_out"
    assert took < 1.5
    assert await gone(int((tmp_path / "pid").read_text()))
    assert real.left_behind == 0


@pytest.mark.real
async def test_a_stopped_program_is_killed(real: RealHost, bin_dir: Path) -> None:
    script(bin_dir, "tool", "kill -STOP $$")
    reason, took = await timed(real.run(["tool"], timeout_s=0.2))
    assert reason == "timed_out"
    assert took < 1.5
    assert real.left_behind == 0


@pytest.mark.real
async def test_a_changing_program_may_tidy_up_first(real: RealHost, bin_dir: Path, tmp_path: Path) -> None:
    script(bin_dir, "tool", f"trap 'echo tidy > {tmp_path}/tidied; exit 1' TERM; while :; do sleep 0.05; done")
    assert await reason_of(real.change(["tool"], timeout_s=0.3)) == "timed_out"
    assert (tmp_path / "tidied").read_text() == "tidy\n"


@pytest.mark.real
async def test_a_grandchild_that_keeps_the_pipe_delays_nothing(real: RealHost, bin_dir: Path, tmp_path: Path) -> None:
    script(bin_dir, "tool", f"sleep 600 & echo $! > {tmp_path}/pid; echo answer")
    before = time.monotonic()
    ran = await real.run(["tool"], timeout_s=5.0)
    assert (ran.exit_status, ran.out) == (0, b"answer\n")
    assert time.monotonic() - before < 2.0
    assert await gone(int((tmp_path / "pid").read_text()))


@pytest.mark.real
async def test_a_grandchild_in_its_own_session_that_keeps_the_pipe_delays_nothing(
    real: RealHost, bin_dir: Path, tmp_path: Path
) -> None:
    script(
        bin_dir,
        "tool",
        f"setsid sh -c 'echo $$ > {tmp_path}/pid; exec sleep 600' & while [ ! -s {tmp_path}/pid ]; do :; done; echo answer",
    )
    before = time.monotonic()
    assert (await real.run(["tool"], timeout_s=5.0)).out == b"answer\n"
    assert time.monotonic() - before < 2.0
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


@pytest.mark.real
async def test_endless_output_is_cut_in_bounded_memory(real: RealHost, bin_dir: Path) -> None:
    script(bin_dir, "tool", "exec head -c 1000000000 /dev/zero")
    reason, took = await timed(real.run(["tool"], timeout_s=10.0, limit_bytes=1_000_000))
    assert reason == "output_too_large"
    assert took < 2.0
    script(bin_dir, "loud", "exec head -c 1000000000 /dev/zero >&2")
    assert await reason_of(real.run(["loud"], timeout_s=10.0, limit_bytes=1_000_000)) == "output_too_large"


@pytest.mark.real
async def test_what_is_left_in_the_pipe_at_the_end_is_read(real: RealHost, bin_dir: Path, tmp_path: Path) -> None:
    """The program writes more than one read takes and is gone before we look."""
    path = bin_dir / "tool"
    path.write_text(
        f"#!{sys.executable} -S\nimport fcntl, os, time\nfcntl.fcntl(1, 1031, 1 << 20)\n"
        f"open('{tmp_path}/ready', 'w').write('x')\nwhile not os.path.exists('{tmp_path}/go'): time.sleep(0.01)\n"
        "os.write(1, b'x' * 1_000_000)\n"
    )
    path.chmod(0o755)
    task = asyncio.create_task(real.run(["tool"]))
    await written(tmp_path / "ready", task)
    (tmp_path / "go").touch()
    time.sleep(0.3)  # the event loop sees nothing meanwhile
    assert len((await task).out) == 1_000_000


@pytest.mark.real
async def test_a_program_that_closed_its_output_is_still_waited_for(real: RealHost, bin_dir: Path) -> None:
    script(bin_dir, "tool", "exec >&- 2>&-; sleep 0.1; exit 7")
    assert (await real.run(["tool"], timeout_s=5.0)).exit_status == 7


@pytest.mark.real
async def test_death_by_signal_is_an_exit_status(real: RealHost, bin_dir: Path) -> None:
    script(bin_dir, "tool", "kill -SEGV $$")
    assert (await real.run(["tool"])).exit_status == 128 + signal.SIGSEGV


@pytest.mark.real
async def test_a_cancelled_look_kills_its_program(real: RealHost, bin_dir: Path, tmp_path: Path) -> None:
    script(bin_dir, "tool", f"echo $$ > {tmp_path}/pid; sleep 600")
    task = asyncio.create_task(real.run(["tool"], timeout_s=60.0))
    await written(tmp_path / "pid", task)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await gone(int((tmp_path / "pid").read_text()))
    assert real.left_behind == 0


@pytest.mark.real
async def test_one_that_cannot_be_killed_is_left_and_not_started_again(
    real: RealHost, bin_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process in uninterruptible sleep takes no signal; here the signal is what is missing."""
    script(bin_dir, "tool", "exec sleep 600")
    script(bin_dir, "other", "echo fine")
    monkeypatch.setattr(execute, "KILL_WAIT_S", 0.1)
    unkillable = lambda child, number: None  # noqa: E731
    with monkeypatch.context() as patch:
        patch.setattr(execute._Child, "signal", unkillable)
        reason, took = await timed(real.run(["tool"], timeout_s=0.2))
        assert (reason, real.left_behind) == ("timed_out", 1)
        assert took < 1.0
        reason, took = await timed(real.run(["tool"], timeout_s=5.0))
        assert (reason, real.left_behind) == ("timed_out", 1)
        assert took < 1.0
        assert (await real.run(["other"])).out == b"fine\n"
    [child] = real._programs._left["tool"]
    child.signal(signal.SIGKILL)
    assert await gone(child.popen.pid)
    script(bin_dir, "tool", "echo again")
    assert (await real.run(["tool"])).out == b"again\n"
    assert real.left_behind == 0


@pytest.fixture
def frozen(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own that can be frozen: what writes to it then sleeps in the kernel and takes no signal."""
    image, mount = tmp_path / "image", tmp_path / "frozen"
    mount.mkdir()
    make = f"truncate -s 16M {image} && mkfs.ext4 -q {image} && mount -o loop {image} {mount} && fsfreeze -f {mount}"
    made = subprocess.run(["sh", "-c", make], capture_output=True, check=False).returncode == 0
    try:
        if not made:
            pytest.skip("needs root, loop devices and ext4")
        yield mount
    finally:
        thaw = f"fsfreeze -u {mount}; sleep 0.2; umount {mount} || umount -l {mount}"
        subprocess.run(["sh", "-c", thaw], capture_output=True, check=False)


@pytest.mark.real
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
async def test_what_sleeps_in_the_kernel_is_abandoned_in_time(real: RealHost, bin_dir: Path, frozen: Path) -> None:
    script(bin_dir, "tool", f"echo x > {frozen}/file")
    reason, took = await timed(real.run(["tool"], timeout_s=0.3))
    assert (reason, real.left_behind) == ("timed_out", 1)
    assert took < 2.0
    reason, took = await timed(real.write(f"{frozen}/other", b"x"))
    assert (reason, real.left_behind) == ("timed_out", 2)
    assert took < 1.0
    for again in (real.run(["tool"], timeout_s=5.0), real.write(f"{frozen}/other", b"x")):
        reason, took = await timed(again)
        assert (reason, real.left_behind) == ("timed_out", 2)
        assert took < 1.0
    assert await real.read("/proc/uptime")
    subprocess.run(["fsfreeze", "-u", str(frozen)], check=True)
    for _ in range(200):
        if not real.left_behind:
            break
        await asyncio.sleep(0.01)
    assert (await real.run(["tool"])).exit_status == 0
    assert real.left_behind == 0


@pytest.mark.real
async def test_programs_get_the_fixed_environment_and_nothing_of_ours(
    real: RealHost, bin_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "/tmp/planted")
    monkeypatch.setenv("SECRET", "planted")
    script(
        bin_dir, "tool", "env; pwd; ls -l /proc/self/fd; ps -o sid= -p $$ 2>/dev/null || cut -d' ' -f6 /proc/$$/stat"
    )
    text = (await real.run(["tool"])).text
    assert "planted" not in text
    assert "LC_ALL=C\n" in text
    assert "\n/\n" in text
    assert not any(f" {number} ->" in text for number in range(4, 60))
    assert int(text.split()[-1]) != os.getsid(0)


@pytest.mark.real
async def test_what_others_may_write_is_not_started(real: RealHost, bin_dir: Path) -> None:
    script(bin_dir, "tool", "echo owned", 0o757)
    assert await reason_of(real.run(["tool"])) == "not_permitted"
    script(bin_dir, "good", "echo good")
    bin_dir.chmod(0o757)
    assert await reason_of(real.run(["good"])) == "not_permitted"


@pytest.mark.real
async def test_path_is_never_searched(real: RealHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    script(tmp_path / "elsewhere", "planted", "echo owned")
    monkeypatch.setenv("PATH", str(tmp_path / "elsewhere"))
    assert await reason_of(real.run(["planted"])) == "tool_missing"


@pytest.mark.real
async def test_what_cannot_be_executed_is_no_answer(real: RealHost, bin_dir: Path) -> None:
    script(bin_dir, "plain", "echo x", 0o644)
    assert await reason_of(real.run(["plain"])) == "tool_missing"
    (bin_dir / "broken").write_bytes(b"\x7fELF\0garbage")
    (bin_dir / "broken").chmod(0o755)
    assert await reason_of(real.run(["broken"])) == "io_error"
    (bin_dir / "lost").write_text("#!/no/such/interpreter\n")
    (bin_dir / "lost").chmod(0o755)
    assert await reason_of(real.run(["lost"])) == "tool_missing"


@pytest.mark.real
async def test_without_pidfd_the_end_is_still_seen(
    real: RealHost, bin_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_pidfd(pid: int) -> int:
        raise OSError(38, "ENOSYS")

    monkeypatch.setattr(os, "pidfd_open", no_pidfd)
    script(bin_dir, "tool", "sleep 0.05; echo answer")
    assert (await real.run(["tool"])).out == b"answer\n"
    script(bin_dir, "hung", "sleep 600")
    assert await reason_of(real.run(["hung"], timeout_s=0.2)) == "timed_out"
    assert real.left_behind == 0


@pytest.mark.real
async def test_a_hundred_programs_leave_no_descriptor_and_no_child(real: RealHost, bin_dir: Path) -> None:
    script(bin_dir, "tool", "cat; echo x >&2")
    await real.run(["tool"], stdin=b"x")
    before = open_descriptors()
    for _ in range(5):
        await asyncio.gather(*(real.run(["tool"], stdin=b"x" * 1000) for _ in range(20)))
    assert open_descriptors() == before
    assert real.left_behind == 0


@pytest.mark.real
async def test_a_hung_read_costs_one_thread_and_blocks_nobody(real: RealHost, tmp_path: Path) -> None:
    """A dead mount cannot be made here without root; a call that waits for an event hangs as well."""
    release = threading.Event()
    offload = Offload()
    with pytest.raises(CannotTell) as caught:
        await offload.call("path:/dead", 0.1, release.wait)
    assert (caught.value.reason, offload.abandoned) == ("timed_out", 1)
    before = time.monotonic()
    assert await reason_of(offload.call("path:/dead", 5.0, lambda: 1)) == "timed_out"
    assert time.monotonic() - before < 0.1
    assert await offload.call("path:/alive", 1.0, lambda: 2) == 2
    release.set()
    for _ in range(100):
        if not offload.abandoned:
            break
        await asyncio.sleep(0.01)
    assert await offload.call("path:/dead", 1.0, lambda: 3) == 3


@pytest.mark.real
async def test_hung_calls_are_limited_in_all() -> None:
    release, offload = threading.Event(), Offload()
    for number in range(MOST_ABANDONED):
        assert await reason_of(offload.call(f"path:/dead/{number}", 0.01, release.wait)) == "timed_out"
    assert await reason_of(offload.call("path:/alive", 1.0, lambda: 1)) == "timed_out"
    release.set()


@pytest.mark.real
async def test_a_value_that_comes_too_late_is_put_away() -> None:
    release, offload, put_away = threading.Event(), Offload(), threading.Event()
    assert await reason_of(offload.call("x", 0.05, release.wait, late=lambda value: put_away.set())) == "timed_out"
    release.set()
    assert await asyncio.to_thread(put_away.wait, 2.0)


@pytest.mark.real
@pytest.mark.parametrize("turns", range(6))
async def test_a_cancel_is_never_lost_and_the_value_is_put_away(turns: int) -> None:
    """Cancelled in the moment the value arrives (`asyncio.wait_for` of Python 3.11 forgets such a cancel)."""
    release, offload, put_away = threading.Event(), Offload(), threading.Event()
    task = asyncio.create_task(offload.call("x", 5.0, release.wait, late=lambda value: put_away.set()))
    await asyncio.sleep(0.05)
    release.set()
    time.sleep(0.05)  # the thread is done; the event loop is yet to hear of it
    for _ in range(turns):
        await asyncio.sleep(0)
    if task.cancel():
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(asyncio.shield(task), 2.0)
        assert await asyncio.to_thread(put_away.wait, 2.0)


@pytest.mark.real
async def test_a_hung_call_does_not_keep_the_interpreter_from_ending() -> None:
    program = (
        "import asyncio, threading\n"
        "from compliance_agent.adapters.offload import Offload\n"
        "async def main():\n"
        "    try: await Offload().call('x', 0.05, threading.Event().wait)\n"
        "    except Exception as error: print(error.reason)\n"
        "asyncio.run(main())\n"
    )
    ran = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=True
    )
    assert ran.stdout == "timed_out\n"


@pytest.mark.real
async def test_the_kernels_own_files_are_read(real: RealHost) -> None:
    assert b"MemTotal" in await real.read("/proc/meminfo")
    assert await reason_of(real.read("/proc/meminfo", limit_bytes=10)) == "output_too_large"
    assert await reason_of(real.read("/dev/null")) == "io_error"


@pytest.mark.real
async def test_what_is_no_file_is_not_even_opened(real: RealHost, tmp_path: Path) -> None:
    """Opening can be an act: of a tape, of a watchdog, or of a pipe, whose writer is then let go."""
    os.mkfifo(tmp_path / "pipe")
    writer = subprocess.Popen(["/bin/sh", "-c", f"echo x > {tmp_path}/pipe"], stderr=subprocess.DEVNULL)
    try:
        await asyncio.sleep(0.1)
        assert await reason_of(real.read(str(tmp_path / "pipe"))) == "io_error"
        await asyncio.sleep(0.1)
        assert writer.poll() is None
    finally:
        writer.kill()
        writer.wait()


@pytest.mark.real
async def test_what_this_user_may_not_read_is_not_permitted(real: RealHost, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"x")
    (tmp_path / "secret").chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # root may read everything
    try:
        assert await reason_of(real.read(str(tmp_path / "secret"))) == "not_permitted"
    finally:
        os.seteuid(user)


@pytest.mark.real
async def test_nothing_is_written_where_others_may_swap_names(real: RealHost, tmp_path: Path) -> None:
    loose = tmp_path / "loose"
    loose.mkdir()
    loose.chmod(0o777)
    (loose / "inner").mkdir()
    for path in (loose / "a", loose / "inner" / "a"):
        assert await code_of(real.write(str(path), b"x")) == "unsafe_directory"
        assert await code_of(real.remove(str(path))) == "unsafe_directory"
    loose.chmod(0o1777)
    await real.write(str(loose / "inner" / "a"), b"x")
    assert await code_of(real.write(str(loose / "a"), b"x")) == "unsafe_directory"


@pytest.mark.real
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
async def test_a_replaced_file_keeps_its_owner(real: RealHost, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_bytes(b"old")
    os.chown(path, 0, 12345)
    await real.write(str(path), b"new", mode=0o640)
    info = path.stat()
    assert (info.st_uid, info.st_gid, stat.S_IMODE(info.st_mode)) == (0, 12345, 0o640)


@pytest.mark.real
async def test_a_refused_socket_keeps_its_errno(real: RealHost, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
    with pytest.raises(CannotTell) as caught:
        await real.ask(str(tmp_path / "s"), b"x")
    assert (caught.value.reason, caught.value.errno_name) == ("io_error", "ECONNREFUSED")
    assert await reason_of(real.ask(f"/{'x' * 200}", b"")) == "io_error"


@pytest.mark.real
async def test_a_service_manager_that_talks_nonsense_is_not_believed(real: RealHost, bin_dir: Path) -> None:
    script(bin_dir, "systemctl", "echo Id=a.service")
    assert await reason_of(real.units(["a.service"])) == "unparsable"
    script(bin_dir, "systemctl", "exit 1")
    assert await reason_of(real.units(["a.service"])) == "tool_failed"
    assert await real.units([]) == {}


@pytest.mark.parametrize("text", ["", "x", "LoadState=loaded", "LoadState=\nActiveState=\nSubState=\n", "A=1\n\nB=2"])
def test_a_show_that_is_not_one_is_unparsable(text: str) -> None:
    with pytest.raises(CannotTell, match="systemctl show"):
        parse_show(text, 1)


def test_a_show_of_aliases_keeps_the_order() -> None:
    block = "Id={0}\nLoadState=loaded\nActiveState={1}\nSubState=x\nUnitFileState=enabled\n"
    text = block.format("chrony.service", "active") + "\n" + block.format("rsyslog.service", "failed")
    assert [state.active for state in parse_show(text, 2)] == ["active", "failed"]


def test_a_show_names_what_starts_a_unit_and_nothing_that_is_no_unit() -> None:
    block = "Id=a.service\nLoadState=loaded\nActiveState=active\nSubState=x\nTriggeredBy=b.timer --all a.socket\n"
    assert parse_show(block, 1)[0].triggered_by == ("a.socket", "b.timer")


@pytest.mark.parametrize("name", ["", "--all.service", "*.service", "a", "a/b.service", "a b.service", "a.service\n"])
def test_what_is_no_units_name_is_refused(name: str) -> None:
    with pytest.raises(RuntimeError):
        check_unit_name(name)


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    """Whatever a test did, no child of ours runs on, not even as a zombie."""
    yield
    with pytest.raises(ChildProcessError):
        deadline = datetime.now(UTC) + timedelta(seconds=2)
        while datetime.now(UTC) < deadline:
            os.waitpid(-1, os.WNOHANG)
            time.sleep(0.01)


async def test_a_look_needs_few_threads_and_leaves_none() -> None:
    offload = Offload()
    idents = [await offload.call(f"path:/{number}", 5.0, threading.get_ident) for number in range(200)]
    assert len(set(idents)) < 20
    left = [thread for thread in threading.enumerate() if thread.name == "host-io"]
    for thread in left:
        thread.join(10)
    assert not any(thread.is_alive() for thread in left)


async def test_a_thread_that_leaves_takes_the_task_that_came_in_that_very_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits, chosen = threading.Event(), threading.Event()

    class Inbox:
        """Waits in vain, but not before it was chosen."""

        def __init__(self) -> None:
            self.tasks: queue.SimpleQueue[Any] = queue.SimpleQueue()

        def get(self, timeout: float | None = None) -> Any:
            if timeout is None:
                return self.tasks.get()
            waits.set()
            chosen.wait(10)
            raise queue.Empty

        def put(self, task: Any) -> None:
            chosen.set()
            self.tasks.put(task)

    monkeypatch.setattr("compliance_agent.adapters.offload.SimpleQueue", Inbox)
    offload = Offload()
    first = await offload.call("path:/a", 10.0, threading.get_ident)
    assert waits.wait(10)
    assert await offload.call("path:/b", 10.0, threading.get_ident) == first
    assert chosen.is_set()


async def test_a_thread_that_hangs_takes_no_other_call_with_it() -> None:
    release, offload = threading.Event(), Offload()
    assert await reason_of(offload.call("path:/dead", 0.01, release.wait)) == "timed_out"
    assert [await offload.call(f"path:/{number}", 5.0, lambda: 1) for number in range(20)] == [1] * 20
    release.set()


class Hanging(FileDigests):
    """Digests of which that of one file does not come until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.let_go = threading.Event()

    def of(self, path: str, most_bytes: int) -> FileDigest:
        if path.endswith("/b"):
            self.let_go.wait(30)
        return super().of(path, most_bytes)


async def test_a_file_that_hangs_costs_a_thread_and_no_other_its_digest(tmp_path: Path) -> None:
    digests = Hanging()
    host = RealHost(file_timeout_s=-0.4, digests=digests)  # a tenth of a second, with what a batch may take
    paths = [str(tmp_path / name) for name in "abc"]
    for path in paths:
        Path(path).write_bytes(b"content")

    async def reasons() -> list[str | None]:
        found = await host.digests(paths, most_bytes=100, total_bytes=100)
        return [one.reason if isinstance(one, CannotTell) else None for one in found.values()]

    assert await reasons() == [None, "timed_out", None]
    assert host.left_behind == 1
    assert await reasons() == [None, "timed_out", None]
    assert host.left_behind == 1  # it was not tried again
    digests.let_go.set()
    for _ in range(200):
        if not host.left_behind:
            break
        await asyncio.sleep(0.01)
    assert await reasons() == [None, None, None]


async def test_where_one_of_many_paths_hangs_those_after_it_are_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dead mount costs one thread and one deadline, however many paths of it are asked for; what came before it is known."""
    let_go = threading.Event()

    def look(path: str) -> FileStat:
        if path.endswith("/b"):
            let_go.wait(30)
        return file_looks.stat_of(path)

    monkeypatch.setattr(subprocess_host, "stat_of", look)
    host = RealHost(file_timeout_s=-0.4)  # a tenth of a second, with what a batch may take
    paths = [str(tmp_path / name) for name in "abcd"]
    for path in paths:
        Path(path).write_bytes(b"content")

    async def reasons() -> list[str | None]:
        return [one.reason if isinstance(one, CannotTell) else None for one in (await host.stats(paths)).values()]

    assert await reasons() == [None, "timed_out", "timed_out", "timed_out"]
    assert host.left_behind == 1
    assert await reasons() == ["timed_out"] * 4  # nothing is tried while it hangs
    assert host.left_behind == 1
    let_go.set()
    for _ in range(200):
        if not host.left_behind:
            break
        await asyncio.sleep(0.01)
    assert await reasons() == [None] * 4


async def test_many_files_take_more_than_one_thread_may_and_all_are_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "BATCH_S", 0.0)
    paths = [str(tmp_path / f"{number}") for number in range(20)]
    for path in paths:
        Path(path).write_bytes(b"x" * 10)
    found = await RealHost().digests(paths, most_bytes=100, total_bytes=195)
    assert [isinstance(one, FileDigest) for one in found.values()] == [True] * 19 + [False]
