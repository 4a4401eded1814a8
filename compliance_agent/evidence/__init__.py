"""Evidence: from what was seen and done to durable, signed, chained records that anyone can verify.

`EvidenceGenerator` is the stage the agent talks to: `create_evidence` puts a bundle together, `store_evidence` records
it. Beside it: `canonical` (the bytes that are signed), `allowlist` (what may leave a host), `store` (the chain),
`verify` (the auditor's side). Server and auditor import those without any of the agent's hands.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from compliance_agent import __version__
from compliance_agent.errors import CannotTell, ConfigError, StorageDamaged
from compliance_agent.facts import VERSION
from compliance_agent.models import ActionTaken, BundleKind, ClockState, EvidenceBundle, Result
from compliance_agent.traces import RECORDING

if TYPE_CHECKING:
    from compliance_agent.adapters.database import Damage, Database
    from compliance_agent.baseline import Baseline
    from compliance_agent.config import AgentConfig
    from compliance_agent.crypto import Ed25519Signer
    from compliance_agent.evidence.allowlist import Circumstances
    from compliance_agent.evidence.store import EvidenceStore, Stored
    from compliance_agent.ports import Clock, Host

log = structlog.get_logger()


class EvidenceGenerator:
    """Makes bundles of this host and records them. `store_evidence` returns after the record is durable.

    Args:
        config: ids, directories and versions that every bundle carries.
        signer: the host's evidence key.
        database: the agent's; the shared one of `config.state_dir` when not given.
        clock: for times that a caller leaves out; the system's when not given.
        host: asked for the state of its clock; this machine when not given.
        baseline: named in every bundle, and its words are what `Name` facts may say.

    Raises:
        ConfigError: `policy_version` cannot stand in a bundle, or the chain was begun with another key.
        StorageError: the database cannot be opened.
    """

    def __init__(
        self,
        config: AgentConfig,
        signer: Ed25519Signer,
        *,
        database: Database | None = None,
        clock: Clock | None = None,
        host: Host | None = None,
        baseline: Baseline | None = None,
    ) -> None:
        if not VERSION.fullmatch(config.policy_version):
            raise ConfigError('policy_version: expected a version such as "1.0", without spaces, at most 40 characters')
        self.config = config
        self.signer = signer
        self.baseline = baseline
        self._clock = clock if clock is not None else _system_clock()
        self._host = host if host is not None else _real_host()
        self._database = database
        self._shares_database = database is None
        self._store: EvidenceStore | None = None
        self._one_at_a_time = asyncio.Lock()

    def use_baseline(self, baseline: Baseline) -> None:
        """From now on bundles name this one, and its words are what `Name` facts may say."""
        self.baseline = baseline
        if self._store is not None:
            self._store.names = {check: entry.names for check, entry in baseline.entries.items()}

    # Making

    async def create_evidence(
        self,
        check: str,
        outcome: str | None,
        pre_state: Mapping[str, Any] | None = None,
        post_state: Mapping[str, Any] | None = None,
        actions: Sequence[ActionTaken] | None = None,
        error: str | None = None,
        timestamp_start: datetime | None = None,
        timestamp_end: datetime | None = None,
        hipaa_controls: Sequence[str] | None = None,
        rollback_available: bool = False,
        rollback_generation: int | None = None,
        order_id: str | None = None,
        **more: Any,
    ) -> EvidenceBundle:
        """A bundle of this host, not yet recorded.

        Args:
            check: id of the check; empty for a bundle that is about the host.
            outcome: one of `Outcome`, or None when nothing was done nor refused.
            pre_state: facts before.
            post_state: facts after.
            actions: steps as carried out.
            error: token of what went wrong.
            timestamp_start: when it began; now when not given.
            timestamp_end: when it ended; now when not given.
            hipaa_controls: sections it is evidence for; the check's own when not given.
            rollback_available: a rollback point exists.
            rollback_generation: the NixOS generation it names.
            order_id: the order it answers.
            more: further fields of `EvidenceBundle`.
        """
        now = self._clock.now()
        start = timestamp_start or timestamp_end or now
        return EvidenceBundle(
            site_id=self.config.site_id,
            host_id=self.config.host_id,
            client_id=self.config.client_id,
            deployment_mode=self.config.deployment_mode,
            policy_version=self.config.policy_version,
            timestamp_start=start,
            timestamp_end=timestamp_end or max(now, start),
            check=check,
            outcome=outcome or "",
            pre_state=pre_state or {},
            post_state=post_state or {},
            action_taken=tuple(actions or ()),
            error=error,
            hipaa_controls=_cited(check) if hipaa_controls is None else hipaa_controls,
            rollback_available=rollback_available,
            rollback_generation=rollback_generation,
            order_id=order_id,
            **{"kind": BundleKind.REMEDIATION if outcome else BundleKind.DRIFT, **more},
        )

    # Recording

    async def store_evidence(self, bundle: EvidenceBundle, sign: bool = True) -> tuple[Path, Path]:
        """Record a bundle: numbered, chained, signed, durable, and waiting for delivery.

        Args:
            bundle: as `create_evidence` made it.
            sign: kept for older callers; evidence is always signed.

        Returns:
            The paths of bundle.json and bundle.sig. On a full disk they may appear later; the record is safe.

        Raises:
            ValueError: `sign` is False.
            BadEvidence: it holds something that may not leave the host.
            StorageError: nothing was promised.
        """
        if not sign:
            raise ValueError("unsigned evidence is not evidence")
        store = await self.open()
        async with self._one_at_a_time:  # so that the clock read for a bundle is in the order of its number
            stored = await self._record(store, bundle, await self.circumstances())
        return stored.bundle_path, stored.signature_path

    async def open(self) -> EvidenceStore:
        """The chain, opened and brought together with its directories on the first call."""
        if self._store is None:
            database = self._open_database()
            self._store = await database.call(lambda: self._open_store(database))
        if self._store.lost is not None:
            damage, self._store.lost = self._store.lost, None
            await self._record_loss(self._store, damage)
        return self._store

    async def rehearse(self) -> None:
        """Do once everything that a record takes short of its row, so that the first cure does not wait for it: the chain is
        opened, this program's own digest taken, and a bundle made, held against the schema and signed, and thrown away.

        Raises:
            AgentError: as of `store_evidence`.
        """
        from compliance_agent.installed import agent_digest

        store = await self.open()
        await store.database.call(agent_digest)  # reads every file of this program
        bundle = await self._incident(broken=False)
        if self.baseline is not None and self.baseline.entries:
            check = next(iter(self.baseline.entries))
            bundle = await self.create_evidence(
                check, None, kind=BundleKind.DRIFT, result=Result.UNKNOWN, reason="timed_out"
            )
        circumstances = await self.circumstances()
        await store.database.call(lambda: store.rehearse(bundle, circumstances))

    async def circumstances(self) -> Circumstances:
        """What a bundle made now says of this host, beside its own content."""
        from compliance_agent.evidence.allowlist import Circumstances
        from compliance_agent.installed import agent_digest

        baseline = (self.baseline.version, self.baseline.sha256) if self.baseline is not None else None
        return Circumstances(
            key_id=self.signer.key_id,
            created_at=self._clock.now(),
            clock=await self._clock_state(),
            agent=(__version__, agent_digest()),
            baseline=baseline,
        )

    # Beside a server

    async def head(self) -> tuple[int, int, str]:
        """Epoch, number and SHA-256 of the last recorded bundle; `(0, 0, 64 zeros)` before the first."""
        store = await self.open()
        head = await store.database.call(store.head)
        return (head.epoch, head.seq, head.digest) if head is not None else (0, 0, "0" * 64)

    async def reconcile(self, known: tuple[int, int, str] | None, *, broken: bool = False) -> int | None:
        """Go on in a new epoch when a server holds bundles of this key that this chain does not have, and record that.

        Args:
            known: epoch, number and SHA-256 of the newest bundle the server holds; None when it holds none.
            broken: go on after it although this chain has it: what is recorded after it can never be taken there.

        Returns:
            The new epoch, None when there was no need for one.

        Raises:
            StorageError: nothing was changed, or the new epoch does not say yet why it began.
        """
        if known is None and not broken:
            return None
        from compliance_agent.evidence.recovery import Head

        store = await self.open()
        after = Head(*known) if known is not None else Head(0, 0, "0" * 64)
        epoch = await store.database.call(lambda: store.continue_after(after, broken=broken))
        if epoch is not None:
            await self._record(store, await self._incident(broken), await self.circumstances())
        return epoch

    async def _incident(self, broken: bool) -> EvidenceBundle:
        if broken:
            return await self.create_evidence("", None, kind=BundleKind.INCIDENT, reason="chain_broken")
        return await self.create_evidence("", None, kind=BundleKind.INCIDENT, reason="server_ahead")

    async def rechain(self, epoch: int, seq: int) -> int:
        """Give pending bundles of ended epochs, from this place on, new places at the end; see `EvidenceStore.rechain`."""
        store = await self.open()
        return await store.database.call(lambda: store.rechain(epoch, seq))

    async def close(self) -> None:
        """Give the database back, if this generator opened it."""
        if self._shares_database and self._database is not None:
            from compliance_agent.adapters.open_databases import release

            release(self._database)
            self._database, self._store = None, None

    def _open_database(self) -> Database:
        if self._database is None:
            from compliance_agent.adapters.open_databases import shared

            self._database = shared(self.config.state_dir / "agent.db", reserve_kb=self.config.reserve_kb)
        return self._database

    def _open_store(self, database: Database) -> EvidenceStore:
        from compliance_agent.evidence.store import EvidenceStore

        entries = self.baseline.entries if self.baseline is not None else None
        names = None if entries is None else {check: entry.names for check, entry in entries.items()}
        store = EvidenceStore(database, self.config.evidence_dir, self.signer, names=names)
        store.replay()
        return store

    async def _record(self, store: EvidenceStore, bundle: EvidenceBundle, seen: Circumstances) -> Stored:
        trace = RECORDING.get()
        traceparent = None if trace is None else trace.text

        def record() -> Stored:
            return store.record(bundle, seen, traceparent)

        try:
            return await store.database.call(record)
        except StorageDamaged:
            # The damaged database was moved aside just now, and there is a new one in its place.
            return await store.database.call(record)

    async def _record_loss(self, store: EvidenceStore, damage: Damage) -> None:
        """A lost or damaged database is itself evidence: it is the first thing the new epoch says."""
        bundle = await self.create_evidence(
            check="",
            outcome=None,
            kind=BundleKind.INCIDENT,
            trigger="start",
            reason="storage_damaged",
            counts={"rows_saved": damage.rows_saved},
        )
        await self._record(store, bundle, await self.circumstances())
        log.error("evidence.loss_recorded", bundle_id=bundle.bundle_id, rows_saved=damage.rows_saved)

    async def _clock_state(self) -> ClockState:
        try:
            return await self._host.clock_state()
        except CannotTell:
            return ClockState("unknown", None, None, None, "", int(self._clock.monotonic() * 1e9))


def _cited(check: str) -> list[str]:
    from compliance_agent.evidence.allowlist import registry

    entry = registry().checks.get(check)
    return list(entry["citations"]) if entry else []


def _system_clock() -> Clock:
    from compliance_agent.adapters.clock import SystemClock

    return SystemClock()


def _real_host() -> Host:
    from compliance_agent.adapters.subprocess_host import RealHost

    return RealHost()
