"""Packets that people ask for in the viewer."""

from alembic import op
from sqlalchemy import BigInteger, Column, ForeignKey, Integer, LargeBinary

from compliance_agent.server.store.losing import refuse_to_lose
from compliance_agent.server.store.schema_3 import TEXT

revision = "0018"
down_revision = "0017"


def upgrade() -> None:
    """Make their tables."""
    op.create_table(
        "packet_jobs",
        Column("job_id", TEXT, primary_key=True),
        Column("site_id", TEXT, ForeignKey("sites.site_id"), nullable=False),
        Column("person_id", TEXT, nullable=False),
        Column("first", TEXT, nullable=False),
        Column("last", TEXT, nullable=False),
        Column("dates", TEXT),
        Column("control", TEXT),
        Column("host", TEXT),
        Column("asked_at", TEXT, nullable=False),
        Column("state", TEXT, nullable=False),
        Column("stage", TEXT, nullable=False),
        Column("at", BigInteger, nullable=False),
        Column("total", BigInteger, nullable=False),
        Column("holder", TEXT),
        Column("until", TEXT),
        Column("tries", Integer, nullable=False),
        Column("code", TEXT, nullable=False),
        Column("ended_at", TEXT),
        Column("records", BigInteger, nullable=False),
        Column("problems", BigInteger, nullable=False),
        Column("size", BigInteger, nullable=False),
        Column("sha256", TEXT, nullable=False),
        Column("report_size", BigInteger, nullable=False),
        Column("report_sha256", TEXT, nullable=False),
    )
    op.create_index("ix_packet_jobs_site_id", "packet_jobs", ["site_id"])
    op.create_table(
        "packet_parts",
        Column("job_id", TEXT, ForeignKey("packet_jobs.job_id"), primary_key=True),
        Column("name", TEXT, primary_key=True),
        Column("number", Integer, primary_key=True),
        Column("site_id", TEXT, ForeignKey("sites.site_id"), nullable=False),
        Column("content", LargeBinary, nullable=False),
    )


def downgrade() -> None:
    """Remove them, when nobody waits for a packet."""
    refuse_to_lose(op.get_bind(), "packet_parts", "packet_jobs")
    op.drop_table("packet_parts")
    op.drop_table("packet_jobs")
