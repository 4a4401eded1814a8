"""Runs the crash driver under strace, and judges the state directory it leaves."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from compliance_agent.adapters.database import Database
from compliance_agent.crypto import Ed25519Signer
from compliance_agent.evidence import table
from compliance_agent.evidence.store import EvidenceStore
from compliance_agent.evidence.verify import check_bytes, verify_paths

WRITE_CLASS = "pwrite64,write,fdatasync,fsync,rename,openat,unlink,unlinkat,ftruncate,mkdir,linkat"
DOCUMENTED = {0, 69, 73, 74, 75, 78}


@dataclass(frozen=True)
class Ran:
    """One run of the driver: what it said and how it ended (137: killed)."""

    status: int
    lines: tuple[str, ...]
    errors: str

    def said(self, fact: str) -> list[str]:
        """Bundle ids of the lines `P seq:id` or `A seq:id`."""
        return [line.partition(":")[2] for line in self.lines if line.startswith(f"{fact} ")]


@dataclass(frozen=True)
class Call:
    """The `number`-th call of `name` in a run, counted per name as strace does."""

    name: str
    number: int


def command(state: Path, count: int, *more: str, server: str = "none") -> list[str]:
    """The crash driver's command line."""
    module = [sys.executable, "-m", "compliance_agent.lab.crash_driver"]
    return [*module, "--state", str(state), "--server", server, "--count", str(count), *more]


def run(argv: Sequence[str]) -> Ran:
    """Run to the end."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=110)
    status = 137 if done.returncode == -9 else done.returncode
    return Ran(status, tuple(done.stdout.split("\n")[:-1]), done.stderr)


def inject(argv: Sequence[str], call: Call, what: str, log: Path) -> Ran:
    """Run under strace with a fault at (or from) one call; `what` is `signal=KILL`, `error=EIO`, ..."""
    strace = ["strace", "-f", "-qq", "-o", str(log), "-e", f"trace={call.name}"]
    return run([*strace, "-e", f"inject={call.name}:{what}:when={call.number}", *argv])


def calls(argv: Sequence[str], log: Path, state: Path) -> tuple[Ran, list[Call]]:
    """Run, and list the write-class calls that touched the state directory, in order."""
    ran = run(["strace", "-f", "-qq", "-y", "-o", str(log), "-e", f"trace={WRITE_CLASS}", *argv])
    counts: Counter[str] = Counter()
    found = []
    for line in log.read_text(errors="replace").splitlines():
        matched = re.match(r"\d+ +(\w+)\(", line)
        if matched is None:
            continue
        counts[matched[1]] += 1
        changes = matched[1] != "openat" or "O_CREAT" in line
        if changes and str(state) in line.partition(" = ")[0]:
            found.append(Call(matched[1], counts[matched[1]]))
    return ran, found


def sample(items: Sequence[Call], at_most: int) -> list[Call]:
    """Evenly spread, the first and last included."""
    if len(items) <= at_most:
        return list(items)
    return [items[round(number * (len(items) - 1) / (at_most - 1))] for number in range(at_most)]


def judge(
    state: Path, promised: Sequence[str], *, chain_may_start_anew: bool = False, directories: bool = True
) -> list[str]:
    """What is wrong with a state directory after it was opened by the real code; nothing, when all is well."""
    if not promised and not (state / "keys" / "signing-key.pem").exists():
        return []
    signer = Ed25519Signer(state / "keys" / "signing-key.pem")
    database = Database(state / "agent.db", threaded=False, reserve_kb=0)
    try:
        EvidenceStore(database, state / "evidence", signer).replay()
        rows = database.read(
            lambda connection: table.select(connection, "WHERE state != 'damaged' ORDER BY epoch, seq")
        )
    finally:
        database.close()
    wrong = [f"lost {bundle_id}" for bundle_id in promised if bundle_id not in {row.bundle_id for row in rows}]
    places = [(row.epoch, row.seq) for row in rows]
    wrong += [f"twice {place}" for place, times in Counter(places).items() if times > 1]
    if not chain_may_start_anew and places != [(0, number) for number in range(1, len(places) + 1)]:
        wrong.append(f"chain is {places}")
    keys = {str(signer.key_id): signer.public_bytes}
    for row in rows:
        check_bytes(row.body, row.signature, keys)
        directory = table.directory_of(row, state / "evidence")
        if directories and ((directory / "bundle.json").read_bytes(), (directory / "bundle.sig").read_bytes()) != (
            row.body,
            row.signature,
        ):
            wrong.append(f"directory differs {row.bundle_id}")
    if rows and directories:
        report = verify_paths([state / "evidence"], keys)
        wrong += [f"verify: {problem.code} {problem.detail}" for problem in report.problems]
        if report.verified != len(rows):
            wrong.append(f"{report.verified} directories for {len(rows)} rows")
    return wrong
