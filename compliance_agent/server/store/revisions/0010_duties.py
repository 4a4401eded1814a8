"""Which replica does what, which replicas there are, and checkpoints with the lines of their witnesses."""

from alembic import op
from sqlalchemy import BigInteger, Column, ForeignKey, Integer, LargeBinary

from compliance_agent.server.store.losing import refuse_to_lose
from compliance_agent.server.store.schema_3 import TEXT

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "duties",
        Column("name", TEXT, primary_key=True),
        Column("holder", TEXT, nullable=False),
        Column("epoch", BigInteger, nullable=False),
        Column("until", TEXT, nullable=False),
    )
    op.create_table(
        "replicas",
        Column("replica_id", TEXT, primary_key=True),
        Column("until", TEXT, nullable=False),
        Column("waiting_s", BigInteger, nullable=False),
        Column("still", BigInteger, nullable=False),
        Column("unanchored", BigInteger, nullable=False),
    )
    op.create_table(
        "log_cosigned",
        Column("site_id", TEXT, ForeignKey("sites.site_id"), primary_key=True),
        Column("year", Integer, primary_key=True),
        Column("size", BigInteger, nullable=False),
        Column("note", LargeBinary, nullable=False),
    )


def downgrade() -> None:
    """Remove them, unless witnesses have cosigned: their lines are evidence. Nobody is on duty while this runs."""
    refuse_to_lose(op.get_bind(), "log_cosigned")
    for table in ("log_cosigned", "replicas", "duties"):
        op.drop_table(table)
