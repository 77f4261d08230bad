"""Quotas that several servers share."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "quota_servers",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("seen", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_quota_servers"),
    )
    op.create_table(
        "quota_pools",
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("pools", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("tenant", name="pk_quota_pools"),
        sa.ForeignKeyConstraint(["tenant"], ["tenants.id"], name="fk_quota_pools_tenant"),
    )
