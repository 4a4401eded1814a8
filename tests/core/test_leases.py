"""Leases of a site: at most k hosts act, fencing tokens only grow, a canary goes first, and who is gone holds nobody up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from compliance_agent.core import leases
from compliance_agent.core.leases import Answer, Ask, Board, Lease, release, take

HOSTS = [f"ws-{number}" for number in range(5)]
LIFE = 600


def ask(label: str, check: str = "patching", target: str = "t1") -> Ask:
    return Ask(f"key-{label}", label, check, target, LIFE)


def proven(board: Board, canary: str = "ws-0") -> Board:
    """A board on which the cure is no longer new, and nobody works."""
    board, answer = take(board, ask(canary), 0, cured=None)
    assert answer.lease is not None
    board, _ = release(board, answer.lease.holder, answer.lease.fence, 1)
    board, answer = take(board, ask(canary), 2, cured="success")
    assert answer.lease is not None
    return release(board, answer.lease.holder, answer.lease.fence, 3)[0]


def test_the_canary_goes_first_and_the_others_wait_for_its_evidence() -> None:
    board, answer = take(Board(hosts_at_once=3), ask("ws-3"), 0, cured=None)
    assert answer.lease is not None and answer.lease.fence == 1
    for later in (1, 500):
        board, waits = take(board, ask("ws-1"), later, cured=None)
        assert (waits.lease, waits.reason) == (None, "canary_unproven")
    board, done = release(board, "key-ws-3", 1, 510)
    assert done
    board, waits = take(board, ask("ws-1"), 520, cured=None)
    assert waits.reason == "canary_unproven", "that it let go proves nothing"
    board, follows = take(board, ask("ws-1"), 530, cured="success")
    assert follows.lease is not None and follows.lease.fence == 2
    assert take(board, ask("ws-2"), 531, cured=None)[1].lease is not None  # and what was proven stays so


@pytest.mark.parametrize("ended", ["failed", "reverted", "alert"])
def test_nobody_follows_a_canary_whose_cure_failed(ended: str) -> None:
    board, _ = take(Board(hosts_at_once=3), ask("ws-3"), 0, cured=None)
    board, _ = release(board, "key-ws-3", 1, 10)
    for label in ("ws-1", "ws-3"):
        board, answer = take(board, ask(label), 20, cured=ended)
        assert (answer.reason, answer.not_before) == ("canary_failed", 20 + leases.FAILED_S)
    assert take(board, ask("ws-1", target="t2"), 21, cured=None)[1].lease is not None  # another cure is another matter
    again, answer = take(board, ask("ws-1"), 20 + leases.FAILED_S, cured=None)
    assert answer.lease is not None
    assert take(again, ask("ws-2"), 21 + leases.FAILED_S, cured=None)[1].reason == "canary_unproven"


def test_a_canary_that_died_holds_nobody_up_for_ever() -> None:
    board, _ = take(Board(), ask("ws-3"), 0, cured=None)
    end = LIFE + leases.EVIDENCE_S
    assert take(board, ask("ws-1"), end - 1, cured=None)[1].reason == "canary_unproven"
    board, answer = take(board, ask("ws-1"), end, cured=None)
    assert answer.lease is not None and answer.lease.fence == 2
    assert release(board, "key-ws-3", 1, end)[1] is False, "the old token is worth nothing"


def test_operators_may_name_the_canary_but_not_stop_the_site_with_a_dead_one() -> None:
    board, answer = take(Board(canary="ws-4"), ask("ws-1"), 0, cured=None)
    assert (answer.reason, answer.not_before) == ("canary_first", leases.NAMED_CANARY_S)
    _, first = take(board, ask("ws-4"), 10, cured=None)
    assert first.lease is not None
    now = 0.0
    while now < leases.NAMED_CANARY_S:
        now += leases.ASKS_AGAIN_S - 1
        board, answer = take(board, ask("ws-1"), now, cured=None)
    assert answer.lease is not None


def test_a_place_goes_round_the_ring() -> None:
    board = proven(Board(), "ws-2")
    order: list[str] = []
    holder: Lease | None = None
    for now in range(10, 16):
        for label in reversed(HOSTS):  # everybody asks, the last of the ring first
            board, answer = take(board, ask(label), now, cured=None)
            holder = answer.lease or holder
        assert holder is not None
        order.append(holder.label)
        board, _ = release(board, holder.holder, holder.fence, now)
        for label in reversed(HOSTS):  # all but the next in the ring ask in vain
            if label != _next(holder.label):
                board, answer = take(board, ask(label), now, cured=None)
                assert answer.reason == "lease_ring" or now == 10
    assert order[1:] == [_next(label) for label in order[:-1]]


def _next(label: str) -> str:
    return HOSTS[(HOSTS.index(label) + 1) % len(HOSTS)]


def test_one_that_waits_and_dies_loses_its_turn() -> None:
    board = proven(Board(), "ws-0")
    board, held = take(board, ask("ws-0"), 10, cured=None)
    board, _ = take(board, ask("ws-1"), 11, cured=None)
    assert held.lease is not None
    board, _ = release(board, "key-ws-0", held.lease.fence, 12)
    board, answer = take(board, ask("ws-2"), 13, cured=None)
    assert answer.reason == "lease_ring"
    board, answer = take(board, ask("ws-2"), 11 + leases.ASKS_AGAIN_S, cured=None)
    assert answer.lease is not None


def test_a_renewal_keeps_the_token_and_a_late_one_is_a_new_lease() -> None:
    board, first = take(Board(), ask("ws-1"), 0, cured=None)
    board, again = take(board, ask("ws-1"), 500, cured=None)
    assert first.lease is not None and again.lease is not None
    assert (again.lease.fence, again.lease.until) == (first.lease.fence, 500 + LIFE)
    board, late = take(board, ask("ws-1"), 500 + LIFE, cured=None)
    assert late.lease is not None and late.lease.fence == first.lease.fence + 1


@pytest.mark.parametrize(("asked", "given"), [(0, 60), (60, 60), (3_600, 3_600), (10**9, 14_400)])
def test_no_lease_is_for_ever(asked: int, given: int) -> None:
    _, answer = take(Board(), replace(ask("ws-1"), life_s=asked), 0, cured=None)
    assert answer.lease is not None and answer.lease.until == given


MANY = settings(max_examples=100, stateful_step_count=30, deadline=None, report_multiple_bugs=False)
Take = Callable[..., tuple[Board, Answer]]


class Site(RuleBasedStateMachine):
    """Hosts that ask, act as long as they believe in their lease, die, come back, and sometimes succeed."""

    take: Take = staticmethod(take)

    @initialize(k=st.integers(1, 3), known=st.booleans())
    def begin(self, k: int, known: bool) -> None:
        self.board, self.now, self.k = Board(hosts_at_once=k), 0.0, k
        self.believes: dict[str, Lease] = {}  # what each host knows, by its own clock
        self.fences: dict[int, tuple[str, str]] = {}
        if known:  # else hosts only seldom come to work side by side
            self.board, self.now = proven(self.board), 3.0
            self.fences = {1: ("ws-0", "t1"), 2: ("ws-0", "t1")}
        self.cured: dict[str, str] = {}

    @rule(label=st.sampled_from(HOSTS), cure=st.sampled_from(["t1", "t2"]), lost=st.booleans())
    def asks(self, label: str, cure: str, lost: bool) -> None:
        target = cure
        if label in self.believes and self.believes[label].target != target:
            del self.believes[label]  # a host asks for another cure only when it has done with this one
        wave = self.board.wave("patching", target)
        cured = self.cured.get(f"{wave.canary}/{target}") if wave is not None else None
        self.board, answer = self.take(self.board, ask(label, target=target), self.now, cured=cured)
        if answer.lease is None:
            return
        fence = answer.lease.fence
        assert fence in self.fences or fence > max(self.fences, default=0), "tokens only grow"
        assert self.fences.setdefault(fence, (label, target)) == (label, target), "and each is of one host and cure"
        if not lost:
            self.believes[label] = answer.lease
        proven_or_canary = self.board.wave("patching", target)
        assert proven_or_canary is not None
        assert proven_or_canary.state == "proven" or proven_or_canary.canary == f"key-{label}"

    @rule(seconds=st.sampled_from([1, 100, LIFE - 1, LIFE, 4_000, 90_000]))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds

    @rule(label=st.sampled_from(HOSTS), ended=st.sampled_from(["success", "failed", None]))
    def ends(self, label: str, ended: str | None) -> None:
        lease = self.believes.pop(label, None)
        if lease is None:
            return
        if ended is not None:
            self.cured[f"key-{label}/{lease.target}"] = ended
        self.board, _ = release(self.board, lease.holder, lease.fence, self.now)

    @rule(label=st.sampled_from(HOSTS))
    def dies(self, label: str) -> None:
        self.believes.pop(label, None)

    @rule(label=st.sampled_from(HOSTS), fence=st.integers(0, 50))
    def an_old_token_is_shown(self, label: str, fence: int) -> None:
        held = self.board.held_by(f"key-{label}")
        board, done = release(self.board, f"key-{label}", fence, self.now)
        assert not done or (held is not None and held.fence == fence)
        if not done:
            self.board = board

    @invariant()
    def at_most_k_act(self) -> None:
        if hasattr(self, "believes"):
            acting = [lease for lease in self.believes.values() if self.now < lease.until]
            assert len(acting) <= self.k


def test_at_most_k_hosts_ever_act_and_tokens_only_grow() -> None:
    run_state_machine_as_test(Site, settings=MANY)


def forgets_places(board: Board, *rest: object, **named: object) -> tuple[Board, Answer]:
    return take(replace(board, hosts_at_once=board.hosts_at_once + 1), *rest, **named)  # type: ignore[arg-type]


def counts_anew(board: Board, *rest: object, **named: object) -> tuple[Board, Answer]:
    return take(board if board.leases else replace(board, fence=0), *rest, **named)  # type: ignore[arg-type]


@pytest.mark.parametrize("fault", [forgets_places, counts_anew])
def test_a_board_with_a_fault_is_caught(fault: Take) -> None:
    class Faulty(Site):
        take = staticmethod(fault)

    with pytest.raises(AssertionError):
        run_state_machine_as_test(Faulty, settings=settings(MANY, max_examples=2_000))  # it ends at the first
