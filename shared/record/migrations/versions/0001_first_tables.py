"""The first tables: runs, what they are found by, steps, attempts, events, revisions, progress."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

NAME = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Make them."""
    op.create_table(
        "attempts",
        sa.Column("run_id", NAME, nullable=False),
        sa.Column("step", NAME, nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False, comment="of the event that says so"),
        sa.Column("status", NAME, nullable=False),
        sa.Column("queued_at", sa.BigInteger(), nullable=True),
        sa.Column("started_at", sa.BigInteger(), nullable=True),
        sa.Column("finished_at", sa.BigInteger(), nullable=True),
        sa.Column("error", sa.LargeBinary(), nullable=True, comment="JSON of the error the attempt ended with"),
        sa.PrimaryKeyConstraint("run_id", "step", "attempt", name="attempts_pkey"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "events",
        sa.Column("run_id", NAME, nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("type", NAME, nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column(
            "partition", sa.Integer(), nullable=False, comment="of the run events, and where in it the event stands"
        ),
        sa.Column("offset", sa.BigInteger(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False, comment="the record's value"),
        sa.PrimaryKeyConstraint("run_id", "seq", name="events_pkey"),
        sqlite_with_rowid=False,
    )
    op.create_index("events_by_place", "events", ["partition", "offset"], unique=False)
    op.create_table(
        "progress",
        sa.Column("partition", sa.Integer(), nullable=False),
        sa.Column("next_offset", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False, comment="when the last event that is in was written to Kafka"),
        sa.PrimaryKeyConstraint("partition", name="progress_pkey"),
    )
    op.create_table(
        "revisions",
        sa.Column("tenant", NAME, nullable=False),
        sa.Column("pipeline", NAME, nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False, comment="0: the definition came with the submission"),
        sa.Column("first_used_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "pipeline", "revision", name="revisions_pkey"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "run_values",
        sa.Column("run_id", NAME, nullable=False),
        sa.Column("name", NAME, nullable=False, comment="`label:<name>` or `input:<name>`"),
        sa.Column("value", NAME, nullable=False, comment="the text, or JSON of another scalar; cut where it is long"),
        sa.Column("tenant", NAME, nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("run_id", "name", name="run_values_pkey"),
        sqlite_with_rowid=False,
    )
    op.create_index(
        "run_values_by_value", "run_values", ["tenant", "name", "value", "created_at", "run_id"], unique=False
    )
    op.create_table(
        "runs",
        sa.Column("run_id", NAME, nullable=False),
        sa.Column("tenant", NAME, nullable=True, comment="null while only later events are known"),
        sa.Column("pipeline", NAME, nullable=True),
        sa.Column("revision", sa.Integer(), nullable=True),
        sa.Column("status", NAME, nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=True),
        sa.Column("finished_at", sa.BigInteger(), nullable=True),
        sa.Column("seq", sa.Integer(), nullable=False, comment="of the last event that is in"),
        sa.Column("error_type", NAME, nullable=True),
        sa.Column("error_text", sa.Text(), nullable=True, comment="the beginning of the error's message"),
        sa.Column("body_hash", NAME, server_default="", nullable=False),
        sa.Column(
            "header",
            sa.LargeBinary(),
            nullable=True,
            comment="JSON of what does not change: inputs, labels, what each step uses",
        ),
        sa.Column("ending", sa.LargeBinary(), nullable=True, comment="JSON of outputs, error and times"),
        sa.PrimaryKeyConstraint("run_id", name="runs_pkey"),
    )
    op.create_index("runs_by_age", "runs", ["tenant", "created_at", "run_id"], unique=False)
    op.create_index(
        "runs_by_error",
        "runs",
        ["tenant", "error_type", "created_at", "run_id"],
        unique=False,
        postgresql_where=sa.text("error_type IS NOT NULL"),
        sqlite_where=sa.text("error_type IS NOT NULL"),
    )
    op.create_index("runs_by_pipeline", "runs", ["tenant", "pipeline", "status", "created_at", "run_id"], unique=False)
    op.create_index("runs_by_status", "runs", ["tenant", "status", "created_at", "run_id"], unique=False)
    op.create_table(
        "steps",
        sa.Column("run_id", NAME, nullable=False),
        sa.Column("step", NAME, nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False, comment="of the event that says so"),
        sa.Column("uses", NAME, nullable=False),
        sa.Column("status", NAME, nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("queued_at", sa.BigInteger(), nullable=True),
        sa.Column("started_at", sa.BigInteger(), nullable=True),
        sa.Column("finished_at", sa.BigInteger(), nullable=True),
        sa.Column("error_type", NAME, nullable=True),
        sa.Column(
            "document", sa.LargeBinary(), nullable=False, comment="JSON of the step as the run document shows it"
        ),
        sa.PrimaryKeyConstraint("run_id", "step", name="steps_pkey"),
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    """Drop them."""
    op.drop_table("steps")
    op.drop_index("runs_by_status", table_name="runs")
    op.drop_index("runs_by_pipeline", table_name="runs")
    op.drop_index(
        "runs_by_error",
        table_name="runs",
        postgresql_where=sa.text("error_type IS NOT NULL"),
        sqlite_where=sa.text("error_type IS NOT NULL"),
    )
    op.drop_index("runs_by_age", table_name="runs")
    op.drop_table("runs")
    op.drop_index("run_values_by_value", table_name="run_values")
    op.drop_table("run_values")
    op.drop_table("revisions")
    op.drop_table("progress")
    op.drop_index("events_by_place", table_name="events")
    op.drop_table("events")
    op.drop_table("attempts")
