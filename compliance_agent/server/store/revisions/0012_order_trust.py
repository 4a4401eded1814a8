"""Roots and lists of order keys for hosts."""

from alembic import op
from sqlalchemy import BigInteger, Column, ForeignKey, LargeBinary

from compliance_agent.server.store.losing import refuse_to_lose
from compliance_agent.server.store.schema_3 import TEXT

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    """Make their table."""
    op.create_table(
        "order_trust",
        Column("site_id", TEXT, ForeignKey("sites.site_id"), primary_key=True),
        Column("role", TEXT, primary_key=True),
        Column("version", BigInteger, primary_key=True),
        Column("sha256", TEXT, nullable=False),
        Column("envelope", LargeBinary, nullable=False),
        Column("added_by", TEXT, nullable=False),
        Column("added_at", TEXT, nullable=False),
    )


def downgrade() -> None:
    """Remove it, when it is empty."""
    refuse_to_lose(op.get_bind(), "order_trust")
    op.drop_table("order_trust")
