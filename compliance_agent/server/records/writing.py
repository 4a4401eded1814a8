"""What one write transaction does."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import date, datetime
from typing import Any, Protocol

from compliance_agent.server.records.alarms import Alert, Cause, Delivery
from compliance_agent.server.records.chains import (
    CheckVerdict,
    Fork,
    Gap,
    Host,
    HostCertificate,
    NewBundle,
    Place,
    Site,
)
from compliance_agent.server.records.duties import Duty, Replica, Tenure
from compliance_agent.server.records.exceptions import RecordedException
from compliance_agent.server.records.keeping import Durable, Hold, LoggedRecord
from compliance_agent.server.records.logs import NewLeaf, PendingLeaf, Shard
from compliance_agent.server.records.orders import Answer, OrderHost, OrderMark, OrderRow, SignedBaseline, TrustDocument
from compliance_agent.server.records.packets import PacketJob
from compliance_agent.server.records.people import Factor, Flow, OperatorToken, Token, User
from compliance_agent.server.records.planning import PlanRule
from compliance_agent.server.records.reading import Keeping


class Transaction(Keeping, Protocol):
    """One write transaction. Either all of it becomes durable or none. `sites` bounds what a tenant's request may touch."""

    async def hosts(self, sites: Collection[str], key_ids: Collection[str]) -> dict[str, Host]:
        """These hosts by key id, as they are now."""
        ...

    async def places(self, sites: Collection[str], ids: Collection[tuple[str, str]]) -> list[Place]:
        """Where bundles stand in chains, each asked for by the key and by its id."""
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

    async def revoke_token(self, site_id: str, token_hash: str, now: datetime) -> bool:
        """Let an unused token be worth nothing; False when it was used or revoked before."""
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

    async def approve_host(self, site_id: str, key_id: str) -> None:
        """An operator looked into this host: it need not wait, and its key is its own."""
        ...

    async def revoke_host(self, site_id: str, key_id: str, now: datetime) -> None:
        """Nothing of this host is accepted from now on; what it sent stays."""
        ...

    async def rotate_host(self, old: Host, new: Host, now: datetime) -> None:
        """Let a new key take an old one's place: its API keys and verdicts are the new one's, and the old one accepts no more."""
        ...

    async def add_api_key(self, site_id: str, key_id: str, present: str, coming: str, now: datetime) -> bool | None:
        """Let a host's next API key count beside its present one, both by their hashes; False when it does already, None when
        that hash has ended or is not this host's.
        """
        ...

    async def use_api_key(self, site_id: str, key_id: str, key_hash: str, now: datetime) -> bool:
        """A next API key is used: the host's others end. False when it was used before."""
        ...

    async def replace_api_key(self, site_id: str, key_id: str, key_hash: str, now: datetime) -> None:
        """Give a host its one live API key."""
        ...

    async def certificates(self, site_id: str, key_id: str) -> list[HostCertificate]:
        """The client certificates that a host holds, the newest first."""
        ...

    async def add_certificate(self, certificate: HostCertificate, *, at_most: int) -> None:
        """One more; the oldest ones beyond `at_most` are forgotten."""
        ...

    async def drop_certificates(self, site_id: str, key_id: str) -> None:
        """Forget those of a host."""
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

    async def save_cosigned(self, site_id: str, year: int, size: int, note: bytes) -> None:
        """The checkpoint of this size with the lines of its witnesses, for other replicas."""
        ...

    async def save_durable(self, found: Sequence[Durable], now: datetime) -> None:
        """Note what a verified backup holds."""
        ...

    async def durable(self, sites: Collection[str]) -> list[Durable]:
        """What a verified backup holds of the logs of these sites, by year."""
        ...

    async def note_baselines(self, uses: Mapping[tuple[str, str, str], date]) -> None:
        """Records of these days name these baseline versions, by site, host label and version."""
        ...

    async def lease_board(self, site_id: str) -> tuple[int, str] | None:
        """The version and the document of a site's leases; None before the first."""
        ...

    async def save_lease_board(self, site_id: str, old: int | None, board: str) -> bool:
        """Save the document if the version held is still `old`."""
        ...

    async def cured(self, site_id: str, key_id: str, check: str, since: datetime) -> str | None:
        """How the newest cure of a check that a host began ended, by its evidence that arrived since then."""
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

    async def all_sites(self, client_id: str | None) -> frozenset[str]:
        """Ids of all sites, or of all sites of one client."""
        ...

    async def user(self, name: str) -> User | None:
        """A user as it is now."""
        ...

    async def add_user(self, user: User) -> bool:
        """A new user; False when the name is taken."""
        ...

    async def save_user(self, user: User) -> None:
        """Write back a user's role, limits, password and whether it is disabled."""
        ...

    async def has_owner(self) -> bool:
        """Whether somebody is an owner of every client and not disabled."""
        ...

    async def end_credentials(self, name: str, now: datetime, *, tokens: bool) -> None:
        """End every session of a user, and every operator token where asked."""
        ...

    async def count_attempt(self, bucket: int, now: datetime, *, window_s: int, at_most: int) -> bool:
        """Count one login attempt; False, uncounted, when `at_most` were made within the window."""
        ...

    async def forget_attempts(self, bucket: int) -> None:
        """A login succeeded."""
        ...

    async def add_session(
        self, session_hash: str, name: str, now: datetime, expires_at: datetime, proved_at: datetime | None
    ) -> None:
        """A signed-in session, known by its hash; expired ones are dropped."""
        ...

    async def use_session(self, session_hash: str, now: datetime) -> None:
        """Note that it was used."""
        ...

    async def prove_session(self, session_hash: str, now: datetime) -> None:
        """Note that the second factor was shown."""
        ...

    async def end_session(self, session_hash: str, now: datetime) -> str | None:
        """Sign out; the user's name, None when there is no such live session."""
        ...

    async def add_flow(self, flow: Flow, now: datetime, *, at_most: int) -> bool:
        """Remember a sign-in at a provider, dropping expired ones; False when `at_most` live ones exist."""
        ...

    async def take_flow(self, state_hash: str, now: datetime) -> Flow | None:
        """Use one up; None when it is unknown, used or expired."""
        ...

    async def user_of_identity(self, issuer: str, subject: str) -> User | None:
        """Who is linked with an identity at a provider."""
        ...

    async def link_identity(self, name: str, issuer: str, subject: str, now: datetime) -> bool:
        """Link an identity with a user; False when somebody is linked with it."""
        ...

    async def unlink_identity(self, name: str, issuer: str, subject: str) -> bool:
        """End a link; False when there is none."""
        ...

    async def factor(self, name: str) -> Factor | None:
        """A user's second factor as it is now."""
        ...

    async def add_factor(self, factor: Factor) -> None:
        """A new second factor."""
        ...

    async def drop_factor(self, name: str) -> None:
        """No factor, and no recovery codes, from now on."""
        ...

    async def confirm_factor(self, name: str, now: datetime, recovery_hashes: Collection[str]) -> None:
        """It counts from now on, and these recovery codes do."""
        ...

    async def use_step(self, name: str, step: int) -> bool:
        """Use up a time step; False when this or a later one was used."""
        ...

    async def use_recovery_code(self, name: str, code_hash: str, now: datetime) -> bool:
        """Use up a recovery code; False when there is none unused."""
        ...

    async def add_operator_token(self, token: OperatorToken) -> None:
        """A token for a user's scripts."""
        ...

    async def use_operator_token(self, token_hash: str, now: datetime) -> None:
        """Note that it was used."""
        ...

    async def succeed_operator_token(self, token_hash: str, successor: str, now: datetime, until: datetime) -> bool:
        """Another takes its place, and it ends at `until` at the latest; False when it has ended, or has a successor."""
        ...

    async def revoke_operator_token(self, token_hash: str, now: datetime) -> bool:
        """Let it be worth nothing; False when it has ended."""
        ...

    async def add_order(self, order: OrderRow) -> None:
        """A new order."""
        ...

    async def orders_since(self, site_id: str, since: datetime, states: Collection[str]) -> list[OrderRow]:
        """The orders of a site that were drafted since then, and the older ones in any of these states."""
        ...

    async def order(self, site_id: str, order_id: str) -> OrderRow | None:
        """One order, as it is now."""
        ...

    async def exceptions_of(self, site_id: str) -> list[RecordedException]:
        """Every exception of a site."""
        ...

    async def add_exception(self, made: RecordedException) -> None:
        """A new one."""
        ...

    async def second_exception(self, site_id: str, exception_id: str, by: str, by_id: str, now: datetime) -> bool:
        """A second person approves one now; False when it does not wait for one, or not for this one."""
        ...

    async def exception_people(self, site_id: str) -> int:
        """How many people have to approve an exception at a site."""
        ...

    async def set_exception_people(self, site_id: str, people: int) -> None:
        """Have so many people approve exceptions from now on."""
        ...

    async def withdraw_exception(self, site_id: str, exception_id: str, by: str, now: datetime) -> bool:
        """End one now; False when it was withdrawn before."""
        ...

    async def plan_rule(self, site_id: str, check: str, reason: str) -> PlanRule | None:
        """What was promoted about a finding of a site."""
        ...

    async def add_plan_rule(self, rule: PlanRule) -> None:
        """A rule that there is not yet."""
        ...

    async def drop_plan_rule(self, site_id: str, check: str, reason: str) -> bool:
        """Forget a rule; False when there is none."""
        ...

    async def save_order(self, order: OrderRow) -> None:
        """Write an order back."""
        ...

    async def awaited(self, sites: Collection[str], key_ids: Collection[str], now: datetime) -> set[str]:
        """Those of these hosts for which something is forwardable."""
        ...

    async def forwardable(self, site_id: str, key_id: str, now: datetime, at_most: int) -> list[OrderRow]:
        """Signed orders to this host whose time it is and that have no answer, the lowest number first."""
        ...

    async def add_order_mark(self, mark: OrderMark) -> None:
        """Somebody approved or signed it."""
        ...

    async def order_marks(self, site_id: str, order_id: str) -> list[OrderMark]:
        """Who approved and signed it, in order."""
        ...

    async def order_hosts(self, sites: Collection[str], key_ids: Collection[str]) -> dict[str, OrderHost]:
        """What orders to these hosts must name, by key id."""
        ...

    async def save_order_host(self, host: OrderHost) -> None:
        """What orders to this host must name from now on."""
        ...

    async def add_baseline(self, baseline: SignedBaseline) -> None:
        """Keep a signed baseline for the hosts of a site; the same bytes again change nothing."""
        ...

    async def baseline(self, site_id: str, sha256: str) -> SignedBaseline | None:
        """The baseline of a site with this digest."""
        ...

    async def add_trust(self, document: TrustDocument) -> None:
        """A root or list of order keys for the hosts of a site."""
        ...

    async def drop_trust(self, site_id: str) -> None:
        """Every root and list of a site, to begin anew."""
        ...

    async def trust_heads(self, sites: Collection[str]) -> dict[tuple[str, str], int]:
        """The newest version by site and role."""
        ...

    async def trust(self, site_id: str, role: str, first: int, at_most: int) -> list[TrustDocument]:
        """Documents of a role from this version on, the lowest first."""
        ...

    async def trust_version(self, site_id: str, sha256: str) -> int | None:
        """The version of the root with this digest."""
        ...

    async def answer_orders(self, answers: Iterable[Answer], now: datetime) -> None:
        """Records say how the orders with these bytes ended."""
        ...

    async def open_alert(self, cause: Cause, count: int, channels: Sequence[str], now: datetime) -> bool:
        """Open an alert and put its sending into the outbox; False when one of this cause is open, which gets the count."""
        ...

    async def close_alert(self, cause: Cause, channels: Sequence[str], now: datetime) -> bool:
        """Close the open alert of a cause; False when there is none."""
        ...

    async def ack_alert(self, alert_id: str, actor: str, now: datetime) -> Alert | None:
        """Somebody looks after it; the alert, or None when there is none of this id that nobody has acknowledged."""
        ...

    async def claim_deliveries(
        self, claim: str, now: datetime, until: datetime, channels: Sequence[str], at_most: int
    ) -> list[Delivery]:
        """Take what is due of these channels, the oldest first, never the end of an alert before its beginning."""
        ...

    async def settle_delivery(self, number: int, claim: str, **became: Any) -> bool:
        """Say what became of it; False when the claim is no longer ours."""
        ...

    async def now(self) -> datetime:
        """The time that leases go by: the database's own, which is the same for every replica."""
        ...

    async def duties(self) -> list[Duty]:
        """Who does what, by name."""
        ...

    async def take_duty(self, name: str, holder: str, before: Duty | None, until: datetime) -> bool:
        """Begin a new epoch of a duty; False when somebody was first, or a transaction of its holder is under way."""
        ...

    async def keep_duty(self, tenure: Tenure, until: datetime) -> bool:
        """Say until when a duty is held; False when its epoch is over."""
        ...

    async def lasting(self, tenures: Collection[Tenure]) -> set[Tenure]:
        """Those of these epochs that are not over. None of them will be before this transaction is."""
        ...

    async def log_stops(self, sites: Collection[str]) -> dict[str, str]:
        """Why logs stand still at every replica, by site; none of these stops or goes on before this transaction has ended."""
        ...

    async def stop_log(self, site_id: str, code: str, now: datetime) -> bool:
        """Stop a site's log at every replica; False when it is stopped already."""
        ...

    async def lift_log(self, site_id: str) -> str | None:
        """Let it go on; why it stood still, None when it did not."""
        ...

    async def heard(self, replica: Replica) -> None:
        """A replica says that it lives, and how it is."""
        ...

    async def replicas(self, now: datetime) -> list[Replica]:
        """Those that were heard lately."""
        ...

    async def forget_replica(self, replica_id: str) -> None:
        """It has ended properly."""
        ...

    async def alerts(self, at_most: int) -> list[Alert]:
        """Open alerts first, then the newest."""
        ...

    async def outbox_counts(self) -> dict[tuple[str, str], int]:
        """How many deliveries stand at what, by channel and state."""
        ...

    async def audited(self, actor: str, action: str, since: datetime) -> int:
        """How often somebody did this since then."""
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

    async def add_packet_job(self, job: PacketJob) -> None:
        """Somebody asks for a packet."""
        ...

    async def packet_jobs(self, sites: Collection[str]) -> list[PacketJob]:
        """All of these sites, in the order in which they were asked for."""
        ...

    async def save_packet_job(self, job: PacketJob, *, tries: int) -> bool:
        """A packet as it is now, unless it has ended, or somebody began it once more than so often."""
        ...

    async def end_packet_job(self, job: PacketJob) -> None:
        """It is over, and what came of it is removed from the database."""
        ...

    async def forget_packet_jobs(self, sites: Collection[str], before: datetime) -> None:
        """Drop what is left of those that ended before this time and have no files."""
        ...

    async def add_packet_part(self, job: PacketJob, name: str, number: int, content: bytes) -> None:
        """A piece of a file."""
        ...

    async def clear_packet_parts(self, job: PacketJob) -> None:
        """Remove what an earlier try left."""
        ...
