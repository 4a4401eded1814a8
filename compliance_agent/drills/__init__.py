"""Drills: an alarm that has never rung proves nothing, so each is made to ring, and the day it last did is kept.

    perform -> a `Proof` (what fired, or why it cannot be told) -> kept as a file -> recorded as a bundle of kind `drill`

A drill goes through the check it is about: whatever the drill did, the check's own look says whether it was seen. `fired` is
said only when the fact that tells so was seen to be true. A drill changes nothing that matters: it writes a log line, shows a
scanner the harmless EICAR test string, asks the time, reads files back out of the backup. Whoever runs it, the agent records it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from compliance_agent.adapters.durable import make_directory, read_file, write_file
from compliance_agent.dataclass import dataclass
from compliance_agent.documents import read_json
from compliance_agent.drift import DriftDetector
from compliance_agent.drills.restore import drill_backup
from compliance_agent.errors import AgentError, CannotTell, NoInput
from compliance_agent.facts import is_timestamp
from compliance_agent.models import DriftResult, Result
from compliance_agent.ports import ChangingHost

MAX_BYTES = 65_536
SETTLED_NS = 1_000_000_000  # two changes within the grain of a file system's times show as one
Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Drill:
    """One drill.

    Attributes:
        id: stable token, for the command line and records.
        check: the check whose detector is proven.
        title: what is done, as a sentence.
        fired: from the check's facts and parameters: whether the detector saw what was there to be seen; None: it could not tell.
        act: what is done before the check looks, where the look alone is not the drill.
    """

    id: str
    check: str
    title: str
    fired: Callable[[Facts, Any], bool | None]
    act: Callable[[ChangingHost, Any], Awaitable[None]] | None = None


def _canary(facts: Facts, parameters: Any) -> bool | None:
    arrived = [facts.get("written"), facts.get("in_journal")]
    if parameters.destination != "journal":
        arrived.append(facts.get("in_destination"))
    return False if False in arrived else None if None in arrived else True


def _restored(facts: Facts, parameters: Any) -> bool | None:
    seen = (facts.get("check_ok"), facts.get("drill_ok"))
    if None in seen or facts.get("drill_age_d") != 0 or facts.get("check_age_d") != 0:
        return None
    return all(seen) and bool(facts.get("drill_bytes"))


DRILLS = {
    drill.id: drill
    for drill in (
        Drill("log_canary", "logging", "a line is logged and looked for where log lines end up", _canary),
        Drill("eicar", "av_health", "the scanner is shown the EICAR test file", lambda facts, _: facts.get("probe_found")),
        Drill(
            "clock", "time_sync", "the distance from true time is measured",
            lambda facts, _: None if facts.get("offset_us") is None else True,
        ),
        Drill("restore", "backup", "part of the repository is checked, files are read back and compared", _restored, drill_backup),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Proof:
    """What a drill has shown.

    Attributes:
        drill: its id.
        check: whose detector it is about.
        at: when the look ended (UTC).
        result: `pass` when the detector fired, `fail` when it did not, `unknown` when that cannot be told.
        reason: `as_expected` when it fired, else the check's reason.
        facts: what the check saw.
    """

    drill: str
    check: str
    at: datetime
    result: Result
    reason: str
    facts: Facts


async def perform(drill: Drill, detector: DriftDetector, host: ChangingHost) -> Proof:
    """Do a drill now.

    Raises:
        ConfigError: the baseline has no entry for its check.
    """
    started = detector.clock.now()
    entry = detector.baseline.entries.get(drill.check)
    try:
        if drill.act is not None and entry is not None:
            await drill.act(host, entry.parameters)
    except CannotTell as error:
        return Proof(drill.id, drill.check, started, Result.UNKNOWN, error.reason, {})
    seen = await detector.check_one(drill.check)
    parameters = detector.baseline.entries[drill.check].parameters
    return _proof(drill, seen, parameters, seen.observed_at or started)


def _proof(drill: Drill, seen: DriftResult, parameters: Any, at: datetime) -> Proof:
    fired = drill.fired(seen.pre_state, parameters)
    if fired:
        return Proof(drill.id, drill.check, at, Result.PASS, "as_expected", seen.pre_state)
    if fired is False:
        return Proof(drill.id, drill.check, at, Result.FAIL, seen.reason, seen.pre_state)
    reason = seen.reason if seen.reason != "as_expected" else "unparsable"  # a check may pass on other facts
    return Proof(drill.id, drill.check, at, Result.UNKNOWN, reason, seen.pre_state)


# Kept for the agent, which records it


def keep(directory: Path, proof: Proof) -> None:
    """Make a proof durable, in place of the drill's former one.

    Raises:
        StorageError: it is not durable.
    """
    make_directory(directory)
    document = {
        "drill": proof.drill,
        "at": proof.at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "result": str(proof.result),
        "reason": proof.reason,
        "facts": dict(proof.facts),
    }
    write_file(directory / f"{proof.drill}.json", json.dumps(document, sort_keys=True).encode())


def state_of(directory: Path) -> tuple[int, int] | None:
    """Of the directory of proofs what changes with each that is kept; None where it cannot be told, or changed just now."""
    try:
        info = directory.stat()
    except OSError:
        return None
    return (info.st_ino, info.st_mtime_ns) if time.time_ns() - info.st_mtime_ns > SETTLED_NS else None


def kept(directory: Path) -> list[Proof]:
    """The newest proof of each drill, oldest first; a file that cannot be read as one is left out.

    Raises:
        StorageError: the directory cannot be read.
    """
    found = (_read(directory / f"{name}.json", drill) for name, drill in DRILLS.items())
    return sorted((proof for proof in found if proof is not None), key=lambda proof: proof.at)


def _read(path: Path, drill: Drill) -> Proof | None:
    try:
        document = read_json(read_file(path, limit_bytes=MAX_BYTES, trusted=True))
    except NoInput:
        return None
    except AgentError:
        return None
    match document:
        case {"drill": drill.id, "at": str(at), "result": str(result), "reason": str(reason), "facts": dict(facts)}:
            if is_timestamp(at) and result in set(Result):
                when = datetime.fromisoformat(at).astimezone(UTC)
                return Proof(drill.id, drill.check, when, Result(result), reason, facts)
    return None
