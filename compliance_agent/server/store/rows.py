"""Rows to records and back: the one place that knows how times, heads and site lists stand in a column."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any

from sqlalchemy import Column, RowMapping

from compliance_agent.server.records import (
    Bundle,
    CheckVerdict,
    Dates,
    Factor,
    Fork,
    Gap,
    Head,
    Hold,
    Host,
    Leaf,
    LoggedRecord,
    NewBundle,
    OperatorToken,
    Place,
    Session,
    Shard,
    Site,
    Tally,
    Token,
    User,
)
from compliance_agent.server.store import tables

_TIME = "%Y-%m-%dT%H:%M:%S.%fZ"
BUNDLE_COLUMNS: Sequence[Column[Any]] = [c for c in tables.bundles.c if c.name not in {"body", "sig"}]


@functools.lru_cache(64)  # what arrives together has one time
def text(time: datetime) -> str:
    """A time as it stands in a column."""
    return time.astimezone(UTC).strftime(_TIME)


def text_or_none(time: datetime | None) -> str | None:
    """The same for a time that may be missing."""
    return None if time is None else text(time)


def when(value: str) -> datetime:
    """A column's text as a time."""
    return datetime.fromisoformat(value)


def when_or_none(value: str | None) -> datetime | None:
    """The same for a column that may be NULL."""
    return None if value is None else when(value)


def site(row: RowMapping) -> Site:
    """A site."""
    return Site(row["site_id"], row["client_id"], when(row["created_at"]), row["exception_people"] or 1)


def host(row: Mapping[str, Any] | RowMapping) -> Host:
    """A host; the row joins its site's client_id."""
    return Host(
        key_id=row["key_id"],
        site_id=row["site_id"],
        client_id=row["client_id"],
        host_id=row["host_id"],
        public_key=row["public_key"],
        enrolled_at=when(row["enrolled_at"]),
        revoked_at=when_or_none(row["revoked_at"]),
        head=None if row["seq"] is None else Head(row["epoch"], row["seq"], row["digest"]),
        last_seen_at=when_or_none(row["last_seen_at"]),
        heartbeat_at=when_or_none(row["heartbeat_at"]),
        heartbeat_made_at=when_or_none(row["heartbeat_made_at"]),
        agent_version=row["agent_version"],
        baseline_version=row["baseline_version"],
        baseline_sha256=row["baseline_sha256"],
        pending=row["pending"],
        forks=row["forks"],
        rotated_to=row["rotated_to"],
        waiting_since=when_or_none(row["waiting_since"]),
        set_back_at=when_or_none(row["set_back_at"]),
        set_back_digest=row["set_back_digest"],
        contested_at=when_or_none(row["contested_at"]),
    )


HOST_LIFE = (
    *("epoch", "seq", "digest", "last_seen_at", "heartbeat_at", "heartbeat_made_at", "agent_version"),
    *("baseline_version", "baseline_sha256", "pending", "forks", "set_back_at", "set_back_digest", "contested_at"),
)


def host_life(item: Host) -> dict[str, Any]:
    """The columns that change while a host lives, as `HOST_LIFE` has them."""
    return {
        "epoch": item.head.epoch if item.head else None,
        "seq": item.head.seq if item.head else None,
        "digest": item.head.digest if item.head else None,
        "last_seen_at": text_or_none(item.last_seen_at),
        "heartbeat_at": text_or_none(item.heartbeat_at),
        "heartbeat_made_at": text_or_none(item.heartbeat_made_at),
        "agent_version": item.agent_version,
        "baseline_version": item.baseline_version,
        "baseline_sha256": item.baseline_sha256,
        "pending": item.pending,
        "forks": item.forks,
        "set_back_at": text_or_none(item.set_back_at),
        "set_back_digest": item.set_back_digest,
        "contested_at": text_or_none(item.contested_at),
    }


def host_columns(item: Host) -> dict[str, Any]:
    """A new host's row."""
    return {
        "key_id": item.key_id,
        "site_id": item.site_id,
        "host_id": item.host_id,
        "public_key": item.public_key,
        "enrolled_at": text(item.enrolled_at),
        "revoked_at": text_or_none(item.revoked_at),
        "waiting_since": text_or_none(item.waiting_since),
        **host_life(item),
    }


def place(row: RowMapping) -> Place:
    """Where a bundle stands."""
    return Place(row["key_id"], row["bundle_id"], row["epoch"], row["seq"], row["sha256"])


def bundle(row: RowMapping) -> Bundle:
    """A bundle without its bytes."""
    values = {column.name: row[column.name] for column in BUNDLE_COLUMNS}
    return Bundle(**{**values, "received_at": when(row["received_at"])})


def new_bundle(item: NewBundle) -> tuple[Any, ...]:
    """A new bundle's row, in the order of its fields, the last of which is a time."""
    return (*item[:-1], text(item.received_at))


def verdict(row: RowMapping) -> CheckVerdict:
    """A current verdict."""
    return CheckVerdict(
        row["key_id"],
        row["site_id"],
        row["check"],
        row["result"],
        row["reason"],
        when(row["since"]),
        when(row["seen_at"]),
        row["bundle_id"],
    )


def tally(row: RowMapping) -> Tally:
    """Verdicts that stand alike."""
    return Tally(
        row["key_id"],
        row["site_id"],
        row["alone"],
        row["result"],
        bool(row["stale"]),
        row["count"],
        when(row["first"]),
        when(row["seen"]),
    )


def verdict_columns(item: CheckVerdict) -> dict[str, Any]:
    """A verdict's row."""
    return {**item._asdict(), "since": text(item.since), "seen_at": text(item.seen_at)}


def fork(row: RowMapping) -> Fork:
    """A contradicting bundle."""
    return Fork(
        row["key_id"],
        row["site_id"],
        row["epoch"],
        row["seq"],
        row["sha256"],
        row["body"],
        row["sig"],
        when(row["received_at"]),
    )


def gap(row: RowMapping) -> Gap:
    """A gap in a chain."""
    return Gap(
        row["key_id"],
        row["site_id"],
        row["expected_epoch"],
        row["expected_seq"],
        row["got_epoch"],
        row["got_seq"],
        when(row["seen_at"]),
        when_or_none(row["closed_at"]),
    )


def hold(row: RowMapping) -> Hold:
    """A hold."""
    return Hold(
        row["site_id"], row["host_id"], row["reason_id"], when(row["added_at"]), when_or_none(row["released_at"])
    )


def logged_record(row: RowMapping, forks: Mapping[tuple[str, str], RowMapping]) -> LoggedRecord:
    """An entry that joins its bundle and its host; a contradicting record is found by the digest that its entry names."""
    index, label, decided = row["leaf_index"], row["host_id"], row["decided_at"]
    if row["number"] is not None:
        said = (row["body"], row["created_at"], when(row["received_at"]))
        return LoggedRecord(index, label, "bundle", row["number"], *said)
    leaf = json.loads(row["leaf"])
    fork = forks.get((row["key_id"], leaf.get("seen", ""))) if leaf["kind"] == "fork" else None
    if fork is not None:
        received = fork["received_at"]
        return LoggedRecord(index, label, "fork", fork["number"], fork["body"], received, when(received))
    return LoggedRecord(index, label, "entry", None, None, decided, when(decided))


def token(row: RowMapping) -> Token:
    """An enrolment token; the row joins its site's client_id."""
    return Token(
        row["hash"],
        row["site_id"],
        row["client_id"],
        when(row["created_at"]),
        when(row["expires_at"]),
        when_or_none(row["used_at"]),
        row["used_by"],
        when_or_none(row["revoked_at"]),
    )


def user(row: RowMapping | Mapping[str, Any]) -> User:
    """A user."""
    dates = None
    if row["first_on"] is not None:
        dates = Dates(date.fromisoformat(row["first_on"]), date.fromisoformat(row["last_on"]))
    return User(
        row["name"],
        row["person_id"],
        row["password_hash"],
        row["role"],
        _sites_of(row["sites"]),
        when(row["created_at"]),
        when_or_none(row["disabled_at"]),
        row["client_id"],
        dates,
    )


def _user_of(row: RowMapping) -> User:
    return user({name.removeprefix("user_"): value for name, value in row.items() if name.startswith("user_")})


def session(row: RowMapping) -> Session:
    """A session; the row joins its user, whose columns are named with `user_`."""
    created, used, expires = (when(row[name]) for name in ("created_at", "used_at", "expires_at"))
    return Session(row["hash"], _user_of(row), created, used, expires, when_or_none(row["proved_at"]))


def sites_text(sites: frozenset[str] | None) -> str | None:
    """Ids of sites as they are stored."""
    return None if sites is None else " ".join(sorted(sites))


def _sites_of(text: str | None) -> frozenset[str] | None:
    return None if text is None else frozenset(text.split())


def operator_token(row: RowMapping) -> OperatorToken:
    """An operator token; the row joins its user, whose columns are named with `user_`."""
    times = {name: when_or_none(row[name]) for name in ("used_at", "revoked_at")}
    return OperatorToken(
        row["hash"],
        _user_of(row),
        row["label"],
        row["role"],
        _sites_of(row["sites"]),
        when(row["created_at"]),
        when(row["expires_at"]),
        successor=row["successor"],
        **times,
    )


def factor(row: RowMapping) -> Factor:
    """A second factor."""
    return Factor(row["name"], row["sealed"], when_or_none(row["confirmed_at"]), row["last_step"])


def user_limits(item: User) -> dict[str, Any]:
    """The columns that say what a user may see."""
    return {
        "client_id": item.client_id,
        "sites": sites_text(item.sites),
        "first_on": item.dates.first.isoformat() if item.dates else None,
        "last_on": item.dates.last.isoformat() if item.dates else None,
    }


def leaf(row: RowMapping) -> Leaf:
    """An integrated entry; the row may join its bundle's id."""
    return Leaf(
        row["site_id"],
        row["year"],
        row["leaf_index"],
        row["leaf"],
        row["key_id"],
        row["epoch"],
        row["seq"],
        row.get("bundle_id"),
    )


def shard(row: RowMapping) -> Shard:
    """A log."""
    times = {"sequenced_at": when(row["sequenced_at"]), "published_at": when_or_none(row["published_at"])}
    return Shard(**{**row, **times})


def shard_columns(item: Shard) -> dict[str, Any]:
    """A log's row."""
    times = {"sequenced_at": text(item.sequenced_at), "published_at": text_or_none(item.published_at)}
    return {**item.__dict__, **times}
