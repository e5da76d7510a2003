"""Where a body is read: on the loop when that takes a moment, in a process that may be killed when it may take more."""

from contextlib import suppress
from typing import Any, Final

import orjson

from anabranch.services.gateway.apart import Apart
from anabranch.services.gateway.body import JSON
from anabranch.services.gateway.metrics import GatewayMetrics
from anabranch.services.gateway.problems import Kind, ProblemError, unavailable
from anabranch.services.gateway.reading import (
    BATCH,
    DEFINITION,
    SUBMISSION,
    Definition,
    Part,
    Reading,
    Refusal,
    Submission,
)
from anabranch.services.gateway.step_types import StepTypes
from anabranch.shared.contracts.limits import KIB, MAX_CHECKING_COST, MAX_CHECKING_COST_IN_LINE
from anabranch.shared.contracts.report import Budget, TooCostly

# A body of this size takes a few milliseconds to read at most, one in YAML ten times as long.
_LARGE_JSON_BYTES: Final = 32 * KIB
_LARGE_YAML_BYTES: Final = 4 * KIB
_TOPIC_RETRY_AFTER_S: Final = 5  # as often as topics are looked for
# What is of this size, and costs no more than a third of a second, never waits behind what is larger or costs more.
_QUICK_JSON_BYTES: Final = 256 * KIB
_QUICK_YAML_BYTES: Final = 32 * KIB
_QUICK_COST: Final = 3_000_000


class SubmissionReader:
    """Reads bodies, each where it belongs."""

    def __init__(self, step_types: StepTypes, metrics: GatewayMetrics) -> None:
        self._step_types = step_types
        self._metrics = metrics
        self._quick = Apart(at_once=2, in_line=64, units=_QUICK_COST)
        self._slow = Apart(at_once=1, in_line=16, units=MAX_CHECKING_COST)
        self._types_version = -1
        self._schemas = b""
        self._reading = Reading({})

    async def submission(self, body: bytes, media_type: str) -> Submission:
        """Return the submission in a body. Raises `ProblemError`."""
        found: Submission = await self._read(SUBMISSION, body, media_type)
        self._check_command_topics(found.definition)
        return found

    async def batch(self, body: bytes) -> list[Submission | ProblemError]:
        """Return the submissions in a body, or what is wrong with each. Raises `ProblemError` for the whole."""
        found: list[Submission | Refusal] = await self._read(BATCH, body, JSON)
        return [self._run_of_batch(each) for each in found]

    def _run_of_batch(self, found: Submission | Refusal) -> Submission | ProblemError:
        if isinstance(found, Refusal):
            return found.problem()
        try:
            self._check_command_topics(found.definition)
        except ProblemError as problem:
            return problem
        return found

    async def definition(self, body: bytes, media_type: str) -> Definition:
        """Return the definition that a body is. Raises `ProblemError`."""
        found: Definition = await self._read(DEFINITION, body, media_type)
        return found

    async def _read(self, what: Part, body: bytes, media_type: str) -> Any:
        self._follow_step_types()
        found, known = await self._first_that_can(what, body, media_type)
        self._metrics.definition_read(cached=known)
        return found

    async def _first_that_can(self, what: Part, body: bytes, media_type: str) -> tuple[Any, bool]:
        """Read a body where that holds up nobody whose body is smaller or costs less."""
        if _fits(body, media_type, _LARGE_JSON_BYTES, _LARGE_YAML_BYTES):
            with suppress(TooCostly):
                return self._reading.read(what, body, media_type, Budget(MAX_CHECKING_COST_IN_LINE))
        if _fits(body, media_type, _QUICK_JSON_BYTES, _QUICK_YAML_BYTES):
            with suppress(TooCostly):
                return await self._apart(self._quick, what, body, media_type)
        return await self._apart(self._slow, what, body, media_type)

    async def _apart(self, where: Apart, what: Part, body: bytes, media_type: str) -> tuple[Any, bool]:
        try:
            return await where.read(what, body, media_type, self._schemas)
        except ProblemError as error:
            if error.kind is Kind.UNAVAILABLE:
                self._metrics.run_refused("large_bodies")
            raise

    def _check_command_topics(self, definition: Definition) -> None:
        """Refuse for now what the orchestrator could only hold back; the topic's service makes it at its next start."""
        missing = self._step_types.without_topic
        if missing and (uses := sorted(missing.intersection(definition.steps.values()))):
            self._metrics.run_refused("no_command_topic")
            words = f"No command topic exists for {', '.join(uses)}: is the step service running?"
            raise unavailable(words, retry_after_s=_TOPIC_RETRY_AFTER_S)

    def _follow_step_types(self) -> None:
        if self._types_version != self._step_types.version:
            self._types_version = self._step_types.version
            schemas = {name: each.input_schema for name, each in self._step_types.known.items()}
            self._schemas = orjson.dumps(schemas)
            self._reading = Reading(schemas)


def _fits(body: bytes, media_type: str, json_bytes: int, yaml_bytes: int) -> bool:
    return len(body) <= (json_bytes if media_type == JSON else yaml_bytes)
