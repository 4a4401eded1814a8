"""The root side on a simulated clinic host: the real table, permissions and memory over the state of `lab/host.py`."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from compliance_agent.errors import CannotTell, StepFailed
from compliance_agent.frames import Asking, Message, Reader, Side
from compliance_agent.heal.approvals import Approvals
from compliance_agent.heal.machine import Machine, Ran
from compliance_agent.heal.protocol import MOST_BYTES, TABLE
from compliance_agent.heal.service import Service
from compliance_agent.heal.trouble import Failed, Unclear
from compliance_agent.lab.host import FakeHost
from tests.heal.scene import APPROVALS, BOUND, FOUND, NOW, PERMITS

OWN = (PERMITS, FOUND, APPROVALS, BOUND)
Value = TypeVar("Value")


class FakeMachine(Machine):
    """The machine's part of the root side, over a clinic host in memory. Its own two files lie elsewhere."""

    def __init__(self, host: FakeHost, permits: bytes) -> None:
        super().__init__()
        self.host = host
        self.own: dict[str, tuple[bytes, int]] = {PERMITS: (permits, 0o644)}

    @property
    def has_manager(self) -> bool:
        return self.host.has_service_manager

    def read(self, path: str, limit: int = MOST_BYTES) -> tuple[bytes, os.stat_result] | None:
        if path in OWN:
            return (self.own[path][0], _stat(self.own[path][1])) if path in self.own else None
        node = self.host.files.get(path)
        if node is None:
            return None
        if node.kind != "file":
            raise Failed("not_a_regular_file")
        return node.content, _stat(node.mode, node.uid, node.gid)

    def stat(self, path: str) -> os.stat_result | None:
        node = self.host.files.get(path)
        return None if node is None else _stat(node.mode, node.uid, node.gid)

    def write(self, path: str, content: bytes, mode: int, owner: tuple[int, int] | None = None) -> None:
        if path in OWN:
            self.own[path] = (content, mode)
            return
        at_once(self.host.write(path, content, mode=mode))
        if owner is not None:
            self.host.files[path].uid, self.host.files[path].gid = owner

    def remove(self, path: str) -> None:
        at_once(self.host.remove(path))

    def chmod(self, path: str, mode: int) -> None:
        at_once(self.host.chmod(path, mode))

    def make_directory(self, path: str) -> None:
        self.run(("mkdir", "-m", "0755", "--", path))

    def remove_directory(self, path: str) -> None:
        self.run(("rmdir", "--", path))

    def run(self, argv: Sequence[str], *, timeout_s: float = 15.0, stdin: bytes = b"") -> Ran:
        if argv[0] == "systemctl" and "--" in argv and argv[1] != "kill":
            return self._systemctl(argv)
        env = {"DEBIAN_FRONTEND": "noninteractive"}
        ran = at_once(self.host.change(argv, timeout_s=timeout_s, stdin=stdin, env=env))
        return Ran(ran.exit_status, ran.out, ran.err)

    def run_apart(self, argv: Sequence[str], *, timeout_s: float, stdin: bytes = b"", walls: Sequence[str] = ()) -> Ran:
        return self.run(argv, timeout_s=timeout_s, stdin=stdin)

    def _systemctl(self, argv: Sequence[str]) -> Ran:
        unit = argv[-1]
        if argv[1] != "show":
            verb = next(word for word in argv[1:] if not word.startswith("-"))
            try:
                at_once(self.host.unit_action(verb, unit))
            except Failed as error:
                return Ran(error.exit or 1, b"", b"")
            return Ran(0, b"", b"")
        state = at_once(self.host.units((unit,)))[unit]
        triggers = " ".join(state.triggered_by)
        said = f"LoadState={state.load}\nActiveState={state.active}\nUnitFileState={state.enabled}\nTriggeredBy={triggers}\n"
        return Ran(0, said.encode(), b"")


def at_once(work: Coroutine[Any, Any, Value]) -> Value:
    """What a call of the fake host gives; it waits for nothing."""
    try:
        work.send(None)
    except StopIteration as ended:
        return ended.value  # type: ignore[no-any-return]
    except StepFailed as error:
        raise Failed(error.code, error.exit_status_of_step) from error
    except CannotTell as error:
        raise Unclear(error.reason) from error
    raise AssertionError("the fake host waited for something")


def service_on(machine: Machine) -> Service:
    """The root side on this machine."""
    return Service(machine, PERMITS, FOUND, Approvals(machine, APPROVALS, BOUND, lambda: NOW))


def asks(service: Service) -> Callable[[str, Mapping[str, Any], bytes], Coroutine[Any, Any, Message]]:
    """Ask this service, through frames and back."""

    async def ask(kind: str, fields: Mapping[str, Any], blob: bytes) -> Message:
        question = Asking(TABLE).ask(kind, fields, blob)
        reader = Reader(TABLE, Side.ASKS)
        reader.feed(TABLE.hello())
        [message] = reader.feed(b"".join(question.frames))
        said, answer, rest = service.answer(message)
        back = Reader(TABLE, Side.ANSWERS)
        back.feed(TABLE.hello())
        return back.feed(b"".join(TABLE.frames(Message(said, question.id, answer, rest))))[0]

    return ask


def _stat(mode: int, uid: int = 0, gid: int = 0) -> os.stat_result:
    return os.stat_result((stat.S_IFREG | mode, 0, 0, 1, uid, gid, 0, 0, 0, 0))
