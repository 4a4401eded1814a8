"""Sites where exceptions need a second person, what that person said, and packets that are a sample."""

from alembic import op
from sqlalchemy import Column, Integer

from compliance_agent.server.store.schema_3 import TEXT

revision = "0020"
down_revision = "0019"


def upgrade() -> None:
    """Add the columns."""
    op.add_column("sites", Column("exception_people", Integer))
    op.add_column("exceptions", Column("people", Integer))
    for name in ("seconded_at", "seconded_by", "seconded_by_id"):
        op.add_column("exceptions", Column(name, TEXT))
    op.add_column("packet_jobs", Column("sample", TEXT))


def downgrade() -> None:
    """Remove them. What waits for a second person would stand without one, so it is withdrawn first; a sample would be all."""
    waiting = "people = 2 AND seconded_at IS NULL AND withdrawn_at IS NULL"
    op.execute(f"UPDATE exceptions SET withdrawn_at = created_at, withdrawn_by = approver WHERE {waiting}")  # noqa: S608  our own words
    op.execute("UPDATE packet_jobs SET state = 'gone' WHERE sample IS NOT NULL")
    op.drop_column("packet_jobs", "sample")
    for name in ("seconded_by_id", "seconded_by", "seconded_at", "people"):
        op.drop_column("exceptions", name)
    op.drop_column("sites", "exception_people")
