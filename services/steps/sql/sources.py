"""Where a table of a query comes from."""

from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import orjson
from pydantic import BaseModel, ConfigDict, Field, model_validator

from anabranch.shared.contracts.errors import TerminalError
from anabranch.shared.contracts.urls import shown_url

Format = Literal["csv", "json", "parquet"]

_BY_SUFFIX: Final[dict[str, Format]] = {
    ".csv": "csv", ".tsv": "csv", ".txt": "csv",
    ".json": "json", ".jsonl": "json", ".ndjson": "json",
    ".parquet": "parquet",
}  # fmt: skip


class Source(BaseModel):
    """One table: of a URL, a file of the service's directory, rows, or CSV text."""

    model_config = ConfigDict(extra="forbid")

    url: str | None = Field(None, pattern="^https?://")
    path: str | None = Field(None, description="Relative to the directory that the step service was given.")
    rows: list[dict[str, Any]] | None = None
    csv: str | None = None
    format: Format | None = Field(None, description="Of a URL or file whose name does not end in it.")
    columns: dict[str, str] | None = Field(None, description="SQL types by name; needed for `rows` that may be empty.")

    @model_validator(mode="after")
    def _is_one(self) -> "Source":
        if sum(given is not None for given in (self.url, self.path, self.rows, self.csv)) != 1:
            raise ValueError("a source has exactly one of url, path, rows, csv")
        return self


def format_of(source: Source) -> Format:
    """Return the format of a source: as it says, or as its name ends."""
    if source.rows is not None:
        return "json"
    if source.csv is not None:
        return "csv"
    name = urlsplit(source.url).path if source.url is not None else source.path
    suffix = PurePosixPath(name or "").suffix.lower()
    found = source.format or _BY_SUFFIX.get(suffix)
    if found is None:
        raise TerminalError(
            f"the format of {shown_url(source.url or source.path or '')} is not known: say `format`",
            error_type="SourceRefused",
        )
    return found


def written(source: Source, path: Path) -> Path:
    """Write the rows or the text that a source carries into a file."""
    try:
        path.write_bytes(orjson.dumps(source.rows) if source.rows is not None else (source.csv or "").encode())
    except (UnicodeEncodeError, orjson.JSONEncodeError) as error:
        raise TerminalError(f"a source cannot be written: {error}", error_type="SourceRefused") from error
    return path
