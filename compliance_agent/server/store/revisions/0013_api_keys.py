"""API keys that a host has announced, and not used yet."""

from alembic import op
from sqlalchemy import Column

from compliance_agent.server.store.schema_3 import TEXT

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    """Add the column."""
    op.add_column("api_keys", Column("replaces", TEXT))


def downgrade() -> None:
    """Remove it; a key that was announced counts beside the one before until the host is enrolled anew."""
    op.drop_column("api_keys", "replaces")
