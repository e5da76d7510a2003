"""What the `sql` step service can be told."""

from pathlib import Path

from pydantic import Field

from anabranch.services.steps.settings import StepServiceSettings


class SqlSettings(StepServiceSettings):
    """Settings of `services.steps.sql`."""

    sql_directory: Path | None = Field(
        None, description="Where `path` sources are, and nothing outside of it; unset: `path` is refused."
    )
    sql_memory_limit: str = Field("512MB", description="Memory of one query; more goes to a temporary directory.")
    sql_threads: int = Field(2, ge=1, description="Threads of one query.")
    sql_max_source_bytes: int = Field(512 * 1024 * 1024, ge=1, description="Largest source that is fetched from a URL.")
