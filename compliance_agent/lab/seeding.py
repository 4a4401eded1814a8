"""A day in the life of three clinics, written into a real server's store through its ingest service.

Every bundle is a real one: facts from the checks' own cases, judged by the checks, built by the allow-list, signed by the host's
key, chained, and accepted by `Ingest`. Used by the browser tests and by `./run screenshots`. Random only
by its seed.
"""

from __future__ import annotations

import functools
import hashlib
import random
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from compliance_agent import __version__, checks, facts
from compliance_agent.baseline import names_of
from compliance_agent.checks.spec import Check, Unreadable, judge_seen
from compliance_agent.crypto import key_id
from compliance_agent.evidence.allowlist import Circumstances, Place, build, registry
from compliance_agent.evidence.canonical import canonical
from compliance_agent.models import ActionTaken, ClockState, EvidenceBundle, Result
from compliance_agent.server.records import NO_DIGEST, Host, Site, Store, Transaction
from compliance_agent.server.services.ingest import Ingest

CLIENT = "msp-northwind"
BASELINE = ("2026.11.3", hashlib.sha256(b"baseline").hexdigest())
AGENT = (__version__, hashlib.sha256(b"agent").hexdigest())
BOOT_ID = "6f1c2f6e-52b4-4d0e-9c0b-2f5d0d9b7a11"


@dataclass
class MovingClock:
    """The time at which the next bundle is made and received."""

    now: datetime

    def __call__(self) -> datetime:
        return self.now


@dataclass
class SeededHost:
    """One host with its key and the end of its chain."""

    site_id: str
    host_id: str
    key: Ed25519PrivateKey
    verdicts: dict[str, tuple[str, str]] = field(default_factory=dict)
    seq: int = 0
    digest: str = NO_DIGEST
    bundle_ids: list[str] = field(default_factory=list)
    cures: dict[str, str] = field(default_factory=dict)  # newest remediation bundle by check

    @property
    def public_key(self) -> bytes:
        """The raw 32 bytes."""
        return self.key.public_key().public_bytes_raw()

    @property
    def key_id(self) -> str:
        """The host's identity."""
        return key_id(self.public_key)

    @property
    def row(self) -> Host:
        """The host as the server's records name it."""
        return Host(
            self.key_id,
            self.site_id,
            CLIENT,
            self.host_id,
            self.public_key,
            datetime.fromtimestamp(0, UTC),
            agent_version=AGENT[0],
            baseline_version=BASELINE[0],
            baseline_sha256=BASELINE[1],
        )


@dataclass(frozen=True)
class Event:
    """What happens on a host, and when: a check's case is seen, and perhaps a cure ends in `outcome`, with `ending`."""

    ago: timedelta
    host: str
    check: str
    result: Result
    outcome: str | None = None
    ending: str = ""


HOSTS = (
    ("clinic-elm-street", "frontdesk-01"),
    ("clinic-elm-street", "ehr-db-02"),
    ("clinic-harbour", "imaging-01"),
    ("clinic-harbour", "imaging-02"),
    ("clinic-lakeside", "nurse-station"),
    ("clinic-lakeside", "lab-pc-03"),
)
SILENT_FROM = {"imaging-01": timedelta(hours=5)}
_H = timedelta(hours=1)
STORY = (
    Event(19 * _H, "ehr-db-02", "patching", Result.FAIL, "deferred", "outside_window"),
    Event(16 * _H, "lab-pc-03", "time_sync", Result.FAIL, "success", "healed"),
    Event(11.5 * _H, "frontdesk-01", "backup", Result.FAIL, "alert", "no_cure"),
    Event(9.2 * _H, "imaging-01", "logging", Result.UNKNOWN),
    Event(7.7 * _H, "imaging-01", "logging", Result.PASS),
    Event(6.4 * _H, "ehr-db-02", "logging", Result.FAIL, "success", "healed"),
    Event(5.3 * _H, "frontdesk-01", "encryption", Result.UNKNOWN),
    Event(3.1 * _H, "ehr-db-02", "firewall", Result.FAIL, "success", "healed"),
    Event(1.6 * _H, "lab-pc-03", "av_health", Result.FAIL, "success", "healed"),
    Event(0.3 * _H, "imaging-02", "firewall", Result.FAIL, "success", "healed"),
)


@dataclass(frozen=True)
class Look:
    """What a check saw and how it judged it: the facts of one of its own cases."""

    result: str
    reason: str
    state: dict[str, Any]
    actions: tuple[str, ...] = ()


async def seed_fleet(store: Store, ingest: Ingest, clock: MovingClock, *, seed: int = 7) -> dict[str, SeededHost]:
    """Enrol the hosts and live through a day that ends at `clock.now`; the hosts by label.

    Args:
        store: an open store.
        ingest: over the same store and the same clock.
        clock: moved back for the story and brought to its end again.
        seed: of keys and ids.
    """
    end, rng = clock.now, random.Random(seed)
    hosts = {label: SeededHost(site, label, _key(rng)) for site, label in HOSTS}
    clock.now = end - 26 * _H
    await enrol(store, list(hosts.values()), clock.now)
    for moment, host, event in _story(hosts, end, rng):
        bundle = heartbeat(host, moment) if event is None else happened(host, event, moment)
        clock.now = bundle.timestamp_end + timedelta(seconds=1)
        await record(ingest, host, [bundle], rng)
    clock.now = end
    return hosts


async def enrol(store: Store, hosts: Sequence[SeededHost], now: datetime) -> None:
    """Put sites and hosts where enrolment would have put them."""

    async def work(tx: Transaction) -> None:
        for host in hosts:
            await tx.add_site(Site(host.site_id, CLIENT, now))
            await tx.add_host(replace(host.row, enrolled_at=now))

    await store.write(work)


async def record(ingest: Ingest, host: SeededHost, bundles: Sequence[EvidenceBundle], rng: random.Random) -> None:
    """Build, chain and sign bundles as the agent does, and hand them in."""
    sealed = []
    for bundle in bundles:
        bundle = replace(bundle, bundle_id=str(uuid.UUID(int=rng.getrandbits(128), version=4)))
        moment = bundle.timestamp_end
        clock = ClockState("chrony", True, rng.randint(-900, 900), 3, BOOT_ID, int(moment.timestamp()) * 1000)
        seen = Circumstances(host.key_id, moment, clock, AGENT, BASELINE)
        document, _ = build(bundle, Place(0, host.seq + 1, host.digest), seen)
        body = canonical(document)
        host.seq, host.digest = host.seq + 1, hashlib.sha256(body).hexdigest()
        host.bundle_ids.append(bundle.bundle_id)
        if bundle.kind == "remediation":
            host.cures[bundle.check] = bundle.bundle_id
        sealed.append((body, host.key.sign(body)))
    await ingest.submit(host.row, sealed)


@functools.cache
def known() -> dict[str, Check]:
    """The checks that the server's registry knows too."""
    return {name: check for name, check in checks.registry().items() if name in registry().checks}


@functools.cache
def look(check_id: str, wanted: Result) -> Look:
    """The first of a check's cases with this result, a curable one where it fails and there is one.

    Raises:
        RuntimeError: the check has no such case.
    """
    check = known()[check_id]
    cases = sorted((case for case in check.cases if case.expect is wanted), key=lambda case: not case.heals)
    if not cases:
        raise RuntimeError(f"{check.id} has no case that ends in {wanted}")
    case = cases[0]
    parameters = check.spec.parameters(**{**check.spec.example, **case.parameters})
    verdict = judge_seen(check, parameters, case.seen)
    if isinstance(case.seen, Unreadable):
        return Look(verdict.result, verdict.reason, {})
    plan = check.plan(parameters, case.seen) if case.heals else None
    actions = tuple(step.action for step in plan.steps) if plan else ()
    return Look(verdict.result, verdict.reason, facts.export(case.seen, names_of(parameters)), actions)


def _key(rng: random.Random) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(rng.randbytes(32))


def _story(
    hosts: Mapping[str, SeededHost], end: datetime, rng: random.Random
) -> list[tuple[datetime, SeededHost, Event | None]]:
    """Every moment of the day in order: hourly heartbeats, and what happens between them."""
    moments: list[tuple[datetime, SeededHost, Event | None]] = []
    for host in hosts.values():
        last = SILENT_FROM.get(host.host_id, timedelta(seconds=20))
        first = end - last - rng.random() * timedelta(minutes=1)
        moments += [(first - number * _H, host, None) for number in range(26) if first - number * _H > end - 26 * _H]
    moments += [(end - event.ago, hosts[event.host], event) for event in STORY if event.check in known()]
    return sorted(moments, key=lambda moment: moment[0])


def _bundle(host: SeededHost, kind: str, moment: datetime, **said: Any) -> EvidenceBundle:
    fields: dict[str, Any] = {
        "site_id": host.site_id,
        "host_id": host.host_id,
        "client_id": CLIENT,
        "deployment_mode": "direct",
        "timestamp_start": moment - timedelta(milliseconds=180),
        "timestamp_end": moment,
        "policy_version": "1.0",
        "check": "",
        "outcome": "",
        "kind": kind,
        **said,
    }
    return EvidenceBundle(**fields)


def heartbeat(host: SeededHost, moment: datetime) -> EvidenceBundle:
    """What stands for every check of the host."""
    for check in known().values():
        if check.id not in host.verdicts:
            passing = look(check.id, Result.PASS)
            host.verdicts[check.id] = (passing.result, passing.reason)
    return _bundle(host, "heartbeat", moment, states=dict(host.verdicts), counts={"pending": 0})


def happened(host: SeededHost, event: Event, moment: datetime) -> EvidenceBundle:
    """The verdict that changed, and what was done about it."""
    check = known()[event.check]
    seen = look(check.id, event.result)
    said: dict[str, Any] = {
        "check": check.id,
        "result": seen.result,
        "reason": seen.reason,
        "severity": check.spec.severity.value,
        "hipaa_controls": [citation.section for citation in check.spec.citations],
        "pre_state": seen.state,
    }
    host.verdicts[check.id] = (seen.result, seen.reason)
    if event.outcome is None:
        return _bundle(host, "drift", moment, **said)
    said |= {"outcome": event.outcome, "error": event.ending}  # a failure is recorded with what was done about it
    if event.outcome == "success":
        healed = look(check.id, Result.PASS)
        host.verdicts[check.id] = (healed.result, healed.reason)
        said |= {
            "post_state": healed.state,
            "post_result": healed.result,
            "post_reason": healed.reason,
            "rollback_available": True,
            "action_taken": [
                ActionTaken(action, moment, step=number, duration_ms=140 * number)
                for number, action in enumerate(seen.actions, start=1)
            ],
        }
    return _bundle(host, "remediation", moment + timedelta(seconds=2), **said)
