"""patching: apt, dnf and NixOS hosts in memory, and what keeps each from passing."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from compliance_agent.checks import patching, registry
from compliance_agent.core import packages
from compliance_agent.errors import CannotTell
from compliance_agent.lab.clinic import healthy_host
from compliance_agent.lab.clock import FakeClock
from compliance_agent.lab.host import Call, FakeHost, Node, said
from compliance_agent.lab.programs import apt, nixos
from compliance_agent.models import DriftResult, Result
from compliance_agent.remedies.apply_security_updates import APT_INSTALL
from tests.checks import contract
from tests.checks.drifts import NIXOS, nixos_host


async def look(host: FakeHost, **parameters: Any) -> DriftResult:
    return await contract.seen_by(registry()["patching"], host, **parameters)


async def test_counts_and_never_names_what_waits() -> None:
    host = healthy_host()
    apt.offer(host, "libssl3", "3.0.18-1~deb12u1")
    apt.offer(host, "bash", "5.2.15-2+b9", security=False)
    seen = await look(host)
    assert (seen.reason, seen.pre_state["security_pending"], seen.pre_state["other_pending"]) == (
        "security_pending",
        1,
        1,
    )
    assert "libssl3" not in repr(seen.pre_state)
    assert seen.plan is not None and [step.args for step in seen.plan.steps] == [{"manager": "apt"}] * 2


async def test_an_update_that_was_unpacked_and_not_set_up_is_not_fine() -> None:
    """apt offers nothing more for it, so its list alone would say that all is well; seen on a booted Debian."""
    host = healthy_host()
    apt.offer(host, "libssl3", "3.0.18-1~deb12u1")
    host.part(apt.Packages).broken.add("libssl3")
    await host.change((*APT_INSTALL, "libssl3"), timeout_s=9)
    seen = await look(host)
    assert (seen.reason, seen.pre_state["security_pending"], seen.pre_state["half_installed"]) == (
        "half_installed",
        0,
        1,
    )
    assert seen.plan is not None and seen.plan.steps[-1].action == "apply_security_updates"


@pytest.mark.parametrize(
    ("states", "half"),
    [
        ("ii \n", 0), ("ii \nrc \n", 0), ("hi \n", 0), ("iF \nii \n", 1), ("iU \niHR\niW \nit \nii \n", 4), ("iiR\n", 1),
        ("", None), ("\n", None), ("ii\n", None), ("iX \n", None), ("dpkg-query: error\n", None), ("ii \n\nii \n", None),
    ],
)  # fmt: skip
def test_the_states_of_packages_are_counted_or_cannot_be_told(states: str, half: int | None) -> None:
    info = ["a.list", "a.md5sums"]
    if half is None:
        with pytest.raises(CannotTell):
            packages.read_half_installed(states, info)
    else:
        assert packages.read_half_installed(states, info) == half


@pytest.mark.parametrize("info", [(), ("a.md5sums",), ("a.list", "b.list", "c.list")])
def test_an_answer_with_fewer_packages_than_the_host_has_is_none(info: tuple[str, ...]) -> None:
    with pytest.raises(CannotTell):
        packages.read_half_installed("ii \nii \n", info)


async def test_another_set_of_updates_is_another_target() -> None:
    """What was rolled back is not tried again; a set with one update more is a new try."""
    host = healthy_host()
    apt.offer(host, "libssl3", "3.0.18-1~deb12u1")
    first = (await look(host)).plan
    assert (await look(host)).plan == first
    apt.offer(host, "bash", "5.2.15-2+b9")
    second = (await look(host)).plan
    assert first is not None and second is not None and first.target != second.target


async def test_updates_that_are_not_for_security_are_no_drift() -> None:
    host = healthy_host()
    apt.offer(host, "bash", "5.2.15-2+b9", security=False)
    assert (await look(host)).result is Result.PASS


async def test_without_a_security_source_nothing_passes() -> None:
    host = healthy_host()
    host.delete(f"{apt.LISTS}/{apt.RELEASES[2][0]}")
    seen = await look(host)
    assert (seen.result, seen.reason, seen.plan) == (Result.FAIL, "no_security_source", None)


async def test_a_list_is_as_old_as_its_maker_says() -> None:
    """A fresh modification time says only when the file came; a full refresh of ours says that there is nothing newer."""
    host = healthy_host()
    apt.write_lists(host, host.now() - timedelta(days=3))
    host.files[f"{apt.LISTS}/{apt.RELEASES[2][0]}"].modified_at = host.now()
    host.delete(apt.STAMP)
    assert (await look(host)).reason == "lists_stale"
    host.put(apt.STAMP, age_s=3_600)
    seen = await look(host)
    assert (seen.result, seen.pre_state["lists_age_h"]) == (Result.PASS, 1)


async def test_no_refresh_makes_an_expired_list_good() -> None:
    host = healthy_host()
    apt.write_lists(host, host.now() - timedelta(days=8))
    host.put(apt.STAMP)
    assert (await look(host)).reason == "lists_stale"


async def test_dates_in_the_future_say_nothing() -> None:
    host = healthy_host()
    apt.write_lists(host, host.now() + timedelta(days=30))
    host.delete(apt.STAMP)
    assert (await look(host)).reason == "lists_age_unknown"
    host.put(apt.STAMP, age_s=-86_400)
    assert (await look(host)).reason == "lists_age_unknown"


@pytest.mark.parametrize(("hours", "reason"), [(5, "as_expected"), (168, "as_expected"), (169.5, "reboot_overdue")])
async def test_a_restart_has_its_time(hours: float, reason: str) -> None:
    host = healthy_host()
    host.put("/run/reboot-required", age_s=hours * 3_600)
    seen = await look(host)
    assert (seen.reason, seen.pre_state["reboot_needed"]) == (reason, True)
    assert seen.plan is None


async def test_a_newer_kernel_asks_for_a_restart_by_itself() -> None:
    host = healthy_host()
    installed_at = host.now() - timedelta(days=20)
    host.place("/lib/modules/6.1.0-42-amd64", Node("directory", modified_at=installed_at))
    assert (await look(host)).reason == "reboot_overdue"
    assert (await look(host, reboot_grace_h=30 * 24)).result is Result.PASS


async def test_a_kernel_that_is_not_installed_cannot_be_judged() -> None:
    host = healthy_host()
    host.put("/proc/sys/kernel/osrelease", "6.18.44-other\n")
    assert (await look(host)).reason == "kernel_unknown"
    host.delete("/lib/modules")
    assert (await look(host)).result is Result.PASS, "a container's kernel is the machine's business"


# -- dnf


def dnf_host(advisories: str = "", *, age_h: float = 5, updateinfo: bool = True) -> FakeHost:
    host = FakeHost(FakeClock())
    data = '<repomd><data type="updateinfo"/></repomd>' if updateinfo else '<repomd><data type="primary"/></repomd>'
    host.put("/var/cache/dnf/baseos-0123456789abcdef/repodata/repomd.xml", data, age_s=age_h * 3_600)
    host.put("/var/cache/dnf/expired_repos.json", "[]")
    host.put("/proc/sys/kernel/osrelease", "5.14.0-503.el9.x86_64\n")

    def dnf(call: Call) -> Any:
        assert call.argv[1:3] == ("-q", "-C"), "a look must not fetch anything"
        return said(advisories)

    host.installed["dnf"] = dnf
    return host


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        (dnf_host(), "as_expected"),
        (dnf_host("RHSA-2026:1001 Important/Sec. openssl-1:3.0.7-25.el9_3.x86_64\n"), "security_pending"),
        (dnf_host(age_h=60), "lists_stale"),
        (dnf_host(updateinfo=False), "no_security_source"),
        (dnf_host("Error: no cache\n"), "unparsable"),
    ],
)
async def test_dnf(host: FakeHost, reason: str) -> None:
    assert (await look(host, manager="dnf")).reason == reason


async def test_dnf_dates_one_file_where_a_look_found_no_news() -> None:
    host = dnf_host(age_h=400)
    assert (await look(host, manager="dnf")).reason == "lists_stale"
    host.put("/var/cache/dnf/baseos-0123456789abcdef/repodata/0f-primary.xml.gz", "", age_s=3_600)
    seen = await look(host, manager="dnf")
    assert (seen.reason, seen.pre_state["lists_age_h"]) == ("as_expected", 1)


async def test_dnf_that_fails_is_unknown() -> None:
    host = dnf_host()
    host.faults.exits("program:dnf", 1)
    assert (await look(host, manager="dnf")).result is Result.UNKNOWN


# -- NixOS


async def test_a_newer_generation_is_no_drift_and_is_never_left() -> None:
    seen = await look(nixos_host(), **NIXOS)
    assert (seen.result, seen.pre_state["generation"], seen.plan) == (Result.PASS, 42, None)


async def test_a_generation_that_is_not_on_the_host_cannot_be_selected() -> None:
    seen = await look(nixos_host(), manager="nixos", min_generation=50)
    assert (seen.reason, seen.plan) == ("generation_behind", None)


async def test_an_old_package_collection_is_for_a_person() -> None:
    seen = await look(nixos_host(), manager="nixos", max_nixpkgs_age_d=2)
    assert (seen.reason, seen.plan) == ("nixpkgs_old", None)


async def test_a_restart_that_is_due_is_said() -> None:
    host = nixos_host()
    host.part(nixos.Generations).booted = 41
    nixos.show(host)
    seen = await look(host, **NIXOS)
    assert (seen.result, seen.pre_state["reboot_needed"]) == (Result.PASS, True)


@pytest.mark.parametrize("target", ["program:nixos-version", "program:readlink", f"list:{nixos.PROFILES}"])
@pytest.mark.parametrize("reason", ["tool_missing", "not_permitted", "timed_out"])
async def test_what_cannot_be_asked_of_nixos_is_unknown(target: str, reason: str) -> None:
    host = nixos_host()
    host.faults.blind(target, reason)
    assert (await look(host, **NIXOS)).result is Result.UNKNOWN


@pytest.mark.parametrize(
    "wrong",
    [
        {"manager": "pacman"},
        {"max_lists_age_h": 0},
        {"reboot_grace_h": -1},
        {"max_nixpkgs_age_d": 0},
        {"min_generation": 3},
        {"manager": "nixos", "min_generation": 0},
    ],
)
def test_parameters_that_make_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"manager|max_|min_|reboot_"):
        patching.Parameters(**{"manager": "apt", **wrong})
