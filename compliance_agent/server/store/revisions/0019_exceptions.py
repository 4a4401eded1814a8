"""Exceptions that people record at the server."""

from alembic import op
from sqlalchemy import Column, ForeignKey

from compliance_agent.server.store.losing import refuse_to_lose
from compliance_agent.server.store.schema_3 import TEXT

revision = "0019"
down_revision = "0018"


def upgrade() -> None:
    """Make their table."""
    op.create_table(
        "exceptions",
        Column("exception_id", TEXT, primary_key=True),
        Column("site_id", TEXT, ForeignKey("sites.site_id"), nullable=False),
        Column("key_id", TEXT),
        *(
            Column(name, TEXT, nullable=False)
            for name in (
                "check",
                "reason",
                "measure",
                "reference",
                "approver",
                "approver_id",
                "created_at",
                "expires_at",
            )
        ),
        Column("withdrawn_at", TEXT),
        Column("withdrawn_by", TEXT),
    )


def downgrade() -> None:
    """Remove it, when there is none."""
    refuse_to_lose(op.get_bind(), "exceptions")
    op.drop_table("exceptions")
