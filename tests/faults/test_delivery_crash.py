"""Killed anywhere between record, request, acknowledgement and mark: everything arrives, once, in order."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from compliance_agent.lab.server import FakeServer, Fault
from tests.faults.driver import WRITE_CLASS, Call, Ran, calls, command, inject, judge, run, sample
from tests.faults.peer import listening, token_file

POINTS = int(os.environ.get("CRASH_POINTS", "30")) // 2
COUNT = 3


class Bench:
    """One enrolled state directory, copied for each run, and the server it is enrolled at."""

    def __init__(self, root: Path, server: FakeServer, url: str) -> None:
        self.root, self.server, self.url = root, server, url
        self.template = root / "template"
        token = token_file(server, root / "token")
        ran = run(command(self.template, 0, "--token-file", str(token), server=url))
        assert (ran.status, ran.lines) == (0, ("S", "D")), ran.errors

    def fresh(self) -> Path:
        """A copy of the enrolled state; the server forgets what it held."""
        state = self.root / "state"
        shutil.rmtree(state, ignore_errors=True)
        shutil.copytree(self.template, state)
        self.server.stored().clear()
        self.server.faults.clear()
        return state

    def argv(self, state: Path, count: int, *more: str) -> list[str]:
        return command(state, count, *more, server=self.url)

    def held(self) -> list[str]:
        return [held.document["bundle_id"] for held in self.server.stored()]

    def resume(self, state: Path) -> Ran:
        ran = run(self.argv(state, 0, "--resume"))
        assert (ran.status, ran.lines[-1:]) == (0, ("D",)), ran.errors
        return ran

    def judge(self, state: Path, promised: list[str]) -> list[str]:
        """After everything has ended: the server holds every promised bundle once, in the order of the chain."""
        held = self.held()
        wrong = [f"lost {bundle_id}" for bundle_id in promised if bundle_id not in held]
        wrong += [f"twice {bundle_id}" for bundle_id in set(held) if held.count(bundle_id) > 1]
        if [(item.epoch, item.seq) for item in self.server.stored()] != [
            (0, number + 1) for number in range(len(held))
        ]:
            wrong.append("out of order")
        return wrong + judge(state, promised)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    server = FakeServer()
    with listening(server) as url:
        yield Bench(tmp_path_factory.mktemp("delivery"), server, url)


def points(bench: Bench) -> list[Call]:
    """Every write of the state, and every message to or from the server, of one whole run."""
    state, log = bench.fresh(), bench.root / "log"
    ran, writes = calls(bench.argv(state, COUNT), log, state)
    assert (ran.status, ran.said("A")) == (0, ran.said("P")), ran.errors
    names = "sendto,recvfrom"
    run(["strace", "-f", "-qq", "-o", str(log), "-e", f"trace={names}", *bench.argv(bench.fresh(), COUNT)])
    messages = [name for name in names.split(",") for line in log.read_text().splitlines() if f" {name}(" in line]
    numbered = [Call(name, messages[: at + 1].count(name)) for at, name in enumerate(messages)]
    assert {call.name for call in numbered} == {"sendto", "recvfrom"}
    assert "pwrite64" in WRITE_CLASS
    return [*writes[len(writes) // 2 :], *numbered]  # the first half is set-up and recording, see test_crash


def test_killed_between_record_and_mark(bench: Bench) -> None:
    """R2: 0 lost, 0 twice, 0 stuck."""
    killed = 0
    found = sample(points(bench), POINTS)
    for call in found:
        state = bench.fresh()
        ran = inject(bench.argv(state, COUNT), call, "signal=KILL", bench.root / "log")
        killed += ran.status == 137
        assert set(ran.said("A")) <= set(bench.held()), "acknowledged means held"
        bench.resume(state)
        assert bench.judge(state, ran.said("P")) == [], call
    assert killed >= 0.9 * len(found)


MUTANT = """
import asyncio
from compliance_agent.lab import crash_driver
async def deliver(self, waiting):
    for item in waiting:
        await self.queue.mark_uploaded(item.id)
    for item in waiting:
        assert await self.client.upload_evidence(item.bundle_path, item.signature_path)
crash_driver.Driver.deliver = deliver
crash_driver.main()
"""


def test_marking_before_the_acknowledgement_would_be_found(bench: Bench) -> None:
    """The planted fault: a driver that forgets first."""
    lost = 0
    for call in (Call("sendto", 1), Call("sendto", 2), Call("recvfrom", 1)):
        state = bench.fresh()
        argv = [sys.executable, "-c", MUTANT, *bench.argv(state, COUNT)[3:]]
        ran = inject(argv, call, "signal=KILL", bench.root / "log")
        bench.resume(state)
        lost += bool(bench.judge(state, ran.said("P")))
    assert lost >= 1


FAULTS = (
    Fault.LOSE_REQUEST,
    Fault.LOSE_REPLY,
    Fault.DUPLICATE,
    Fault.ACK_OTHER,
    Fault.ACK_SWAPPED,
    Fault.ACK_FORGED,
    Fault.ACK_REPLAYED,
    Fault.ACK_CUT,
    Fault.ACK_SHORT,
    Fault.ACK_NOT_STORED,
    Fault.GARBAGE,
    Fault.refuse(500),
    Fault.refuse(429, retry_after_s=1),
)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.name}{fault.status or ''}")
def test_one_bad_answer_delays_and_loses_nothing(bench: Bench, fault: Fault) -> None:
    """The next try comes within one back-off; what was not acknowledged was not forgotten."""
    state = bench.fresh()
    bench.server.faults.append(fault)
    ran = run(bench.argv(state, COUNT))
    assert (ran.status, ran.said("A")) == (0, ran.said("P")), ran.errors
    assert bench.judge(state, ran.said("P")) == []


def test_a_server_restored_from_a_backup_asks_and_gets(bench: Bench) -> None:
    """It acknowledged five and knows two: the next delivery begins at the third."""
    state = bench.fresh()
    first = run(bench.argv(state, 5))
    del bench.server.stored()[2:]
    second = run(bench.argv(state, 1))
    assert (first.status, second.status) == (0, 0), second.errors
    assert bench.judge(state, first.said("P") + second.said("P")) == []
