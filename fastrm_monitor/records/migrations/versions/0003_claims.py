"""Who is at a case, and what a reviewer sorts by."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """To this schema. Cases that are there already have no interest, and come last in that order."""
    op.add_column("cases", sa.Column("interest", sa.Float(), nullable=True))
    op.create_index("ix_cases_queue_entropy", "cases", ["flagged", "verdict", "entropy", "id"])
    op.create_index("ix_cases_queue_interest", "cases", ["flagged", "verdict", "interest", "id"])
    op.create_table(
        "claims",
        sa.Column("case_key", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("reviewer", sa.String(255), nullable=False),
        sa.Column("session", sa.String(64), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("case_key"),
        sa.ForeignKeyConstraint(["case_key"], ["cases.id"], ondelete="CASCADE"),
    )


def downgrade() -> None:
    """Back to the schema before."""
    op.drop_table("claims")
    op.drop_index("ix_cases_queue_interest", "cases")
    op.drop_index("ix_cases_queue_entropy", "cases")
    with op.batch_alter_table("cases") as cases:
        cases.drop_column("interest")
