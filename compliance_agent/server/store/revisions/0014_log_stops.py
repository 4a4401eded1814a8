"""Logs that stand still until somebody has looked."""

from alembic import op
from sqlalchemy import Column, ForeignKey

from compliance_agent.server.store.losing import refuse_to_lose
from compliance_agent.server.store.schema_3 import TEXT

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    """Make their table."""
    op.create_table(
        "log_stops",
        Column("site_id", TEXT, ForeignKey("sites.site_id"), primary_key=True),
        Column("code", TEXT, nullable=False),
        Column("at", TEXT, nullable=False),
    )


def downgrade() -> None:
    """Remove it, when no log stands still by it."""
    refuse_to_lose(op.get_bind(), "log_stops")
    op.drop_table("log_stops")
