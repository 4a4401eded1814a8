"""What was proven of a record or a log, in words: each line says what was compared with what, and how it ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from compliance_agent.errors import BadEvidence
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.fields import from_base64
from compliance_agent.log.note import Note
from compliance_agent.server.services.checkpoints import Line, State, Witness
from compliance_agent.server.services.logbook import Entry, SiteLog
from compliance_agent.server.services.moments import Bound, Interval
from compliance_agent.server.services.older_heads import OlderHead
from compliance_agent.server.services.proving import Proven
from compliance_agent.web import words

# Name of a line, and what is compared with what.
LINES: Mapping[str, tuple[str, str]] = {
    "older": ("Older checkpoint", "An earlier checkpoint, held against the tree as it is served."),
    "signature": ("Signature", "The record's exact bytes, held against the host's enrolled key."),
    "before": ("Chain, backwards", "The digest it names, held against the bytes of the record before it."),
    "after": ("Chain, forwards", "The digest that the record after it names, held against these bytes."),
    "entry": ("Log entry", "The entry these bytes must have, held against the one that the log serves."),
    "inclusion": (
        "Inclusion",
        "The path from the entry through the tiles as served, held against the root in the checkpoint as served.",
    ),
    "checkpoint": ("Log signature", "The checkpoint as served, held against the log's key and name."),
    "witnesses": ("Witnesses", "The cosignatures on the checkpoint, held against the keys and quorum of the policy."),
}

CODES: Mapping[str, str] = {
    "host_signed": "This host's key signed exactly these bytes.",
    "bad_signature": "The signature does not verify under that key.",
    "linked": "The digests are the same.",
    "broken_link": "The digests differ: a record was removed, added or changed.",
    "first": "It is the first record of this host; nothing stands before it.",
    "not_held": "It names a record that is not here.",
    "newest": "It is the newest record of this host, so nothing points at it yet.",
    "same_entry": "They are the same bytes.",
    "other_entry": "The log serves another entry at this index.",
    "other_row": "The database holds another entry for this record than the log serves.",
    "no_entry": "The log was never given an entry for this record.",
    "no_log": "The log that should hold the entry does not exist.",
    "not_a_record": "The stored bytes do not say what a record says.",
    "pending": "The entry waits for the log's next round.",
    "not_published": "No checkpoint that is served covers the entry yet.",
    "included": "The path leads to that root.",
    "bad_inclusion_proof": "The path does not lead to that root: a tile, the entry or the checkpoint was changed.",
    "other_hash": "The tile holds the hash of another entry.",
    "bad_tile": "A tile is not of its proper length.",
    "bad_entry_bundle": "The entry bundle does not hold whole entries.",
    "pruned": "What this is to be compared with was destroyed when its time was over.",
    "outside_dates": "That record is outside the dates that you may see.",
    "file_missing": "A file of the log that this needs is not there.",
    "unreadable": "The log's files cannot be read at the moment.",
    "log_signed": "The log's key signed this checkpoint.",
    "no_known_signature": "The log's key did not sign this checkpoint.",
    "other_log": "The checkpoint is of another log.",
    "bad_checkpoint": "What is served is not a signed checkpoint.",
    "no_policy": "No witness is configured. Nobody outside vouches that everybody is shown this same log.",
    "no_quorum_asked": "The policy asks for no witness.",
    "unwitnessed": "Unwitnessed: fewer witnesses than the policy asks for have cosigned this checkpoint.",
    "bad_cosignature": "A line under a witness's name does not verify under its key.",
    "quorum_met": "The quorum is met.",
    "continued": "The newest checkpoint goes on from it.",
    "forked": "The newest checkpoint does not go on from it: the log has two histories.",
}

OLDER_WHY: Mapping[str, str] = {
    "stopped": "The search stopped here; the log goes on.",
    "pruned": "The entries before these were destroyed when their time was over.",
    "unreadable": "The entries before these cannot be read at the moment.",
}

WITNESSES: Mapping[str, str] = {
    "cosigned": "cosigned",
    "absent": "has not cosigned this checkpoint",
    "wrong": "its line does not verify",
}

STATES: Mapping[State, tuple[str, str]] = {  # tone, icon
    State.VERIFIED: ("pass", "holds"),
    State.WRONG: ("fail", "broken"),
    State.UNTOLD: ("unknown", "unknown"),
}

SUMMARIES: Mapping[State, str] = {
    State.VERIFIED: "Everything that was compared holds.",
    State.WRONG: "Something is wrong.",
    State.UNTOLD: "Nothing is wrong; not everything could be told.",
}

STILL: Mapping[str, str] = {
    "clock_not_advanced": "The server's clock has not advanced since the last round; it is waited for.",
    "storage_full": "The disk is full; the log goes on when there is space.",
    "busy": "The database is busy; it is tried again.",
    "log_restored": "What is published is ahead of the database: a backup was restored.",
    "log_forked": "What is published is not a prefix of what the database holds.",
    "log_damaged": "The entries in the database do not give the root that was signed.",
    "checkpoint_unusable": "A checkpoint cannot be read, or does not verify under the log's key.",
    "tile_conflict": "A file of the log holds other bytes than it must.",
    "sequenced_elsewhere": "Another process has grown this log.",
    "log_behind": "This replica has not yet read what another one has signed.",
    "write_unknown": "It is not known whether a write became durable.",
    "unpublished": "The year ended with entries that no checkpoint covers.",
    "sequencer_crashed": "A fault in the sequencer; it was logged.",
    "not_sequencing": "No sequencer runs in this process.",
}

ENTRY_KINDS: Mapping[str, str] = {
    "bundle": "Record",
    "key": "Key",
    "fork": "Contradiction",
    "shard": "First of the year",
    "time": "Time",
    "act": "Act of a person",
    "unreadable": "Unreadable",
}


@dataclass(frozen=True)
class ProofLine:
    """One comparison, worded. `figures` are (label, value)."""

    name: str
    title: str
    state: str
    tone: str
    icon: str
    compared: str
    sentence: str
    figures: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class WitnessRow:
    """One witness of the policy."""

    name: str
    tone: str
    sentence: str
    at: datetime | None


@dataclass(frozen=True)
class ProofPanel:
    """All that was proven of one record."""

    state: str
    tone: str
    icon: str
    sentence: str
    lines: tuple[ProofLine, ...]
    witnesses: tuple[WitnessRow, ...]
    when: When | None = None


@dataclass(frozen=True)
class When:
    """Between which moments a record came to be: worded, with the moments."""

    tone: str
    icon: str
    state: str
    sentence: str
    not_before: datetime | None
    not_after: datetime | None


@dataclass(frozen=True)
class OlderRow:
    """An earlier checkpoint: its entry, its entries, whether the newest goes on from it, who signed it, and when first."""

    index: int
    size: int
    tone: str
    icon: str
    state: str
    sentence: str
    signed: str
    at: datetime | None


@dataclass(frozen=True)
class EntryRow:
    """One entry of a log: its place, what it is, and whose."""

    index: int
    kind: str
    sentence: str
    key_id: str
    detail: str


def panel(proven: Proven) -> ProofPanel:
    """The proof of one record."""
    span = when(proven.interval) if proven.interval is not None else None
    states = {proven.state, State(span.state) if span is not None else proven.state}
    worst = next((one for one in (State.WRONG, State.UNTOLD) if one in states), State.VERIFIED)
    tone, icon = STATES[worst]
    lines = tuple(line(item) for item in proven.lines)
    return ProofPanel(str(worst), tone, icon, SUMMARIES[worst], lines, tuple(map(witness, proven.witnesses)), span)


NO_BEGINNING: Mapping[str, str] = {
    "no_head": "The record names no earlier head of the log, so nothing shows by when it cannot have been there yet.",
    "other_head": "The head that the record names is not one of this site's logs.",
    "no_time": "Before the head that it names, the log holds no time that somebody outside has signed.",
    "stopped": "The search back from the head that it names stopped after {near} entries, and the log goes on.",
    "pruned": "The entries before the head that it names were destroyed when their time was over.",
    "unreadable": "The log's files before the head that it names cannot be read at the moment.",
}
NO_END: Mapping[str, str] = {
    "no_time": "Nobody outside has signed a tree with it yet.",
    "stopped": "The search on from it stopped after {near} entries, and the log goes on.",
    "pruned": "Entries after it were destroyed when their time was over.",
    "unreadable": "The log's files after it cannot be read at the moment.",
}
WIDER = "What shows the end may not be the earliest there is."


def when(interval: Interval) -> When:
    """The moments, and what they say of the time that the record names. An end that is not there is said, with why."""
    before, after, width = interval.not_before, interval.not_after, interval.width
    said = [_missing(interval.before, NO_BEGINNING)] if before is None else []
    said += [_missing(interval.after, NO_END)] if interval.after.why else []
    said += [WIDER] if interval.after.why and after is not None else []
    if interval.outside:
        state, said = State.WRONG, ["The time that the record names is outside: it was dated wrongly.", *said]
    elif width is not None and width < timedelta(0):
        state, said = State.WRONG, ["The two ends contradict each other.", *said]
    elif width is None or interval.claimed is None:
        state = State.UNTOLD
        said += ["The record names no readable time."] if interval.claimed is None else []
    else:
        state, said = State.VERIFIED, [f"A stretch of {_width(width)}, by {_by_whom(interval)}.", *said]
    if interval.refused:
        state = State.UNTOLD if state is State.VERIFIED else state
        said.append(
            f"{_many(interval.refused, 'time entry', 'time entries')} near it did not hold, and counted for nothing."
        )
    unchecked = interval.before.unchecked + interval.after.unchecked
    if unchecked:
        said.append(
            f"{_many(unchecked, 'time stamp', 'time stamps')} (RFC 3161) verified under no configured authority."
        )
    tone, icon = STATES[state]
    return When(tone, icon, str(state), " ".join(said), before, after)


def _missing(bound: Bound, table: Mapping[str, str]) -> str:
    return (table.get(bound.why) or words.humanise(bound.why)).format(near=f"{bound.looked:,}")


def _by_whom(interval: Interval) -> str:
    stamps = interval.before.stamps + interval.after.stamps
    return (
        f"third parties, {_many(stamps, 'time stamp', 'time stamps')} (RFC 3161) among them"
        if stamps
        else "witnesses of the log"
    )


def _many(count: int, one: str, more: str) -> str:
    return f"{count} {one if count == 1 else more}"


def _width(width: timedelta) -> str:
    seconds = max(0, int(width.total_seconds()))
    days, hours, minutes = seconds // 86_400, seconds // 3_600, seconds // 60
    return (
        f"{days} d {hours % 24} h"
        if days
        else f"{hours} h {minutes % 60} min"
        if hours
        else f"{minutes} min {seconds % 60} s"
    )


def line(item: Line) -> ProofLine:
    """One comparison."""
    title, compared = LINES.get(item.name, (words.humanise(item.name), ""))
    tone, icon = STATES[item.state]
    sentence = CODES.get(item.code) or words.humanise(item.code)
    figures = tuple(item.figures.items())
    return ProofLine(item.name, title, str(item.state), tone, icon, compared, sentence, figures)


def witness(item: Witness) -> WitnessRow:
    """One witness."""
    tone = {"cosigned": "pass", "wrong": "fail"}.get(item.code, "unknown")
    return WitnessRow(item.name, tone, WITNESSES.get(item.code, item.code), item.at)


def older(head: OlderHead) -> OlderRow:
    """An earlier checkpoint, and what follows from it now."""
    held = head.lines[0]
    tone, icon = STATES[held.state]
    who = [one.name for one in head.witnesses if one.at is not None]
    said = [f"Cosigned by {', '.join(who)}."] if who else []
    said += [f"{_many(len(head.stamps), 'time stamp', 'time stamps')} (RFC 3161)."] if head.stamps else []
    unchecked = head.tokens - len(head.stamps)
    said += [f"{_many(unchecked, 'time stamp', 'time stamps')} not verified here."] if unchecked else []
    at = min([*(one.at for one in head.witnesses if one.at is not None), *head.stamps], default=None)
    sentence = CODES.get(held.code) or words.humanise(held.code)
    return OlderRow(head.index, head.size, tone, icon, str(held.state), sentence, " ".join(said), at)


def still(log: SiteLog) -> str:
    """Why a log stands still; nothing when it goes on."""
    return STILL.get(log.still) or words.humanise(log.still) if log.still else ""


def _time(said: Mapping[str, Any]) -> str:
    """What a time entry holds; it is proven elsewhere, so a damaged one says so and no more."""
    try:
        note = Note.parse(from_base64(str(said.get("checkpoint")), "checkpoint", "bad_checkpoint"))
        size, tokens = Checkpoint.parse(note.text).size, said.get("tokens")
    except BadEvidence:
        return "holds no readable checkpoint"
    stamps = len(tokens) if isinstance(tokens, list) else 0
    return f"the checkpoint of {size} entries, {len(note.signatures)} signature lines, {stamps} time stamps"


def entry(item: Entry) -> EntryRow:
    """One entry; all it holds is digests, keys and places, and none of it is trusted to be there."""
    said = item.content
    key = said.get("key")
    if item.kind == "bundle":
        detail = f"epoch {said.get('epoch')}, seq {said.get('seq')}, SHA-256 {str(said.get('bundle_sha256'))[:16]}…"
    elif item.kind == "key":
        detail = str(said.get("event"))
    elif item.kind == "fork":
        detail = f"epoch {said.get('epoch')}, seq {said.get('seq')}: two records"
    elif item.kind == "shard":
        detail = "binds the last checkpoint of the year before" if said.get("previous") else "no year before it"
    elif item.kind == "time":
        detail = _time(said)
    elif item.kind == "act":
        detail = f"{words.humanise(str(said.get('act')))}, by {str(said.get('actor'))[:17]}"
    else:
        detail = ""
    kind = ENTRY_KINDS.get(item.kind) or words.humanise(item.kind)
    return EntryRow(item.index, item.kind, kind, key if isinstance(key, str) else "", detail)
