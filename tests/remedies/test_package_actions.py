"""Refreshing lists, installing security updates and switching generations: bounded, loud, and never backwards."""

from __future__ import annotations

import json
from typing import Any

import pytest

from compliance_agent.errors import StepFailed
from compliance_agent.lab.clinic import healthy_host
from compliance_agent.lab.clock import FakeClock
from compliance_agent.lab.host import Call, FakeHost
from compliance_agent.lab.programs import apt, dnf, nixos
from compliance_agent.ports import Ran
from compliance_agent.remedies import actions
from tests.checks.drifts import nixos_host

REFRESH, INSTALL, SWITCH = (
    actions()[name] for name in ("refresh_package_lists", "apply_security_updates", "switch_generation")
)
APT = {"manager": "apt"}
DNF = {"manager": "dnf"}


def host_with_updates() -> FakeHost:
    host = healthy_host()
    apt.offer(host, "libssl3", "3.0.18-1~deb12u1")
    apt.offer(host, "restic", "0.14.0-1+b6", security=False)
    return host


async def code_of(work: Any) -> str:
    with pytest.raises(StepFailed) as caught:
        await work
    return caught.value.code


# -- refresh


async def test_a_refresh_that_failed_leaves_no_stamp() -> None:
    host = healthy_host()
    host.delete(apt.STAMP)
    host.part(apt.Packages).mirror_reachable = False
    assert await code_of(REFRESH.apply(host, APT)) == "refresh_failed"
    assert apt.STAMP not in host.files


async def test_every_source_must_answer() -> None:
    """Without it apt ends with 0 when some lists could not be fetched."""
    given: list[tuple[str, ...]] = []
    host = healthy_host()

    def apt_get(call: Call) -> Ran:
        given.append(call.argv)
        return apt.apt_get(call)

    host.installed["apt-get"] = apt_get
    await REFRESH.apply(host, APT)
    assert "APT::Update::Error-Mode=any" in given[0]


# -- install


async def test_installs_what_is_for_security_and_nothing_else() -> None:
    host = host_with_updates()
    await INSTALL.apply(host, APT)
    installed = host.part(apt.Packages).installed
    assert installed["libssl3"] == "3.0.18-1~deb12u1"
    assert installed["restic"] == "0.14.0-1+b5"


async def test_nothing_waiting_runs_nothing() -> None:
    host = healthy_host()
    await INSTALL.apply(host, APT)
    assert host.changed == []


async def test_asks_no_questions_and_keeps_changed_files() -> None:
    given: list[Call] = []
    host = host_with_updates()

    def apt_get(call: Call) -> Ran:
        given.append(call)
        return apt.apt_get(call)

    host.installed["apt-get"] = apt_get
    await INSTALL.apply(host, APT)
    assert given[0].env == {"DEBIAN_FRONTEND": "noninteractive"}
    assert {"-y", "--only-upgrade", "--no-remove"} <= set(given[0].argv)
    assert "Dpkg::Options::=--force-confold" in given[0].argv


async def test_a_package_that_cannot_be_installed() -> None:
    host = host_with_updates()
    host.part(apt.Packages).mirror_reachable = False
    captured = json.loads(json.dumps(await INSTALL.capture(host, APT)))
    assert await code_of(INSTALL.apply(host, APT)) == "install_failed"
    await INSTALL.undo(host, APT, captured)  # nothing was installed, so nothing is there to take back


async def test_a_package_that_is_unpacked_and_cannot_be_set_up_is_not_the_former_state() -> None:
    host = host_with_updates()
    packages = host.part(apt.Packages)
    packages.broken.add("libssl3")
    captured = json.loads(json.dumps(await INSTALL.capture(host, APT)))
    assert await code_of(INSTALL.apply(host, APT)) == "install_failed"
    assert await code_of(INSTALL.undo(host, APT, captured)) == "not_reversible"
    again = json.loads(json.dumps(await INSTALL.capture(host, APT)))
    assert await code_of(INSTALL.apply(host, APT)) == "configure_failed"
    await INSTALL.undo(host, APT, again)  # it was like this before
    packages.broken.clear()
    await INSTALL.apply(host, APT)
    assert packages.unpacked == set(), "what an earlier run left is set up, though nothing more is offered"
    assert await code_of(INSTALL.undo(host, APT, again)) == "not_reversible"


async def test_what_was_installed_is_not_taken_back_and_that_is_said() -> None:
    host = host_with_updates()
    captured = json.loads(json.dumps(await INSTALL.capture(host, APT)))
    await INSTALL.apply(host, APT)
    assert await code_of(INSTALL.undo(host, APT, captured)) == "not_reversible"
    assert host.part(apt.Packages).installed["libssl3"] == "3.0.18-1~deb12u1"
    assert INSTALL.undo_is_empty


async def test_another_package_manager_at_work_is_seen_and_waited_for() -> None:
    host = host_with_updates()
    assert REFRESH.blocked is not None and INSTALL.blocked is not None
    assert await INSTALL.blocked(host, APT) is None
    apt.lock(host, 4711)
    assert await INSTALL.blocked(host, APT) == await REFRESH.blocked(host, APT) == "package_manager_busy"
    assert await code_of(REFRESH.apply(host, APT)) == "package_manager_busy"
    assert host.changed == ["program:apt-get"]


@pytest.mark.parametrize("manager", ["pacman", "", "apt; reboot", True])
async def test_other_managers_are_refused_before_anything_runs(manager: Any) -> None:
    host = healthy_host()
    for action in (REFRESH, INSTALL):
        assert await code_of(action.capture(host, {"manager": manager})) == "bad_arguments"
        assert await code_of(action.apply(host, {"manager": manager})) == "bad_arguments"
    assert host.changed == []


def dnf_host() -> FakeHost:
    host = FakeHost(FakeClock())
    dnf.provide(host)
    dnf.publish(host, dnf.Advisory("RHSA-2026:1001", "Important", "openssl-1:3.0.7-25.el9_3.x86_64"))
    return host


async def test_dnf_upgrades_security_only() -> None:
    given: list[tuple[str, ...]] = []
    host = dnf_host()

    def recorded(call: Call) -> Ran:
        given.append(call.argv)
        return dnf.dnf(call)

    host.installed["dnf"] = recorded
    for action in (REFRESH, INSTALL):
        await action.apply(host, DNF)
    assert [argv[-2:] for argv in given] == [("makecache", "--refresh"), ("upgrade", "--security")]
    assert all("--setopt=*.skip_if_unavailable=0" in argv for argv in given), "every source must answer"


async def test_dnf_updates_are_the_former_state_until_one_is_installed() -> None:
    host = dnf_host()
    captured = json.loads(json.dumps(await INSTALL.capture(host, DNF)))
    assert captured["waiting"] == ["RHSA-2026:1001=openssl-1:3.0.7-25.el9_3.x86_64"]
    host.part(dnf.Advisories).mirror_reachable = False
    assert await code_of(INSTALL.apply(host, DNF)) == "install_failed"
    await INSTALL.undo(host, DNF, captured)
    host.part(dnf.Advisories).mirror_reachable = True
    await INSTALL.apply(host, DNF)
    assert await code_of(INSTALL.undo(host, DNF, captured)) == "not_reversible"


async def test_another_dnf_at_work_is_seen_and_one_that_ended_is_not() -> None:
    host = dnf_host()
    assert REFRESH.blocked is not None and await REFRESH.blocked(host, DNF) is None
    dnf.lock(host, 4711)
    assert await REFRESH.blocked(host, DNF) == "package_manager_busy"
    assert await code_of(REFRESH.apply(host, DNF)) == "package_manager_busy"
    host.delete("/proc/4711/stat")
    assert await REFRESH.blocked(host, DNF) is None
    host.put(dnf.CACHE + "/metadata_lock.pid", "half writ")
    assert await REFRESH.blocked(host, DNF) == "package_manager_busy", "what cannot be read may be held"


# -- generations


def state_of(host: FakeHost) -> tuple[int, int]:
    known = host.part(nixos.Generations)
    return known.selected, known.running


async def test_never_switches_backwards() -> None:
    host = nixos_host()
    assert await code_of(SWITCH.apply(host, {"generation": 41})) == "would_go_backwards"
    assert (state_of(host), host.changed) == ((42, 42), [])


@pytest.mark.parametrize(("selected", "running"), [(39, 39), (40, 39), (42, 41), (42, 42)])
async def test_any_state_is_brought_forward_and_back(selected: int, running: int) -> None:
    host = nixos_host()
    known = host.part(nixos.Generations)
    known.selected, known.running = selected, running
    nixos.show(host)
    captured = json.loads(json.dumps(await SWITCH.capture(host, {"generation": 42})))
    assert captured["generation"] == selected
    for _ in range(2):
        await SWITCH.apply(host, {"generation": 42})
        assert state_of(host) == (42, 42)
    for _ in range(2):
        await SWITCH.undo(host, {"generation": 42}, captured)
        assert state_of(host) == (selected, running)
        assert await SWITCH.capture(host, {"generation": 42}) == captured


async def test_an_activation_that_fails() -> None:
    host = nixos_host()
    known = host.part(nixos.Generations)
    known.selected = known.running = 40
    known.activation_fails = True
    nixos.show(host)
    captured = await SWITCH.capture(host, {"generation": 42})
    assert await code_of(SWITCH.apply(host, {"generation": 42})) == "activation_failed"
    known.activation_fails = False
    await SWITCH.undo(host, {"generation": 42}, captured)
    assert state_of(host) == (40, 40)


async def test_a_generation_that_is_not_there() -> None:
    host = nixos_host()
    assert await code_of(SWITCH.apply(host, {"generation": 99})) == "switch_failed"
    assert state_of(host) == (42, 42)
