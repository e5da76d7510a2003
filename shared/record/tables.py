"""The tables of the record, as SQLAlchemy knows them; `migrations` makes them, and a test compares the two.

Times are integer milliseconds of broker time, as in the log. JSON is kept as the bytes that the run document shows:
a database's own JSON type refuses a NUL in a text and rounds numbers. What is searched has columns of its own.
No foreign keys: rows of one run are written together and deleted together, and a check for each would cost as much
as the row.

| table | one row for each | written from |
|---|---|---|
| `runs` | run | `RunStarted`, its last event; `seq` from every event |
| `run_values` | label of a run, and input of it that is a text, number, boolean or null | `RunStarted` |
| `steps` | step of a run that was ever queued or decided | `StepChanged`, `queued` of any |
| `attempts` | attempt of a step | the same |
| `events` | event of a run, byte for byte | every event |
| `revisions` | revision of a pipeline that was ever run | `RunStarted` |
| `progress` | partition of the run events | every batch: how far the record is |
"""

from typing import Final

from sqlalchemy import (
    BigInteger,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    text,
)

METADATA: Final = MetaData(
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "ix": "%(table_name)s_by_%(column_0_N_name)s",
    }
)

# Compared byte by byte: a page of runs goes on where the last one ended, whatever the database's language is.
_Name = Text().with_variant(Text(collation="C"), "postgresql")

RUNS: Final = Table(
    "runs",
    METADATA,
    Column("run_id", _Name, nullable=False),
    Column("tenant", _Name, comment="null while only later events are known"),
    Column("pipeline", _Name),
    Column("revision", Integer),
    Column("status", _Name, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("started_at", BigInteger),
    Column("finished_at", BigInteger),
    Column("seq", Integer, nullable=False, comment="of the last event that is in"),
    Column("error_type", _Name),
    Column("error_text", Text, comment="the beginning of the error's message"),
    Column("body_hash", _Name, nullable=False, server_default=""),
    Column("header", LargeBinary, comment="JSON of what does not change: inputs, labels, what each step uses"),
    Column("ending", LargeBinary, comment="JSON of outputs, error and times"),
    PrimaryKeyConstraint("run_id"),
)

RUN_VALUES: Final = Table(
    "run_values",
    METADATA,
    Column("run_id", _Name, nullable=False),
    Column("name", _Name, nullable=False, comment="`label:<name>` or `input:<name>`"),
    Column("value", _Name, nullable=False, comment="the text, or JSON of another scalar; cut where it is long"),
    Column("tenant", _Name, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    PrimaryKeyConstraint("run_id", "name"),
    sqlite_with_rowid=False,
)

STEPS: Final = Table(
    "steps",
    METADATA,
    Column("run_id", _Name, nullable=False),
    Column("step", _Name, nullable=False),
    Column("seq", Integer, nullable=False, comment="of the event that says so"),
    Column("uses", _Name, nullable=False),
    Column("status", _Name, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("queued_at", BigInteger),
    Column("started_at", BigInteger),
    Column("finished_at", BigInteger),
    Column("error_type", _Name),
    Column("document", LargeBinary, nullable=False, comment="JSON of the step as the run document shows it"),
    PrimaryKeyConstraint("run_id", "step"),
    sqlite_with_rowid=False,
)

ATTEMPTS: Final = Table(
    "attempts",
    METADATA,
    Column("run_id", _Name, nullable=False),
    Column("step", _Name, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("seq", Integer, nullable=False, comment="of the event that says so"),
    Column("status", _Name, nullable=False),
    Column("queued_at", BigInteger),
    Column("started_at", BigInteger),
    Column("finished_at", BigInteger),
    Column("error", LargeBinary, comment="JSON of the error the attempt ended with"),
    PrimaryKeyConstraint("run_id", "step", "attempt"),
    sqlite_with_rowid=False,
)

EVENTS: Final = Table(
    "events",
    METADATA,
    Column("run_id", _Name, nullable=False),
    Column("seq", Integer, nullable=False),
    Column("type", _Name, nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("partition", Integer, nullable=False, comment="of the run events, and where in it the event stands"),
    Column("offset", BigInteger, nullable=False),
    Column("body", LargeBinary, nullable=False, comment="the record's value"),
    PrimaryKeyConstraint("run_id", "seq"),
    sqlite_with_rowid=False,
)

REVISIONS: Final = Table(
    "revisions",
    METADATA,
    Column("tenant", _Name, nullable=False),
    Column("pipeline", _Name, nullable=False),
    Column("revision", Integer, nullable=False, comment="0: the definition came with the submission"),
    Column("first_used_at", BigInteger, nullable=False),
    PrimaryKeyConstraint("tenant", "pipeline", "revision"),
    sqlite_with_rowid=False,
)

PROGRESS: Final = Table(
    "progress",
    METADATA,
    Column("partition", Integer, nullable=False),
    Column("next_offset", BigInteger, nullable=False),
    Column("at", BigInteger, nullable=False, comment="when the last event that is in was written to Kafka"),
    PrimaryKeyConstraint("partition"),
)

# Newest first within whose they are, and then within what is asked for.
Index("runs_by_age", RUNS.c.tenant, RUNS.c.created_at, RUNS.c.run_id)
Index("runs_by_status", RUNS.c.tenant, RUNS.c.status, RUNS.c.created_at, RUNS.c.run_id)
Index("runs_by_pipeline", RUNS.c.tenant, RUNS.c.pipeline, RUNS.c.status, RUNS.c.created_at, RUNS.c.run_id)
Index(
    "runs_by_error",
    RUNS.c.tenant,
    RUNS.c.error_type,
    RUNS.c.created_at,
    RUNS.c.run_id,
    postgresql_where=text("error_type IS NOT NULL"),
    sqlite_where=text("error_type IS NOT NULL"),
)
Index(
    "run_values_by_value",
    RUN_VALUES.c.tenant,
    RUN_VALUES.c.name,
    RUN_VALUES.c.value,
    RUN_VALUES.c.created_at,
    RUN_VALUES.c.run_id,
)
Index("events_by_place", EVENTS.c.partition, EVENTS.c.offset)
