"""Where a body is read: on the loop when that takes a moment, in a process that may be killed when it may take more."""

from typing import Any, Final

import orjson

from anabranch.services.gateway.apart import Apart
from anabranch.services.gateway.body import JSON
from anabranch.services.gateway.metrics import GatewayMetrics
from anabranch.services.gateway.problems import unavailable
from anabranch.services.gateway.reading import DEFINITION, SUBMISSION, Definition, Part, Reading, Submission
from anabranch.services.gateway.step_types import StepTypes
from anabranch.shared.contracts.limits import KIB, MAX_CHECKING_COST_IN_LINE
from anabranch.shared.contracts.report import Budget, TooCostly

# A body of this size takes a few milliseconds to read at most, one in YAML ten times as long.
_LARGE_JSON_BYTES: Final = 32 * KIB
_LARGE_YAML_BYTES: Final = 4 * KIB
_TOPIC_RETRY_AFTER_S: Final = 5  # as often as topics are looked for
_READING_OR_IN_LINE: Final = 32  # bodies of 2 MiB and what comes back of them: some 200 MiB at most


class SubmissionReader:
    """Reads bodies, each where it belongs."""

    def __init__(self, step_types: StepTypes, metrics: GatewayMetrics) -> None:
        self._step_types = step_types
        self._metrics = metrics
        self._apart = Apart()
        self._in_line = 0
        self._types_version = -1
        self._schemas = b""
        self._reading = Reading({})

    async def submission(self, body: bytes, media_type: str) -> Submission:
        """Return the submission in a body. Raises `ProblemError`."""
        found: Submission = await self._read(SUBMISSION, body, media_type)
        self._check_command_topics(found.definition)
        return found

    async def definition(self, body: bytes, media_type: str) -> Definition:
        """Return the definition that a body is. Raises `ProblemError`."""
        found: Definition = await self._read(DEFINITION, body, media_type)
        return found

    async def _read(self, what: Part, body: bytes, media_type: str) -> Any:
        self._follow_step_types()
        if _is_small(body, media_type):
            try:
                found, known = self._reading.read(what, body, media_type, Budget(MAX_CHECKING_COST_IN_LINE))
            except TooCostly:
                found, known = await self._read_apart(what, body, media_type)
        else:
            found, known = await self._read_apart(what, body, media_type)
        self._metrics.definition_read(cached=known)
        return found

    async def _read_apart(self, what: Part, body: bytes, media_type: str) -> tuple[Any, bool]:
        if self._in_line >= _READING_OR_IN_LINE:
            self._metrics.run_refused("large_bodies")
            raise unavailable("Too many large or costly bodies are being read.", retry_after_s=1)
        self._in_line += 1
        try:
            return await self._apart.read(what, body, media_type, self._schemas)
        finally:
            self._in_line -= 1

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


def _is_small(body: bytes, media_type: str) -> bool:
    return len(body) <= (_LARGE_JSON_BYTES if media_type == JSON else _LARGE_YAML_BYTES)
