"""Which hosts of a site may disturb their users."""

from alembic import op
from sqlalchemy import BigInteger, Column, ForeignKey

from compliance_agent.server.store.losing import refuse_to_lose
from compliance_agent.server.store.schema_3 import TEXT

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "lease_boards",
        Column("site_id", TEXT, ForeignKey("sites.site_id"), primary_key=True),
        Column("version", BigInteger, nullable=False),
        Column("board", TEXT, nullable=False),
    )


def downgrade() -> None:
    """Remove it, unless a site has one: its fencing tokens would begin anew."""
    refuse_to_lose(op.get_bind(), "lease_boards")
    op.drop_table("lease_boards")
