"""Operator tokens have a label, limits of their own, a last use and a successor."""

from alembic import op
from sqlalchemy import Column

from compliance_agent.server.store.schema_3 import TEXT

revision = "0009"
down_revision = "0008"
COLUMNS = ("label", "role", "sites", "used_at", "successor")


def upgrade() -> None:
    """Add the columns."""
    for name in COLUMNS:
        op.add_column("operator_tokens", Column(name, TEXT))


def downgrade() -> None:
    """Remove the columns. A token that is narrower than its person would be as wide as the person, so it is revoked first."""
    narrower = "revoked_at IS NULL AND (role IS NOT NULL OR sites IS NOT NULL)"
    op.execute(f"UPDATE operator_tokens SET revoked_at = created_at WHERE {narrower}")  # noqa: S608  our own words
    for name in COLUMNS:
        op.drop_column("operator_tokens", name)
