"""What people have approved often enough becomes a rule, when a person says so; and stops being one the same way.

A rule saves picking each proposal by hand: `draft_promoted` drafts every proposal that a rule of its site is about, one call of one
person, within the planner's bounds. It approves nothing, it signs nothing, and it is about one finding at one site and one text of
a runbook. How often that cure has worked is counted from the hosts' own records, shown before, and kept with the rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from compliance_agent.core.planning import Proposal
from compliance_agent.entries.act import digest_of
from compliance_agent.errors import Refusal
from compliance_agent.runbook import Runbook, shipped
from compliance_agent.server.records import Clock, SiteReader, Store, Transaction, User
from compliance_agent.server.records.orders import OrderRow
from compliance_agent.server.records.planning import PlanRule, Worked
from compliance_agent.server.services import acts, roles
from compliance_agent.server.services.planning import Planner

Place = tuple[str, str, str]  # site, check, reason


@dataclass(frozen=True)
class Drafted:
    """What came of one proposal: its order, or why there is none."""

    proposal: Proposal
    order: OrderRow | None = None
    code: str = ""


def is_proven(worked: Worked) -> bool:
    """Whether people ordered it with success, and it was kept more often than not, by the check's own pass."""
    return worked.ordered >= 1 and worked.passed >= 1 and 2 * worked.passed > worked.applied


class Promoting:
    """The desk for promoted rules."""

    def __init__(
        self, store: Store, clock: Clock, planner: Planner, runbooks: Mapping[str, Runbook] | None = None
    ) -> None:
        self._store = store
        self._clock = clock
        self._planner = planner
        self._books = runbooks if runbooks is not None else shipped()

    async def worked(self, reader: SiteReader, place: Place) -> tuple[Runbook, Worked]:
        """The runbook that would be promoted, and how often its cure has worked at that site.

        Raises:
            Refusal: no such site, or no runbook has a cure of that finding.
        """
        site_id, check, reason = place
        if site_id not in reader.sites:
            raise Refusal("site: no such site", code="no_such_site", status=404)
        book = next((item for item in self._books.values() if item.cures_of(check, reason)), None)
        if book is None:
            raise Refusal("finding: no runbook has a cure of it", code="no_cure", status=409)
        return book, await reader.worked(site_id, check, reason)

    async def promote(self, user: User, reader: SiteReader, place: Place) -> PlanRule:
        """Make it a rule of the site.

        Raises:
            Refusal: not allowed, not proven, or it is one already.
        """
        roles.check(user, roles.Act.APPROVE_ORDER)
        book, worked = await self.worked(reader, place)
        if not is_proven(worked):
            raise Refusal(
                f"finding: {worked.ordered} orders of people succeeded, and {worked.passed} of {worked.applied} cures held;"
                " expected one order at least, and more cures that held than not",
                code="not_proven",
                status=409,
            )
        now = self._clock()
        rule = PlanRule(*place, book.id, book.sha256, *worked, user.name, now)

        async def work(tx: Transaction) -> None:
            if await tx.plan_rule(*place) is not None:
                raise Refusal("finding: is a rule of that site already", code="promoted_already", status=409)
            await tx.add_plan_rule(rule)
            await self._note(tx, user, acts.Act.RULE_PROMOTED, rule)

        await self._store.write(work)
        return rule

    async def demote(self, user: User, reader: SiteReader, place: Place) -> PlanRule:
        """Make it no rule any more.

        Raises:
            Refusal: not allowed, or there is none at these sites.
        """
        roles.check(user, roles.Act.APPROVE_ORDER)
        gone = Refusal("finding: is no rule of that site", code="no_such_rule", status=404)
        if place[0] not in reader.sites:
            raise gone

        async def work(tx: Transaction) -> PlanRule:
            rule = await tx.plan_rule(*place)
            if rule is None or not await tx.drop_plan_rule(*place):
                raise gone
            await self._note(tx, user, acts.Act.RULE_DEMOTED, rule)
            return rule

        return await self._store.write(work)

    async def draft_promoted(self, user: User, reader: SiteReader) -> list[Drafted]:
        """Draft every proposal that a rule is about. What one cannot be drafted for now, the others do not wait for.

        Raises:
            Refusal: not allowed.
        """
        roles.check(user, roles.Act.DRAFT_ORDER)
        rules = {(rule.site_id, rule.check, rule.reason): rule for rule in await reader.plan_rules()}
        found = [item for item in await self._planner.every(reader) if stands(rules.get(_place(item)), item)]
        drafted = []
        for proposal in found:
            try:
                row = await self._planner.draft_this(user, reader, proposal)
            except Refusal as refusal:
                drafted.append(Drafted(proposal, code=refusal.code))
            else:
                drafted.append(Drafted(proposal, row))
        return drafted

    async def _note(self, tx: Transaction, user: User, act: acts.Act, rule: PlanRule) -> None:
        document = {
            name: getattr(rule, name)
            for name in ("check", "reason", "runbook", "runbook_sha256", "ordered", "applied", "passed", "undone")
        }
        await acts.note(
            tx, self._clock(), act, by=user, sites={rule.site_id}, subject=digest_of(document),
            said=f"{rule.check} {rule.reason} {rule.runbook}",
        )  # fmt: skip


def _place(proposal: Proposal) -> Place:
    return proposal.finding.site_id, proposal.finding.check, proposal.finding.reason


def stands(rule: PlanRule | None, proposal: Proposal) -> bool:
    """Whether a rule is about this proposal: a cure that nothing holds back, by the very text that was promoted."""
    book = proposal.runbook
    same = rule is not None and book is not None and rule.runbook_sha256 == book.sha256
    return same and proposal.rule == "cure" and proposal.kind == "remediate"
