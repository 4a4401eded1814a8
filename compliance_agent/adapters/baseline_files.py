"""A baseline that was adopted by order, brought to its two files, whole or not at all, whenever it is stopped.

The database holds the bytes first (`AgentState.take_baseline`, one transaction); then signature and file are written, each
atomically. Stopped in between, the next start writes both again. A file that a person put there since, and that is not older, wins.
"""

from __future__ import annotations

from pathlib import Path

from compliance_agent.adapters.agent_state import AgentState, TakenBaseline
from compliance_agent.adapters.durable import read_file, remove_file, write_file
from compliance_agent.baseline import load, signature_path
from compliance_agent.core.versions import older
from compliance_agent.documents import MAX_BYTES
from compliance_agent.errors import ConfigError, NoInput, StorageError


def adopt(state: AgentState, path: Path, taken: TakenBaseline) -> None:
    """Take this baseline in place of the file's.

    Raises:
        ConfigError: `baseline_older`: nothing was changed.
        StorageError: the files cannot be written; the former ones stand, and this host is held to the former version.
    """
    former = state.held()
    files = {place: _content(place) for place in (path, signature_path(path))}
    state.take_baseline(taken)
    try:
        _place(path, taken)
    except StorageError:
        state.give_back(former)
        for place, content in files.items():
            _restore(place, content)
        raise


def settle(state: AgentState, path: Path, signed_by: Path | None) -> None:
    """At start: finish what was begun.

    Raises:
        StorageError: the files cannot be written.
    """
    taken = state.taken_baseline()
    if taken is None:
        return
    try:
        found = load(path, signed_by=signed_by)
    except ConfigError:
        _place(path, taken)
        return
    if found.sha256 != taken.sha256 and older(found.version, taken.version):
        _place(path, taken)


def _place(path: Path, taken: TakenBaseline) -> None:
    write_file(signature_path(path), taken.sig, 0o644)
    write_file(path, taken.body, 0o644)


def _content(path: Path) -> bytes | None:
    try:
        return read_file(path, limit_bytes=MAX_BYTES)
    except NoInput:
        return None


def _restore(path: Path, content: bytes | None) -> None:
    if content is None:
        remove_file(path)
    elif _content(path) != content:
        write_file(path, content, 0o644)
