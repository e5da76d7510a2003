"""Extraction from HTML, in a process that is killed with its attempt: no parser bounds what a document may cost."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Final

import orjson
from pydantic import BaseModel, ConfigDict, Field, RootModel

from anabranch.services.steps.context import StepContext
from anabranch.services.steps.html.settings import HtmlSettings
from anabranch.services.steps.step_type import step_type
from anabranch.shared.contracts.limits import MAX_SELECTOR_CHARS, MAX_SELECTORS
from anabranch.shared.runtime.killable import KillableProcesses, ProcessLimits, killable

_EXTRACT: Final = "anabranch.services.steps.html.extract:answer"
_PROCESSES: Final = 4  # a document that takes all of its time leaves the others three


class Extraction(BaseModel):
    """What to take out of which document."""

    model_config = ConfigDict(extra="forbid")

    html: str
    select: dict[str, Annotated[str, Field(max_length=MAX_SELECTOR_CHARS)]] = Field(
        max_length=MAX_SELECTORS, description="`css` for the text of what matches, `css@attribute` for an attribute."
    )
    base_url: str | None = Field(None, description="What relative links are resolved against.")


class Extracted(RootModel[dict[str, list[str]]]):
    """By the names of `select`, in the order of the document."""


@asynccontextmanager
async def open_processes() -> AsyncIterator[KillableProcesses]:
    """Open the processes that all attempts share."""
    settings = HtmlSettings()
    limits = ProcessLimits(settings.html_memory_bytes, settings.html_cpu_s)
    async with killable(_EXTRACT, processes=_PROCESSES, limits=limits) as processes:
        yield processes


@step_type("html", description="Extract texts and attributes from HTML with CSS selectors.", lifespan=open_processes)
async def html(given: Extraction, context: StepContext) -> Extracted:
    """Take out what was asked for."""
    processes: KillableProcesses = context.resource
    return Extracted(orjson.loads(await processes.run(orjson.dumps(given.model_dump()))))
