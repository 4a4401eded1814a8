"""Baselines that were signed for a site, which its hosts adopt by order."""

from alembic import op
from sqlalchemy import Column, ForeignKey, LargeBinary

from compliance_agent.server.store.losing import refuse_to_lose
from compliance_agent.server.store.schema_3 import TEXT

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Make their table."""
    op.create_table(
        "signed_baselines",
        Column("site_id", TEXT, ForeignKey("sites.site_id"), primary_key=True),
        Column("sha256", TEXT, primary_key=True),
        Column("version", TEXT, nullable=False),
        Column("body", LargeBinary, nullable=False),
        Column("sig", LargeBinary, nullable=False),
        Column("added_by", TEXT, nullable=False),
        Column("added_at", TEXT, nullable=False),
    )


def downgrade() -> None:
    """Remove it, when it is empty."""
    refuse_to_lose(op.get_bind(), "signed_baselines")
    op.drop_table("signed_baselines")
