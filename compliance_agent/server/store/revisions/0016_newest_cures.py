"""The newest cure of a check is found at once."""

from alembic import op
from sqlalchemy import text

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    """Make an index over the records of cures alone."""
    cures = text("kind = 'remediation'")
    columns = ["key_id", "check", "number"]
    op.create_index("ix_bundles_cures", "bundles", columns, sqlite_where=cures, postgresql_where=cures)


def downgrade() -> None:
    """Drop it."""
    op.drop_index("ix_bundles_cures", "bundles")
