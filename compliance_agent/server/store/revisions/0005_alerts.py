"""Alerts, and the outbox of what is to be sent of them."""

from alembic import op
from sqlalchemy import BigInteger, Column, ForeignKey, Integer, UniqueConstraint, text

from compliance_agent.server.store.losing import refuse_to_lose
from compliance_agent.server.store.schema_3 import NUMBER, TEXT

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Make both tables."""
    op.create_table(
        "alerts",
        Column("alert_id", TEXT, primary_key=True),
        Column("cause", TEXT, nullable=False),
        Column("kind", TEXT, nullable=False),
        Column("site_id", TEXT),
        Column("key_id", TEXT),
        Column("count", BigInteger, nullable=False),
        Column("opened_at", TEXT, nullable=False),
        Column("closed_at", TEXT),
        Column("acked_at", TEXT),
        Column("acked_by", TEXT),
    )
    is_open = text("closed_at IS NULL")
    op.create_index("uq_alerts_open", "alerts", ["cause"], unique=True, sqlite_where=is_open, postgresql_where=is_open)
    op.create_table(
        "alert_outbox",
        Column("number", NUMBER, primary_key=True, autoincrement=True),
        Column("alert_id", TEXT, ForeignKey("alerts.alert_id"), nullable=False),
        Column("transition", TEXT, nullable=False),
        Column("channel", TEXT, nullable=False),
        Column("state", TEXT, nullable=False),
        Column("made_at", TEXT, nullable=False),
        Column("due_at", TEXT, nullable=False),
        Column("tries", Integer, nullable=False),
        Column("code", TEXT),
        Column("claim", TEXT),
        Column("claimed_until", TEXT),
        UniqueConstraint("alert_id", "transition", "channel", name="uq_alert_outbox_once"),
    )
    waits = text("state = 'waiting'")
    op.create_index("ix_alert_outbox_waiting", "alert_outbox", ["due_at"], sqlite_where=waits, postgresql_where=waits)


def downgrade() -> None:
    """Remove them, when they are empty."""
    refuse_to_lose(op.get_bind(), "alert_outbox", "alerts")
    op.drop_table("alert_outbox")
    op.drop_table("alerts")
