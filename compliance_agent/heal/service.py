"""The socket of the root side: one asker, one question at a time, each answered by its row or refused.

Whoever connects must be the agent's user or root, as the kernel says. A frame that breaks a rule ends the connection, and changes
nothing. Whatever goes wrong in a row is an answer; what is left goes out to the service manager, loudly.
"""

from __future__ import annotations

import contextlib
import select
import signal
import socket
import struct
import sys
import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from compliance_agent.errors import BadFrame
from compliance_agent.frames import Answering, Message, Reader, Side, Table
from compliance_agent.heal import permits
from compliance_agent.heal.approvals import Approvals
from compliance_agent.heal.found import Found
from compliance_agent.heal.machine import Machine
from compliance_agent.heal.protocol import MOST_SAID, TABLE
from compliance_agent.heal.rows import ROWS, Work, act
from compliance_agent.heal.trouble import Failed, Refused, Trouble, Unclear

QUESTION_S = 10.0  # for a whole question to come in
GRACE_S = 20.0  # beyond a row's deadline, for what it looks at before and after

Answer = tuple[str, dict[str, Any], bytes]


class Desk:
    """A socket of root's, whatever is asked there."""

    table: Table

    def answer(self, question: Message) -> Answer:
        """What is answered to one question."""
        raise NotImplementedError

    def talk(self, connection: socket.socket, quiet_s: float | None = QUESTION_S) -> None:
        """Answer until the other side has no more questions, or breaks a rule.

        Args:
            connection: of an asker who is allowed to ask.
            quiet_s: how long it may say nothing; None for as long as it lives.
        """
        reader, answering = Reader(self.table, Side.ASKS), Answering(self.table, most_open=1)
        connection.settimeout(QUESTION_S)
        try:
            connection.sendall(self.table.hello())
            while select.select([connection], [], [], quiet_s)[0] and (data := connection.recv(65_536)):
                for question in reader.feed(data):
                    answering.take(question)
                    kind, fields, blob = self.answer(question)
                    connection.sendall(b"".join(answering.answer(question.id, kind, fields, blob)))
                    del question
                if not connection.getblocking():
                    connection.settimeout(QUESTION_S)
        except BadFrame as error:
            say(f"{self.table.name}.bad_frame", code=error.code)
        except OSError as error:
            say(f"{self.table.name}.connection_lost", errno=error.errno or 0)

    def serve(self, listener: socket.socket, users: Collection[int], idle_s: float) -> None:
        """Take one connection after the other, and return when nobody came for a while."""
        while select.select([listener], [], [], idle_s)[0]:
            connection, _ = listener.accept()
            with connection:
                uid = peer_uid(connection)
                if uid in users:
                    self.talk(connection)
                else:
                    say(f"{self.table.name}.wrong_user", uid=uid)


@dataclass(frozen=True)
class Service(Desk):
    """What answers.

    Attributes:
        machine: this machine.
        permits_path: root's file (permits.py).
        found_path: where what was found is kept (found.py).
        approvals: what people approved, where root waits for that.
    """

    machine: Machine
    permits_path: str
    found_path: str
    approvals: Approvals

    table = TABLE

    def answer(self, question: Message) -> Answer:
        """Do one thing, or say why not."""
        row, args = ROWS[question.kind], question.fields
        try:
            with deadline(row.deadline_s + GRACE_S):
                allowed = permits.load(self.machine, self.permits_path)
                if args["baseline"] != allowed.baseline:
                    raise Refused("other_baseline")
                found = Found(self.machine, self.found_path, args["cure"])
                ran = act(row, Work(self.machine, allowed, found, self.approvals, question.kind, args, question.blob))
        except Trouble as error:
            say(f"heal.{error.kind}", row=question.kind, **error.said)
            ended = {"exit": error.exit} if isinstance(error, Failed) else {}
            return error.kind, {**error.said, **ended}, b""
        say("heal.done", row=question.kind, exit=ran.exit)
        return "done", {"exit": ran.exit & 0xFF}, ran.err[-MOST_SAID:]


def peer_uid(connection: socket.socket) -> int:
    """Whose process is at the other end, as the kernel noted when it connected."""
    size = struct.calcsize("3i")
    _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return int(uid)


@contextlib.contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """No row takes longer, whatever it waits for. Only a process of its own has the signal for it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def over(_number: int, _frame: object) -> None:
        raise Unclear("timed_out")

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def say(event: str, **fields: object) -> None:
    """One line for the journal: a fixed name and tokens, nothing that the asker or the host made up."""
    sys.stderr.write(" ".join([event, *(f"{name}={value}" for name, value in fields.items())]) + "\n")
    sys.stderr.flush()
