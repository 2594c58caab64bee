"""What purges must not let come back; and indices for large stores."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

NUMBERS = ("confidence", "entropy", "interest")
SCORED = sa.text("confidence IS NOT NULL")
OPEN, REVIEWED = sa.text("verdict IS NULL"), sa.text("verdict IS NOT NULL")


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
    op.drop_index("ix_cases_queue_age", "cases")
    op.create_index("ix_cases_flagged", "cases", ["flagged", "id", "verdict"])
    op.create_index("ix_cases_sampled", "cases", ["sampled", "id", "verdict"])
    op.create_index("ix_cases_sampled_created", "cases", ["sampled", "created_at", "id"])
    op.create_index(
        "ix_cases_models", "cases", ["model", "proxy_version", "id"], sqlite_where=SCORED, postgresql_where=SCORED
    )
    for name, where in (("open", OPEN), ("reviewed", REVIEWED)):
        op.create_index(
            f"ix_cases_{name}", "cases", ["id", "flagged", "sampled"], sqlite_where=where, postgresql_where=where
        )
    for number in NUMBERS:
        op.drop_index(f"ix_cases_queue_{number}", "cases")
        op.create_index(f"ix_cases_{number}", "cases", [number, "id", "flagged", "sampled", "verdict"])
        op.create_index(
            f"ix_cases_reviewed_{number}",
            "cases",
            [number, "id", "flagged", "sampled"],
            sqlite_where=REVIEWED,
            postgresql_where=REVIEWED,
        )


def downgrade() -> None:
    """Back to the schema before."""
    for number in NUMBERS:
        op.drop_index(f"ix_cases_reviewed_{number}", "cases")
        op.drop_index(f"ix_cases_{number}", "cases")
        op.create_index(f"ix_cases_queue_{number}", "cases", ["flagged", "verdict", number, "id"])
    for name in ("reviewed", "open", "models", "sampled_created", "sampled", "flagged"):
        op.drop_index(f"ix_cases_{name}", "cases")
    op.create_index("ix_cases_queue_age", "cases", ["flagged", "verdict", "id"])
    op.drop_index("ix_traffic_minute", "traffic")
    op.drop_table("purges")
