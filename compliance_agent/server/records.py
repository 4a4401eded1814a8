"""The words that the server's services and its store share, and the contract between them.

Services decide, the store remembers. A service gets a `Store`; it reads through `for_sites(...)`, a handle that sees the rows of
these sites and no others, and writes in `write(work)`: one transaction, durable when the call returns. Times are aware UTC.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import NamedTuple, Protocol, TypeVar

T = TypeVar("T")
NO_DIGEST = "0" * 64  # `prev` of the very first bundle of a key


@dataclass(frozen=True)
class Head:
    """The newest bundle of a key's chain: its place and the SHA-256 of its exact bytes."""

    epoch: int
    seq: int
    digest: str


@dataclass(frozen=True)
class Site:
    """A clinic, and the client of the provider that it belongs to."""

    site_id: str
    client_id: str
    created_at: datetime


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


@dataclass(frozen=True)
class Place:
    """Where a stored bundle stands, and which bytes stand there."""

    key_id: str
    bundle_id: str
    epoch: int
    seq: int
    sha256: str


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
    """A verified bundle on its way into the store, with its bytes as received."""

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
    body: bytes
    sig: bytes
    error: str | None
    received_at: datetime


@dataclass(frozen=True)
class CheckVerdict:
    """What stands for one check of one host.

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


@dataclass(frozen=True)
class Token:
    """An enrolment token, known only by its hash."""

    hash: str
    site_id: str
    client_id: str
    expires_at: datetime
    used_at: datetime | None
    used_by: str | None


@dataclass(frozen=True)
class User:
    """A person (or an operator's script). `sites` None means every site of this server."""

    name: str
    password_hash: str
    role: str  # admin | viewer
    sites: frozenset[str] | None
    created_at: datetime
    disabled_at: datetime | None = None


@dataclass(frozen=True)
class BundleQuery:
    """Which bundles of a list are wanted; None does not limit. `before` is the cursor: arrival numbers below it."""

    key_id: str | None = None
    check: str | None = None
    kind: str | None = None
    result: str | None = None
    outcome: str | None = None
    since: datetime | None = None  # received at or after
    before: int | None = None
    limit: int = 50


class NewLeaf(NamedTuple):
    """An entry for a site's log, decided in the transaction of what it records; the sequencer gives it its index.

    Attributes:
        epoch, seq: of the bundle that it is for; None for every other kind.
    """

    site_id: str
    leaf: bytes
    key_id: str | None = None
    epoch: int | None = None
    seq: int | None = None


class PendingLeaf(NamedTuple):
    """An entry without an index yet; `number` is its order of arrival over all sites."""

    number: int
    site_id: str
    leaf: bytes
    key_id: str | None
    epoch: int | None
    seq: int | None


@dataclass(frozen=True)
class Leaf:
    """An integrated entry and its place."""

    site_id: str
    year: int
    index: int
    leaf: bytes
    key_id: str | None
    epoch: int | None
    seq: int | None
    bundle_id: str | None = None


@dataclass(frozen=True)
class Kept:
    """A stored bundle as it goes into a packet; year and index are None while it waits for the log."""

    number: int
    key_id: str
    epoch: int
    seq: int
    body: bytes
    sig: bytes
    year: int | None
    index: int | None


@dataclass(frozen=True)
class Shard:
    """One site's log of one year: the tree that is committed, and the newest checkpoint that was signed over it.

    Attributes:
        root, edge: of the tree of `size` entries; `edge` is what appending needs (log.tree.Edge), its levels joined.
        checkpoint: the signed note, None before the first; it is here before anybody sees it.
        checkpoint_size: entries under that note, at most `size`.
        sequenced_at: when entries last got indexes; the next ones get theirs strictly later.
        published_at: when that note was signed.
    """

    site_id: str
    year: int
    origin: str
    size: int
    root: bytes
    edge: bytes
    sequenced_at: datetime
    checkpoint: bytes | None = None
    checkpoint_size: int = 0
    published_at: datetime | None = None


@dataclass(frozen=True)
class Durable:
    """How much of a log a verified backup holds: entries below `size`, each with its record."""

    site_id: str
    year: int
    origin: str
    size: int


@dataclass(frozen=True)
class Hold:
    """Nothing of this site, or of its hosts with this label, is destroyed while it stands; `reason_id` names the matter."""

    site_id: str
    host_id: str | None
    reason_id: str
    added_at: datetime
    released_at: datetime | None = None


@dataclass(frozen=True)
class Minimum:
    """The first entry of a log that is kept, and when everything below it was destroyed."""

    index: int
    pruned_at: datetime


@dataclass(frozen=True)
class LoggedRecord:
    """An entry of a log with what must be known to decide how long it is kept.

    Attributes:
        host_id: the label of its key's host; None for an entry of no host.
        kind: `bundle`, `fork`, or `entry` for one without a record here.
        number: of the record's row in its table; None without one.
        body: the record's bytes, empty when they were destroyed; None without a record.
        created_at: as the record says; received_at: of the record, or when its entry was decided.
    """

    index: int
    host_id: str | None
    kind: str
    number: int | None
    body: bytes | None
    created_at: str
    received_at: datetime


@dataclass(frozen=True)
class Backlog:
    """Entries that wait for an index: how many, and since when."""

    count: int
    oldest: datetime | None


@dataclass(frozen=True)
class Event:
    """A recorded verdict of one check, or what was done about it: as little of the bundle as counting needs."""

    site_id: str
    key_id: str
    check: str
    kind: str
    result: str | None
    outcome: str | None


class Keeping(Protocol):
    """What decides how long the records of a site are kept."""

    async def baseline_uses(self, site_id: str) -> dict[tuple[str, str], date]:
        """The last day of each baseline version, by host label and version."""
        ...

    async def live_baselines(self, site_id: str) -> set[tuple[str, str]]:
        """Label and baseline version of each host that is not revoked, as it checked in last."""
        ...

    async def holds(self, site_id: str) -> list[Hold]:
        """Every hold of a site, released ones included, in the order in which they were made."""
        ...

    async def minimum(self, site_id: str, year: int) -> Minimum | None:
        """The minimum index of a log; None while nothing of it was pruned."""
        ...

    async def logged_records(self, site_id: str, year: int, start: int, stop: int) -> list[LoggedRecord]:
        """The entries of a log with index `start` to `stop`, exclusive, in order, and their records."""
        ...


class SiteReader(Keeping, Protocol):
    """The rows of certain sites. What belongs to another site is not there."""

    @property
    def sites(self) -> frozenset[str]:
        """The sites this handle is bound to."""
        ...

    def only(self, site_id: str) -> SiteReader:
        """The same handle for one of its sites; for another site, a handle that sees nothing."""
        ...

    async def events(self, since: datetime) -> list[Event]:
        """Verdicts and cures that arrived since then, by host and check, each in the order of its chain."""
        ...

    async def site_rows(self) -> list[Site]:
        """The sites themselves, by id."""
        ...

    async def hosts(self, site_id: str | None = None) -> list[Host]:
        """Hosts of one site or of all, revoked ones included, by site and label."""
        ...

    async def host(self, key_id: str) -> Host | None:
        """One host."""
        ...

    async def verdicts(self, key_id: str | None = None) -> list[CheckVerdict]:
        """Current verdicts of one host or of all, by host and check."""
        ...

    async def remediations(self, key_id: str) -> dict[str, Bundle]:
        """The newest remediation bundle of each check of a host."""
        ...

    async def bundles(self, query: BundleQuery) -> list[Bundle]:
        """Bundles, newest arrival first."""
        ...

    async def bundle(self, bundle_id: str, key_id: str | None = None) -> tuple[Bundle, bytes, bytes] | None:
        """One bundle with its bytes and its signature, as received; the first to arrive when two keys used the id."""
        ...

    async def neighbours(self, bundle: Bundle) -> tuple[Bundle | None, Bundle | None]:
        """The bundles before and after it in its key's chain, across epochs."""
        ...

    async def gapped(self) -> frozenset[str]:
        """Key ids of hosts with an open gap."""
        ...

    async def gaps(self, key_id: str) -> list[Gap]:
        """Gaps of a host, open ones first, at most 100."""
        ...

    async def forks(self, key_id: str) -> list[Fork]:
        """Contradicting bundles of a host, newest first, at most 100."""
        ...

    async def shards(self) -> list[Shard]:
        """Logs by site and year."""
        ...

    async def first_without_record(self, site_id: str, year: int) -> int | None:
        """Index of the first entry of a record that is not held (see `readopt`); None when all are."""
        ...

    async def any_pending(self) -> bool:
        """Whether an entry of these sites waits for an index."""
        ...

    async def backlog(self) -> Backlog:
        """Entries of these sites that wait for an index."""
        ...

    async def unlogged(self) -> dict[str, int]:
        """How many bundles of each host no published checkpoint covers yet; hosts with none are left out."""
        ...

    async def leaves(self, site_id: str, year: int, start: int, stop: int) -> list[bytes]:
        """The entries with index `start` to `stop`, exclusive, in order."""
        ...

    async def leaves_of(self, key_id: str, bundle_ids: Collection[str]) -> list[Leaf]:
        """The integrated entries of these bundles of a host."""
        ...

    async def signed_places(self, site_id: str, after: int, limit: int) -> list[tuple[int, bytes, bytes | None, bool]]:
        """For each bundle by arrival: its number, the leaf it must have, the leaf it has, and whether that has an index."""
        ...

    async def emptied_early(self, site_id: str) -> list[int]:
        """Numbers of the bundles whose bytes are gone although no published minimum index covers them."""
        ...

    async def kept(self, site_id: str, after: int, limit: int) -> list[Kept]:
        """Bundles with their bytes and places in the log, by arrival, from the number after `after` on."""
        ...

    async def kept_of(self, site_id: str, numbers: Collection[int]) -> list[Kept]:
        """As `kept`, the bundles of these numbers, in any order."""
        ...


class Transaction(Keeping, Protocol):
    """One write transaction. Either all of it becomes durable or none. `sites` bounds what a tenant's request may touch."""

    async def hosts(self, sites: Collection[str], key_ids: Collection[str]) -> dict[str, Host]:
        """These hosts by key id, as they are now."""
        ...

    async def places(self, site_id: str, key_id: str, bundle_ids: Collection[str]) -> list[Place]:
        """Where bundles with these ids stand in the chain of a key."""
        ...

    async def place_at(self, site_id: str, key_id: str, epoch: int, seq: int) -> Place | None:
        """What stands at one place of a chain."""
        ...

    async def verdicts(self, sites: Collection[str], key_ids: Collection[str]) -> dict[tuple[str, str], CheckVerdict]:
        """Current verdicts by (key id, check)."""
        ...

    async def add_bundles(self, bundles: Sequence[NewBundle]) -> None:
        """Store bundles, bytes as received."""
        ...

    async def save_hosts(self, hosts: Iterable[Host]) -> None:
        """Write back what changes in a host's life (head, last seen, heartbeat, versions, pending, forks)."""
        ...

    async def save_verdicts(
        self, changed: Iterable[CheckVerdict], known: Collection[tuple[str, str]], gone: Iterable[CheckVerdict]
    ) -> None:
        """Insert verdicts, update those whose (key id, check) is `known`, delete the `gone`."""
        ...

    async def add_fork(self, fork: Fork, *, at_most: int) -> bool:
        """Keep a contradicting bundle; False when it is kept already, or when this host has `at_most` of them."""
        ...

    async def open_gap(self, gap: Gap) -> None:
        """Note a gap unless the same one is open."""
        ...

    async def close_gaps(self, site_id: str, key_id: str, now: datetime) -> None:
        """The expected bundle has come."""
        ...

    async def add_site(self, site: Site) -> Site:
        """The site; made when it is new."""
        ...

    async def add_token(self, token_hash: str, site_id: str, now: datetime, expires_at: datetime) -> None:
        """Remember a token by its hash."""
        ...

    async def token(self, token_hash: str) -> Token | None:
        """The token with this hash."""
        ...

    async def redeem_token(self, token_hash: str, key_id: str, now: datetime) -> bool:
        """Mark an unused token as used by this key; False when someone was first."""
        ...

    async def add_nonce(
        self, nonce_hash: str, key_id: str, now: datetime, expires_at: datetime, *, at_most: int
    ) -> bool:
        """Remember a nonce, dropping expired ones; False when `at_most` live ones exist."""
        ...

    async def take_nonce(self, nonce_hash: str, key_id: str, now: datetime) -> bool:
        """Use up a nonce; False when it is unknown, expired, or was made for another key."""
        ...

    async def live_label(self, site_id: str, host_id: str) -> str | None:
        """Key id of the host that carries this label at this site and is not revoked."""
        ...

    async def key_is_known(self, key_id: str) -> bool:
        """Whether any site has a host with this key, revoked or not."""
        ...

    async def add_host(self, host: Host) -> None:
        """A new host."""
        ...

    async def revoke_host(self, site_id: str, key_id: str, now: datetime) -> None:
        """Nothing of this host is accepted from now on; what it sent stays."""
        ...

    async def rotate_host(self, old: Host, new: Host, now: datetime) -> None:
        """Let a new key take an old one's place: its API keys and verdicts are the new one's, and the old one accepts no more."""
        ...

    async def replace_api_key(self, site_id: str, key_id: str, key_hash: str, now: datetime) -> None:
        """Give a host its one live API key."""
        ...

    async def add_leaves(self, leaves: Sequence[NewLeaf], now: datetime) -> None:
        """Decide entries of a site's log, to be integrated in this order."""
        ...

    async def pending_leaves(self, sites: Collection[str], at_most: int) -> list[PendingLeaf]:
        """The entries of these sites that wait longest for an index, in order of arrival."""
        ...

    async def open_shard(self, shard: Shard, first: bytes) -> bool:
        """A new year's log of size 1, with its first entry; False when it exists."""
        ...

    async def place_leaves(self, site_id: str, year: int, first: int, numbers: Sequence[int]) -> bool:
        """Give pending entries, named in order of arrival, the indexes from `first` on; False when one was not pending."""
        ...

    async def adopt_leaves(self, site_id: str, year: int, first: int, leaves: Sequence[NewLeaf], now: datetime) -> bool:
        """Entries of a published log, at the indexes from `first` on; one that waits here gets its index.

        False when another entry waits for the place of one of them; then the transaction must be given up.
        """
        ...

    async def logged_ahead(self, sites: Collection[str], key_ids: Collection[str]) -> dict[tuple[str, int, int], bytes]:
        """Entries by key, epoch and seq that stand in a log for records beyond these hosts' heads: a backup was restored."""
        ...

    async def gapped(self, sites: Collection[str], key_ids: Collection[str]) -> set[str]:
        """Which of these hosts have an open gap."""
        ...

    async def grow_shard(self, shard: Shard, *, old_size: int) -> bool:
        """Save size, root, edge and time if the size is still `old_size`; False, with nothing saved, when it is not."""
        ...

    async def save_checkpoint(self, shard: Shard, *, old: bytes | None) -> bool:
        """Save the checkpoint if the one held is still `old` and the tree still has its size and root."""
        ...

    async def save_durable(self, found: Sequence[Durable], now: datetime) -> None:
        """Note what a verified backup holds."""
        ...

    async def durable(self, site_id: str) -> list[Durable]:
        """What a verified backup holds of a site's logs, by year."""
        ...

    async def note_baselines(self, uses: Mapping[tuple[str, str, str], date]) -> None:
        """Records of these days name these baseline versions, by site, host label and version."""
        ...

    async def add_hold(self, hold: Hold) -> bool:
        """A new hold; False when the same one stands."""
        ...

    async def release_hold(self, site_id: str, host_id: str | None, reason_id: str, now: datetime) -> bool:
        """End a hold; False when none like it stands."""
        ...

    async def empty_records(
        self, site_id: str, year: int, first: int, stop: int, records: Sequence[LoggedRecord], now: datetime
    ) -> int:
        """Destroy the bytes of records whose entries stand in this stretch of a log; how many were.

        The stretch is below the log's minimum index from then on. The database refuses a record that is too young or is held.
        """
        ...

    async def add_user(self, user: User) -> bool:
        """A new user; False when the name is taken."""
        ...

    async def set_password(self, name: str, password_hash: str, now: datetime) -> None:
        """Change a password and end the user's sessions."""
        ...

    async def count_attempt(self, bucket: int, now: datetime, *, window_s: int, at_most: int) -> bool:
        """Count one login attempt; False, uncounted, when `at_most` were made within the window."""
        ...

    async def forget_attempts(self, bucket: int) -> None:
        """A login succeeded."""
        ...

    async def add_session(self, session_hash: str, name: str, now: datetime, expires_at: datetime) -> None:
        """A signed-in session, known by its hash; expired ones are dropped."""
        ...

    async def end_session(self, session_hash: str, now: datetime) -> None:
        """Sign out."""
        ...

    async def add_operator_token(self, token_hash: str, name: str, now: datetime, expires_at: datetime) -> None:
        """A token for a user's scripts."""
        ...

    async def audit(
        self,
        now: datetime,
        actor: str,
        action: str,
        *,
        site_id: str | None = None,
        subject: str = "",
        outcome: str = "ok",
    ) -> None:
        """Record who did what; words and ids only."""
        ...


Work = Callable[[Transaction], Awaitable[T]]


class Store(Protocol):
    """The server's memory."""

    async def write(self, work: Work[T]) -> T:
        """Run `work` in one transaction, durable when this returns; an error of `work` undoes all of it and passes through.

        Raises:
            StorageError: it did not become durable; nothing may be promised.
        """
        ...

    def for_sites(self, sites: Iterable[str]) -> SiteReader:
        """The handle through which everything that belongs to a site is read."""
        ...

    async def all_sites(self) -> frozenset[str]:
        """Ids of all sites: what a user without limits may see."""
        ...

    async def host_of_api_key(self, key_hash: str) -> Host | None:
        """The host that holds this API key, revoked or not."""
        ...

    async def user(self, name: str) -> User | None:
        """A user by name."""
        ...

    async def user_of_session(self, session_hash: str, now: datetime) -> User | None:
        """The user of a live session, unless disabled."""
        ...

    async def user_of_token(self, token_hash: str, now: datetime) -> User | None:
        """The user of a live operator token, unless disabled."""
        ...

    async def ready(self) -> None:
        """Raises StorageError when the database cannot be read or is of another version."""
        ...


Clock = Callable[[], datetime]
Verdicts = Mapping[str, tuple[str, str]]
