"""The auditor's side of records that a host let go of: is the mark it left true, and what may be absent because of it?

A mark is the last such record's entry and receipt. Only with the log's key can it be checked, and only then it excuses anything:
records of its chain up to its place may be absent, and the first one after it must follow exactly the record that it names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from compliance_agent.adapters.durable import read_file
from compliance_agent.core.shedding import MAX_MARK_BYTES, Mark
from compliance_agent.errors import AgentError, BadEvidence
from compliance_agent.evidence.problems import Problem
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.policy import Policy

FILE = "shed.json"
_BELOW = (FILE, f"evidence/{FILE}", f"*/{FILE}", f"*/evidence/{FILE}", f"*/*/evidence/{FILE}")
_ABOVE = 4  # from a bundle's directory over its day, month and year

Marks = Mapping[str, Mark]  # by key


def marks_beside(paths: Iterable[Path], policy: Policy) -> tuple[dict[str, Mark], list[Problem]]:
    """Marks that stand with the evidence and verify, the farthest of each key; and what is wrong with the others.

    A log's key must be known to check one; without any, none is believed.
    """
    files = {file for path in paths for file in _files(path)}
    found: dict[str, Mark] = {}
    problems = []
    for file in sorted(files):
        try:
            mark = Mark.parse(read_file(file, limit_bytes=MAX_MARK_BYTES))
            if policy.logs:
                mark.check(_verified(policy))
        except AgentError as error:
            problems.append(Problem("bad_shed", file.name, str(error)))
            continue
        if policy.logs and (mark.key_id not in found or mark.place > found[mark.key_id].place):
            found[mark.key_id] = mark
        elif not policy.logs:
            problems.append(Problem("bad_shed", mark.key_id, "no log key was given to check shed.json with"))
    return found, problems


def _files(path: Path) -> Iterable[Path]:
    above = [parent / FILE for parent in list(path.absolute().parents)[:_ABOVE]]
    below = [file for pattern in _BELOW for file in path.glob(pattern)] if path.is_dir() else []
    return {file.absolute() for file in (*above, *below) if file.is_file()}


def _verified(policy: Policy) -> Callable[[bytes], Checkpoint]:
    def verified(note: bytes) -> Checkpoint:
        try:
            return policy.verify(note).checkpoint
        except BadEvidence as error:
            raise BadEvidence(f"shed.json: {error}", code="bad_shed") from error

    return verified
