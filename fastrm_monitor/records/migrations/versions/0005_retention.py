"""What purges must not let come back; and indices for large stores."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

NUMBERS = ("confidence", "entropy", "interest")


def upgrade() -> None:
    """To this schema."""
    op.create_table(
        "purges",
        sa.Column("kind", sa.String(8), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("purged_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("kind", "digest"),
    )
    op.create_index("ix_traffic_minute", "traffic", ["minute"])
    op.create_index("ix_cases_sampled", "cases", ["sampled", "verdict", "id"])
    for number in NUMBERS:
        op.drop_index(f"ix_cases_queue_{number}", "cases")
        op.create_index(f"ix_cases_{number}", "cases", [number, "id", "flagged", "sampled", "verdict"])
        op.create_index(
            f"ix_cases_reviewed_{number}",
            "cases",
            [number, "id"],
            sqlite_where=sa.text("verdict IS NOT NULL"),
            postgresql_where=sa.text("verdict IS NOT NULL"),
        )


def downgrade() -> None:
    """Back to the schema before."""
    for number in NUMBERS:
        op.drop_index(f"ix_cases_reviewed_{number}", "cases")
        op.drop_index(f"ix_cases_{number}", "cases")
        op.create_index(f"ix_cases_queue_{number}", "cases", ["flagged", "verdict", number, "id"])
    op.drop_index("ix_cases_sampled", "cases")
    op.drop_index("ix_traffic_minute", "traffic")
    op.drop_table("purges")
