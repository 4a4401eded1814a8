"""What can be proven of one record, computed when somebody asks: from the bytes that are stored and the files that are served.

signature   the record's exact bytes, under the host's enrolled key
before      the `prev` it names, against the SHA-256 of the stored bytes of the record before it
after       the `prev` of the record after it, against the SHA-256 of these bytes
entry       the log entry that these bytes must have, against the entry that is served at the record's index
inclusion   the path from that entry through the served tiles, against the root in the served checkpoint
checkpoint  the served checkpoint, under the log's key, against the origin of this site's log
witnesses   the cosignature lines of that checkpoint, under the keys of the policy, against its quorum

Each is `verified`, `wrong` or `could not tell`, with a code; the viewer has the sentences. No row is believed.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compliance_agent.crypto import key_id, verify
from compliance_agent.entries.leaf import bundle_leaf
from compliance_agent.errors import AgentError, BadEvidence, NoInput, Refusal
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.merkle import hash_leaf, verify_inclusion
from compliance_agent.log.policy import Policy
from compliance_agent.log.tiles import FULL, Tile
from compliance_agent.log.tree import TileTree
from compliance_agent.server.log_files import LogFiles
from compliance_agent.server.log_keys import LogKeys
from compliance_agent.server.records import NO_DIGEST, Bundle, Host, Leaf, Shard, SiteReader
from compliance_agent.server.services.checkpoints import Line, State, Witness, signed_checkpoint, witnessed
from compliance_agent.server.services.moments import Interval, Stamped
from compliance_agent.server.services.served_logs import ServedLogs


@dataclass(frozen=True)
class Proven:
    """Every comparison about one record, and between which moments it came to be; None where no log can be read."""

    lines: tuple[Line, ...]
    witnesses: tuple[Witness, ...] = ()
    interval: Interval | None = None

    @property
    def state(self) -> State:
        """The worst of all lines."""
        states = {line.state for line in self.lines}
        return next((one for one in (State.WRONG, State.UNTOLD) if one in states), State.VERIFIED)


Logged = tuple[list[Line], tuple[Witness, ...], Interval | None]


class Prover:
    """Proves records of the sites that its reader sees; raises Refusal 404 for all others."""

    def __init__(
        self,
        reader: SiteReader,
        files: LogFiles,
        keys: LogKeys,
        policy: Policy | None = None,
        stamped: Stamped | None = None,
    ) -> None:
        self._reader = reader
        self._files = files
        self._keys = keys
        self._policy = policy
        self._served = ServedLogs(files, keys, policy, stamped)

    async def prove(self, bundle_id: str, key: str | None = None) -> Proven:
        """Compute every line for one record, now."""
        found = await self._reader.bundle(bundle_id, key)
        host = await self._reader.host(found[0].key_id) if found else None
        if found is None or host is None:
            raise Refusal("no such bundle", code="not_found", status=404)
        if not found[1]:
            raise Refusal(
                "this record was destroyed when its time was over; its digest is in the log", code="pruned", status=410
            )
        return await self.prove_held(host, *found, *await self._reader.neighbours(found[0]))

    async def prove_held(
        self, host: Host, bundle: Bundle, body: bytes, sig: bytes, previous: Bundle | None, following: Bundle | None
    ) -> Proven:
        """The same for one that was just read, with its neighbours."""
        right = verify(host.public_key, sig, body)
        lines = [
            Line("signature", State.VERIFIED, "host_signed", {"key": host.key_id})
            if right
            else Line("signature", State.WRONG, "bad_signature", {"key": host.key_id})
        ]
        lines += await self._chain(bundle, body, previous, following)
        log_lines, witnesses, interval = await self._logged(bundle, host, body, sig)
        return Proven((*lines, *log_lines), witnesses, interval)

    # --- chain ----------------------------------------------------------------------------------

    async def _chain(
        self, bundle: Bundle, body: bytes, previous: Bundle | None, following: Bundle | None
    ) -> list[Line]:
        numbers = [one.number for one in (previous, following) if one is not None]
        kept = await self._reader.kept_of(bundle.site_id, numbers) if numbers else []
        bodies = {item.number: item.body for item in kept}
        before, after = (bodies.get(one.number) if one is not None else None for one in (previous, following))
        named, own = _document(body).get("prev"), _digest(body)
        if before is None and previous is not None:
            lines = [Line("before", State.UNTOLD, "outside_dates", {"prev": _short(named)})]
        elif before is None:
            first = Line("before", State.VERIFIED, "first", {"prev": NO_DIGEST})
            lines = [first if named == NO_DIGEST else Line("before", State.WRONG, "not_held", {"prev": _short(named)})]
        elif not before:
            lines = [Line("before", State.UNTOLD, "pruned", {"prev": _short(named)})]
        else:
            right, figures = named == _digest(before), {"prev": _short(named), "record before": _digest(before)}
            lines = [_line("before", right, "linked", "broken_link", figures)]
        if after is None and following is not None:
            lines.append(Line("after", State.UNTOLD, "outside_dates", {"these bytes": own}))
        elif after is None:
            lines.append(Line("after", State.UNTOLD, "newest", {"these bytes": own}))
        elif not after:
            lines.append(Line("after", State.UNTOLD, "pruned", {"these bytes": own}))
        else:
            names = _document(after).get("prev")
            figures = {"these bytes": own, "record after names": _short(names)}
            lines.append(_line("after", names == own, "linked", "broken_link", figures))
        return lines

    # --- log ------------------------------------------------------------------------------------

    async def _logged(self, bundle: Bundle, host: Host, body: bytes, sig: bytes) -> Logged:
        document = _document(body)
        leaf = _leaf_of(host, document, body, sig)
        place = next(iter(await self._reader.leaves_of(bundle.key_id, {bundle.bundle_id})), None)
        if place is None:
            rows = await self._reader.signed_places(bundle.site_id, bundle.number - 1, 1)
            held = next((row[2] for row in rows if row[0] == bundle.number), None)
            return (_none(State.WRONG, "no_entry") if held is None else _none(State.UNTOLD, "pending")), (), None
        found = await self._shards(host.site_id, place.year, document)
        if found is None:
            return _none(State.WRONG, "no_log"), (), None
        return await asyncio.to_thread(self._from_files, *found, place, leaf, document)

    async def _shards(self, site_id: str, year: int, document: Mapping[str, Any]) -> tuple[Shard, Shard] | None:
        """The log of a record's entry, and the one whose head it names: of the year before, perhaps."""
        ours = [item for item in await self._reader.shards() if item.site_id == site_id]
        head = document.get("log_head")
        named = head.get("origin") if isinstance(head, dict) else None
        log = next((item for item in ours if item.year == year), None)
        return (log, next((item for item in ours if item.origin == named), log)) if log is not None else None

    async def times(self, host: Host, bundle: Bundle, body: bytes) -> bytes | None:
        """What a browser checks the interval with (docs/protocol.md, `times.json`); None where no log can be read."""
        place = next(iter(await self._reader.leaves_of(bundle.key_id, {bundle.bundle_id})), None)
        document = _document(body)
        found = await self._shards(host.site_id, place.year, document) if place is not None else None
        if place is None or found is None:
            return None
        try:
            return await asyncio.to_thread(self._served.proof, *found, place.index, document)
        except AgentError:
            return None

    def _from_files(
        self, shard: Shard, named: Shard, place: Leaf, leaf: bytes | None, document: Mapping[str, Any]
    ) -> Logged:
        """The three comparisons with the log, and the witnesses, from its files as they are served."""
        try:
            note = self._files.published(shard.site_id, shard.year)
        except AgentError:
            return _none(State.UNTOLD, "unreadable"), (), None
        if note is None:
            return _none(State.UNTOLD, "not_published"), (), None
        signed, checkpoint = signed_checkpoint(note, self._keys.verifier(shard.origin))
        line, witnesses = witnessed(note, self._policy)
        if checkpoint is None:
            return [*_none(State.UNTOLD, "bad_checkpoint")[:2], signed, line], witnesses, None
        figures = {
            "index": str(place.index),
            "tree size": str(checkpoint.size),
            "root": checkpoint.root.hex(),
        }
        if place.index >= checkpoint.size:
            missing = [Line(name, State.UNTOLD, "not_published", figures) for name in ("entry", "inclusion")]
            return [*missing, signed, line], witnesses, None
        where = {"index": figures["index"]}
        entry = self._compared("entry", where, lambda: self._entry(shard, place, leaf, checkpoint.size))
        inclusion = self._compared("inclusion", figures, lambda: self._included(shard, place, leaf, checkpoint))
        when = None
        if inclusion.state is signed.state is State.VERIFIED:  # else nothing follows from this log
            times = [one.at for one in witnesses if one.at is not None]
            when = self._served.interval(shard, named, checkpoint, place.index, document, times)
        return [entry, inclusion, signed, line], witnesses, when

    @staticmethod
    def _compared(name: str, figures: Mapping[str, str], compare: Any) -> Line:
        try:
            code: str = compare()
        except NoInput as error:
            return Line(name, State.UNTOLD, "pruned" if error.code == "pruned" else "file_missing", figures)
        except BadEvidence as error:
            return Line(name, State.WRONG, error.code, figures)
        except AgentError:
            return Line(name, State.UNTOLD, "unreadable", figures)
        return Line(name, State.VERIFIED, code, figures)

    def _entry(self, shard: Shard, place: Leaf, leaf: bytes | None, size: int) -> str:
        """The served entry and the row are what these bytes must have; BadEvidence says which is not."""
        if leaf is None:
            raise BadEvidence("the bytes are no record", code="not_a_record")
        index, at = divmod(place.index, FULL)
        if self._served.entries(shard, index, size)[at] != leaf:
            raise BadEvidence("the served entry is of other bytes", code="other_entry")
        if place.leaf != leaf:
            raise BadEvidence("the row's entry is of other bytes", code="other_row")
        return "same_entry"

    def _included(self, shard: Shard, place: Leaf, leaf: bytes | None, checkpoint: Checkpoint) -> str:
        if leaf is None:
            raise BadEvidence("the bytes are no record", code="not_a_record")
        tree = TileTree(checkpoint.size, lambda *tile: self._files.read(shard.site_id, shard.year, Tile(*tile)))
        if tree.leaf(place.index) != hash_leaf(leaf):
            raise BadEvidence("the tile holds the hash of another entry", code="other_hash")
        path = tree.inclusion(place.index)
        verify_inclusion(hash_leaf(leaf), place.index, checkpoint.size, path, checkpoint.root)
        return "included"


def _line(name: str, right: bool, good: str, bad: str, figures: Mapping[str, str]) -> Line:
    return Line(name, State.VERIFIED, good, figures) if right else Line(name, State.WRONG, bad, figures)


def _none(state: State, code: str) -> list[Line]:
    """Nothing of the log can be compared: one reason for all of it."""
    return [
        Line("entry", state, code),
        *(Line(name, State.UNTOLD, code) for name in ("inclusion", "checkpoint", "witnesses")),
    ]


def _document(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _leaf_of(host: Host, document: Mapping[str, Any], body: bytes, sig: bytes) -> bytes | None:
    """The entry that exactly these bytes must have; None when they do not say their place."""
    epoch, seq, prev = (document.get(name) for name in ("epoch", "seq", "prev"))
    if not (isinstance(epoch, int) and isinstance(seq, int) and isinstance(prev, str)):
        return None
    try:
        return bundle_leaf(key_id(host.public_key), epoch, seq, prev, _digest(body), sig)
    except ValueError:  # what it names is no digest
        return None


def _digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def _short(value: object) -> str:
    """A digest that a document names, whatever it really holds."""
    return value[:64] if isinstance(value, str) else "nothing"
