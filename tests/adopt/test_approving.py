"""Root notes what people approved, and nothing else, whatever `run` brings; the file that `heal` reads is its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from compliance_agent import permits
from compliance_agent.adopt import orders
from compliance_agent.adopt.forms import unless
from compliance_agent.heal import approvals
from tests import order_roots
from tests.adopt.scene import APPROVALS, PERMITS, STATE, Cut, Scene
from tests.adopt.test_taking import AHEAD, PAST, later
from tests.order_keys import ANNA, MALLORY
from tests.order_roots import CARA


@pytest.fixture(autouse=True)
def _waits(scene: Scene) -> None:
    scene.put(APPROVALS, permits.APPROVALS)


def single(scene: Scene) -> str:
    scene.keys = order_roots.keys(thresholds={"approve": 3})
    return scene.note(scene.approval())


def listed_by_one(scene: Scene) -> str:
    scene.keys = order_roots.keys((CARA,))
    return scene.note(scene.approval())


FAULTS: dict[str, tuple[Callable[[Scene], str], str]] = {
    "one signer": (lambda s: s.note(s.approval(by=[ANNA])), "too_few_signers"),
    "fewer than the list wants": (single, "too_few_signers"),
    "a stranger signs": (lambda s: s.note(s.approval(by=[ANNA, MALLORY])), "unknown_signer"),
    "a list that one holder signed": (listed_by_one, "trust_threshold"),
    "for another host": (lambda s: s.note(s.approval(host="ba" * 32)), "other_host"),
    "of another site": (lambda s: s.note(s.approval(site="clinic-2")), "other_host"),
    "under another baseline": (lambda s: s.note(s.approval(baseline_sha256="ab" * 32)), "other_baseline"),
    "expired": (lambda s: s.note(s.approval(**later(PAST))), "order_expired"),
    "to begin later": (lambda s: s.note(s.approval(**later(AHEAD))), "not_yet"),
    "a nonce of another host": (lambda s: s.note(s.approval(nonce="ab" * 16)), "wrong_nonce"),
    "an order for a baseline": (lambda s: s.note(s.signed()), "order_unreadable"),
    "a check that is none": (lambda s: s.note(s.approval("x").replace(b"{", b"[", 1)), "order_unreadable"),
}  # fmt: skip


def test_it_is_noted_once_with_its_number(scene: Scene) -> None:
    raw = scene.approval()
    assert (scene.note(raw), scene.note(raw)) == ("noted", "noted")  # an answer that was lost is given again
    [noted] = scene.given()
    assert (noted["check"], noted["target"], noted["number"]) == ("patching", "updates_0f_1", 1)
    assert noted["baseline"] == json.loads(scene.path(PERMITS).read_bytes())["baseline"]
    lasts = datetime.fromisoformat(noted["until"]) - datetime.fromisoformat(noted["since"])
    assert lasts == timedelta(days=7, hours=1)
    assert scene.note(scene.approval(counter=1)) == "replayed"
    assert scene.path(APPROVALS).stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("name", FAULTS)
def test_anything_else_is_refused_and_uses_up_nothing(scene: Scene, name: str) -> None:
    fault, code = FAULTS[name]
    before, keys = {path: scene.path(path).read_bytes() for path in (APPROVALS, STATE)}, scene.keys
    assert fault(scene) == code
    assert {path: scene.path(path).read_bytes() for path in before} == before
    scene.keys = keys
    assert scene.note(scene.approval()) == "noted"


def test_where_root_waits_for_nobody_it_says_so_before_anything_is_judged(scene: Scene) -> None:
    scene.path(APPROVALS).unlink()
    assert scene.note(scene.approval(by=[MALLORY])) == "no_approvals"
    assert not scene.path(APPROVALS).exists()


def test_a_host_that_takes_no_baseline_takes_approvals(scene: Scene) -> None:
    scene.say(baseline_key=None)
    assert scene.note(scene.approval()) == "noted"
    assert scene.take(scene.signed()) == "no_baseline_key"


def test_the_same_plan_is_approved_anew_and_what_is_over_is_left_out(scene: Scene) -> None:
    now, present = datetime.now(UTC), json.loads(scene.path(PERMITS).read_bytes())["baseline"]
    old = {
        "check": "accounts", "target": "steps-1", "number": 90, "since": approvals.text(now - timedelta(days=8)),
        "until": approvals.text(now - timedelta(days=1)), "baseline": present,
    }  # fmt: skip
    stands = {**old, "number": 91, "until": approvals.text(now + timedelta(days=1))}
    other = {**stands, "number": 92, "baseline": "ab" * 32}
    scene.put(APPROVALS, json.dumps({"schema": approvals.SCHEMA, "given": [old, stands, other]}).encode())
    assert [scene.note(scene.approval(counter=100 + number)) for number in (1, 2)] == ["noted", "noted"]
    assert [item["number"] for item in scene.given()] == [91, 102]


def test_a_file_that_is_not_roots_is_not_added_to(scene: Scene) -> None:
    scene.path(APPROVALS).chmod(0o666)
    assert scene.note(scene.approval()) == "approvals_not_roots"
    scene.put(APPROVALS, b"{}")
    assert scene.note(scene.approval()) == "bad_approvals"


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("at", range(3))
def test_stopped_between_any_two_writes_it_is_noted_once_or_not_at_all(scene: Scene, at: int, after: bool) -> None:
    raw = scene.approval()
    scene.machine.cut_at, scene.machine.after = len(scene.machine.writes) + at, after
    with pytest.raises(Cut):
        scene.note(raw)
    scene.start()
    scene.nonce = scene.give_nonce()
    assert len(scene.given()) == ((at, after) != (0, False))
    assert scene.note(raw) == "noted"
    assert len(scene.given()) == 1


@pytest.mark.parametrize("name", ["one signer", "for another host", "under another baseline"])
def test_a_gate_that_is_gone_would_be_seen(scene: Scene, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The planted faults."""
    fault, code = FAULTS[name]
    monkeypatch.setattr(orders, "LEAST_SIGNERS", 1)
    if name != "one signer":
        monkeypatch.setattr(orders, "unless", lambda holds, said: unless(holds or said == code, said))
    assert fault(scene) == "noted"
