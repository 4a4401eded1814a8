"""Killed (SIGKILL) anywhere in a rotation of the host's key: one key signs, the server follows, nothing is lost or told twice."""

from __future__ import annotations

import copy
import hashlib
import os
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from compliance_agent import crypto
from compliance_agent.adapters.key_files import former_path, next_path
from compliance_agent.crypto import Ed25519Signer
from compliance_agent.entries.rotation import verified
from compliance_agent.evidence.former import former_keys
from compliance_agent.evidence.verify import check_bytes
from compliance_agent.lab.server import FakeServer
from compliance_agent.server.records import NO_DIGEST
from tests.faults.driver import Call, Ran, calls, inject, run, sample
from tests.faults.peer import listening, token_file

POINTS = int(os.environ.get("CRASH_POINTS", "30")) * 2 // 3
KEYS = Path("keys") / "signing-key.pem"


class Bench:
    """One enrolled state directory with a delivered record, copied for each run, and the server that knows it."""

    def __init__(self, root: Path, server: FakeServer, url: str) -> None:
        self.root, self.server, self.url, self.log = root, server, url, root / "strace.log"
        self.template = root / "template"
        ran = run(self.argv(self.template, "--token-file", str(token_file(server, root / "token"))))
        assert (ran.status, ran.lines[-1:]) == (0, ("C",)), ran.errors
        self.known = copy.deepcopy(server.chains)

    def argv(self, state: Path, *more: str) -> list[str]:
        return [sys.executable, "-m", "tests.faults.rotating", "--state", str(state), "--server", self.url, *more]

    def fresh(self) -> Path:
        """A copy of the state, and the server as it was then."""
        state = self.root / "state"
        shutil.rmtree(state, ignore_errors=True)
        shutil.copytree(self.template, state)
        self.server.chains = copy.deepcopy(self.known)
        return state

    def points(self) -> list[Call]:
        """Every write of the state, and every message to or from the server, of one run from the next key's file on."""
        state = self.fresh()
        ran, writes = calls(self.argv(state, "--rotate"), self.log, state)
        assert (ran.status, ran.lines[-1:]) == (0, ("C",)), ran.errors
        first = next(at for at, call in enumerate(writes) if call.name == "write")  # of the next key's file
        names = "sendto,recvfrom"
        run(["strace", "-f", "-qq", "-o", str(self.log), "-e", f"trace={names}", *self.argv(self.fresh(), "--rotate")])
        seen = [name for name in names.split(",") for line in self.log.read_text().splitlines() if f" {name}(" in line]
        return [*writes[first:], *(Call(name, seen[: at + 1].count(name)) for at, name in enumerate(seen))]

    def judge(self, state: Path, ran: Ran) -> list[str]:
        """Run it to its end and once more with a rotation; what is wrong then."""
        for more in ((), ("--rotate",)):
            again = run(self.argv(state, *more))
            if (again.status, again.lines[-1:]) != (0, ("C",)):
                return [f"does not go on: exit {again.status}, {again.lines}, {again.errors[-300:]}"]
        (key_id, chain), = self.server.chains.items()  # fmt: skip
        signer = Ed25519Signer(state / KEYS)
        wrong = [
            f"{path.name} is left" for path in (former_path(state / KEYS), next_path(state / KEYS)) if path.exists()
        ]
        if signer.key_id != key_id:
            wrong.append("host and server hold different keys")
        held = [item.document["bundle_id"] for item in chain.bundles]
        wrong += [f"lost {bundle_id}" for bundle_id in ran.said("P") if bundle_id not in held]
        wrong += ["twice"] if len(set(held)) < len(held) else []
        return wrong + self._chain(state, held)

    def _chain(self, state: Path, held: list[str]) -> list[str]:
        """Each change of key was signed by both, each record by the key of its time, and each names the one before it."""
        public, wrong = Ed25519Signer(self.template / KEYS).public_bytes, []
        with sqlite3.connect(state / "agent.db") as connection:
            former = former_keys(connection)
        keys: dict[str, bytes] = {crypto.key_id(public): public}
        for gone in former:
            public = verified(gone.statement, public, gone.old_sig, gone.new_sig).new_public
            keys[crypto.key_id(public)] = public
        if public != Ed25519Signer(state / KEYS).public_bytes:
            wrong.append("the key that signs is not the one that the last statement names")
        found = []
        for path in (state / "evidence").glob("*/*/*/*/bundle.json"):
            body = path.read_bytes()
            found.append((check_bytes(body, path.with_name("bundle.sig").read_bytes(), keys), body))
        found.sort(key=lambda one: (one[0]["epoch"], one[0]["seq"]))
        wrong += (
            [] if [document["bundle_id"] for document, _ in found] == held else ["host and server hold other records"]
        )
        before = [NO_DIGEST, *(hashlib.sha256(body).hexdigest() for _, body in found)]
        return wrong + [
            f"gap before {document['epoch']}:{document['seq']}"
            for (document, _), digest in zip(found, before, strict=False)
            if document["prev"] != digest
        ]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    server = FakeServer()
    with listening(server) as url:
        yield Bench(tmp_path_factory.mktemp("rotation"), server, url)


def test_killed_anywhere_in_a_rotation(bench: Bench) -> None:
    killed, rotated = 0, set()
    found = sample(bench.points(), POINTS)
    for call in found:
        ran = inject(bench.argv(state := bench.fresh(), "--rotate"), call, "signal=KILL", bench.log)
        killed += ran.status == 137
        rotated.add(any(line.startswith("R ") for line in ran.lines))
        assert bench.judge(state, ran) == [], (call, ran.lines)
    assert killed >= 0.9 * len(found)
    assert rotated == {True, False}, "some before it was done here, some after"


MUTANT = """
from compliance_agent.adapters import key_files
from compliance_agent.evidence.store import EvidenceStore
from tests.faults import rotating
rotate = EvidenceStore.rotate
def files_first(self, new, *rest):
    path = self.evidence_dir.parent / "keys" / "signing-key.pem"
    key_files.settle(path, new.key_id)
    rotate(self, new, *rest)
EvidenceStore.rotate = files_first
rotating.main()
"""


def test_files_that_move_before_the_database_says_so_would_be_found(bench: Bench) -> None:
    """The planted fault: killed between the two, the host signs with a key that its chain does not know."""
    argv = bench.argv(state := bench.fresh(), "--rotate")
    argv = [sys.executable, "-c", MUTANT, *argv[3:]]
    ran, writes = calls(argv, bench.log, state)
    assert ran.lines[-1:] == ("C",), ran.errors
    names = [call.name for call in writes]
    moved = next(at for at in range(len(names)) if names[at : at + 4] == ["rename", "fsync", "rename", "fsync"])
    argv = [*argv[:3], *bench.argv(state := bench.fresh(), "--rotate")[3:]]
    ran = inject(argv, writes[moved + 4], "signal=KILL", bench.log)
    assert ran.status == 137
    assert "does not go on" in bench.judge(state, ran)[0]
