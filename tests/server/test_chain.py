"""The rule of the chain, over every history a host can send: nothing is skipped, nothing stored twice, nothing replaced."""

from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from compliance_agent.server.records import NO_DIGEST, Head
from compliance_agent.server.services.chain import Link, Placed, expected, place

ACTS = st.lists(
    st.tuples(st.sampled_from(["next", "again", "skip", "other", "epoch", "lost"]), st.integers(0, 5)), max_size=40
)


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class Held:
    """A server's memory of one chain."""

    def __init__(self) -> None:
        self.head: Head | None = None
        self.at: dict[tuple[int, int], str] = {}
        self.links: list[Link] = []

    def offer(self, link: Link) -> Placed:
        placed = place(link, self.head, self.at.get((link.epoch, link.seq)))
        if placed is Placed.NEXT:
            assert (link.epoch, link.seq) not in self.at
            self.at[link.epoch, link.seq] = link.sha256
            self.head = Head(link.epoch, link.seq, link.sha256)
            self.links.append(link)
        return placed

    def next(self, name: str) -> Link:
        wanted = expected(self.head)
        return Link(int(wanted["epoch"]), int(wanted["seq"]), str(wanted["prev"]), digest(name))


@given(ACTS)
def test_whatever_is_offered_the_chain_stays_whole(acts: list[tuple[str, int]]) -> None:
    held = Held()
    for number, (act, pick) in enumerate(acts):
        new = held.next(f"bundle {number}")
        match act:
            case "next":
                assert held.offer(new) is Placed.NEXT
            case "again" if held.links:
                assert held.offer(held.links[pick % len(held.links)]) is Placed.KNOWN
            case "other" if held.links:
                old = held.links[pick % len(held.links)]
                assert held.offer(Link(old.epoch, old.seq, old.prev, new.sha256)) is Placed.FORK
            case "skip":
                assert held.offer(Link(new.epoch, new.seq + 1 + pick, new.prev, new.sha256)) is Placed.GAP
            case "lost":
                assert held.offer(Link(new.epoch, new.seq, digest("another history"), new.sha256)) is Placed.GAP
            case "epoch":
                assert held.offer(Link(new.epoch + 1 + pick, 1, new.prev, new.sha256)) is Placed.NEXT
    prevs = [NO_DIGEST, *(link.sha256 for link in held.links)]
    assert [link.prev for link in held.links] == prevs[:-1]
    assert sorted(held.at) == [(link.epoch, link.seq) for link in held.links]


def test_an_epoch_that_ended_does_not_go_on() -> None:
    head = Head(2, 1, digest("head"))
    assert place(Link(1, 9, digest("head"), digest("late")), head, None) is Placed.FORK


def test_a_first_bundle_follows_nothing() -> None:
    assert place(Link(0, 1, NO_DIGEST, digest("a")), None, None) is Placed.NEXT
    assert place(Link(0, 2, NO_DIGEST, digest("a")), None, None) is Placed.GAP
    assert place(Link(0, 1, digest("x"), digest("a")), None, None) is Placed.GAP
