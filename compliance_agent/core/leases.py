"""Which hosts of a site may disturb their users now. Pure: a site's board goes in, and comes out with the answer (DESIGN 6).

    board, answer = take(board, ask, now, cured=None)

At most `hosts_at_once` hosts hold a lease. Each lease has a fencing token that only grows, and ends by itself: who lets it run out
is gone, and its token is worth nothing. A cure (check and target) that is new to the site goes to one host first, the canary; the
others wait until the canary's own evidence says that it succeeded. Then hosts follow in the order of their labels, round the ring
from the last one on. Times are seconds of the server's clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from compliance_agent.dataclass import dataclass

SHORTEST_S, LONGEST_S = 60, 14_400  # of a lease
ASKS_AGAIN_S = 900  # who has not asked for so long is not waiting any more
EVIDENCE_S = 3_600  # a canary's evidence may arrive so long after its lease
FAILED_S = 86_400  # so long nobody follows a canary whose cure failed
NAMED_CANARY_S = 86_400  # so long the others wait for the canary that the operators named
PROVEN_S = 30 * 86_400  # a cure that nobody asked for in so long is new again
SUCCESS = "success"
REASONS = {
    "lease_busy": "as many hosts of the site as may are being worked on",
    "lease_ring": "another host of the site is next",
    "canary_first": "the host that the operators named goes first",
    "canary_unproven": "the first host of the site with this cure has not shown yet that it succeeded",
    "canary_failed": "the cure failed on the first host of the site; a person has to look",
    "lease_lost": "the lease ran out and may be another host's now",
}


@dataclass(frozen=True)
class Ask:
    """What a host asks for: a lease for one cure, so long. `target` is a digest of what the cure would bring the host to."""

    holder: str
    label: str
    check: str
    target: str
    life_s: int


@dataclass(frozen=True)
class Lease:
    """A host's right to disturb its users, until then."""

    holder: str
    label: str
    check: str
    target: str
    fence: int
    until: float


@dataclass(frozen=True)
class Wave:
    """One cure on its way through a site. `since` is when its canary got its lease, `until` when that ends at the latest."""

    check: str
    target: str
    canary: str
    since: float
    until: float
    state: str = "open"  # open | proven | failed
    at: float = 0.0  # of the last change or use


@dataclass(frozen=True)
class Waiting:
    """A host that was refused for want of a place."""

    holder: str
    label: str
    first: float
    last: float
    for_place: bool  # nothing but a free place is missing


@dataclass(frozen=True)
class Board:
    """All leases of a site."""

    fence: int = 0
    last_label: str = ""
    leases: tuple[Lease, ...] = ()
    waves: tuple[Wave, ...] = ()
    waiting: tuple[Waiting, ...] = ()
    hosts_at_once: int = 1
    canary: str = ""  # a label; empty: whoever asks first

    def wave(self, check: str, target: str) -> Wave | None:
        """How far this cure has come at this site."""
        return next((item for item in self.waves if (item.check, item.target) == (check, target)), None)

    def held_by(self, holder: str) -> Lease | None:
        """This host's lease."""
        return next((item for item in self.leases if item.holder == holder), None)


@dataclass(frozen=True)
class Answer:
    """A lease, or why there is none and when it makes sense to ask again."""

    lease: Lease | None
    reason: str = ""
    not_before: float | None = None


def take(board: Board, ask: Ask, now: float, *, cured: str | None) -> tuple[Board, Answer]:
    """Give the lease, or renew it for the same cure with the same fencing token.

    Args:
        board: the site's.
        ask: what is asked.
        now: seconds.
        cured: how the canary of this cure ended by its own evidence, None while there is none.
    """
    board = _swept(board, now)
    held = board.held_by(ask.holder)
    if held is not None and (held.check, held.target) != (ask.check, ask.target):
        board = replace(board, leases=tuple(item for item in board.leases if item is not held))
        held = None
    until = now + max(SHORTEST_S, min(ask.life_s, LONGEST_S))
    if held is not None:
        renewed = replace(held, until=max(until, held.until))
        board = replace(board, leases=tuple(renewed if item is held else item for item in board.leases))
        wave = board.wave(ask.check, ask.target)
        if wave is not None and wave.canary == ask.holder:
            board = _with_wave(board, replace(wave, until=renewed.until))
        return board, Answer(renewed)
    board = _settled(board, ask, now, cured)
    refusal = _canary(board, ask, now) or _place(board, ask, now)
    if refusal is not None:
        return _waits(board, ask, now, for_place=refusal.reason in {"lease_busy", "lease_ring"}), refusal
    return _given(board, ask, now, until)


def release(board: Board, holder: str, fence: int, now: float) -> tuple[Board, bool]:
    """End a lease before it ends by itself; False when this token is not, or no longer, a holder's."""
    board = _swept(board, now)
    held = board.held_by(holder)
    if held is None or held.fence != fence:
        return board, False
    return replace(board, leases=tuple(item for item in board.leases if item is not held)), True


def _given(board: Board, ask: Ask, now: float, until: float) -> tuple[Board, Answer]:
    lease = Lease(ask.holder, ask.label, ask.check, ask.target, board.fence + 1, until)
    wave = board.wave(ask.check, ask.target) or Wave(ask.check, ask.target, ask.holder, now, until)
    if wave.state == "open":
        wave = replace(wave, since=now, until=until)
    board = replace(
        _with_wave(board, replace(wave, at=now)),
        fence=lease.fence,
        last_label=ask.label,
        leases=(*board.leases, lease),
        waiting=tuple(item for item in board.waiting if item.holder != ask.holder),
    )
    return board, Answer(lease)


def _canary(board: Board, ask: Ask, now: float) -> Answer | None:
    wave = board.wave(ask.check, ask.target)
    if wave is not None and wave.state == "failed":
        return Answer(None, "canary_failed", wave.at + FAILED_S)
    if wave is not None and wave.state == "open":
        return None if wave.canary == ask.holder else Answer(None, "canary_unproven")
    if wave is None and board.canary and board.canary != ask.label:
        first = min((item.first for item in board.waiting if not item.for_place), default=now)
        if now - first < NAMED_CANARY_S:
            return Answer(None, "canary_first", first + NAMED_CANARY_S)
    return None


def _place(board: Board, ask: Ask, now: float) -> Answer | None:
    free = board.hosts_at_once - len(board.leases)
    if free <= 0:
        return Answer(None, "lease_busy", min(item.until for item in board.leases) if board.leases else None)
    others = [item for item in board.waiting if item.for_place and item.holder != ask.holder]
    mine = _place_in_ring(board, ask.label, ask.holder)
    if sum(_place_in_ring(board, item.label, item.holder) < mine for item in others) >= free:
        return Answer(None, "lease_ring")
    return None


def _place_in_ring(board: Board, label: str, holder: str) -> tuple[bool, str, str]:
    return label <= board.last_label, label, holder


def _waits(board: Board, ask: Ask, now: float, *, for_place: bool) -> Board:
    known = next((item for item in board.waiting if item.holder == ask.holder), None)
    first = known.first if known is not None and known.for_place == for_place else now
    rest = tuple(item for item in board.waiting if item.holder != ask.holder)
    return replace(board, waiting=(*rest, Waiting(ask.holder, ask.label, first, now, for_place)))


def _swept(board: Board, now: float) -> Board:
    """Without what has ended by itself."""
    return replace(
        board,
        leases=tuple(item for item in board.leases if item.until > now),
        waves=tuple(item for item in board.waves if not _over(item, now)),
        waiting=tuple(item for item in board.waiting if now - item.last < ASKS_AGAIN_S),
    )


def _over(wave: Wave, now: float) -> bool:
    if wave.state == "open":  # the canary is gone, or nothing came of it
        return now >= wave.until + EVIDENCE_S
    return now - wave.at >= (FAILED_S if wave.state == "failed" else PROVEN_S)


def _settled(board: Board, ask: Ask, now: float, cured: str | None) -> Board:
    wave = board.wave(ask.check, ask.target)
    if wave is None or wave.state != "open" or cured is None:
        return board
    return _with_wave(board, replace(wave, state="proven" if cured == SUCCESS else "failed", at=now))


def _with_wave(board: Board, wave: Wave) -> Board:
    rest: Sequence[Wave] = [item for item in board.waves if (item.check, item.target) != (wave.check, wave.target)]
    return replace(board, waves=(*rest, wave))
