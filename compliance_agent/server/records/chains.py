"""Hosts, their chains of bundles, and what stands for their checks."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from compliance_agent.server.records.people import Dates

NO_DIGEST = "0" * 64  # `prev` of the very first bundle of a key


@dataclass(frozen=True)
class Head:
    """The newest bundle of a key's chain: its place and the SHA-256 of its exact bytes."""

    epoch: int
    seq: int
    digest: str


@dataclass(frozen=True)
class Site:
    """A clinic, and the client of the provider that it belongs to; `exception_people` have to approve an exception there."""

    site_id: str
    client_id: str
    created_at: datetime
    exception_people: int = 1


@dataclass(frozen=True)
class Host:
    """An enrolled machine. Its identity is its key; `host_id` is a label.

    Attributes:
        last_seen_at: when this host's last request was accepted.
        heartbeat_at: when its last heartbeat arrived.
        heartbeat_made_at: when that heartbeat says it was made, never later than it arrived.
        pending: bundles that wait at the host, as it said at its last check-in.
        forks: bundles that contradict the chain.
        rotated_to: the key that took this one's place; then `revoked_at` says when.
        waiting_since: nothing is accepted from it until an operator approves it; None where it need not wait.
        set_back_at, set_back_digest: when it last spoke of less than was held here, as after a restored disk; what was held.
        contested_at: since when more than one machine seems to hold its key, until an operator looked into it.
    """

    key_id: str
    site_id: str
    client_id: str
    host_id: str
    public_key: bytes
    enrolled_at: datetime
    revoked_at: datetime | None = None
    head: Head | None = None
    last_seen_at: datetime | None = None
    heartbeat_at: datetime | None = None
    heartbeat_made_at: datetime | None = None
    agent_version: str = ""
    baseline_version: str = ""
    baseline_sha256: str = ""
    pending: int | None = None
    forks: int = 0
    rotated_to: str | None = None
    waiting_since: datetime | None = None
    set_back_at: datetime | None = None
    set_back_digest: str | None = None
    contested_at: datetime | None = None

    def seen(self, head: Head | None, at: datetime) -> Host:
        """This host after a request that was accepted; made for each of them, and a copy takes a seventh of `replace`."""
        after = object.__new__(Host)
        after.__dict__.update(self.__dict__, head=head, last_seen_at=at)
        return after


@dataclass(frozen=True)
class HostCertificate:
    """A client certificate that a host was given.

    Attributes:
        fingerprint: SHA-256 of its DER form.
        spki: SHA-256 of its public key.
    """

    fingerprint: str
    site_id: str
    key_id: str
    spki: str
    issued_at: datetime
    not_after: datetime


@dataclass(frozen=True)
class Place:
    """Where a stored bundle stands, and which bytes stand there."""

    key_id: str
    bundle_id: str
    epoch: int
    seq: int
    sha256: str


@dataclass(frozen=True)
class HostGroup:
    """Hosts of a site that stand alike; those whose key was replaced are not counted.

    Attributes:
        silent: whether nothing was heard of them since the time that was asked about.
        count: how many; `forked` and `contested` of them have sent contradictions, or are in two places.
    """

    site_id: str
    revoked: bool
    waiting: bool
    silent: bool
    count: int
    forked: int
    contested: int


class Held(NamedTuple):
    """A bundle that is held durably; `new` when it was stored just now, so that its entry in the log is still to come."""

    bundle_id: str
    epoch: int
    seq: int
    sha256: str
    new: bool


@dataclass(frozen=True)
class Bundle:
    """A stored bundle without its bytes. `created_at` is the host's claim, verbatim; `received_at` is ours.

    Attributes:
        number: order of arrival, over all hosts; the cursor of lists.
        check, result, reason, outcome: as the bundle says; None where it says nothing.
        error: why a cure was held back or how it went wrong, or `healed`; None where there was none.
    """

    number: int
    bundle_id: str
    key_id: str
    site_id: str
    epoch: int
    seq: int
    sha256: str
    prev: str
    kind: str
    check: str | None
    result: str | None
    reason: str | None
    outcome: str | None
    created_at: str
    received_at: datetime
    error: str | None = None


class NewBundle(NamedTuple):
    """A verified bundle on its way into the store, with its bytes as received; its own words come first."""

    bundle_id: str
    epoch: int
    seq: int
    prev: str
    kind: str
    check: str | None
    result: str | None
    reason: str | None
    outcome: str | None
    error: str | None
    created_at: str
    key_id: str
    site_id: str
    sha256: str
    body: bytes
    sig: bytes
    received_at: datetime


@dataclass(frozen=True)
class BundleQuery:
    """Which bundles of a list are wanted; None does not limit. `before` is the cursor: arrival numbers below it.

    Attributes:
        label: of their hosts.
        checks: of one of these.
        days: made on these days, as their hosts say.
    """

    key_id: str | None = None
    label: str | None = None
    bundle_id: str | None = None
    check: str | None = None
    checks: tuple[str, ...] | None = None
    days: Dates | None = None
    kind: str | None = None
    result: str | None = None
    outcome: str | None = None
    since: datetime | None = None  # received at or after
    before: int | None = None
    limit: int = 50


class Said(NamedTuple):
    """What one host said on one day, counted: `times` records alike, of which `last` arrived last."""

    key_id: str
    day: str
    kind: str
    check: str | None
    result: str | None
    outcome: str | None
    times: int
    last: int


class CheckVerdict(NamedTuple):
    """What stands for one check of one host; a tuple, because a page reads those of every host.

    Attributes:
        since: when this result began (the host's clock), as far as the evidence goes back.
        seen_at: when it was last said.
        bundle_id: the bundle that began it.
    """

    key_id: str
    site_id: str
    check: str
    result: str
    reason: str
    since: datetime
    seen_at: datetime
    bundle_id: str


class Tally(NamedTuple):
    """Verdicts of one host that stand alike, counted: those that are met together, each other one by itself.

    Attributes:
        check: of one that is not met; else empty.
        stale: nobody has repeated them lately.
        since: when the first of these results began.
        seen_at: when the one that nobody repeated longest was said.
    """

    key_id: str
    site_id: str
    check: str
    result: str
    stale: bool
    times: int
    since: datetime
    seen_at: datetime


class Changed(NamedTuple):
    """How often something at a site became unmet, how often it was met again, and how often a cure did that."""

    site_id: str
    worse: int
    better: int
    healed: int


@dataclass(frozen=True)
class Fork:
    """A signed bundle that contradicts the chain we hold: proof of two histories under one key."""

    key_id: str
    site_id: str
    epoch: int
    seq: int
    sha256: str
    body: bytes
    sig: bytes
    received_at: datetime


@dataclass(frozen=True)
class Gap:
    """Bundles the host has skipped: what we expected and what came instead. Open until the expected one arrives."""

    key_id: str
    site_id: str
    expected_epoch: int
    expected_seq: int
    got_epoch: int
    got_seq: int
    seen_at: datetime
    closed_at: datetime | None = None
