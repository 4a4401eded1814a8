"""Fetching logs over HTTP for `verify`: one site's log of a year by its address, or every year that a site has."""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import click

from compliance_agent.adapters.durable import read_file
from compliance_agent.cli.progress import progress
from compliance_agent.errors import BadEvidence, ConfigError, NoInput, NotPermitted, Unavailable
from compliance_agent.evidence.chains import Tagger
from compliance_agent.evidence.problems import Problem
from compliance_agent.evidence.served import ServedLog, ended_before, held_to_older, read_log
from compliance_agent.evidence.stamped import Stamps
from compliance_agent.log.note import VerifierKey
from compliance_agent.log.policy import Policy
from compliance_agent.transport.http import HttpTransport

YEARS_BACK = 8  # six years of retention, and the ends
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}


@dataclass(frozen=True)
class Trust:
    """Whom to believe, and how to get there."""

    policy: Policy
    stamps: Stamps | None = None
    ca_file: Path | None = None
    token_file: Path | None = None


def read_logs(url: str, trust: Trust, tags: Tagger) -> list[ServedLog]:
    """The log at `https://server/log/<site>/<year>/`, or every one at `https://server/log/<site>/`, newest first.

    Raises:
        Unavailable: the server cannot be reached, or does not answer as one.
        NotPermitted: it does not show this log to this caller.
        BadEvidence: a checkpoint does not verify, or there is none.
    """
    base = url.rstrip("/")
    with _Server(base, trust) as server:
        last = base.rpartition("/")[2]
        if len(last) == 4 and last.isdigit():
            return [_read(server, "", trust, tags)]
        return list(_years(server, trust, tags))


def read_directory(root: Path, policy: Policy, tags: Tagger) -> list[ServedLog]:
    """The log whose files stand in a directory, or every year of a site's, `<root>/<year>/`, newest first.

    Raises:
        NoInput: there is no log in it.
        BadEvidence: a checkpoint does not verify.
    """
    place, trust = _Directory(root), Trust(policy)
    if place.get("checkpoint") is not None:
        return [_read(place, "", trust, tags)]
    named = root.iterdir() if root.is_dir() else ()
    years = [int(path.name) for path in named if re.fullmatch(r"[0-9]{4}", path.name, re.ASCII)]
    years = sorted((year for year in years if place.get(f"{year}/checkpoint") is not None), reverse=True)
    if not years:
        raise NoInput(f"{root}: no log in it", hint="give the directory of a checkpoint, or the one above its years")
    read: list[ServedLog] = []
    for year, before in zip(years, [*years[1:], None], strict=True):
        log = _read(place, f"{year}/", trust, tags)
        if read:
            read[-1].problems += _bound(read[-1], log, place.base, policy)
        for later in read:
            later.problems += ended_before(log, later)
        read.append(log)
        if log.book.previous is not None and before != year - 1:
            log.problems.append(
                Problem("wrong_checkpoint", f"{place.base}/{year - 1}/", "is bound by the year after it, and not there")
            )
    return read


def _bound(newer: ServedLog, log: ServedLog, base: str, policy: Policy) -> Iterator[Problem]:
    """The first entry of a log binds the last checkpoint of the year before; one that was destroyed says nothing."""
    if newer.book.previous is None:
        if newer.book.whole and not newer.book.first:
            yield Problem("wrong_checkpoint", f"{base}/{_year(log)}/", f"is not bound by {newer.origin}")
    elif int(_year(newer)) == int(_year(log)) + 1:
        try:
            bound = base64.b64decode(newer.book.previous, validate=True)
            yield from held_to_older(log, bound, for_origin(policy, log.origin))
        except (BadEvidence, ValueError) as error:
            yield Problem("wrong_checkpoint", f"{base}/{_year(log)}/", str(error))


def _year(log: ServedLog) -> str:
    return log.origin.rpartition("/")[2]


def _years(server: _Server, trust: Trust, tags: Tagger) -> Iterator[ServedLog]:
    """From the newest back, as each binds the one before it."""
    this = datetime.now(UTC).year + 1  # by a server whose clock is ahead
    year = next((year for year in range(this, this - YEARS_BACK, -1) if server.get(f"{year}/checkpoint")), None)
    if year is None:
        raise BadEvidence(f"{server.base}: no log of the last {YEARS_BACK} years there", code="no_checkpoint")
    log = _read(server, f"{year}/", trust, tags)
    yield log
    read = [log]
    while log.book.previous is not None:
        year, newer = year - 1, log
        try:
            log = _read(server, f"{year}/", trust, tags)
            bound = base64.b64decode(newer.book.previous or "", validate=True)
            log.problems += held_to_older(log, bound, for_origin(trust.policy, log.origin))
        except (BadEvidence, ValueError) as error:
            newer.problems.append(Problem("wrong_checkpoint", f"{server.base}/{year}/", str(error)))
            return
        for later in read:
            later.problems += ended_before(log, later)
        read.append(log)
        yield log


def _read(server: _Server | _Directory, prefix: str, trust: Trust, tags: Tagger) -> ServedLog:
    policy = trust.policy
    note = server.get(f"{prefix}checkpoint")
    if note is not None:
        policy = for_origin(policy, note.partition(b"\n")[0].decode("utf-8", "replace"))
    with progress("entries", lambda: _size(note)) as update:
        return read_log(lambda path: server.get(prefix + path), policy, tags, trust.stamps, update, datetime.now(UTC))


def _size(note: bytes | None) -> int | None:
    """As an unverified checkpoint says, for the bar alone."""
    line = (note or b"").split(b"\n")[1:2]
    return int(line[0]) if line and line[0].isdigit() and len(line[0]) < 10 else None


def for_origin(policy: Policy, origin: str) -> Policy:
    """The policy with its log keys under this origin too, where only the year differs: server and site stay pinned."""
    named = {key.name for key in policy.logs}
    alike = [key for key in policy.logs if key.name.rpartition("/")[0] == origin.rpartition("/")[0]]
    if origin in named or not alike or not origin.rpartition("/")[2].isdigit():
        return policy
    return replace(policy, logs=(*policy.logs, *(VerifierKey(origin, key.type, key.public) for key in alike)))


class _Directory:
    """Files below a directory."""

    def __init__(self, root: Path) -> None:
        self._root, self.base = root, str(root)

    def get(self, path: str) -> bytes | None:
        """A file; None when there is none."""
        file = self._root / path
        return file.read_bytes() if file.is_file() else None


class _Server:
    """Files below an address, each asked for once."""

    def __init__(self, base: str, trust: Trust) -> None:
        parts = urlsplit(base)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
            raise click.BadParameter(f"{base}: expected https://server/log/<site>/<year>/")
        if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
            raise click.BadParameter(f"{base}: expected https; plain http only to this machine")
        self.base = base
        self._headers: dict[str, str] = {}
        if trust.token_file is not None:
            token = read_file(trust.token_file, limit_bytes=4_096, secret=True).decode("ascii", "replace").strip()
            self._headers["authorization"] = f"Bearer {token}"
        self._transport = HttpTransport(base, ca_file=trust.ca_file)
        self._loop = asyncio.new_event_loop()

    def __enter__(self) -> _Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.run_until_complete(self._transport.close())
        self._loop.close()

    def get(self, path: str) -> bytes | None:
        """A file; None when there is none."""
        reply = self._loop.run_until_complete(self._transport.request("GET", f"/{path}", headers=self._headers))
        if reply.status == 200:
            return reply.body
        if reply.status in {404, 410}:
            return None
        if reply.status in {401, 403}:
            raise NotPermitted(f"{self.base}: the server does not show it to this caller", hint="give --token-file")
        raise Unavailable(f"{self.base}/{path}: answered {reply.status}")


def keys_as_policy(keys: list[VerifierKey]) -> Policy:
    """Trust in these logs, without witnesses."""
    if not keys:
        raise ConfigError("a log shows nothing without its key: give --log-key or --policy", code="no_log_key")
    return Policy(tuple(keys), {}, {}, "none", {})
