"""The schema as revision 0003 made it. It is history and does not change: what comes later stands in `revisions/`.

Older databases were brought up to it by hand (`before.py`); from here on revisions lead to `tables.py`.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    text,
)

METADATA = MetaData()
TEXT = String().with_variant(String(collation="C"), "postgresql")
NUMBER = BigInteger().with_variant(Integer, "sqlite")
_t = METADATA.tables


def _table(name: str, *parts: Column[Any] | UniqueConstraint) -> None:
    Table(name, METADATA, *parts)


_table(
    "audit",
    Column("number", NUMBER, primary_key=True, autoincrement=True),
    Column("at", TEXT, nullable=False),
    Column("actor", TEXT, nullable=False),
    Column("action", TEXT, nullable=False),
    Column("site_id", TEXT),
    Column("subject", TEXT, nullable=False),
    Column("outcome", TEXT, nullable=False),
)
_table(
    "login_attempts",
    Column("bucket", Integer, primary_key=True),
    Column("started_at", TEXT, nullable=False),
    Column("attempts", Integer, nullable=False),
)
_table(
    "meta",
    Column("key", TEXT, primary_key=True),
    Column("value", TEXT, nullable=False),
)
_table(
    "nonces",
    Column("hash", TEXT, primary_key=True),
    Column("key_id", TEXT, nullable=False),
    Column("expires_at", TEXT, nullable=False),
)
Index("ix_nonces_expires_at", _t["nonces"].c.expires_at)
_table(
    "prune_never",
    Column("id", Integer, primary_key=True),
)
_table(
    "sites",
    Column("site_id", TEXT, primary_key=True),
    Column("client_id", TEXT, nullable=False),
    Column("created_at", TEXT, nullable=False),
)
_table(
    "users",
    Column("name", TEXT, primary_key=True),
    Column("person_id", TEXT, nullable=False),
    Column("password_hash", TEXT, nullable=False),
    Column("role", TEXT, nullable=False),
    Column("client_id", TEXT),
    Column("sites", TEXT),
    Column("first_on", TEXT),
    Column("last_on", TEXT),
    Column("created_at", TEXT, nullable=False),
    Column("disabled_at", TEXT),
)
_table(
    "baseline_uses",
    Column("site_id", TEXT, ForeignKey("sites.site_id"), primary_key=True),
    Column("host_id", TEXT, primary_key=True),
    Column("version", TEXT, primary_key=True),
    Column("last_on", TEXT, nullable=False),
)
_table(
    "enrol_tokens",
    Column("hash", TEXT, primary_key=True),
    Column("site_id", TEXT, ForeignKey("sites.site_id"), nullable=False),
    Column("created_at", TEXT, nullable=False),
    Column("expires_at", TEXT, nullable=False),
    Column("used_at", TEXT),
    Column("used_by", TEXT),
    Column("revoked_at", TEXT),
)
_table(
    "factors",
    Column("name", TEXT, ForeignKey("users.name"), primary_key=True),
    Column("sealed", LargeBinary, nullable=False),
    Column("confirmed_at", TEXT),
    Column("last_step", BigInteger, nullable=False),
)
_table(
    "holds",
    Column("number", NUMBER, primary_key=True, autoincrement=True),
    Column("site_id", TEXT, ForeignKey("sites.site_id"), nullable=False),
    Column("host_id", TEXT),
    Column("reason_id", TEXT, nullable=False),
    Column("added_at", TEXT, nullable=False),
    Column("released_at", TEXT),
)
_table(
    "hosts",
    Column("key_id", TEXT, primary_key=True),
    Column("site_id", TEXT, ForeignKey("sites.site_id"), nullable=False),
    Column("host_id", TEXT, nullable=False),
    Column("public_key", LargeBinary, nullable=False),
    Column("enrolled_at", TEXT, nullable=False),
    Column("revoked_at", TEXT),
    Column("epoch", BigInteger),
    Column("seq", BigInteger),
    Column("digest", TEXT),
    Column("last_seen_at", TEXT),
    Column("heartbeat_at", TEXT),
    Column("heartbeat_made_at", TEXT),
    Column("agent_version", TEXT, nullable=False),
    Column("baseline_version", TEXT, nullable=False),
    Column("baseline_sha256", TEXT, nullable=False),
    Column("pending", BigInteger),
    Column("forks", Integer, nullable=False),
    Column("rotated_to", TEXT),
    Column("waiting_since", TEXT),
    Column("set_back_at", TEXT),
    Column("set_back_digest", TEXT),
    Column("contested_at", TEXT),
)
Index("ix_hosts_label", _t["hosts"].c.site_id, _t["hosts"].c.host_id)
_table(
    "log_durable",
    Column("site_id", TEXT, ForeignKey("sites.site_id"), primary_key=True),
    Column("year", Integer, primary_key=True),
    Column("size", BigInteger, nullable=False),
    Column("at", TEXT, nullable=False),
)
_table(
    "log_entries",
    Column("number", NUMBER, primary_key=True, autoincrement=True),
    Column("site_id", TEXT, ForeignKey("sites.site_id"), nullable=False),
    Column("year", Integer),
    Column("leaf_index", BigInteger),
    Column("key_id", TEXT),
    Column("epoch", BigInteger),
    Column("seq", BigInteger),
    Column("decided_at", TEXT, nullable=False),
    Column("leaf", LargeBinary, nullable=False),
    UniqueConstraint("site_id", "year", "leaf_index", name="uq_log_entries_index"),
    UniqueConstraint("key_id", "epoch", "seq", name="uq_log_entries_place"),
)
_PENDING = text("leaf_index IS NULL")
Index(
    "ix_log_entries_pending",
    _t["log_entries"].c.site_id,
    _t["log_entries"].c.number,
    sqlite_where=_PENDING,
    postgresql_where=_PENDING,
)
_table(
    "log_shards",
    Column("site_id", TEXT, ForeignKey("sites.site_id"), primary_key=True),
    Column("year", Integer, primary_key=True),
    Column("origin", TEXT, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("root", LargeBinary, nullable=False),
    Column("edge", LargeBinary, nullable=False),
    Column("sequenced_at", TEXT, nullable=False),
    Column("checkpoint", LargeBinary),
    Column("checkpoint_size", BigInteger, nullable=False),
    Column("published_at", TEXT),
    UniqueConstraint("origin", name="uq_log_shards_origin"),
)
_table(
    "operator_tokens",
    Column("hash", TEXT, primary_key=True),
    Column("name", TEXT, ForeignKey("users.name"), nullable=False),
    Column("created_at", TEXT, nullable=False),
    Column("expires_at", TEXT, nullable=False),
    Column("revoked_at", TEXT),
)
_table(
    "prune_guards",
    Column("site_id", TEXT, ForeignKey("sites.site_id"), primary_key=True),
    Column("year", Integer, primary_key=True),
    Column("first", BigInteger, nullable=False),
    Column("stop", BigInteger, nullable=False),
    Column("at", TEXT, nullable=False),
    Column("never", Integer, ForeignKey("prune_never.id", deferrable=True, initially="DEFERRED"), nullable=False),
)
_table(
    "pruned_logs",
    Column("site_id", TEXT, ForeignKey("sites.site_id"), primary_key=True),
    Column("year", Integer, primary_key=True),
    Column("minimum", BigInteger, nullable=False),
    Column("pruned_at", TEXT, nullable=False),
)
_table(
    "recovery_codes",
    Column("name", TEXT, ForeignKey("users.name"), primary_key=True),
    Column("hash", TEXT, primary_key=True),
    Column("used_at", TEXT),
)
_table(
    "sessions",
    Column("hash", TEXT, primary_key=True),
    Column("name", TEXT, ForeignKey("users.name"), nullable=False),
    Column("created_at", TEXT, nullable=False),
    Column("expires_at", TEXT, nullable=False),
    Column("revoked_at", TEXT),
    Column("used_at", TEXT, nullable=False),
    Column("proved_at", TEXT),
)
_table(
    "api_keys",
    Column("hash", TEXT, primary_key=True),
    Column("site_id", TEXT, ForeignKey("sites.site_id"), nullable=False),
    Column("key_id", TEXT, ForeignKey("hosts.key_id"), nullable=False),
    Column("created_at", TEXT, nullable=False),
    Column("revoked_at", TEXT),
)
Index("ix_api_keys_key_id", _t["api_keys"].c.key_id)
_table(
    "bundles",
    Column("number", NUMBER, primary_key=True, autoincrement=True),
    Column("bundle_id", TEXT, nullable=False),
    Column("site_id", TEXT, ForeignKey("sites.site_id"), nullable=False),
    Column("key_id", TEXT, ForeignKey("hosts.key_id"), nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("sha256", TEXT, nullable=False),
    Column("prev", TEXT, nullable=False),
    Column("kind", TEXT, nullable=False),
    Column("check", TEXT),
    Column("result", TEXT),
    Column("reason", TEXT),
    Column("outcome", TEXT),
    Column("error", TEXT),
    Column("created_at", TEXT, nullable=False),
    Column("received_at", TEXT, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("sig", LargeBinary, nullable=False),
    UniqueConstraint("key_id", "bundle_id", name="uq_bundles_id"),
    UniqueConstraint("key_id", "epoch", "seq", name="uq_bundles_place"),
)
Index("ix_bundles_site_received", _t["bundles"].c.site_id, _t["bundles"].c.received_at)
_table(
    "forks",
    Column("number", NUMBER, primary_key=True, autoincrement=True),
    Column("site_id", TEXT, ForeignKey("sites.site_id"), nullable=False),
    Column("key_id", TEXT, ForeignKey("hosts.key_id"), nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("sha256", TEXT, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("sig", LargeBinary, nullable=False),
    Column("received_at", TEXT, nullable=False),
    UniqueConstraint("key_id", "sha256", name="uq_forks_digest"),
)
_table(
    "gaps",
    Column("number", NUMBER, primary_key=True, autoincrement=True),
    Column("site_id", TEXT, ForeignKey("sites.site_id"), nullable=False),
    Column("key_id", TEXT, ForeignKey("hosts.key_id"), nullable=False),
    Column("expected_epoch", BigInteger, nullable=False),
    Column("expected_seq", BigInteger, nullable=False),
    Column("got_epoch", BigInteger, nullable=False),
    Column("got_seq", BigInteger, nullable=False),
    Column("seen_at", TEXT, nullable=False),
    Column("closed_at", TEXT),
)
Index("ix_gaps_key_id", _t["gaps"].c.key_id)
_table(
    "order_hosts",
    Column("key_id", TEXT, ForeignKey("hosts.key_id"), primary_key=True),
    Column("site_id", TEXT, ForeignKey("sites.site_id"), nullable=False),
    Column("nonce", TEXT, nullable=False),
    Column("nonce_at", TEXT, nullable=False),
    Column("counter", BigInteger, nullable=False),
)
_table(
    "orders",
    Column("order_id", TEXT, primary_key=True),
    Column("site_id", TEXT, ForeignKey("sites.site_id"), nullable=False),
    Column("key_id", TEXT, ForeignKey("hosts.key_id"), nullable=False),
    Column("kind", TEXT, nullable=False),
    Column("parameters", TEXT, nullable=False),
    Column("life_s", Integer, nullable=False),
    Column("drafted_by", TEXT, nullable=False),
    Column("drafted_at", TEXT, nullable=False),
    Column("state", TEXT, nullable=False),
    Column("baseline_sha256", TEXT),
    Column("signers", TEXT, nullable=False),
    Column("payload", LargeBinary),
    Column("not_before", TEXT),
    Column("expires", TEXT),
    Column("counter", BigInteger),
    Column("envelope", LargeBinary),
    Column("sha256", TEXT),
    Column("ended_at", TEXT),
    Column("outcome", TEXT),
    Column("error", TEXT),
    Column("bundle_id", TEXT),
)
Index("ix_orders_host", _t["orders"].c.site_id, _t["orders"].c.key_id, _t["orders"].c.drafted_at)
Index("ix_orders_sha256", _t["orders"].c.sha256)
_table(
    "verdicts",
    Column("key_id", TEXT, ForeignKey("hosts.key_id"), primary_key=True),
    Column("check", TEXT, primary_key=True),
    Column("site_id", TEXT, ForeignKey("sites.site_id"), nullable=False),
    Column("result", TEXT, nullable=False),
    Column("reason", TEXT, nullable=False),
    Column("since", TEXT, nullable=False),
    Column("seen_at", TEXT, nullable=False),
    Column("bundle_id", TEXT, nullable=False),
)
_table(
    "order_marks",
    Column("order_id", TEXT, ForeignKey("orders.order_id"), primary_key=True),
    Column("what", TEXT, primary_key=True),
    Column("who", TEXT, primary_key=True),
    Column("site_id", TEXT, ForeignKey("sites.site_id"), nullable=False),
    Column("at", TEXT, nullable=False),
    Column("signature", LargeBinary),
)
