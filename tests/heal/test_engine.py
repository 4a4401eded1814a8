"""The healing engine with the root side as its hands: every failure and every death; and over the real socket."""

from __future__ import annotations

import itertools
import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from compliance_agent import healing
from compliance_agent.adapters.heal_host import HealHost, Root
from compliance_agent.errors import StepFailed
from compliance_agent.heal import permits
from compliance_agent.ports import ChangingHost
from tests.heal.clinic import FakeMachine, asks, service_on
from tests.heal.scene import PERMITS
from tests.healing_bench import STEPS, Bench, Crash, fingerprint, holds, is_healed

ON = [{"line": "on"}]
PERMITTED: dict[str, Any] = {
    "schema": "compliance-agent/permits/v1",
    "baseline": "a" * 64,
    "version": "1",
    "files": {"/etc/a": ON, "/etc/dir/b": ON},
    "modes": {},
    "units": {"toy.service": "needed"},
    "ruleset": None,
    "may": [],
}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Split:
    """A bench whose cures go through the root side, which lives on when the agent dies."""

    def __init__(self, directory: Path) -> None:
        self.bench = Bench(directory)
        self.machine = FakeMachine(self.bench.host, json.dumps(PERMITTED).encode())
        self.service = service_on(self.machine)
        self.restart()

    def hands(self, host: ChangingHost, cure: str, baseline: str) -> ChangingHost:
        return HealHost(host, asks(self.service), cure, baseline)

    def restart(self) -> None:
        self.bench.restart(hands=self.hands)


@pytest.fixture
def split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Split]:
    monkeypatch.setattr(permits, "FILE_MODE", 0o600)  # the toy's files are private
    made = Split(tmp_path)
    yield made
    made.bench.database.close()


SCRIPTS: list[dict[int, str]] = [{}, *({n: fault} for n in range(STEPS) for fault in ("before", "after", "lie"))]


@pytest.mark.anyio
@pytest.mark.parametrize("script", SCRIPTS, ids=str)
async def test_every_change_may_fail_or_lie(split: Split, script: dict[int, str]) -> None:
    """Healed, or as it was; what lied is noticed by the root side's own look."""
    former = fingerprint(split.bench.host)
    split.bench.host.script = script
    result = await split.bench.heal()
    holds(split.bench, result.outcome, former)
    assert result.outcome == ("success" if not script else "reverted"), result
    known = {*healing.CODES, "unit_start_failed"}
    assert result.error is None or result.error.startswith("injected") or result.error in known


@pytest.mark.anyio
@pytest.mark.parametrize(("at", "again"), list(itertools.product(range(STEPS), [None, *range(3)])))
@pytest.mark.parametrize("fault", ["die_before", "die_after"])
async def test_a_death_at_any_change_is_ended_at_start(split: Split, at: int, again: int | None, fault: str) -> None:
    """And once more while it recovers: the cure's id leads back to what the root side found before the first change."""
    former = fingerprint(split.bench.host)
    split.bench.host.script = {at: fault}
    with pytest.raises(Crash):
        await split.bench.heal()
    if again is not None:
        split.bench.host.script[at + 1 + again] = fault
        split.restart()
        with suppress(Crash):
            await split.bench.engine.recover()
    split.bench.host.script = {}
    split.restart()
    await split.bench.engine.recover()
    holds(split.bench, None if not is_healed(split.bench.host) else "success", former)


@pytest.mark.anyio
async def test_without_leave_nothing_is_changed_and_the_reason_is_recorded(split: Split) -> None:
    """The agent decided to heal; root did not permit it. The toy's undo asks for a write even so, and is owned up to as refused."""
    former = fingerprint(split.bench.host)
    split.machine.own[PERMITS] = (json.dumps({**PERMITTED, "files": {}}).encode(), 0o644)
    result = await split.bench.heal()
    assert (result.outcome, result.error) == ("failed", "heal_refused")
    assert fingerprint(split.bench.host) == former


@pytest.mark.anyio
async def test_permissions_of_another_baseline_hold_every_cure_back(split: Split) -> None:
    former = fingerprint(split.bench.host)
    split.machine.own[PERMITS] = (json.dumps({**PERMITTED, "baseline": "b" * 64}).encode(), 0o644)
    result = await split.bench.heal()
    assert result.error == "heal_refused"
    assert fingerprint(split.bench.host) == former


@pytest.mark.anyio
async def test_the_configured_socket_is_where_the_engine_asks(split: Split, tmp_path: Path) -> None:
    """A whole cure over a unix socket; once nobody listens there, the cure fails and says so."""
    path = tmp_path / "heal.sock"
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=split.service.serve, args=(listener, {os.geteuid()}, 1.0), daemon=True)
        thread.start()
        object.__setattr__(split.bench.config, "heal_socket", path)
        split.bench.restart()
        result = await split.bench.heal()
        assert result.outcome == "success", result
        assert is_healed(split.bench.host)
        thread.join(10)
    split.bench.host.put("/etc/a", "off\n", mode=0o600)
    result = await split.bench.heal()
    assert (result.outcome, result.error) == ("failed", "heal_unreachable")


@pytest.mark.anyio
@pytest.mark.parametrize("said", [b"", b"\0\0\0\1x", b"HTTP/1.1 200 OK\r\n\r\n"])
async def test_an_answer_that_is_none_is_a_failed_step(tmp_path: Path, said: bytes) -> None:
    path = tmp_path / "heal.sock"
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(said)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with pytest.raises(StepFailed) as caught:
            await Root(path).ask("clock", {"cure": "x", "baseline": "a" * 64}, b"")
        assert caught.value.code == "heal_unreachable"
        thread.join(10)
