"""Records are found by the day that they say, and those that are no heartbeats by what is asked for."""

from alembic import op
from sqlalchemy import text

revision = "0015"
down_revision = "0014"
_COLUMNS = [
    "site_id",
    "received_at",
    "kind",
    "check",
    "result",
    "outcome",
    "key_id",
    "created_at",
    "epoch",
    "seq",
    "number",
]


def upgrade() -> None:
    """Exchange the index by arrival for these two."""
    op.create_index("ix_bundles_site_created", "bundles", ["site_id", "created_at"])
    no_heartbeat = text("kind != 'heartbeat'")
    op.create_index("ix_bundles_changes", "bundles", _COLUMNS, sqlite_where=no_heartbeat, postgresql_where=no_heartbeat)
    op.drop_index("ix_bundles_site_received", "bundles")


def downgrade() -> None:
    """Back to the one by arrival."""
    op.create_index("ix_bundles_site_received", "bundles", ["site_id", "received_at"])
    for name in ("ix_bundles_changes", "ix_bundles_site_created"):
        op.drop_index(name, "bundles")
