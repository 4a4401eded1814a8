"""People at an OpenID provider, and sign-ins there that are under way."""

from alembic import op
from sqlalchemy import Column, ForeignKey

from compliance_agent.server.store.losing import refuse_to_lose
from compliance_agent.server.store.schema_3 import TEXT

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Make both tables."""
    op.create_table(
        "identities",
        Column("issuer", TEXT, primary_key=True),
        Column("subject", TEXT, primary_key=True),
        Column("name", TEXT, ForeignKey("users.name"), nullable=False),
        Column("linked_at", TEXT, nullable=False),
    )
    op.create_table(
        "flows",
        Column("state_hash", TEXT, primary_key=True),
        Column("browser_hash", TEXT, nullable=False),
        Column("nonce", TEXT, nullable=False),
        Column("verifier", TEXT, nullable=False),
        Column("back", TEXT, nullable=False),
        Column("expires_at", TEXT, nullable=False),
    )


def downgrade() -> None:
    """Remove them; a sign-in that is under way begins anew."""
    refuse_to_lose(op.get_bind(), "identities")
    op.drop_table("flows")
    op.drop_table("identities")
