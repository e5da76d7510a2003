"""What the `sql` step service can be told."""

import re
from pathlib import Path
from typing import Final

from pydantic import Field, field_validator

from anabranch.services.steps.settings import StepServiceSettings
from anabranch.shared.contracts.limits import MIB

_UNITS: Final = {"B": 1} | {
    f"{unit}{suffix}": factor**power
    for suffix, factor in (("B", 1000), ("iB", 1024))
    for power, unit in enumerate("KMGT", start=1)
}  # as DuckDB reads them
_SIZE: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?i?B)\s*", re.IGNORECASE)
MIN_MEMORY_BYTES: Final = 192 * MIB  # Python and DuckDB themselves are some 110 MiB of it


def bytes_of(size: str) -> int:
    """Return the bytes of a size like `512MB` or `1.5GiB`."""
    match = _SIZE.fullmatch(size)
    factor = match and {name.lower(): value for name, value in _UNITS.items()}.get(match[2].lower())
    if not match or not factor:
        raise ValueError(f"{size} is not a size: 512MB, 1.5GiB")
    return int(float(match[1]) * factor)


class SqlSettings(StepServiceSettings):
    """Settings of `services.steps.sql`."""

    sql_directory: Path | None = Field(
        None, description="Where `path` sources are, and nothing outside of it; unset: `path` is refused."
    )
    sql_memory_limit: str = Field(
        "512MB", description="Memory of a query's process, at least 192MiB; more of its data goes to a directory."
    )
    sql_max_spill_bytes: int = Field(
        4 * 1024 * MIB, ge=0, description="Most that one query may put into its temporary directory."
    )
    sql_threads: int = Field(2, ge=1, description="Threads of one query.")
    sql_max_source_bytes: int = Field(512 * MIB, ge=1, description="Largest source that is fetched from a URL.")

    @field_validator("sql_memory_limit")
    @classmethod
    def _is_enough(cls, size: str) -> str:
        if bytes_of(size) < MIN_MEMORY_BYTES:
            raise ValueError(f"a query's process needs at least {MIN_MEMORY_BYTES} bytes")
        return size
