"""What a site's records of some days say is read in their index alone: not one record is looked up to count them."""

from alembic import op

revision = "0021"
down_revision = "0020"
_NAME, _OLD = "ix_bundles_days", "ix_bundles_site_created"
_COLUMNS = ["site_id", "created_at", "number", "kind", "check", "result", "outcome", "key_id"]


def upgrade() -> None:
    """Exchange the index by day for one that holds more."""
    op.create_index(_NAME, "bundles", _COLUMNS)
    op.drop_index(_OLD, "bundles")


def downgrade() -> None:
    """Back to the one that only finds them."""
    op.create_index(_OLD, "bundles", ["site_id", "created_at"])
    op.drop_index(_NAME, "bundles")
