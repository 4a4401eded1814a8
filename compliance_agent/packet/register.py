"""The register of exceptions of a packet: what people accepted at the server, held to the acts of the log that is in it. Pure.

    list(problems(scope, book.acts))

`packet.json` holds each exception whole. Its digest is what the acts about it name: so an exception that nobody recorded, that
another person recorded or at another time, or that says something else than then, has no act here. Records go on saying `fail`
under it. An exception that was recorded in another year has its act in the log of that year, which is not here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compliance_agent.core.accepted import MEASURES, REASONS
from compliance_agent.core.retention import REASON_ID
from compliance_agent.entries.act import Act, digest_of

if TYPE_CHECKING:
    from compliance_agent.packet.content import Scope

Acts = Iterable[tuple[int, Mapping[str, Any]]]  # (index, entry) in the log's order
_ID, _PERSON, _KEY = re.compile(r"[0-9a-f]{32}"), re.compile(r"p[0-9a-f]{16}"), re.compile(r"[0-9a-f]{64}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


@dataclass(frozen=True)
class Accepted:
    """One exception. Times are as the log's entries have them.

    Attributes:
        key_id: of its host; None is every host of the site.
        approver: name of who recorded it; approver_id: that person's id, which the log has.
        people: how many had to approve it.
        seconded, seconded_by_id: when a second person did, and who.
        withdrawn: when it was ended early.
    """

    exception_id: str
    key_id: str | None
    check: str
    reason: str
    measure: str
    reference: str
    approver: str
    approver_id: str
    created: str
    expires: str
    people: int = 1
    seconded: str | None = None
    seconded_by: str | None = None
    seconded_by_id: str | None = None
    withdrawn: str | None = None

    def __post_init__(self) -> None:
        """ValueError where it has another form."""
        people = [self.approver_id, *([self.seconded_by_id] if self.seconded_by_id else [])]
        times = [self.created, self.expires, *(time for time in (self.seconded, self.withdrawn) if time is not None)]
        right = (
            _ID.fullmatch(self.exception_id),
            self.key_id is None or _KEY.fullmatch(self.key_id),
            self.reason in REASONS and self.measure in MEASURES,
            re.fullmatch(REASON_ID, self.reference, re.ASCII),
            all(_PERSON.fullmatch(one) for one in people),
            all(_TIME.fullmatch(one) for one in times),
            self.people in {1, 2},
            (self.seconded is None) == (self.seconded_by_id is None) == (self.seconded_by is None),
        )
        if not all(right):
            raise ValueError("not an exception of a packet")

    def digest(self, site_id: str) -> str:
        """What the log's acts about it name."""
        names = (
            "exception_id",
            "key_id",
            "check",
            "reason",
            "measure",
            "reference",
            "approver_id",
            "created",
            "expires",
        )
        return digest_of({"site_id": site_id, **{name: getattr(self, name) for name in names}})

    @property
    def since(self) -> str | None:
        """From when it counts; None while it waits for a second person."""
        return self.created if self.people == 1 else self.seconded

    @property
    def until(self) -> str:
        """Until when it counts."""
        return min(self.expires, self.withdrawn or self.expires)

    @property
    def acts(self) -> Iterator[tuple[str, str | None, str]]:
        """(act, actor, time) that a log has about it; who ended it is not said here."""
        yield Act.EXCEPTION_RECORDED, self.approver_id, self.created
        if self.seconded is not None:
            yield Act.EXCEPTION_APPROVED, self.seconded_by_id, self.seconded
        if self.withdrawn is not None:
            yield Act.EXCEPTION_WITHDRAWN, None, self.withdrawn


def problems(scope: Scope, acts: Acts, year: str) -> Iterator[tuple[str, str]]:
    """What is wrong with the register of a packet: where, and what.

    Args:
        scope: of the packet.
        acts: of the log, those about exceptions.
        year: of the log; what was done in another year is in the log of that year.
    """
    if scope.exceptions is None:
        return
    noted = {(leaf["subject"], leaf["act"], leaf["at"]): leaf["actor"] for _, leaf in acts}
    whole = {one.digest(scope.site_id) for one in scope.exceptions}
    for one in scope.exceptions:
        subject = one.digest(scope.site_id)
        for act, actor, at in one.acts:
            missing = (subject, act, at) not in noted
            if (missing and at[:4] == year) or (not missing and actor not in {None, noted[subject, act, at]}):
                yield (one.exception_id, f"the log has no {act} like that")
        for (about, act, at), _ in (
            noted.items() if scope.limits is None else ()
        ):  # later acts are of days it may not tell of
            if about == subject and (act, at) not in {(own, when) for own, _, when in one.acts}:
                yield (one.exception_id, f"the log has an {act} of {at} that is not here")
    if scope.filtered:
        return
    for (about, act, _), _ in noted.items():
        if act == Act.EXCEPTION_RECORDED and about not in whole:
            yield (about, "the log has it and packet.json has not")
