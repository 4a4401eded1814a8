"""The version of the schema stands in alembic's own table, so `meta` has nothing left to say."""

from alembic import op
from sqlalchemy import Column

from compliance_agent.server.store.schema_3 import TEXT

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Remove it."""
    op.drop_table("meta")


def downgrade() -> None:
    """Make it again, with what it said."""
    meta = op.create_table("meta", Column("key", TEXT, primary_key=True), Column("value", TEXT, nullable=False))
    op.bulk_insert(meta, [{"key": "schema_version", "value": "3"}])
