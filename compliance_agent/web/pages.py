"""What the templates are given: frozen values, with figures computed and words chosen, so that a template only prints.

Two rules stand here because every page relies on them. `unknown` is in the denominator, so a share that passes is never
flattered by what could not be told. What a silent host said last is kept but counts as unknown: it never shows green.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from compliance_agent.server.services.fleet import Moved

VERDICT_ORDER = ("fail", "unknown", "exception", "pass", "not_applicable")
_FLOOR = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Counts:
    """How many checks ended in each of the five ways."""

    passed: int = 0
    failed: int = 0
    unknown: int = 0
    exception: int = 0
    not_applicable: int = 0

    @classmethod
    def of(cls, results: Iterable[str]) -> Counts:
        """Count verdict words; a word that is none of the five counts as unknown."""
        tally = dict.fromkeys(VERDICT_ORDER, 0)
        for result in results:
            tally[result if result in tally else "unknown"] += 1
        return cls(tally["pass"], tally["fail"], tally["unknown"], tally["exception"], tally["not_applicable"])

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.passed + other.passed,
            self.failed + other.failed,
            self.unknown + other.unknown,
            self.exception + other.exception,
            self.not_applicable + other.not_applicable,
        )

    @property
    def judged(self) -> int:
        """The denominator: everything that applies, unknown included."""
        return self.passed + self.failed + self.unknown + self.exception

    @property
    def percent(self) -> int | None:
        """Share that passes, rounded down so that 100 means all of them; None when there is nothing to judge."""
        return math.floor(100 * self.passed / self.judged) if self.judged else None

    @property
    def worst(self) -> str:
        """The verdict to lead with: fail, then unknown, then exception; nothing judged is unknown."""
        for name, number in (("fail", self.failed), ("unknown", self.unknown), ("exception", self.exception)):
            if number:
                return name
        return "pass" if self.passed else "unknown"

    @property
    def parts(self) -> tuple[tuple[str, int], ...]:
        """(verdict, number) of the stacked bar, worst first."""
        numbers = (self.failed, self.unknown, self.exception, self.passed)
        return tuple(part for part in zip(VERDICT_ORDER, numbers, strict=False) if part[1])


@dataclass(frozen=True)
class SiteRow:
    """One clinic on the first page.

    Attributes:
        findings: hosts whose chain contradicts itself or has a gap.
        unlogged: records that no published checkpoint covers.
    """

    site_id: str
    name: str
    client_id: str
    hosts: int
    silent: int
    counts: Counts
    oldest_unmet: datetime | None
    changes: Moved
    findings: int = 0
    unlogged: int = 0


@dataclass(frozen=True)
class CheckRow:
    """One check of one host as it stands.

    Attributes:
        result: the verdict to show; `unknown` where what the host said last no longer counts.
        reported: the verdict the host reported last.
        since: when the reported verdict began, where known.
        outcome: how the last remediation ended, or None.
        gate: token of how it ended or what held it back.
        remediated_at: when it ended.
        remediation_id: its bundle.
        bundle_id: the bundle that recorded the verdict, where there is one.
    """

    check: str
    title: str
    result: str
    reported: str
    reason: str
    sentence: str
    since: datetime | None = None
    outcome: str | None = None
    gate: str | None = None
    gate_sentence: str = ""
    remediated_at: datetime | None = None
    remediation_id: str | None = None
    bundle_id: str | None = None


@dataclass(frozen=True)
class HostRow:
    """One host in its site's table, or at the head of its own page."""

    key_id: str
    host_id: str
    site_id: str
    site_name: str
    last_seen: datetime | None
    silent: bool
    checks: tuple[CheckRow, ...]
    oldest_unmet: datetime | None = None
    agent_version: str = ""
    baseline_version: str = ""
    epoch: int | None = None
    seq: int | None = None
    pending: int | None = None
    enrolled_at: datetime | None = None
    revoked: bool = False
    broken: bool = False
    unlogged: int = 0

    @property
    def logged(self) -> int:
        """Records of this epoch that a published checkpoint covers: a chain has no holes, and the log keeps its order."""
        return max(0, (self.seq or 0) - self.unlogged)

    @property
    def counts(self) -> Counts:
        """The verdicts as shown; a host that never reported anything is one unknown."""
        return Counts.of(row.result for row in self.checks) if self.checks else Counts(unknown=1)


@dataclass(frozen=True)
class BundleRow:
    """One bundle in a list. `sentence` says why it was judged so, `gate` how the cure ended or what held it back."""

    bundle_id: str
    kind: str
    check: str | None
    title: str
    result: str | None
    outcome: str | None
    reason: str
    sentence: str
    at: datetime
    epoch: int
    seq: int
    gate: str = ""


@dataclass(frozen=True)
class FactRow:
    """One declared fact before and after; `after` is None where nothing was looked at again."""

    name: str
    doc: str
    before: str
    after: str | None

    @property
    def changed(self) -> bool:
        """Whether the look after gave something else."""
        return self.after is not None and self.after != self.before


@dataclass(frozen=True)
class Proof:
    """One thing that was verified just now: its name, whether it held, and what that means."""

    name: str
    holds: bool
    sentence: str


@dataclass(frozen=True)
class Verification:
    """The live verification of one bundle. `valid` only when every proof holds."""

    proofs: tuple[Proof, ...]
    took_ms: int | None = None

    @property
    def valid(self) -> bool:
        """Whether everything held; nothing verified is not valid."""
        return bool(self.proofs) and all(proof.holds for proof in self.proofs)


@dataclass(frozen=True)
class StepRow:
    """One step of a cure as it was carried out."""

    step: str
    action: str
    result: str
    detail: str


@dataclass(frozen=True)
class BundlePage:
    """One bundle, whole. `pretty` is its text indented for reading; only the stored bytes are evidence.

    Attributes:
        digest: SHA-256 of the stored bytes, computed now.
        prev: the digest it says stands before it.
        previous_why, next_why: why a neighbour is not to be had, where it is not.
        two_looks: it holds a look after the cure too.
        after: the verdict of that look.
        states: a heartbeat's verdict of every check.
        details: (label, value) of the rest.
        pem_name: file name of the host's public key.
    """

    row: BundleRow
    host: HostRow
    digest: str
    prev: str
    is_first: bool
    size_bytes: int
    received_at: datetime | None
    verification: Verification
    pretty: str
    pem_name: str
    previous_id: str | None = None
    next_id: str | None = None
    previous_why: str = ""
    next_why: str = ""
    facts: tuple[FactRow, ...] = ()
    two_looks: bool = False
    after: str | None = None
    states: tuple[CheckRow, ...] = ()
    steps: tuple[StepRow, ...] = ()
    controls: tuple[str, ...] = ()
    details: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Finding:
    """Something wrong with a host's chain, for the banner on its page."""

    title: str
    sentence: str


def by_urgency(sites: Iterable[SiteRow]) -> list[SiteRow]:
    """Sites with silent hosts first, then by the age of their oldest unmet item, then those that have none, by name."""

    def key(site: SiteRow) -> tuple[bool, bool, datetime, str]:
        return (not site.silent, site.oldest_unmet is None, site.oldest_unmet or _FLOOR, site.name)

    return sorted(sites, key=key)


def hosts_by_urgency(hosts: Iterable[HostRow]) -> list[HostRow]:
    """The same order for the hosts of one site."""
    return sorted(
        hosts,
        key=lambda host: (not host.silent, host.oldest_unmet is None, host.oldest_unmet or _FLOOR, host.host_id),
    )


def checks_by_urgency(rows: Iterable[CheckRow]) -> list[CheckRow]:
    """Worst verdict first, then the longest standing, then by name."""
    order = {verdict: place for place, verdict in enumerate(VERDICT_ORDER)}
    return sorted(rows, key=lambda row: (order.get(row.result, 1), row.since or _FLOOR, row.check))


def printed(value: Any) -> str:
    """A fact as text: `yes`/`no` for a truth, `could not tell` for none, lists one after the other."""
    if value is None:
        return "could not tell"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(printed(item) for item in value) or "none"
    return str(value)


def fact_rows(before: dict[str, Any], after: dict[str, Any], docs: dict[str, str]) -> tuple[FactRow, ...]:
    """Facts of both looks side by side, in the order they were recorded; changed ones first."""
    names = list(dict.fromkeys([*before, *after]))
    rows = [
        FactRow(
            name,
            docs.get(name, ""),
            printed(before[name]) if name in before else "not recorded",
            None if not after else printed(after[name]) if name in after else "not recorded",
        )
        for name in names
    ]
    return tuple(sorted(rows, key=lambda row: not row.changed))


def age(start: datetime | None, now: datetime) -> str:
    """How long ago, in at most two units: `3 h 12 min`. A time ahead of `now` says so instead of looking fresh."""
    if start is None:
        return "–"
    seconds = int((now - start).total_seconds())
    if seconds < -60:
        return "in the future"
    if seconds < 60:
        return "just now"
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if hours < 1:
        return f"{minutes} min"
    if days < 1:
        return f"{hours} h {minutes % 60} min" if minutes % 60 else f"{hours} h"
    if days < 14:
        return f"{days} d {hours % 24} h" if hours % 24 else f"{days} d"
    return f"{days} d"
