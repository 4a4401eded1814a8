"""One contract for both sides of the Host port: this machine, in a directory of the test's own, and the clinic in
memory.

The `Side` builds the same small world on either: files, programs (shell scripts there, functions here), a socket,
units. What only a real kernel can do to us (hung children, floods, FIFOs, symlinks swapped in) is below, for the real
side alone.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from compliance_agent.adapters import execute
from compliance_agent.adapters.offload import MOST_ABANDONED, Offload
from compliance_agent.adapters.subprocess_host import RealHost
from compliance_agent.adapters.systemd import check_unit_name, parse_show
from compliance_agent.errors import CannotTell, StepFailed
from compliance_agent.lab.clock import FakeClock
from compliance_agent.lab.faults import GARBAGE
from compliance_agent.lab.host import Call, FakeHost, Node, Unit, said
from compliance_agent.ports import ChangingHost, UnitState

SYSTEMCTL = """#!/bin/sh
[ -e {root}/booted ] || {{ echo "System has not been booted with systemd as init system (PID 1)." >&2; exit 1; }}
verb=
for word in "$@"; do case $word in -*) ;; *) verb=$word; break;; esac; done
while [ "$1" != -- ]; do shift; done; shift
case $verb in
  show) first=y; for unit in "$@"; do
      [ $first ] || echo; first=
      if [ -e {root}/units/$unit ]; then cat {root}/units/$unit
      else printf 'Id=%s\\nLoadState=not-found\\nActiveState=inactive\\nSubState=dead\\nUnitFileState=\\n' $unit; fi; done;;
  start|restart) [ -e {root}/units/$1 ] || exit 5
    printf 'Id=%s\\nLoadState=loaded\\nActiveState=active\\nSubState=running\\nUnitFileState=enabled\\n' $1 > {root}/units/$1;;
  stop) printf 'Id=%s\\nLoadState=loaded\\nActiveState=inactive\\nSubState=dead\\nUnitFileState=enabled\\n' $1 > {root}/units/$1;;
  *) exit 1;;
esac
"""
UNIT_FILE = "Id={name}\nLoadState=loaded\nActiveState=active\nSubState=running\nUnitFileState=enabled\n"


@dataclass
class Side:
    """A host of either kind, and how to put things onto it."""

    host: ChangingHost
    root: str
    real: bool
    servers: list[Any] = field(default_factory=list)

    @property
    def fake(self) -> FakeHost:
        assert isinstance(self.host, FakeHost)
        return self.host

    def path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def put(self, name: str, content: bytes, mode: int = 0o644) -> str:
        if self.real:
            path = Path(self.path(name))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            path.chmod(mode)
        else:
            self.fake.put(self.path(name), content, mode=mode)
        return self.path(name)

    def place(self, name: str, kind: str, target: str = "") -> str:
        path = Path(self.path(name))
        if not self.real:
            self.fake.place(str(path), Node(kind, mode=0o755, target=target))
        elif kind == "symlink":
            path.symlink_to(target)
        elif kind == "directory":
            path.mkdir(parents=True)
        else:
            os.mkfifo(path)
        return str(path)

    def program(self, name: str, script: str, function: Callable[[Call], Any]) -> None:
        if self.real:
            self.put(f"bin/{name}", f"#!/bin/sh\n{script}\n".encode(), 0o755)
        else:
            self.fake.installed[name] = function

    def unit(self, name: str) -> None:
        if self.real:
            self.put(f"units/{name}", UNIT_FILE.format(name=name).encode())
        else:
            self.fake.units_table[name] = Unit()

    def no_service_manager(self) -> None:
        if self.real:
            Path(self.path("booted")).rmdir()
        else:
            self.fake.has_service_manager = False

    async def socket(self, name: str, answer: Callable[[bytes], bytes]) -> str:
        path = self.path(name)
        if not self.real:
            self.fake.sockets[path] = lambda _, request: answer(request)
            return path

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(answer(await reader.read(65_536)))
            writer.close()

        self.servers.append(await asyncio.start_unix_server(serve, path))
        return path

    def deaf(self, target: str) -> None:
        """Only the fake needs telling: there the deadline passes by itself."""
        if not self.real:
            self.fake.faults.blind(target, "timed_out")


@pytest.fixture(params=["real", "fake"])
async def side(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Side]:
    if request.param == "real":
        (tmp_path / "booted").mkdir()
        (tmp_path / "bin").mkdir(mode=0o755)
        directories = (str(tmp_path / "bin"), "/usr/bin", "/bin")
        made = Side(RealHost(directories=directories, booted=tmp_path / "booted"), str(tmp_path), real=True)
        made.put("bin/systemctl", SYSTEMCTL.format(root=tmp_path).encode(), 0o755)
        (tmp_path / "units").mkdir()
    else:
        made = Side(FakeHost(FakeClock()), "/clinic", real=False)
        made.fake.place("/clinic", Node("directory", mode=0o755))
    yield made
    for server in made.servers:
        server.close()


async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A server that takes everything and answers nothing until its client has gone."""
    await reader.read()
    writer.close()


async def reason_of(call: Awaitable[object]) -> str:
    with pytest.raises(CannotTell) as caught:
        await call
    return caught.value.reason


async def code_of(call: Awaitable[object]) -> str:
    with pytest.raises(StepFailed) as caught:
        await call
    return caught.value.code


# -- files


async def test_a_file_is_read_whole(side: Side) -> None:
    assert await side.host.read(side.put("a", b"one\0two\n")) == b"one\0two\n"


async def test_a_link_is_followed_when_reading(side: Side) -> None:
    side.put("a", b"content")
    assert await side.host.read(side.place("link", "symlink", "a")) == b"content"


async def test_a_file_as_long_as_the_limit_is_read_and_a_longer_one_is_not(side: Side) -> None:
    path = side.put("a", b"x" * 100)
    assert len(await side.host.read(path, limit_bytes=100)) == 100
    assert await reason_of(side.host.read(path, limit_bytes=99)) == "output_too_large"


@pytest.mark.parametrize("path", ["nothing", "a/below", "dangling"])
async def test_what_is_not_there_is_not_found(side: Side, path: str) -> None:
    side.put("a", b"")
    side.place("dangling", "symlink", "nowhere")
    assert await reason_of(side.host.read(side.path(path))) == "not_found"


@pytest.mark.parametrize("kind", ["directory", "fifo"])
async def test_only_regular_files_are_read(side: Side, kind: str) -> None:
    assert await reason_of(side.host.read(side.place("a", kind))) == "io_error"


async def test_links_in_a_circle_are_an_error(side: Side) -> None:
    side.place("a", "symlink", "b")
    assert await reason_of(side.host.read(side.place("b", "symlink", "a"))) == "io_error"


@pytest.mark.parametrize("path", ["relative", "", "/a\0b"])
async def test_a_path_that_is_none_is_not_found(side: Side, path: str) -> None:
    for look in (side.host.read, side.host.stat, side.host.list):
        assert await reason_of(look(path)) == "not_found"


async def test_stat_tells_of_the_path_itself(side: Side) -> None:
    seen = await side.host.stat(side.put("a", b"12345", 0o640))
    assert (seen.kind, seen.mode, seen.size_bytes) == ("file", 0o640, 5)
    assert abs(seen.modified_at - side.host.now()) < timedelta(minutes=1)
    assert (await side.host.stat(side.place("link", "symlink", "nowhere"))).kind == "symlink"
    assert (await side.host.stat(side.place("d", "directory"))).kind == "directory"
    assert (await side.host.stat(side.place("pipe", "fifo"))).kind == "other"
    assert await reason_of(side.host.stat(side.path("nothing"))) == "not_found"


async def test_a_directory_lists_its_names_in_order(side: Side) -> None:
    for name in ("d/b", "d/a", "d/c/below"):
        side.put(name, b"")
    assert await side.host.list(side.path("d")) == ("a", "b", "c")
    assert await reason_of(side.host.list(side.path("d/a"))) == "not_found"
    assert await reason_of(side.host.list(side.path("nothing"))) == "not_found"


# -- programs


async def test_a_program_answers_with_status_and_both_outputs(side: Side) -> None:
    side.program("tool", "echo out; echo err >&2; exit 3", lambda call: said("out\n", 3, err="err\n"))
    ran = await side.host.run(["tool"])
    assert (ran.exit_status, ran.out, ran.err) == (3, b"out\n", b"err\n")


async def test_arguments_and_input_arrive_as_they_are(side: Side) -> None:
    side.program("tool", 'printf %s "$2"; cat', lambda call: said(call.argv[2] + call.stdin.decode()))
    ran = await side.host.run(["tool", "-x", "$(id) `id` * ; &"], stdin=b"|input" * 20_000)
    assert ran.out == b"$(id) `id` * ; &" + b"|input" * 20_000


async def test_without_input_there_is_none(side: Side) -> None:
    side.program("tool", "cat", lambda call: said(call.stdin.decode()))
    assert (await side.host.run(["tool"])).out == b""


async def test_a_program_that_reads_nothing_of_its_input_still_answers(side: Side) -> None:
    side.program("tool", "echo fine", lambda call: said("fine\n"))
    assert (await side.host.run(["tool"], stdin=b"x" * 1_000_000)).out == b"fine\n"


async def test_a_program_that_is_not_installed_is_missing(side: Side) -> None:
    assert await reason_of(side.host.run(["no-such-tool"])) == "tool_missing"
    assert await reason_of(side.host.change(["no-such-tool"])) == "tool_missing"


async def test_output_beyond_the_limit_is_no_answer(side: Side) -> None:
    side.program("tool", "head -c 1000 /dev/zero", lambda call: said("\0" * 1000))
    assert len((await side.host.run(["tool"], limit_bytes=1000)).out) == 1000
    assert await reason_of(side.host.run(["tool"], limit_bytes=999)) == "output_too_large"


async def test_a_program_that_does_not_end_has_timed_out(side: Side) -> None:
    side.program("tool", "sleep 600", lambda call: said(""))
    side.deaf("program:tool")
    assert await reason_of(side.host.run(["tool"], timeout_s=0.2)) == "timed_out"


async def test_only_declared_variables_reach_a_program(side: Side) -> None:
    side.program(
        "tool",
        'echo "$RESTIC_REPOSITORY"',
        lambda call: said(call.env.get("RESTIC_REPOSITORY", "") + "\n"),
    )
    assert (await side.host.run(["tool"], env={"RESTIC_REPOSITORY": "/backup"})).out == b"/backup\n"
    for env in ({"LD_PRELOAD": "/tmp/x.so"}, {"PATH": "/tmp"}):
        with pytest.raises(RuntimeError, match="undeclared"):
            await side.host.run(["tool"], env=env)
        with pytest.raises(RuntimeError, match="undeclared"):
            await side.host.change(["tool"], env=env)


@pytest.mark.parametrize("argv", [[], [""], ["/bin/sh"], ["../sh"], ["-c"], ["a b"], ["tool", "a\0b"]])
async def test_a_program_is_a_name_and_its_arguments_are_text(side: Side, argv: list[str]) -> None:
    for start in (side.host.run, side.host.change):
        with pytest.raises(RuntimeError):
            await start(argv)


# -- units


async def test_units_are_told_in_the_managers_words(side: Side) -> None:
    side.unit("chrony.service")
    states = await side.host.units(["chrony.service", "absent.service"])
    assert states["chrony.service"] == UnitState("loaded", "active", "running", "enabled")
    assert states["absent.service"] == UnitState("not-found", "inactive", "dead", "")


async def test_units_stop_and_start(side: Side) -> None:
    side.unit("chrony.service")
    await side.host.unit_action("stop", "chrony.service")
    assert (await side.host.units(["chrony.service"]))["chrony.service"].active == "inactive"
    await side.host.unit_action("start", "chrony.service")
    assert (await side.host.units(["chrony.service"]))["chrony.service"].active == "active"


async def test_a_unit_that_is_not_there_cannot_be_started(side: Side) -> None:
    with pytest.raises(StepFailed) as caught:
        await side.host.unit_action("start", "absent.service")
    assert (caught.value.code, caught.value.exit_status_of_step) == ("unit_start_failed", 5)


async def test_an_unknown_verb_is_a_wrong_call(side: Side) -> None:
    side.unit("chrony.service")
    with pytest.raises(RuntimeError):
        await side.host.unit_action("kill", "chrony.service")


async def test_without_a_service_manager_units_cannot_be_told(side: Side) -> None:
    side.unit("chrony.service")
    side.no_service_manager()
    assert await reason_of(side.host.units(["chrony.service"])) == "tool_missing"
    assert await reason_of(side.host.unit_action("start", "chrony.service")) == "tool_missing"


# -- sockets and clock


async def test_a_socket_is_asked_and_answers_until_it_closes(side: Side) -> None:
    path = await side.socket("s", lambda request: b"PONG" if request == b"zPING\0" else b"?")
    assert await side.host.ask(path, b"zPING\0") == b"PONG"


async def test_a_socket_that_is_not_there_is_not_found(side: Side) -> None:
    assert await reason_of(side.host.ask(side.path("nothing"), b"x")) == "not_found"


async def test_an_answer_beyond_the_limit_is_no_answer(side: Side) -> None:
    path = await side.socket("s", lambda request: b"x" * 200_000)
    assert await reason_of(side.host.ask(path, b"x", limit_bytes=1000)) == "output_too_large"


async def test_a_socket_that_does_not_answer_has_timed_out(side: Side) -> None:
    path = await side.socket("s", lambda request: b"")
    side.deaf(f"socket:{path}")
    if side.real:
        for server in side.servers:
            server.close()
        Path(path).unlink(missing_ok=True)
        side.servers.append(await asyncio.start_unix_server(mute, path))
    assert await reason_of(side.host.ask(path, b"x", timeout_s=0.1)) == "timed_out"


async def test_the_clock_is_told_with_the_boot_it_belongs_to(side: Side) -> None:
    first, second = await side.host.clock_state(), await side.host.clock_state()
    assert first.boot_id == second.boot_id
    assert len(first.boot_id) == 36
    assert second.monotonic_ns >= first.monotonic_ns > 0
    assert (first.offset_us is None) or first.synchronized


async def test_the_hosts_time_is_utc_and_pausing_lets_it_pass(side: Side) -> None:
    before = side.host.now()
    await side.host.pause(0.01)
    assert before.tzinfo is UTC
    assert side.host.now() - before >= timedelta(seconds=0.009)


# -- changing


async def test_a_file_is_written_with_its_mode_and_replaced_whole(side: Side) -> None:
    path = side.path("a")
    await side.host.write(path, b"first", mode=0o600)
    await side.host.write(path, b"2", mode=0o640)
    assert await side.host.read(path) == b"2"
    assert (await side.host.stat(path)).mode == 0o640
    assert "a" in await side.host.list(side.root)
    assert not [name for name in await side.host.list(side.root) if name.endswith(".tmp")]


async def test_writing_does_not_follow_a_link_nor_replace_it(side: Side) -> None:
    target = side.put("target", b"kept")
    link = side.place("link", "symlink", "target")
    for change in (side.host.write(link, b"new"), side.host.remove(link), side.host.chmod(link, 0o600)):
        assert await code_of(change) == "not_a_regular_file"
    assert await side.host.read(target) == b"kept"
    assert (await side.host.stat(link)).kind == "symlink"


@pytest.mark.parametrize("kind", ["directory", "fifo"])
async def test_only_regular_files_are_replaced_or_removed(side: Side, kind: str) -> None:
    path = side.place("a", kind)
    assert await code_of(side.host.write(path, b"x")) == "not_a_regular_file"
    assert await code_of(side.host.remove(path)) == "not_a_regular_file"


async def test_writing_needs_the_directory(side: Side) -> None:
    assert await code_of(side.host.write(side.path("nothing/a"), b"x")) == "not_found"


async def test_removing_is_harmless_when_done_twice(side: Side) -> None:
    path = side.put("a", b"")
    await side.host.remove(path)
    await side.host.remove(path)
    await side.host.remove(side.path("nothing/a"))
    assert await reason_of(side.host.stat(path)) == "not_found"


async def test_modes_of_files_and_directories_are_set(side: Side) -> None:
    path, directory = side.put("a", b"", 0o600), side.place("d", "directory")
    await side.host.chmod(path, 0o640)
    await side.host.chmod(directory, 0o700)
    assert (await side.host.stat(path)).mode == 0o640
    assert (await side.host.stat(directory)).mode == 0o700
    assert await code_of(side.host.chmod(side.path("nothing"), 0o600)) == "not_found"


async def test_a_changing_program_changes(side: Side) -> None:
    def touch(call: Call) -> Any:
        call.alters()
        call.host.put("/clinic/made", call.stdin)
        return said("done\n")

    side.program("tool", f'cat > "{side.root}/made"; echo done', touch)
    assert (await side.host.change(["tool"], stdin=b"x")).out == b"done\n"
    assert await side.host.read(side.path("made")) == b"x"


# -- the fake alone: its faults are the tools of other tests


@pytest.fixture
def fake() -> FakeHost:
    host = FakeHost(FakeClock())
    host.put("/a", b"content")
    host.units_table["a.service"] = Unit()
    host.sockets["/s"] = lambda _, request: request
    host.installed["tool"] = lambda call: said("fine\n")
    return host


LOOKS: dict[str, Callable[[FakeHost], Awaitable[object]]] = {
    "path:/a": lambda host: host.read("/a"),
    "stat:/a": lambda host: host.stat("/a"),
    "list:/": lambda host: host.list("/"),
    "program:tool": lambda host: host.run(["tool"]),
    "unit:a.service": lambda host: host.units(["a.service"]),
    "socket:/s": lambda host: host.ask("/s", b""),
    "clock:": lambda host: host.clock_state(),
}


@pytest.mark.parametrize("target", LOOKS)
async def test_every_look_can_be_taken_away_and_comes_back(fake: FakeHost, target: str) -> None:
    for reason in ("not_permitted", "io_error", "timed_out", "not_found"):
        fake.faults.blind(target, reason, times=1)
        assert await reason_of(LOOKS[target](fake)) == reason
        await LOOKS[target](fake)
    assert set(fake.looked) == {target}


async def test_a_hung_look_takes_its_deadline(fake: FakeHost) -> None:
    before = fake.clock.monotonic()
    fake.faults.blind("program:*", "timed_out")
    assert await reason_of(fake.run(["tool"], timeout_s=7.0)) == "timed_out"
    assert fake.clock.monotonic() - before == 7.0


@pytest.mark.parametrize("answer", GARBAGE)
async def test_answers_can_be_replaced_by_garbage(fake: FakeHost, answer: bytes) -> None:
    fake.faults.answer("*", answer, exit_status=2)
    assert await fake.read("/a") == answer
    assert await fake.ask("/s", b"") == answer
    ran = await fake.run(["tool"])
    assert (ran.out, ran.exit_status) == (answer, 2)


async def test_a_change_can_fail_before_after_or_lie(fake: FakeHost) -> None:
    for fault, content in (("before", b"content"), ("lie", b"content"), ("after", b"new")):
        fake.faults.clear()
        fake.faults.change("path:/a", fault)  # type: ignore[arg-type]
        try:
            await fake.write("/a", b"new")
        except StepFailed as error:
            assert error.code == f"injected_{fault}"
        else:
            assert fault == "lie"
        assert await fake.read("/a") == content


async def test_the_fake_refuses_a_look_that_changes(fake: FakeHost) -> None:
    def sly(call: Call) -> Any:
        call.alters()
        return said("")

    fake.installed["sly"] = sly
    with pytest.raises(RuntimeError, match="started to look"):
        await fake.run(["sly"])


async def test_another_user_meets_permissions(fake: FakeHost) -> None:
    fake.put("/secret", b"x", mode=0o600)
    fake.uid = 1000
    assert await reason_of(fake.read("/secret")) == "not_permitted"
    assert await fake.read("/a") == b"content"


async def test_a_skewed_host_has_its_own_time(fake: FakeHost) -> None:
    fake.skew_s = 3600.0
    assert fake.now() - fake.clock.now() == timedelta(hours=1)


# -- the real side alone: what only a kernel can do


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
