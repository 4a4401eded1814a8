"""The planner's desk: what could be done about every finding that a person sees, and a draft of it when the person says so.

Nothing here goes on by itself. `proposals` reads and computes; `draft` is one call of one person about one proposal, and makes a
draft like any other (`OrderDesk.draft`), which people approve and sign as ever. A proposal is computed anew when it is drafted:
one whose facts have changed has another id, and one of another tenant's host is not there.

What may be drafted is bounded in the very transaction that writes the draft, so that callers at the same time cannot pass together.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from compliance_agent.core import planning
from compliance_agent.core.orders import USUAL_LIFE
from compliance_agent.core.planning import Finding, Proposal
from compliance_agent.errors import Refusal
from compliance_agent.runbook import Runbook, shipped
from compliance_agent.server.records import Bundle, Clock, SiteReader, Transaction, User
from compliance_agent.server.records.orders import OrderRow
from compliance_agent.server.services import roles
from compliance_agent.server.services.fleet import UNMET, CheckStanding, Fleet, HostStanding
from compliance_agent.server.services.orders import OPEN, OrderDesk, Wanted, standing

MOST = 500  # proposals in one answer
HOUR = timedelta(hours=1)
LIFE_S = int(USUAL_LIFE.total_seconds())


@dataclass(frozen=True)
class Bounds:
    """How much may be drafted.

    Attributes:
        cooldown: of one host and runbook, from one draft to the next.
        site_per_hour, person_per_hour: drafts, by whatever way they were made.
    """

    cooldown: timedelta = timedelta(minutes=15)
    site_per_hour: int = 60
    person_per_hour: int = 30


@dataclass(frozen=True)
class Plans:
    """Proposals, what is due first before the others; `more` when there are more findings than fit."""

    proposals: tuple[Proposal, ...]
    more: bool


class Planner:
    """The desk for proposals. Every answer has the sites of `reader` alone."""

    def __init__(
        self,
        clock: Clock,
        orders: OrderDesk,
        fleet: Callable[[SiteReader], Fleet],
        *,
        bounds: Bounds = Bounds(),
        runbooks: Callable[[], Mapping[str, Runbook]] = shipped,
    ) -> None:
        self._clock = clock
        self._orders = orders
        self._fleet = fleet
        self._bounds = bounds
        self._runbooks = runbooks

    async def proposals(self, user: User, reader: SiteReader) -> Plans:
        """What could be done now about each finding. Of days that are over nothing can be done any more.

        Raises:
            Refusal: the role may not look.
        """
        roles.check(user, roles.Act.LOOK)
        return await self.computed(reader)

    async def computed(self, reader: SiteReader) -> Plans:
        """The same for whoever has the data directory, and needs no role."""
        made = await self.every(reader)
        return Plans(tuple(made[:MOST]), len(made) > MOST)

    async def every(self, reader: SiteReader) -> list[Proposal]:
        """All of them, however many."""
        found = [] if reader.dates is not None else await self._findings(reader)
        books, now = self._runbooks(), self._clock()
        return planning.in_order(planning.plan(item, books, now) for item in found)

    async def find(self, user: User, reader: SiteReader, proposal_id: str) -> Proposal:
        """One proposal, as it stands now.

        Raises:
            Refusal: there is none, or no more, within these sites.
        """
        roles.check(user, roles.Act.LOOK)
        proposal = next((item for item in await self.every(reader) if item.proposal_id == proposal_id), None)
        if proposal is None:
            raise Refusal(
                "proposal: no such proposal, or what it was about has changed", code="no_such_proposal", status=404
            )
        return proposal

    async def draft(
        self,
        user: User,
        reader: SiteReader,
        proposal_id: str,
        *,
        kind: str | None = None,
        target: str | None = None,
        life_s: int = LIFE_S,
    ) -> OrderRow:
        """Make a draft of a proposal, or of another of its options (`kind`), because this person says so.

        Raises:
            Refusal: no such proposal, nothing to order, not allowed, or more than may be drafted now.
        """
        roles.check(user, roles.Act.DRAFT_ORDER)
        proposal = _chosen(await self.find(user, reader, proposal_id), kind)
        return await self.draft_this(user, reader, proposal, target=target, life_s=life_s)

    async def draft_this(
        self, user: User, reader: SiteReader, proposal: Proposal, *, target: str | None = None, life_s: int = LIFE_S
    ) -> OrderRow:
        """The same of a proposal that was found just now.

        Raises:
            Refusal: as `draft`.
        """
        wanted = _wanted(proposal, target, life_s)

        async def bounded(tx: Transaction, row: OrderRow) -> None:
            now = self._clock()
            known = await tx.orders_since(row.site_id, now - HOUR, OPEN)
            self._check_bounds(proposal, user, known, now)

        return await self._orders.draft(user, reader, wanted, bounded)

    def _check_bounds(self, proposal: Proposal, user: User, known: Sequence[OrderRow], now: datetime) -> None:
        """Raises Refusal when one more would be too many."""
        about = set(proposal.runbook.checks) if proposal.runbook is not None else {proposal.finding.check}
        same = [row for row in known if row.key_id == proposal.finding.key_id and about & _checks_of(row)]
        if any(standing(row, now) in OPEN for row in same):
            raise Refusal(
                "order: one about this host and runbook is open; end or cancel it first", code="plan_open", status=409
            )
        _wait("cooldown", (row.drafted_at for row in same), 1, self._bounds.cooldown, now)
        _wait("site", (row.drafted_at for row in known), self._bounds.site_per_hour, HOUR, now)
        mine = (row.drafted_at for row in known if row.drafted_by == user.name)
        _wait("person", mine, self._bounds.person_per_hour, HOUR, now)

    async def _findings(self, reader: SiteReader) -> list[Finding]:
        found = []
        for host in await self._fleet(reader).hosts():
            unmet = [item for item in host.checks if _is_finding(item)]
            if unmet and host.host.revoked_at is None:
                cures = await reader.remediations(host.host.key_id)
                found += [_finding(host, item, cures.get(item.check)) for item in unmet]
        return found


def proposal_of(
    host: HostStanding, item: CheckStanding, now: datetime, runbooks: Mapping[str, Runbook] | None = None
) -> Proposal | None:
    """What could be done about one check as it stands, its newest remediation at hand; None where it is met. Pure."""
    if host.host.revoked_at is not None or not _is_finding(item):
        return None
    return planning.plan(_finding(host, item, item.remediation), shipped() if runbooks is None else runbooks, now)


def _is_finding(item: CheckStanding) -> bool:
    """What is not met; that a silent host was met once is a matter of the host, not of its checks."""
    return item.verdict.result in UNMET or (item.result == "unknown" and item.reason == "stale")


def _finding(host: HostStanding, item: CheckStanding, cure: Bundle | None) -> Finding:
    verdict = item.verdict
    stale = item.reason == "stale" and verdict.result not in UNMET
    about = cure is not None and (cure.result, cure.reason) == (verdict.result, verdict.reason)
    held = cure if about and cure is not None and cure.outcome != "success" else None
    return Finding(
        key_id=host.host.key_id,
        site_id=host.host.site_id,
        check=verdict.check,
        result="unknown" if stale else verdict.result,
        reason=item.reason if stale else verdict.reason,
        since=verdict.seen_at if stale else verdict.since,
        held=(held.error or "") if held is not None else "",
        outcome=(held.outcome or "") if held is not None else "",
        stands=_stands(host),
    )


def _stands(host: HostStanding) -> str:
    """Why no order reaches a host."""
    if host.host.waiting_since is not None:
        return "waiting"
    if host.host.contested_at is not None:
        return "contested"
    if host.silent:
        return "silent"
    return "" if host.host.baseline_sha256 else "no_baseline"


def _chosen(proposal: Proposal, kind: str | None) -> Proposal:
    if kind is None or kind == proposal.kind:
        return proposal
    allowed = planning.options(proposal)
    if kind not in allowed:
        raise Refusal(f"kind: expected one of {', '.join(allowed) or 'none at all'}", code="not_an_option", status=409)
    return planning.chosen(proposal, kind)


def _wanted(proposal: Proposal, target: str | None, life_s: int) -> Wanted:
    if proposal.kind is None:
        raise Refusal(f"proposal: there is nothing to order: {proposal.why}", code="nothing_to_order", status=409)
    brought = {} if target is None else {"target": target}
    if set(brought) != set(proposal.needs):
        raise Refusal(
            f"proposal: {proposal.rule} needs {', '.join(proposal.needs) or 'no target'}",
            code="target_needed" if proposal.needs else "no_target",
            status=422,
        )
    return Wanted(proposal.finding.key_id, proposal.kind, {**proposal.parameters, **brought}, life_s)


def _checks_of(row: OrderRow) -> set[str]:
    named = json.loads(row.parameters)
    return {*named.get("checks", []), *([named["check"]] if "check" in named else [])}


def _wait(what: str, at: Iterable[datetime], most: int, period: timedelta, now: datetime) -> None:
    """Raises Refusal when there were `most` within the period that ends now."""
    recent = sorted(item for item in at if now - item < period)
    if len(recent) < most:
        return
    left = (recent[-most] + period - now).total_seconds()
    said = {
        "cooldown": ("plan_cooldown", "this host and runbook had one a moment ago"),
        "site": ("plan_too_many", "this site had as many drafts as may be made in an hour"),
        "person": ("plan_too_many", "this person made as many drafts as may be made in an hour"),
    }[what]
    raise Refusal(f"order: {said[1]}", code=said[0], status=429, retry_after_s=max(1, int(left) + 1))
