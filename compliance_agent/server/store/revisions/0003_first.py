"""Everything, as it was when revisions began."""

from alembic import op

from compliance_agent.server.store.losing import refuse_to_lose
from compliance_agent.server.store.schema_3 import METADATA

revision = "0003"
down_revision = None


def upgrade() -> None:
    """Make every table."""
    METADATA.create_all(op.get_bind())


def downgrade() -> None:
    """Remove them, when they are empty."""
    tables = [table.name for table in METADATA.sorted_tables if table.name != "meta"]
    refuse_to_lose(op.get_bind(), *tables)
    METADATA.drop_all(op.get_bind())
