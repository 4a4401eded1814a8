"""The schema, one for SQLite and PostgreSQL: every row that belongs to a clinic carries its `site_id`.

Times are text in UTC with microseconds, fixed width, so that they sort as they are and read the same from both databases.
`number` columns count arrivals. What a bundle says of itself stands in columns only to find it; the truth is `body`.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    bindparam,
    literal_column,
)
from sqlalchemy.sql.operators import in_op

from compliance_agent.server.store.packed_entry import PackedEntry
from compliance_agent.server.store.packing import Packed
from compliance_agent.server.store.texts import Texts, among_texts

_NUMBER = BigInteger().with_variant(Integer, "sqlite")  # SQLite counts by itself only in a column of type INTEGER

metadata = MetaData(
    naming_convention={"ix": "ix_%(table_name)s_%(column_0_name)s", "uq": "uq_%(table_name)s_%(column_0_name)s"}
)

sites = Table(
    "sites",
    metadata,
    Column("site_id", String, primary_key=True),
    Column("client_id", String, nullable=False),
    Column("created_at", String, nullable=False),
    Column("exception_people", Integer),  # how many have to approve an exception; NULL is one
)


def _site() -> Column[str]:
    return Column("site_id", String, ForeignKey("sites.site_id"), nullable=False)


def site_of(table: Table) -> ColumnElement[str]:
    """The site of a row as an expression, for where rows are found by something better.

    SQLite guesses that one site has few rows, and would read all of them by an index that begins with the plain column.
    """
    return table.c.site_id.concat("")


def among(column: ColumnElement[Any], name: str) -> ColumnElement[bool]:
    """The column has one of the texts of this parameter, which is one value: the statement is the same whatever their number."""
    return among_texts(column.self_group(in_op), bindparam(name, type_=Texts()))


hosts = Table(
    "hosts",
    metadata,
    Column("key_id", String, primary_key=True),
    _site(),
    Column("host_id", String, nullable=False),
    Column("public_key", LargeBinary, nullable=False),
    Column("enrolled_at", String, nullable=False),
    Column("revoked_at", String),
    Column("epoch", BigInteger),
    Column("seq", BigInteger),
    Column("digest", String),
    Column("last_seen_at", String),
    Column("heartbeat_at", String),
    Column("heartbeat_made_at", String),
    Column("agent_version", String, nullable=False),
    Column("baseline_version", String, nullable=False),
    Column("baseline_sha256", String, nullable=False),
    Column("pending", BigInteger),
    Column("forks", Integer, nullable=False),
    Column("rotated_to", String),
    Column("waiting_since", String),  # for an operator's approval
    Column("set_back_at", String),
    Column("set_back_digest", String),
    Column("contested_at", String),
)
# Who has this label at this site? A label names no one: two live hosts may carry the same (services.enrol).
Index("ix_hosts_label", hosts.c.site_id, hosts.c.host_id)

api_keys = Table(
    "api_keys",
    metadata,
    Column("hash", String, primary_key=True),
    _site(),
    Column("key_id", String, ForeignKey("hosts.key_id"), nullable=False, index=True),
    Column("created_at", String, nullable=False),
    Column("revoked_at", String),
    Column("replaces", String),  # hash of the key before, until this one is used for the first time
)

# Which client certificate is whose (services/certificates.py); it moves to the new key when a host's key gives way.
host_certificates = Table(
    "host_certificates",
    metadata,
    Column("fingerprint", String, primary_key=True),
    _site(),
    Column("key_id", String, ForeignKey("hosts.key_id"), nullable=False, index=True),
    Column("spki", String, nullable=False),
    Column("issued_at", String, nullable=False),
    Column("not_after", String, nullable=False),
)

enrol_tokens = Table(
    "enrol_tokens",
    metadata,
    Column("hash", String, primary_key=True),
    _site(),
    Column("created_at", String, nullable=False),
    Column("expires_at", String, nullable=False),
    Column("used_at", String),
    Column("used_by", String),
    Column("revoked_at", String),
)

nonces = Table(
    "nonces",
    metadata,
    Column("hash", String, primary_key=True),
    Column("key_id", String, nullable=False),
    Column("expires_at", String, nullable=False, index=True),
)

# Each index is paid for with every record: one by a random id in a page of its own. A host's records are found by its chain.
bundles = Table(
    "bundles",
    metadata,
    Column("number", _NUMBER, primary_key=True, autoincrement=True),
    Column("bundle_id", String, nullable=False),
    _site(),
    Column("key_id", String, ForeignKey("hosts.key_id"), nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("sha256", String, nullable=False),
    Column("prev", String, nullable=False),
    Column("kind", String, nullable=False),
    Column("check", String),
    Column("result", String),
    Column("reason", String),
    Column("outcome", String),
    Column("error", String),
    Column("created_at", String, nullable=False),
    Column("received_at", String, nullable=False),
    Column("body", Packed, nullable=False),  # packing.py
    Column("sig", LargeBinary, nullable=False),
    UniqueConstraint("key_id", "epoch", "seq", name="uq_bundles_place"),
    UniqueConstraint("key_id", "bundle_id", name="uq_bundles_id"),
)
# What is counted day by day, or drawn from, is read in this index alone: a site's records lie far apart, each in its own page.
Index(
    "ix_bundles_days",
    *(bundles.c[name] for name in ("site_id", "created_at", "number", "kind", "check", "result", "outcome", "key_id")),
)
# Most records are heartbeats. The others, which people look for, have an index that holds all that they are looked for by.
NO_HEARTBEAT = bundles.c.kind != literal_column("'heartbeat'")  # word for word, or the index is not taken
Index(
    "ix_bundles_changes",
    *(bundles.c[name] for name in ("site_id", "received_at", "kind", "check", "result", "outcome")),
    *(bundles.c[name] for name in ("key_id", "created_at", "epoch", "seq", "number")),
    sqlite_where=NO_HEARTBEAT,
    postgresql_where=NO_HEARTBEAT,
)

# Of a cure only the newest of each check counts for what waits for a person.
CURE = bundles.c.kind == literal_column("'remediation'")  # word for word, or the index is not taken
Index(
    "ix_bundles_cures",
    *(bundles.c[name] for name in ("key_id", "check", "number")),
    sqlite_where=CURE,
    postgresql_where=CURE,
)

verdicts = Table(
    "verdicts",
    metadata,
    Column("key_id", String, ForeignKey("hosts.key_id"), primary_key=True),
    Column("check", String, primary_key=True),
    _site(),
    Column("result", String, nullable=False),
    Column("reason", String, nullable=False),
    Column("since", String, nullable=False),
    Column("seen_at", String, nullable=False),
    Column("bundle_id", String, nullable=False),
)

forks = Table(
    "forks",
    metadata,
    Column("number", _NUMBER, primary_key=True, autoincrement=True),
    _site(),
    Column("key_id", String, ForeignKey("hosts.key_id"), nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("sha256", String, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("sig", LargeBinary, nullable=False),
    Column("received_at", String, nullable=False),
    UniqueConstraint("key_id", "sha256", name="uq_forks_digest"),
)

gaps = Table(
    "gaps",
    metadata,
    Column("number", _NUMBER, primary_key=True, autoincrement=True),
    _site(),
    Column("key_id", String, ForeignKey("hosts.key_id"), nullable=False, index=True),
    Column("expected_epoch", BigInteger, nullable=False),
    Column("expected_seq", BigInteger, nullable=False),
    Column("got_epoch", BigInteger, nullable=False),
    Column("got_seq", BigInteger, nullable=False),
    Column("seen_at", String, nullable=False),
    Column("closed_at", String),
)

log_shards = Table(
    "log_shards",
    metadata,
    Column("site_id", String, ForeignKey("sites.site_id"), primary_key=True),
    Column("year", Integer, primary_key=True),
    Column("origin", String, nullable=False, unique=True),
    Column("size", BigInteger, nullable=False),
    Column("root", LargeBinary, nullable=False),
    Column("edge", LargeBinary, nullable=False),
    Column("sequenced_at", String, nullable=False),
    Column("checkpoint", LargeBinary),
    Column("checkpoint_size", BigInteger, nullable=False),
    Column("published_at", String),
)

# An entry is pending while its year and index are NULL. A second entry for one place, and a second use of an index, are
# refused by the database itself, whatever a program does.
log_entries = Table(
    "log_entries",
    metadata,
    Column("number", _NUMBER, primary_key=True, autoincrement=True),
    _site(),
    Column("year", Integer),
    Column("leaf_index", BigInteger),
    Column("key_id", String),
    Column("epoch", BigInteger),
    Column("seq", BigInteger),
    Column("decided_at", String, nullable=False),
    Column("leaf", PackedEntry, nullable=False),  # packed_entry.py
    UniqueConstraint("site_id", "year", "leaf_index", name="uq_log_entries_index"),
    UniqueConstraint("key_id", "epoch", "seq", name="uq_log_entries_place"),
)
Index(
    "ix_log_entries_pending",
    log_entries.c.site_id,
    log_entries.c.number,
    sqlite_where=log_entries.c.leaf_index.is_(None),
    postgresql_where=log_entries.c.leaf_index.is_(None),
)

# How much of a log a verified backup holds, records included. It is written after that backup, so a restored copy says less.
log_durable = Table(
    "log_durable",
    metadata,
    Column("site_id", String, ForeignKey("sites.site_id"), primary_key=True),
    Column("year", Integer, primary_key=True),
    Column("size", BigInteger, nullable=False),
    Column("at", String, nullable=False),
)

# What decides how long records are kept (core.retention). `last_on` is a day: it changes once a day, not with each record.
baseline_uses = Table(
    "baseline_uses",
    metadata,
    Column("site_id", String, ForeignKey("sites.site_id"), primary_key=True),
    Column("host_id", String, primary_key=True),
    Column("version", String, primary_key=True),
    Column("last_on", String, nullable=False),
)

holds = Table(
    "holds",
    metadata,
    Column("number", _NUMBER, primary_key=True, autoincrement=True),
    _site(),
    Column("host_id", String),  # NULL is every host of the site
    Column("reason_id", String, nullable=False),
    Column("added_at", String, nullable=False),
    Column("released_at", String),
)

pruned_logs = Table(
    "pruned_logs",
    metadata,
    Column("site_id", String, ForeignKey("sites.site_id"), primary_key=True),
    Column("year", Integer, primary_key=True),
    Column("minimum", BigInteger, nullable=False),  # the first entry that is kept
    Column("pruned_at", String, nullable=False),
)

# Which hosts of a site may disturb their users (core.leases): one document, changed by whoever read its version.
lease_boards = Table(
    "lease_boards",
    metadata,
    Column("site_id", String, ForeignKey("sites.site_id"), primary_key=True),
    Column("version", BigInteger, nullable=False),
    Column("board", String, nullable=False),
)

# Which replica does which work beside the requests (services.duties), and which replicas were heard lately.
duties = Table(
    "duties",
    metadata,
    Column("name", String, primary_key=True),
    Column("holder", String, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("until", String, nullable=False),
)
replicas = Table(
    "replicas",
    metadata,
    Column("replica_id", String, primary_key=True),
    Column("until", String, nullable=False),
    Column("waiting_s", BigInteger, nullable=False),
    Column("still", BigInteger, nullable=False),
    Column("unanchored", BigInteger, nullable=False),
)

# The checkpoint of a log's row with the lines of its witnesses, for the replicas that did not ask them.
log_cosigned = Table(
    "log_cosigned",
    metadata,
    Column("site_id", String, ForeignKey("sites.site_id"), primary_key=True),
    Column("year", Integer, primary_key=True),
    Column("size", BigInteger, nullable=False),
    Column("note", LargeBinary, nullable=False),
)

# Logs that stand still at every replica until a person lets them go on (log_stops.py).
log_stops = Table(
    "log_stops",
    metadata,
    Column("site_id", String, ForeignKey("sites.site_id"), primary_key=True),
    Column("code", String, nullable=False),
    Column("at", String, nullable=False),
)

# Exceptions that people recorded (services.exceptions): what was accepted, by whom, until when.
exceptions = Table(
    "exceptions",
    metadata,
    Column("exception_id", String, primary_key=True),
    _site(),
    Column("key_id", String),  # NULL is every host of the site
    Column("check", String, nullable=False),
    Column("reason", String, nullable=False),
    Column("measure", String, nullable=False),
    Column("reference", String, nullable=False),
    Column("approver", String, nullable=False),
    Column("approver_id", String, nullable=False),
    Column("created_at", String, nullable=False),
    Column("expires_at", String, nullable=False),
    Column("withdrawn_at", String),
    Column("withdrawn_by", String),
    Column("people", Integer),  # how many had to approve it; NULL is one
    Column("seconded_at", String),
    Column("seconded_by", String),
    Column("seconded_by_id", String),
)

# Packets that people asked for (services.packets); what came of them is kept for a while, here where there may be other replicas.
packet_jobs = Table(
    "packet_jobs",
    metadata,
    Column("job_id", String, primary_key=True),
    Column("site_id", String, ForeignKey("sites.site_id"), nullable=False, index=True),
    Column("person_id", String, nullable=False),
    Column("first", String, nullable=False),
    Column("last", String, nullable=False),
    Column("dates", String),  # first/last of the days that the person may see
    Column("control", String),
    Column("host", String),
    Column("asked_at", String, nullable=False),
    Column("state", String, nullable=False),
    Column("stage", String, nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("total", BigInteger, nullable=False),
    Column("holder", String),
    Column("until", String),
    Column("tries", Integer, nullable=False),
    Column("code", String, nullable=False),
    Column("ended_at", String),
    Column("records", BigInteger, nullable=False),
    Column("problems", BigInteger, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("sha256", String, nullable=False),
    Column("report_size", BigInteger, nullable=False),
    Column("report_sha256", String, nullable=False),
    Column("sample", String),  # of a packet that is a sample: JSON of how it is drawn
)
packet_parts = Table(
    "packet_parts",
    metadata,
    Column("job_id", String, ForeignKey("packet_jobs.job_id"), primary_key=True),
    Column("name", String, primary_key=True),
    Column("number", Integer, primary_key=True),
    _site(),
    Column("content", LargeBinary, nullable=False),
)

# Opens the wall (wall.py) within one transaction: `never` refers to a table that is always empty, so no commit succeeds with a row.
prune_never = Table("prune_never", metadata, Column("id", Integer, primary_key=True))
prune_guards = Table(
    "prune_guards",
    metadata,
    Column("site_id", String, ForeignKey("sites.site_id"), primary_key=True),
    Column("year", Integer, primary_key=True),
    Column("first", BigInteger, nullable=False),
    Column("stop", BigInteger, nullable=False),
    Column("at", String, nullable=False),
    Column("never", Integer, ForeignKey("prune_never.id", deferrable=True, initially="DEFERRED"), nullable=False),
)
KEEPING_TABLES = (baseline_uses, holds, pruned_logs, prune_never, prune_guards)

# Orders: what was drafted, who approved and signed it, the exact bytes, and the record that answered it (services/orders.py).
orders = Table(
    "orders",
    metadata,
    Column("order_id", String, primary_key=True),
    _site(),
    Column("key_id", String, ForeignKey("hosts.key_id"), nullable=False),
    Column("kind", String, nullable=False),
    Column("parameters", String, nullable=False),
    Column("life_s", Integer, nullable=False),
    Column("drafted_by", String, nullable=False),
    Column("drafted_at", String, nullable=False),
    Column("state", String, nullable=False),
    Column("baseline_sha256", String),
    Column("signers", String, nullable=False),
    Column("payload", LargeBinary),
    Column("not_before", String),
    Column("expires", String),
    Column("counter", BigInteger),
    Column("envelope", LargeBinary),
    Column("sha256", String, index=True),
    Column("ended_at", String),
    Column("outcome", String),
    Column("error", String),
    Column("bundle_id", String),
)
Index("ix_orders_host", orders.c.site_id, orders.c.key_id, orders.c.drafted_at)
order_marks = Table(
    "order_marks",
    metadata,
    Column("order_id", String, ForeignKey("orders.order_id"), primary_key=True),
    Column("what", String, primary_key=True),
    Column("who", String, primary_key=True),
    _site(),
    Column("at", String, nullable=False),
    Column("signature", LargeBinary),
)
order_hosts = Table(
    "order_hosts",
    metadata,
    Column("key_id", String, ForeignKey("hosts.key_id"), primary_key=True),
    _site(),
    Column("nonce", String, nullable=False),
    Column("nonce_at", String, nullable=False),
    Column("counter", BigInteger, nullable=False),
)
signed_baselines = Table(
    "signed_baselines",
    metadata,
    Column("site_id", String, ForeignKey("sites.site_id"), primary_key=True),
    Column("sha256", String, primary_key=True),
    Column("version", String, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("sig", LargeBinary, nullable=False),
    Column("added_by", String, nullable=False),
    Column("added_at", String, nullable=False),
)
# Roots and lists of order keys, signed elsewhere; `sha256` is the payload's (services/order_trust.py).
order_trust = Table(
    "order_trust",
    metadata,
    Column("site_id", String, ForeignKey("sites.site_id"), primary_key=True),
    Column("role", String, primary_key=True),
    Column("version", BigInteger, primary_key=True),
    Column("sha256", String, nullable=False),
    Column("envelope", LargeBinary, nullable=False),
    Column("added_by", String, nullable=False),
    Column("added_at", String, nullable=False),
)
# What people promoted to a rule, with how often the cure had worked then (services/promoting.py).
plan_rules = Table(
    "plan_rules",
    metadata,
    Column("site_id", String, ForeignKey("sites.site_id"), primary_key=True),
    Column("check", String, primary_key=True),
    Column("reason", String, primary_key=True),
    Column("runbook", String, nullable=False),
    Column("runbook_sha256", String, nullable=False),
    Column("ordered", _NUMBER, nullable=False),
    Column("applied", _NUMBER, nullable=False),
    Column("passed", _NUMBER, nullable=False),
    Column("undone", _NUMBER, nullable=False),
    Column("promoted_by", String, nullable=False),
    Column("promoted_at", String, nullable=False),
)
ORDER_TABLES = (orders, order_marks, order_hosts, signed_baselines, order_trust, plan_rules)

users = Table(
    "users",
    metadata,
    Column("name", String, primary_key=True),
    Column("person_id", String, nullable=False),
    Column("password_hash", String, nullable=False),
    Column("role", String, nullable=False),
    Column("client_id", String),  # NULL is every client of this server
    Column("sites", String),  # ids separated by spaces; NULL is every site of the client
    Column("first_on", String),  # days, both or neither
    Column("last_on", String),
    Column("created_at", String, nullable=False),
    Column("disabled_at", String),
)


def _credentials(name: str, *more: Column[str]) -> Table:
    """Sessions and operator tokens: a random secret's hash, its user, and how long it is worth something."""
    return Table(
        name,
        metadata,
        Column("hash", String, primary_key=True),
        Column("name", String, ForeignKey("users.name"), nullable=False),
        Column("created_at", String, nullable=False),
        Column("expires_at", String, nullable=False),
        Column("revoked_at", String),
        *more,
    )


sessions = _credentials("sessions", Column("used_at", String, nullable=False), Column("proved_at", String))
operator_tokens = _credentials(
    "operator_tokens",
    Column("label", String),
    Column("role", String),  # narrower than the person's; NULL is the person's
    Column("sites", String),
    Column("used_at", String),
    Column("successor", String),
)

factors = Table(
    "factors",
    metadata,
    Column("name", String, ForeignKey("users.name"), primary_key=True),
    Column("sealed", LargeBinary, nullable=False),
    Column("confirmed_at", String),  # NULL: begun, and of no use yet
    Column("last_step", BigInteger, nullable=False),
)

recovery_codes = Table(
    "recovery_codes",
    metadata,
    Column("name", String, ForeignKey("users.name"), primary_key=True),
    Column("hash", String, primary_key=True),
    Column("used_at", String),
)

# A person at an OpenID provider; never by a name or an address, which the provider may give to somebody else.
identities = Table(
    "identities",
    metadata,
    Column("issuer", String, primary_key=True),
    Column("subject", String, primary_key=True),
    Column("name", String, ForeignKey("users.name"), nullable=False),
    Column("linked_at", String, nullable=False),
)

flows = Table(
    "flows",
    metadata,
    Column("state_hash", String, primary_key=True),
    Column("browser_hash", String, nullable=False),
    Column("nonce", String, nullable=False),
    Column("verifier", String, nullable=False),
    Column("back", String, nullable=False),
    Column("expires_at", String, nullable=False),
)

login_attempts = Table(
    "login_attempts",
    metadata,
    Column("bucket", Integer, primary_key=True),  # a short hash of the name: a bounded table, whatever is tried
    Column("started_at", String, nullable=False),
    Column("attempts", Integer, nullable=False),
)

# An alert is open until it has an end; one for each cause. What is to be sent of it stands in the outbox, for each channel.
alerts = Table(
    "alerts",
    metadata,
    Column("alert_id", String, primary_key=True),
    Column("cause", String, nullable=False),
    Column("kind", String, nullable=False),
    Column("site_id", String),
    Column("key_id", String),
    Column("count", BigInteger, nullable=False),
    Column("opened_at", String, nullable=False),
    Column("closed_at", String),
    Column("acked_at", String),
    Column("acked_by", String),
)
Index(
    "uq_alerts_open",
    alerts.c.cause,
    unique=True,
    sqlite_where=alerts.c.closed_at.is_(None),
    postgresql_where=alerts.c.closed_at.is_(None),
)
alert_outbox = Table(
    "alert_outbox",
    metadata,
    Column("number", _NUMBER, primary_key=True, autoincrement=True),
    Column("alert_id", String, ForeignKey("alerts.alert_id"), nullable=False),
    Column("transition", String, nullable=False),
    Column("channel", String, nullable=False),
    Column("state", String, nullable=False),  # waiting, sent or dead
    Column("made_at", String, nullable=False),
    Column("due_at", String, nullable=False),
    Column("tries", Integer, nullable=False),
    Column("code", String),  # why the last try failed
    Column("claim", String),
    Column("claimed_until", String),
    UniqueConstraint("alert_id", "transition", "channel", name="uq_alert_outbox_once"),
)
Index(
    "ix_alert_outbox_waiting",
    alert_outbox.c.due_at,
    sqlite_where=alert_outbox.c.state == "waiting",
    postgresql_where=alert_outbox.c.state == "waiting",
)

audit = Table(
    "audit",
    metadata,
    Column("number", _NUMBER, primary_key=True, autoincrement=True),
    Column("at", String, nullable=False),
    Column("actor", String, nullable=False),
    Column("action", String, nullable=False),
    Column("site_id", String),
    Column("subject", String, nullable=False),
    Column("outcome", String, nullable=False),
)

TENANT_TABLES = (
    sites,
    hosts,
    api_keys,
    host_certificates,
    enrol_tokens,
    bundles,
    verdicts,
    forks,
    gaps,
    log_shards,
    log_entries,
    log_durable,
    log_cosigned,
    log_stops,
    baseline_uses,
    holds,
    pruned_logs,
    prune_guards,
    *ORDER_TABLES,
    lease_boards,
    packet_jobs,
    packet_parts,
    exceptions,
)


for _table in metadata.tables.values():
    for _column in _table.columns:
        if isinstance(_column.type, String):  # sorted as bytes, as SQLite and Python do, whatever PostgreSQL's locale
            _column.type = String().with_variant(String(collation="C"), "postgresql")
