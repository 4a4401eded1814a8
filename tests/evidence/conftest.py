"""One small host for the tests of evidence: a state directory, a key, a clock that stands still."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest

from compliance_agent.adapters.database import Database
from compliance_agent.crypto import Ed25519Signer
from compliance_agent.evidence.allowlist import Circumstances
from compliance_agent.evidence.store import EvidenceStore, Stored
from compliance_agent.lab.clock import START
from compliance_agent.models import BundleKind, ClockState, EvidenceBundle

BOOT = "0b1e7c9a-3c5d-4e6f-8a9b-0c1d2e3f4a5b"


def bundle(number: int = 0, **more: object) -> EvidenceBundle:
    """A heartbeat, the bundle that needs no check; `more` are fields of it."""
    start = START + timedelta(seconds=number)
    values: dict[str, object] = {
        "site_id": "site-1",
        "host_id": "host-1",
        "client_id": "client-1",
        "deployment_mode": "direct",
        "policy_version": "1.0",
        "timestamp_start": start,
        "timestamp_end": start,
        "check": "",
        "outcome": "",
        "kind": BundleKind.HEARTBEAT,
        "reason": "as_expected",
        "counts": {"pending": number},
        **more,
    }
    return EvidenceBundle(**values)  # type: ignore[arg-type]


def seen(key_id: str, number: int = 0) -> Circumstances:
    """The host as bundle `number` finds it."""
    clock = ClockState("chrony", True, 12, 3, BOOT, 1_000_000_000 * (number + 1))
    at = START + timedelta(seconds=number)
    return Circumstances(key_id, at, clock, ("0.1.0", "a" * 64), ("2026.11.1", "b" * 64))


@dataclass
class Clinic:
    """A state directory that can be closed and opened again."""

    root: Path
    number: int = 0
    store: EvidenceStore = field(init=False)

    def __post_init__(self) -> None:
        self.signer = Ed25519Signer(self.root / "keys" / "signing-key.pem")
        self.open()

    @property
    def state(self) -> Path:
        return self.root / "state"

    @property
    def evidence(self) -> Path:
        return self.root / "evidence"

    def open(self) -> EvidenceStore:
        """Open the database and bring rows and directories together, as a start does."""
        database = Database(self.state / "agent.db", threaded=False, reserve_kb=4)
        self.store = EvidenceStore(database, self.evidence, self.signer)
        self.store.replay()
        return self.store

    def close(self) -> None:
        self.store.database.close()

    def reopen(self) -> EvidenceStore:
        self.close()
        return self.open()

    def record(self, count: int = 1) -> list[Stored]:
        """Record so many heartbeats."""
        stored = []
        for _ in range(count):
            stored.append(self.store.record(bundle(self.number), seen(self.signer.key_id, self.number)))
            self.number += 1
        return stored

    @property
    def keys(self) -> dict[str, bytes]:
        return {self.signer.key_id: self.signer.public_bytes}


@pytest.fixture
def clinic(tmp_path: Path) -> Iterator[Clinic]:
    made = Clinic(tmp_path)
    yield made
    made.close()
