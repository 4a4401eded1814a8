"""One contract for both sides of the Host port: this machine, in a directory of the test's own, and the clinic in
memory.

The `Side` builds the same small world on either: files, programs (shell scripts there, functions here), a socket,
units. What only a real kernel can do to us (hung children, floods, frozen disks, swapped names) is in
test_real_host.py.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from compliance_agent.adapters.subprocess_host import RealHost
from compliance_agent.errors import CannotTell, StepFailed
from compliance_agent.lab.clock import FakeClock
from compliance_agent.lab.faults import GARBAGE
from compliance_agent.lab.host import Call, FakeHost, Node, Unit, said
from compliance_agent.ports import ChangingHost, FileDigest, UnitState
from tests.contract.expect import code_of, reason_of

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


async def test_many_paths_are_told_of_at_once(side: Side) -> None:
    """In their order, each as by itself; what there is to say against one spoils no other."""
    side.put("a", b"12345", 0o640)
    side.place("link", "symlink", "a")
    there = [side.path(name) for name in ("link", "a")]
    found = await side.host.stats([*there, side.path("nothing"), "relative", there[1]])
    assert list(found) == [*there, side.path("nothing"), "relative"]
    assert [found[path] for path in there] == [await side.host.stat(path) for path in there]
    refused = [one.reason for one in found.values() if isinstance(one, CannotTell)]
    assert refused == ["not_found", "not_found"]
    assert await side.host.stats([]) == {}


async def test_a_whole_file_is_what_both_questions_say(side: Side) -> None:
    side.put("a", b"12345", 0o640)
    path = side.place("link", "symlink", "a")
    assert await side.host.whole(path) == (await side.host.stat(path), b"12345")
    assert await reason_of(side.host.whole(side.path("nothing"))) == "not_found"
    assert await reason_of(side.host.whole(side.place("d", "directory"))) == "io_error"


async def test_a_directory_lists_its_names_in_order(side: Side) -> None:
    for name in ("d/b", "d/a", "d/c/below"):
        side.put(name, b"")
    assert await side.host.list(side.path("d")) == ("a", "b", "c")
    assert await reason_of(side.host.list(side.path("d/a"))) == "not_found"
    assert await reason_of(side.host.list(side.path("nothing"))) == "not_found"


async def test_digests_are_told_of_many_paths_at_once(side: Side) -> None:
    """In their order, each on its own; of what is no regular file no digest, and of a link not what it leads to."""
    side.put("a", b"one\n", 0o640)
    for name, kind in (("link", "symlink"), ("d", "directory"), ("pipe", "fifo")):
        side.place(name, kind, "a")
    paths = [side.path(name) for name in ("link", "a", "d", "pipe", "nothing", "a")] + ["relative"]
    found = await side.host.digests(paths, most_bytes=100, total_bytes=100)
    assert list(found) == list(dict.fromkeys(paths))
    a = found[side.path("a")]
    assert a == FileDigest("file", 0o640, 4, hashlib.sha256(b"one\n").hexdigest())
    others = [found[side.path(name)] for name in ("link", "d", "pipe")]
    assert [(one.kind, one.sha256) for one in others if isinstance(one, FileDigest)] == [
        ("symlink", None),
        ("directory", None),
        ("other", None),
    ]
    refused = [found[side.path("nothing")], found["relative"]]
    assert [one.reason for one in refused if isinstance(one, CannotTell)] == ["not_found", "not_found"]


async def test_digests_are_taken_within_limits(side: Side) -> None:
    """A file that is too long spoils no other; one for which nothing is left of the total neither."""
    paths = [side.put(name, b"x" * size) for name, size in (("a", 10), ("b", 11), ("c", 6), ("d", 4))]
    found = await side.host.digests(paths, most_bytes=10, total_bytes=15)
    assert [one.reason if isinstance(one, CannotTell) else one.size_bytes for one in found.values()] == [
        10,
        "output_too_large",
        "output_too_large",
        4,
    ]


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


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    """Whatever a test did, no child of ours runs on, not even as a zombie."""
    yield
    with pytest.raises(ChildProcessError):
        deadline = datetime.now(UTC) + timedelta(seconds=2)
        while datetime.now(UTC) < deadline:
            os.waitpid(-1, os.WNOHANG)
            time.sleep(0.01)
