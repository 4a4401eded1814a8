"""What users would notice waits for people's approval, as root's own file has it; the agent's word is worth nothing there."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from compliance_agent.heal import rows
from compliance_agent.heal.approvals import CURE_LASTS, MOST_BOUND, Approvals, text
from compliance_agent.heal.machine import Machine
from compliance_agent.heal.trouble import Failed
from tests.heal.scene import APPROVALS, BOUND, CURE, KEY, NOW, Scene

UPGRADE: dict[str, Any] = {"manager": "apt", "packages": ["a=1"]}
OTHER, LATER = "another-cure", timedelta(seconds=1)
Asked = tuple[str, dict[str, Any]]
# Every question that users would notice, with whose cure it is and its target where the question shows one.
NOTICED: dict[str, tuple[Asked, str, str]] = {
    "upgrade": (("upgrade", UPGRADE), "patching", "updates_0f_1"),
    "finish": (("finish", {}), "patching", "half_installed_1"),
    "clock": (("clock", {}), "time_sync", "steps-1"),
    "account": (("account", {"verb": "lock", "name": "guest"}), "accounts", "steps-2"),
    "unit": (("unit", {"verb": "stop", "unit": "away.service"}), "services", "steps-3"),
    "system": (("system", {"generation": 8}), "patching", "generation_8"),
}


@pytest.fixture(autouse=True)
def _machine(scene: Scene) -> None:
    scene.unit("away.service")
    scene.unit("need.service")
    scene.put("/etc/shadow", b"guest::1:0:9:7:::\n", 0o600)
    scene.put(KEY, b"x", 0o600)
    scene.put("/generation", b"7\n")
    scene.put("/running", b"/nix/store/" + b"a" * 32 + b"-nixos\n")


def ask(scene: Scene, name: str) -> str:
    (kind, args), _, _ = NOTICED[name]
    answer = scene.ask(kind, **args)
    return answer[0] if answer[0] == "done" else str(answer[1]["code"])


@pytest.mark.parametrize("name", NOTICED)
def test_the_agents_word_alone_is_refused_and_an_approval_is_not(scene: Scene, name: str) -> None:
    """Without root's file nobody is waited for; with it, and nothing in it, nothing is done."""
    (kind, args), check, target = NOTICED[name]
    scene.approve()
    scene.refuses(kind, "approval_missing", **args)
    scene.approve({"check": check, "target": target})
    scene.does(kind, **args)
    assert [item["cure"] for item in bound(scene)] == [CURE]


@pytest.mark.parametrize("name", NOTICED)
def test_where_root_has_no_such_file_nobody_is_waited_for(scene: Scene, name: str) -> None:
    assert ask(scene, name) == "done"
    assert not scene.path(BOUND).exists()


def test_what_users_do_not_notice_waits_for_nobody(scene: Scene) -> None:
    scene.approve()
    for verb, unit in (("restart", "need.service"), ("mask", "away.service")):
        scene.does("unit", verb=verb, unit=unit)
    scene.unit("away.service", active="inactive")
    scene.does("unit", verb="stop", unit="away.service")
    scene.does("chmod", path=KEY, mode=0o640)
    scene.does("refresh", manager="apt")


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "of another check": ({"check": "time_sync"}, "approval_missing"),
    "under another baseline": ({"baseline": "ab" * 32}, "approval_missing"),
    "over": ({"until": text(NOW)}, "approval_expired"),
    "not begun": ({"since": text(NOW + LATER)}, "approval_expired"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_an_approval_of_something_else_is_none(scene: Scene, name: str) -> None:
    changes, code = FAULTS[name]
    scene.approve(changes)
    scene.refuses("upgrade", code, **UPGRADE)
    scene.approve(changes, {})
    scene.does("upgrade", **UPGRADE)
    assert [item["number"] for item in bound(scene)] == [2]


def test_an_approved_generation_is_the_one_that_is_selected_and_run(scene: Scene) -> None:
    scene.approve({"target": "generation_9"})
    scene.refuses("system", "approval_missing", generation=8)
    scene.does("system", generation=9)
    scene.refuses("system", "approval_missing", generation=10)


def test_it_is_for_one_cure(scene: Scene) -> None:
    scene.approve({})
    scene.does("upgrade", **UPGRADE)
    scene.does("upgrade", **UPGRADE)
    scene.refuses("upgrade", "approval_used", cure=OTHER, **UPGRADE)
    scene.approve({}, {"target": "updates_1f_1"})
    scene.does("upgrade", cure=OTHER, **UPGRADE)
    assert [item["number"] for item in bound(scene)] == [1, 2]


def test_a_cure_that_holds_one_has_four_hours_however_long_it_was_given_for(scene: Scene) -> None:
    scene.approve({"until": text(NOW + LATER)})
    scene.does("upgrade", **UPGRADE)
    scene.now = NOW + CURE_LASTS - LATER
    scene.does("upgrade", **UPGRADE)
    scene.now = NOW + CURE_LASTS
    scene.refuses("upgrade", "approval_expired", **UPGRADE)


@pytest.mark.parametrize("lost", ["time", "file"])
def test_what_was_begun_can_be_ended_and_taken_back_whatever_becomes_of_it(scene: Scene, lost: str) -> None:
    """Days later, or with root's file damaged: forwards is refused, and the way back is open."""
    scene.approve({"target": "generation_8"}, {"check": "accounts"}, {"check": "services"})
    scene.does("system", generation=8)
    scene.does("account", verb="lock", name="guest")
    scene.does("unit", verb="stop", unit="away.service")
    if lost == "time":
        scene.now = NOW + timedelta(days=30)
        scene.refuses("upgrade", "approval_expired", **UPGRADE)
    else:
        scene.put(APPROVALS, b"{}")
        scene.refuses("upgrade", "bad_approvals", **UPGRADE)
    scene.does("finish")
    scene.does("system", generation=7)
    scene.does("activate", system=rows.PROFILE, how="switch")
    scene.does("account", verb="unlock", name="guest")
    scene.does("unit", verb="start", unit="away.service")


def test_a_way_back_that_was_not_begun_is_no_way_round(scene: Scene) -> None:
    """The selected generation, and `finish`, look like ways back in every cure; without an approval they are refused."""
    scene.approve()
    for kind, args in (
        ("system", {"generation": 7}), ("activate", {"system": rows.PROFILE, "how": "switch"}), ("finish", {}),
    ):  # fmt: skip
        scene.refuses(kind, "approval_missing", **args)


@pytest.mark.parametrize("raw", [b"", b"{}", b'{"schema": "compliance-agent/approvals/v1", "given": [{}]}'])
def test_a_file_of_another_form_approves_nothing(scene: Scene, raw: bytes) -> None:
    scene.put(APPROVALS, raw)
    scene.refuses("clock", "bad_approvals")


def test_a_file_that_others_may_write_approves_nothing(scene: Scene) -> None:
    scene.approve({"check": "time_sync"})
    scene.path(APPROVALS).chmod(0o666)
    scene.refuses("clock", "approvals_not_roots")


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_what_was_used_cannot_be_told_so_nothing_is_done(scene: Scene, mode: int) -> None:
    scene.approve({"check": "time_sync"})
    scene.put(BOUND, b'{"bound": [1]}' if mode == 0o600 else b'{"bound": []}', mode)
    scene.refuses("clock", "state_damaged")


class Cut(BaseException):
    """The power went."""


@pytest.mark.parametrize("where", ["before it is bound", "between bind and act", "after the act"])
def test_a_power_cut_never_makes_two_uses_of_one(scene: Scene, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """Bound is bound: this cure may go on, and no other one begins with it."""
    scene.approve({})
    owner, name = (Machine, "write") if where == "before it is bound" else (Machine, "run_apart")
    good = getattr(owner, name)

    def cut(*args: Any, **kwargs: Any) -> Any:
        if where == "after the act":
            good(*args, **kwargs)
        raise Cut

    with monkeypatch.context() as patch, pytest.raises(Cut):
        patch.setattr(owner, name, cut)
        scene.ask("upgrade", **UPGRADE)
    if where == "before it is bound":
        assert scene.calls() == []
        scene.does("upgrade", cure=OTHER, **UPGRADE)
        return
    scene.refuses("upgrade", "approval_used", cure=OTHER, **UPGRADE)
    scene.does("upgrade", **UPGRADE)


def test_a_disk_that_is_full_holds_it_back(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.approve({"check": "time_sync"})

    def full(*_: Any) -> None:
        raise Failed("storage_full")

    with monkeypatch.context() as patch:
        patch.setattr(Machine, "write", full)
        scene.fails("clock", "storage_full")
    assert scene.calls() == []
    scene.does("clock")


def test_the_list_of_used_ones_does_not_grow_for_ever(scene: Scene) -> None:
    for number in range(1, MOST_BOUND + 3):
        scene.approve({"check": "time_sync", "number": number})
        scene.does("clock", cure=f"cure-{number}")
    assert [item["number"] for item in bound(scene)] == list(range(3, MOST_BOUND + 3))
    scene.refuses("clock", "approval_used", cure=OTHER)


def bound(scene: Scene) -> list[dict[str, Any]]:
    return list(json.loads(scene.path(BOUND).read_bytes())["bound"])


# The tests see it


def used_twice(scene: Scene) -> bool:
    scene.approve({})
    scene.does("upgrade", **UPGRADE)
    return scene.ask("upgrade", cure=OTHER, **UPGRADE)[0] == "done"


def by_word_alone(scene: Scene) -> bool:
    scene.approve()
    return scene.ask("upgrade", **UPGRADE)[0] == "done"


def of_another_check(scene: Scene) -> bool:
    scene.approve({"check": "time_sync"})
    return scene.ask("upgrade", **UPGRADE)[0] == "done"


def keeps_nothing(self: Machine, path: str, *rest: Any) -> None:
    if path != BOUND:
        good_write(self, path, *rest)


good_write = Machine.write
PLANTED: dict[str, tuple[Callable[[Scene], bool], Any, str, Any]] = {
    "what was used is not kept": (used_twice, Machine, "write", keeps_nothing),
    "nobody is asked": (by_word_alone, Approvals, "use", lambda *_, **__: None),
    "a row is forgotten": (by_word_alone, rows, "DISTURBS", {}),
    "whose cure it is": (of_another_check, rows, "DISTURBS", {"upgrade": lambda work: ("time_sync", {}, False)}),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_wall_that_is_gone_would_be_seen(scene: Scene, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    attack, owner, what, fault = PLANTED[name]
    assert not attack(scene)
    scene.path(BOUND).unlink(missing_ok=True)
    monkeypatch.setattr(owner, what, fault)
    assert attack(scene)
