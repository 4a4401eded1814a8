"""The actions on units, the clock and the scanner: idempotent, exactly undone, and loud when they did not work."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compliance_agent.errors import CannotTell, StepFailed
from compliance_agent.lab.clinic import healthy_host
from compliance_agent.lab.clock import FakeClock
from compliance_agent.lab.host import FakeHost, Unit
from compliance_agent.lab.programs import chrony, clamav, systemctl
from compliance_agent.ports import Ran
from compliance_agent.remedies import actions
from compliance_agent.remedies.ensure_unit_active import by_others
from compliance_agent.remedies.spec import Args

TOY = "toy.service"
ENSURE, RESTART = actions()["ensure_unit_active"], actions()["restart_unit"]
STEP, AWAIT_CLOCK, AWAIT_SCANNER = (actions()[name] for name in ("step_clock", "await_clock", "await_scanner"))
SCANNER: Args = {"unit": clamav.UNIT, "socket": clamav.SOCKET, "max_age_h": 48}


def toy_host(**state: Any) -> FakeHost:
    host = FakeHost(FakeClock())
    host.installed.update(systemctl.PROGRAMS)
    host.units_table[TOY] = Unit(**state)
    return host


def state_of(host: FakeHost) -> tuple[bool, str, bool]:
    unit = host.unit(TOY)
    return unit.active, unit.enabled, unit.masked


UNITS = st.fixed_dictionaries(
    {
        "active": st.booleans(),
        "enabled": st.sampled_from(["enabled", "disabled", "static", "indirect"]),
        "masked": st.booleans(),
    }
)


@given(before=UNITS)
async def test_any_unit_is_brought_up_and_back(before: dict[str, Any]) -> None:
    """From every state: running and not masked after it, the same after it again, and exactly as before after the undo."""
    host = toy_host(**before)
    former = state_of(host)
    captured = await ENSURE.capture(host, {"unit": TOY})
    for _ in range(2):
        await ENSURE.apply(host, {"unit": TOY})
        assert not by_others(captured, await ENSURE.capture(host, {"unit": TOY}))
        assert host.unit(TOY).active and not host.unit(TOY).masked
        assert host.unit(TOY).enabled != "disabled" or before["masked"] or before["active"]
    for _ in range(2):
        await ENSURE.undo(host, {"unit": TOY}, captured)
        assert state_of(host) == former


@pytest.mark.parametrize("change", [{"masked": True}, {"enabled": "disabled"}])
async def test_a_needed_unit_that_is_masked_or_disabled_was_so_by_others(change: dict[str, Any]) -> None:
    """`systemctl mask --now` of somebody, in the middle of the cure."""
    host = toy_host(active=False, enabled="enabled")
    captured = await ENSURE.capture(host, {"unit": TOY})
    host.units_table[TOY] = Unit(**{"active": False, "enabled": "enabled", **change})
    assert by_others(captured, await ENSURE.capture(host, {"unit": TOY}))


@given(before=UNITS)
async def test_an_undo_without_apply_changes_nothing(before: dict[str, Any]) -> None:
    host = toy_host(**before)
    former = state_of(host)
    for action in (ENSURE, RESTART):
        await action.undo(host, {"unit": TOY}, await action.capture(host, {"unit": TOY}))
    assert state_of(host) == former


@pytest.mark.parametrize("listening", [True, False])
async def test_a_socket_that_came_up_with_the_unit_goes_down_with_it(listening: bool) -> None:
    """Left listening, it would start the unit again behind the undo's back (seen with rsyslog on a booted host)."""
    host = toy_host(active=False, can_start=lambda: False, triggered_by=("toy.socket",))
    host.units_table["toy.socket"] = Unit(active=listening)
    captured = await ENSURE.capture(host, {"unit": TOY})
    with pytest.raises(StepFailed):
        await ENSURE.apply(host, {"unit": TOY})
    assert host.unit("toy.socket").active
    await ENSURE.undo(host, {"unit": TOY}, captured)
    assert (host.unit(TOY).active, host.unit("toy.socket").active) == (False, listening)


async def test_a_unit_that_is_up_is_left_alone() -> None:
    host = toy_host()
    await ENSURE.apply(host, {"unit": TOY})
    assert host.changed == []


@pytest.mark.parametrize("action", [ENSURE, RESTART])
async def test_a_unit_that_does_not_exist(action: Any) -> None:
    with pytest.raises(StepFailed):
        await action.apply(FakeHost(FakeClock()), {"unit": TOY})


@pytest.mark.parametrize("action", [ENSURE, RESTART])
async def test_a_unit_that_cannot_start(action: Any) -> None:
    with pytest.raises(StepFailed):
        await action.apply(toy_host(active=False, can_start=lambda: False), {"unit": TOY})


@pytest.mark.parametrize("action", [ENSURE, RESTART])
async def test_a_start_that_only_seemed_to_work(action: Any) -> None:
    """The service manager says yes and the unit is not up: found by looking, not believed."""
    host = toy_host(active=False, masked=action is RESTART)
    host.faults.change(f"unit:{TOY}", "lie")
    with pytest.raises(StepFailed):
        await action.apply(host, {"unit": TOY})


class ShortLived(FakeHost):
    """The unit's program ends while somebody waits: it was active for less than that."""

    async def pause(self, seconds: float) -> None:
        await super().pause(seconds)
        self.unit(TOY).active, self.unit(TOY).failed = False, True


@pytest.mark.parametrize("action", [ENSURE, RESTART])
async def test_a_unit_whose_program_ends_at_once_did_not_come_up(action: Any) -> None:
    """Right after the start it is active; a cure that believed this look was called one (seen on a booted host)."""
    host = ShortLived(FakeClock())
    host.units_table[TOY] = Unit(active=False)
    with pytest.raises(StepFailed) as caught:
        await action.apply(host, {"unit": TOY})
    assert caught.value.code == "unit_not_active"


@pytest.mark.parametrize("action", [ENSURE, RESTART])
@pytest.mark.parametrize(
    ("state", "waits"), [({"type": "notify"}, 0.0), ({"type": "dbus"}, 0.0), ({}, 1.0), ({"type": "forking"}, 1.0)]
)
async def test_a_unit_that_says_when_it_is_ready_is_believed_at_once(
    action: Any, state: dict[str, Any], waits: float
) -> None:
    host = toy_host(active=False, **state)
    began = host.clock.monotonic()
    await action.apply(host, {"unit": TOY})
    assert host.clock.monotonic() - began == waits


@pytest.mark.parametrize("action", [ENSURE, RESTART])
@pytest.mark.parametrize("told", ["one in a loop", "refused", "nothing"])
async def test_a_loop_of_crashes_is_not_believed_for_its_ready_word(action: Any, told: str) -> None:
    """Each round of the loop says that it is ready, then ends; nor is a unit believed of which the manager says nothing."""
    host = ShortLived(FakeClock())
    host.installed.update(systemctl.PROGRAMS)
    host.units_table[TOY] = Unit(active=False, type="notify", restarts=1 if told == "one in a loop" else 0)
    if told == "refused":
        host.faults.blind("program:systemctl", "timed_out")
    if told == "nothing":
        host.installed["systemctl"] = lambda _: Ran(0, b"", b"")
    with pytest.raises(StepFailed) as caught:
        await action.apply(host, {"unit": TOY})
    assert caught.value.code == "unit_not_active"


@pytest.mark.parametrize("action", [ENSURE, RESTART])
async def test_no_capture_without_a_look(action: Any) -> None:
    host = toy_host()
    host.faults.blind(f"unit:{TOY}", "not_permitted")
    with pytest.raises(CannotTell):
        await action.capture(host, {"unit": TOY})


@pytest.mark.parametrize("active", [True, False])
async def test_restart_runs_it_afresh_and_is_undone(active: bool) -> None:
    starts: list[int] = []
    host = toy_host(active=active, started=lambda: starts.append(1))
    captured = await RESTART.capture(host, {"unit": TOY})
    await RESTART.apply(host, {"unit": TOY})
    assert (host.unit(TOY).active, len(starts)) == (True, 1)
    await RESTART.undo(host, {"unit": TOY}, captured)
    assert host.unit(TOY).active is active


async def test_the_clock_is_stepped_once_and_not_back() -> None:
    host = healthy_host()
    host.skew_s = 90.0
    captured = await STEP.capture(host, {})
    await STEP.apply(host, {})
    await STEP.undo(host, {}, captured)
    assert host.skew_s == 0.0


async def test_a_refused_step_is_a_failure_with_its_status() -> None:
    host = healthy_host()
    host.unit(chrony.UNIT).active = False
    with pytest.raises(StepFailed) as failure:
        await STEP.apply(host, {})
    assert (failure.value.code, failure.value.exit_status_of_step) == ("step_refused", 1)


class Settling(FakeHost):
    """A host on which something happens after a while."""

    after_s = 0.0

    def settled(self) -> None: ...

    async def pause(self, seconds: float) -> None:
        await super().pause(seconds)
        if self.clock.monotonic() >= 1000.0 + self.after_s:
            self.settled()


class FindsSource(Settling):
    after_s = 8.0

    def settled(self) -> None:
        self.part(chrony.TimeSource).reachable = True


class LoadsSignatures(Settling):
    after_s = 35.0

    def settled(self) -> None:
        self.sockets[clamav.SOCKET] = clamav.clamd


async def test_the_clock_daemon_gets_time_to_find_a_source() -> None:
    host = FindsSource(FakeClock())
    chrony.provide(host)
    host.part(chrony.TimeSource).reachable = False
    await AWAIT_CLOCK.apply(host, {"daemon": "chrony"})
    assert 1008.0 <= host.clock.monotonic() <= 1010.0
    assert host.changed == []


@pytest.mark.parametrize("daemon", ["chrony", "timesyncd"])
async def test_a_clock_daemon_that_finds_none_fails_in_bounded_time(daemon: str) -> None:
    host = healthy_host()
    host.units_table[chrony.TIMESYNCD] = Unit()
    host.part(chrony.TimeSource).reachable = False
    with pytest.raises(StepFailed, match="no source"):
        await AWAIT_CLOCK.apply(host, {"daemon": daemon})
    assert host.clock.monotonic() - 1000.0 < AWAIT_CLOCK.deadline_s


async def test_the_scanner_gets_time_to_load() -> None:
    host = LoadsSignatures(FakeClock())
    clamav.provide(host)
    host.install("date", "env")
    del host.sockets[clamav.SOCKET]
    await AWAIT_SCANNER.apply(host, SCANNER)
    assert 1035.0 <= host.clock.monotonic() <= 1038.0


async def test_a_scanner_with_old_signatures_is_not_ready() -> None:
    host = healthy_host()
    host.part(clamav.Signatures).built_at = host.now() - timedelta(days=9)
    with pytest.raises(StepFailed, match="recent"):
        await AWAIT_SCANNER.apply(host, SCANNER)
    assert host.clock.monotonic() - 1000.0 < AWAIT_SCANNER.deadline_s
    await AWAIT_SCANNER.apply(host, {**SCANNER, "max_age_h": 0})


async def test_a_scanner_that_ended_is_not_waited_for() -> None:
    """Over a damaged database it comes up, reads for a moment and ends (seen on a booted host)."""
    host = healthy_host()
    del host.sockets[clamav.SOCKET]
    host.unit(clamav.UNIT).active, host.unit(clamav.UNIT).failed = False, True
    with pytest.raises(StepFailed) as refused:
        await AWAIT_SCANNER.apply(host, SCANNER)
    assert refused.value.code == "scanner_ended"
    assert host.clock.monotonic() == 1000.0


@pytest.mark.parametrize(
    ("action", "args", "target"),
    [(AWAIT_SCANNER, SCANNER, f"socket:{clamav.SOCKET}"), (AWAIT_CLOCK, {"daemon": "chrony"}, "program:chronyc")],
)
async def test_waiting_for_what_may_not_be_seen_ends_at_once(action: Any, args: Args, target: str) -> None:
    host = healthy_host()
    host.faults.blind(target, "not_permitted")
    with pytest.raises(CannotTell):
        await action.apply(host, args)
    assert host.clock.monotonic() == 1000.0
