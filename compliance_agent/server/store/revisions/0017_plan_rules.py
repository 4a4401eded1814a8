"""What people promoted to a rule of the planner."""

from alembic import op
from sqlalchemy import Column, ForeignKey

from compliance_agent.server.store.losing import refuse_to_lose
from compliance_agent.server.store.schema_3 import NUMBER, TEXT

revision = "0017"
down_revision = "0016"


def upgrade() -> None:
    """Make their table."""
    op.create_table(
        "plan_rules",
        Column("site_id", TEXT, ForeignKey("sites.site_id"), primary_key=True),
        Column("check", TEXT, primary_key=True),
        Column("reason", TEXT, primary_key=True),
        Column("runbook", TEXT, nullable=False),
        Column("runbook_sha256", TEXT, nullable=False),
        *(Column(name, NUMBER, nullable=False) for name in ("ordered", "applied", "passed", "undone")),
        Column("promoted_by", TEXT, nullable=False),
        Column("promoted_at", TEXT, nullable=False),
    )


def downgrade() -> None:
    """Remove it, when there is no rule."""
    refuse_to_lose(op.get_bind(), "plan_rules")
    op.drop_table("plan_rules")
