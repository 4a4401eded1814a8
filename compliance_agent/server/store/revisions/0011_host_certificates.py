"""Client certificates that hosts were given."""

from alembic import op
from sqlalchemy import Column, ForeignKey

from compliance_agent.server.store.schema_3 import TEXT

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "host_certificates",
        Column("fingerprint", TEXT, primary_key=True),
        Column("site_id", TEXT, ForeignKey("sites.site_id"), nullable=False),
        Column("key_id", TEXT, ForeignKey("hosts.key_id"), nullable=False),
        Column("spki", TEXT, nullable=False),
        Column("issued_at", TEXT, nullable=False),
        Column("not_after", TEXT, nullable=False),
    )
    op.create_index("ix_host_certificates_key_id", "host_certificates", ["key_id"])


def downgrade() -> None:
    """Remove it; after a step up each host asks for its first certificate anew."""
    op.drop_index("ix_host_certificates_key_id", "host_certificates")
    op.drop_table("host_certificates")
