"""logging beyond its cases: the canary is written, is new each time, and arrives late, elsewhere or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from compliance_agent.checks import registry
from compliance_agent.checks.logging import PAUSES_MS, Parameters, messages
from compliance_agent.errors import CannotTell
from compliance_agent.lab.clinic import healthy_host
from compliance_agent.lab.clock import FakeClock
from compliance_agent.lab.host import Call, FakeHost, said
from compliance_agent.lab.programs import logs
from compliance_agent.models import DriftResult, Result
from compliance_agent.ports import Ran
from tests.checks.contract import seen_by

CHECK = registry()["logging"]
FIXTURES = Path(__file__).parent.parent / "fixtures" / "checks" / "logging"
SYSLOG = "/var/log/syslog"


async def look(host: FakeHost, **parameters: Any) -> DriftResult:
    return await seen_by(CHECK, host, **parameters)


def canaries(host: FakeHost) -> list[str]:
    return [
        entry["MESSAGE"] for entry in host.part(logs.Logs).entries if entry["SYSLOG_IDENTIFIER"] == "compliance-canary"
    ]


class SlowForwarder(FakeHost):
    """A host on which lines reach the syslog file some time after they were written."""

    arrives_after_s = 1.0

    async def pause(self, seconds: float) -> None:
        await super().pause(seconds)
        state = self.part(logs.Logs)
        if state.loses and self.clock.monotonic() >= 1000.0 + self.arrives_after_s:  # the fake clock begins at 1000
            state.loses = False
            self.append(SYSLOG, "".join(f"{line}\n" for line in canaries(self)))


def slow_host(arrives_after_s: float) -> FakeHost:
    host = SlowForwarder(FakeClock())
    host.install("tail")
    logs.provide(host)
    host.part(logs.Logs).loses = True
    host.arrives_after_s = arrives_after_s
    return host


async def test_each_look_writes_a_new_canary() -> None:
    host = healthy_host(clock=(clock := FakeClock()))
    for _ in range(3):
        assert (await look(host)).result is Result.PASS
        clock.advance(300.0)
    assert len(set(canaries(host))) == 3


async def test_an_old_canary_does_not_stand_for_a_new_one() -> None:
    """The fault of old: searching for a canary that was never written finds the one of yesterday."""
    host = healthy_host(clock=(clock := FakeClock()))
    assert (await look(host)).result is Result.PASS
    clock.advance(300.0)
    host.installed["logger"] = lambda call: said("")  # says that all is well and writes nothing
    assert (await look(host)).reason == "canary_lost"


async def test_a_canary_that_arrives_late_is_waited_for() -> None:
    seen = await look(slow_host(1.0))
    assert seen.result is Result.PASS
    assert 1000 <= seen.pre_state["waited_ms"] < sum(PAUSES_MS)


async def test_the_wait_is_bounded() -> None:
    seen = await look(slow_host(60.0))
    assert (seen.reason, seen.pre_state["waited_ms"]) == ("canary_lost", sum(PAUSES_MS))


async def test_a_destination_that_does_not_exist_lost_the_canary() -> None:
    host = healthy_host()
    seen = await look(host, destination="/var/log/messages")
    assert seen.reason == "canary_lost"
    assert seen.plan is not None and [step.args["unit"] for step in seen.plan.steps] == ["rsyslog.service"]


async def test_a_destination_that_may_not_be_read_is_unknown() -> None:
    host = healthy_host()
    host.uid = 995
    assert (await look(host)).reason == "not_permitted"


async def test_the_journal_alone() -> None:
    host = healthy_host()
    host.delete(SYSLOG)
    seen = await look(
        host, destination="journal", units=("systemd-journald.service",), forwarder="systemd-journald.service"
    )
    assert seen.result is Result.PASS
    assert seen.pre_state["in_destination"] is None


@pytest.mark.parametrize("status", [0, 1])
async def test_a_journal_that_hides_others_lines_is_unknown(status: int) -> None:
    hint = b"Hint: You are currently not seeing messages from other users and the system.\n"
    hint = hint if status == 0 else b"No journal files were opened due to insufficient permissions.\n"

    def journalctl(call: Call) -> Ran:
        return Ran(status, b"", hint)

    host = healthy_host()
    host.installed["journalctl"] = journalctl
    assert (await look(host)).reason == "not_permitted"


async def test_own_lines_in_a_journal_that_hides_others_are_enough() -> None:
    host = healthy_host()
    real = host.installed["journalctl"]

    def journalctl(call: Call) -> Ran:
        return Ran(0, real(call).out, b"Hint: You are currently not seeing messages from other users and the system.\n")

    host.installed["journalctl"] = journalctl
    assert (await look(host)).result is Result.PASS


async def test_a_syslog_file_of_many_lines() -> None:
    """Only the end is read, whatever the size of the file."""
    host = healthy_host()
    host.put(SYSLOG, b"x" * 5_000_000 + b"\n")
    assert (await look(host)).result is Result.PASS


async def test_a_stopped_unit_is_not_probed() -> None:
    host = healthy_host()
    host.unit(logs.RSYSLOG).active = False
    seen = await look(host)
    assert seen.pre_state["units_down"] == ["rsyslog.service"]
    assert canaries(host) == []


def test_messages_of_a_real_journalctl() -> None:
    out = (FIXTURES / "journalctl-252.json").read_bytes()
    assert messages(out) == {
        "canary 0123456789abcdef0123456789abcdef",
        "canary fedcba9876543210fedcba9876543210",
    }
    assert messages(b"") == set()


def test_entries_that_are_not_text_are_left_out() -> None:
    """journalctl prints bytes as a list of numbers, and null for what is too long."""
    lines = [{"MESSAGE": [255, 0]}, {"MESSAGE": None}, {"__CURSOR": "x"}, {"MESSAGE": "canary"}]
    assert messages("\n".join(map(json.dumps, lines)).encode()) == {"canary"}


@pytest.mark.parametrize("out", [b"-- No entries --\n", b'{"MESSAGE":"canary"', b"[]\n", b'"x"\n', b"\xff\n"])
def test_anything_else_is_unparsable(out: bytes) -> None:
    with pytest.raises(CannotTell):
        messages(out)


@pytest.mark.parametrize(
    "wrong", [{"units": ()}, {"destination": "syslog"}, {"destination": ""}, {"forwarder": "syslog-ng.service"}]
)
def test_parameters_that_would_check_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Parameters(**wrong)
