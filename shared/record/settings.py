"""What a service that keeps or reads runs, in the record and in Redis, can be told."""

from pydantic import Field, field_validator

from anabranch.shared.record.database import database_url
from anabranch.shared.runtime.settings import Settings


class RecordSettings(Settings):
    """Settings of services that use the record of runs in SQL, and its cache in Redis."""

    database_url: str = Field(
        "",
        repr=False,
        description="Where the record of runs is kept: `postgresql://user:password@host/name`, or `sqlite:///PATH`. "
        "Unless set none is kept, and runs are known as long as Redis holds them.",
    )

    snapshot_ttl_s: int = Field(
        24 * 3600, ge=1, description="Seconds a snapshot stays in Redis after its run has ended."
    )

    @field_validator("database_url")
    @classmethod
    def _can_be_used(cls, text: str) -> str:
        if text:
            database_url(text)
        return text
