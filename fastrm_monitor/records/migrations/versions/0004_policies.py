"""Published decision policies, which running servers pick up."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """To this schema. Cases that are there already were decided without a published policy."""
    op.create_table(
        "policies",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("author", sa.String(255), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("model", sa.String(255), nullable=False),
        sa.Column("proxy_version", sa.String(64), nullable=False),
        sa.Column("threshold", sa.Float(), nullable=False),
        sa.Column("recalibration", sa.JSON(), nullable=False),
        sa.Column("chosen", sa.JSON(), nullable=False),
        sa.Column("again", sa.Integer(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_policies_newest", "policies", ["model", "proxy_version", "id"])
    op.add_column("cases", sa.Column("policy", sa.Integer(), nullable=True))


def downgrade() -> None:
    """Back to the schema before."""
    with op.batch_alter_table("cases") as cases:
        cases.drop_column("policy")
    op.drop_table("policies")
