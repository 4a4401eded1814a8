"""`kill -9` of the agent at 200 random moments under load: nothing it promised is lost, nothing is stored twice.

Several agents run at once, each on a simulated clinic host that drifts every few milliseconds (lab/daemon.py), against
one real server. Each is killed at a random moment after its first promise, and started again on what the kill left behind.
"""

from __future__ import annotations

import hashlib
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from compliance_agent import crypto
from compliance_agent.evidence.chains import Chains, Tagger, packed
from compliance_agent.evidence.verify import check_bytes, verify_paths
from tests.real.stage import EnrolledHost, Server, arrived, end, enrolled, environment, serving, stored, troubles, until

pytestmark = [pytest.mark.real, pytest.mark.slow]
KILLS = int(os.environ.get("KILLS", "200"))
AGENTS = 4  # at once, so that two cores are never idle
MOMENTS_S = (0.05, 0.6)
FIRST_PROMISE_S = 30.0
DRAIN_S = 60.0


class Lines:
    """Whole lines of a process's standard output, as they come, with a deadline."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        self._file = process.stdout
        self._rest = b""

    def next(self, deadline: float) -> str:
        """The next line; empty at the end of the output or when the deadline has passed."""
        while b"\n" not in self._rest:
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not select.select([self._file], [], [], left_s)[0]:
                return ""
            data = os.read(self._file.fileno(), 65_536)
            if not data:
                return ""
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode("ascii")


@dataclass
class Victim:
    """One agent under fire, and every line that it ever got out."""

    host: EnrolledHost
    seed: int
    promised: dict[str, str] = field(default_factory=dict)  # place -> bundle id
    acknowledged: dict[str, str] = field(default_factory=dict)
    said_twice: list[str] = field(default_factory=list)
    promises: list[int] = field(default_factory=list)  # in each round

    def process(self, *more: str) -> subprocess.Popen[bytes]:
        """The daemon over this host's state."""
        with (self.host.directory / "errors.log").open("ab") as errors:
            return subprocess.Popen(
                [sys.executable, "-m", "compliance_agent.lab.daemon", "--state", str(self.host.state_dir),
                 "--config", str(self.host.config_file), "--seed", str(self.seed), *more],
                env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, bufsize=0,
            )  # fmt: skip

    def under_fire(self, moments: list[float]) -> None:
        """Start it, wait for the first promise, kill it so long afterwards; and so on, always on what the kill left."""
        process = self.process("--nursery")
        assert process.stdin is not None and process.stdout is not None
        with process.stdout:
            lines = Lines(process)
            try:
                for wait_s in moments:
                    self.killed_once(process, lines, wait_s)
            finally:
                process.stdin.close()  # it ends its agent, then itself
                process.wait(10)

    def killed_once(self, process: subprocess.Popen[bytes], lines: Lines, wait_s: float) -> None:
        assert process.stdin is not None
        self.promises.append(0)
        process.stdin.write(b"start\n")
        self.note_until("P", lines, FIRST_PROMISE_S)
        time.sleep(wait_s)
        process.stdin.write(b"kill\n")
        assert self.note_until("E", lines, 10) == f"E {-signal.SIGKILL}", f"it ended by itself: {self.complaints()}"

    def note_until(self, word: str, lines: Lines, seconds: float) -> str:
        """Note every line up to the first that begins so."""
        deadline = time.monotonic() + seconds
        while line := lines.next(deadline):
            self.note(line)
            if line.startswith(word):
                return line
        raise AssertionError(f"{self.host.host_id}: no {word} line within {seconds:g} s: {self.complaints()}")

    def note(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        place, _, bundle_id = rest.rpartition(":")
        if word == "P":
            self.promises[-1] += 1
            if self.promised.setdefault(place, bundle_id) != bundle_id:
                self.said_twice.append(line)
        elif word == "A":
            self.acknowledged[place] = bundle_id

    def drained(self) -> None:
        """Run it once more, with nothing new happening, until nothing is pending; then end it as a service manager does."""
        process = self.process("--calm")
        assert process.stdin is not None and process.stdout is not None
        with process.stdin, process.stdout:
            try:
                self.note_until("S", Lines(process), FIRST_PROMISE_S)
                until(lambda: process.poll() is not None or self._all_delivered(), DRAIN_S, "it is all delivered")
                assert process.poll() is None, f"it ended by itself: {self.complaints()}"
            finally:
                status = end(process)
        assert status == 0, self.complaints()

    def _all_delivered(self) -> bool:
        return set(self.host.states()) == {"uploaded"}

    def complaints(self) -> str:
        return (self.host.directory / "errors.log").read_text("utf-8", "replace")[-600:]


@pytest.mark.timeout(240)
def test_nothing_promised_is_lost_and_nothing_is_stored_twice_over_200_kills(tmp_path: Path) -> None:
    seed = int(os.environ.get("SEED", random.SystemRandom().randrange(2**32)))
    print(f"seed {seed} (SEED={seed} chooses the same moments)")
    rng = random.Random(seed)
    with serving(tmp_path / "server") as server:
        hosts = [enrolled(server, tmp_path / f"clinic-{n}", f"clinic-{n}", "kill-site") for n in range(AGENTS)]
        victims = [Victim(host, rng.randrange(2**31)) for host in hosts]
        moments = [[rng.uniform(*MOMENTS_S) for _ in range(KILLS // AGENTS)] for _ in victims]
        with ThreadPoolExecutor(AGENTS) as pool:
            list(pool.map(Victim.under_fire, victims, moments))
            list(pool.map(Victim.drained, victims))
        assert sum(len(victim.promises) for victim in victims) == KILLS
        for victim in victims:
            report(victim)
            nothing_lost(victim, server)
            chain_is_whole(victim, server)
        assert troubles(server) == {"forks": 0, "gaps": 0}
        these_checks_would_see_a_loss(victims[0], server)


def report(victim: Victim) -> None:
    print(f"{victim.host.host_id}: {len(victim.promises)} kills, {sum(victim.promises)} promises seen,"
          f" {len(victim.acknowledged)} acknowledgements seen, {len(victim.host.recorded())} bundles")  # fmt: skip


def nothing_lost(victim: Victim, server: Server) -> None:
    """What was seen promised is at the server, under the number that was promised; nothing stands there twice."""
    held = arrived(server, victim.host)
    found = {f"{epoch}:{seq}" for epoch, seq, _ in held}
    assert all(victim.promises), "each kill came after a promise"
    assert victim.said_twice == [], "a number was promised twice, for two bundles"
    assert victim.promised.keys() - found == set(), "promised and lost"
    assert victim.acknowledged, "acknowledgements were seen"
    assert victim.acknowledged.keys() - found == set()
    assert len(held) == len({place[:2] for place in held}) == len({place[2] for place in held})
    assert held == sorted(held), "they came in order"
    assert held == victim.host.recorded(), "the host's rows are the server's"


def chain_is_whole(victim: Victim, server: Server) -> None:
    """The offline verifier over the directory, and over the server's bytes; both hold the same."""
    keys = {victim.host.key_id: public_key(victim.host)}
    bundles = [(body, check_bytes(body, signature, keys)) for body, signature in stored(server, victim.host)]
    chains = Chains(tags := Tagger())
    for body, document in bundles:
        digest = hashlib.sha256(body).hexdigest()
        head = (document["seq"], digest, document["host"]["id"])
        chains.add(victim.host.key_id, document["epoch"], packed(document, digest, tags, None), head)
    ((chain, problems),) = chains.check(lambda *_: iter(()))
    assert problems == []
    assert (chain.first, chain.last, chain.epochs) == ((0, 1), (0, len(bundles)), 1)
    ids = {f"{document['epoch']}:{document['seq']}": document["bundle_id"] for _, document in bundles}
    assert victim.promised.items() <= ids.items()
    directory = verify_paths([victim.host.evidence_dir], keys)
    assert directory.ok, directory.problems[:3]
    on_disk = {path.parent.name: path.read_bytes() for path in victim.host.evidence_dir.rglob("bundle.json")}
    assert on_disk == {document["bundle_id"]: body for body, document in bundles}


def these_checks_would_see_a_loss(victim: Victim, server: Server) -> None:
    """Planted: a promise that nobody kept, and a directory that is gone."""
    head = max(seq for _, seq, _ in arrived(server, victim.host))
    broken_promise = replace(victim, promised={**victim.promised, f"0:{head + 1}": "0"})
    with pytest.raises(AssertionError, match="promised and lost"):
        nothing_lost(broken_promise, server)
    shutil.rmtree(next(victim.host.evidence_dir.rglob("bundle.json")).parent)
    with pytest.raises(AssertionError):
        chain_is_whole(victim, server)


def public_key(host: EnrolledHost) -> bytes:
    signer = crypto.Ed25519Signer(host.config.signing_key_file)
    assert signer.key_id == host.key_id
    return signer.public_bytes
