"""A body to a submission that may run, or to a problem that says everything that is wrong with it. No I/O.

A definition is validated once per content: the body is parsed strictly each time (duplicate keys, numbers, surrogates),
and what stands under `definition` is looked up by its JSON text.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final

import orjson

from anabranch.services.gateway.body import JSON
from anabranch.services.gateway.metrics import GatewayMetrics
from anabranch.services.gateway.problems import Fault, Kind, ProblemError, unavailable
from anabranch.services.gateway.step_types import StepTypes
from anabranch.shared.contracts.bounded import BoundedMemory
from anabranch.shared.contracts.limits import KIB, MAX_LABEL_CHARS, MAX_LABELS, MIB
from anabranch.shared.contracts.source import Source, SourceError, parse_source, pointer_to
from anabranch.shared.contracts.validation import (
    InvalidInputs,
    InvalidPipeline,
    Problem,
    ValidPipeline,
    validate_inputs,
    validate_pipeline,
)

_FIELDS: Final = ("definition", "pipeline", "revision", "inputs", "labels")
_NAMED: Final = ("pipeline", "revision")

# A body of this size takes about a millisecond to read, one in YAML ten times as long: larger ones go to a thread, so
# that they do not hold up the others.
_LARGE_JSON_BYTES: Final = 64 * KIB
_LARGE_YAML_BYTES: Final = 4 * KIB
_READING_AT_ONCE: Final = 2
_READING_OR_IN_LINE: Final = 32  # bodies of 2 MiB and what is made of them: some 500 MiB at most

_TOPIC_RETRY_AFTER_S: Final = 5  # as often as topics are looked for

_CACHE_BYTES: Final = 32 * MIB
_CACHE_ENTRIES: Final = 2_000


@dataclass(frozen=True, slots=True)
class Submission:
    """What a client wants to run: valid as it stands."""

    pipeline: ValidPipeline
    inputs: dict[str, Any]
    labels: dict[str, str]
    weight: int  # bytes of the body, about what it weighs in memory


class SubmissionReader:
    """Reads bodies; knows the definitions it has read lately."""

    def __init__(self, step_types: StepTypes, metrics: GatewayMetrics) -> None:
        self._step_types = step_types
        self._metrics = metrics
        self._definitions: BoundedMemory[bytes, ValidPipeline] = BoundedMemory(
            max_entries=_CACHE_ENTRIES, max_weight=_CACHE_BYTES
        )
        self._types_version = step_types.version
        self._schemas: Mapping[str, dict[str, Any]] = {}
        self._reading = asyncio.Semaphore(_READING_AT_ONCE)
        self._in_line = 0

    async def submission(self, body: bytes, media_type: str) -> Submission:
        """Return the submission in a body. Raises `ProblemError`."""
        self._follow_step_types()
        if _is_small(body, media_type):
            return self._submission(body, media_type)
        async with self._turn():
            return await asyncio.to_thread(self._submission, body, media_type)

    async def definition(self, body: bytes, media_type: str) -> ValidPipeline:
        """Return the definition that a body is. Raises `ProblemError`."""
        self._follow_step_types()
        if _is_small(body, media_type):
            return self._valid(_parsed(body, media_type))
        async with self._turn():
            return await asyncio.to_thread(lambda: self._valid(_parsed(body, media_type)))

    def _turn(self) -> "_Turn":
        if self._in_line >= _READING_OR_IN_LINE:
            self._metrics.run_refused("large_bodies")
            raise unavailable("Too many large bodies are being read.", retry_after_s=1)
        return _Turn(self, self._reading)

    def _follow_step_types(self) -> None:
        if self._types_version != self._step_types.version or not self._schemas:
            self._types_version = self._step_types.version
            self._schemas = {name: each.input_schema for name, each in self._step_types.known.items()}
            self._definitions.clear()

    def _submission(self, body: bytes, media_type: str) -> Submission:
        source = _parsed(body, media_type)
        faults = _faults_of_envelope(source)
        pipeline, inputs = None, {}
        value = source.value
        if isinstance(value, dict) and "definition" in value:
            try:
                pipeline = self._valid(source.part("definition"))
                inputs = validate_inputs(pipeline.spec, value.get("inputs"), source=source)
            except ProblemError as error:
                faults += error.faults
            except InvalidInputs as error:
                faults += _faults(error.errors)
        if faults or pipeline is None:
            raise _invalid(faults)
        self._check_command_topics(pipeline)
        return Submission(pipeline, inputs, value.get("labels") or {}, len(body))

    def _check_command_topics(self, pipeline: ValidPipeline) -> None:
        """Refuse for now what the orchestrator could only hold back; the topic's service makes it at its next start."""
        missing = self._step_types.without_topic
        if missing and (uses := sorted({step.uses for step in pipeline.spec.steps.values()} & missing)):
            self._metrics.run_refused("no_command_topic")
            words = f"No command topic exists for {', '.join(uses)}: is the step service running?"
            raise unavailable(words, retry_after_s=_TOPIC_RETRY_AFTER_S)

    def _valid(self, source: Source) -> ValidPipeline:
        content = orjson.dumps(source.value)
        known = self._definitions.get(content)
        self._metrics.definition_read(cached=known is not None)
        if known is None:
            known = _validated(source, self._schemas)
            self._definitions.put(content, known, weight=2 * len(content))
        return known


class _Turn:
    """A place in the line of those who read large bodies."""

    def __init__(self, reader: SubmissionReader, reading: asyncio.Semaphore) -> None:
        self._reader = reader
        self._reading = reading

    async def __aenter__(self) -> None:
        self._reader._in_line += 1
        try:
            await self._reading.acquire()
        except BaseException:  # a client that went away while it waited gives its place back
            self._reader._in_line -= 1
            raise

    async def __aexit__(self, *_: object) -> None:
        self._reading.release()
        self._reader._in_line -= 1


def _is_small(body: bytes, media_type: str) -> bool:
    return len(body) <= (_LARGE_JSON_BYTES if media_type == JSON else _LARGE_YAML_BYTES)


def _parsed(body: bytes, media_type: str) -> Source:
    try:
        return parse_source(body, media_type)
    except SourceError as error:
        fault = Fault("", error.message, error.line, error.column)
        raise ProblemError(Kind.UNREADABLE, f"The body cannot be read: {error.message}.", faults=[fault]) from error


def _validated(source: Source, step_types: Mapping[str, dict[str, Any]]) -> ValidPipeline:
    try:
        return validate_pipeline(source, step_types=step_types)
    except InvalidPipeline as error:
        raise _invalid(_faults(error.errors)) from error


def _faults(problems: list[Problem]) -> list[Fault]:
    return [Fault(each.pointer, each.message, each.line, each.column) for each in problems]


def _invalid(faults: list[Fault]) -> ProblemError:
    what = "1 thing is" if len(faults) == 1 else f"{len(faults)} things are"
    return ProblemError(Kind.INVALID, f"{what} wrong with what was sent; see errors.", faults=faults)


def _faults_of_envelope(source: Source) -> list[Fault]:
    """Return what is wrong around the definition and the inputs."""
    value = source.value
    if not isinstance(value, dict):
        return [_fault(source, "", "a submission is an object with `definition`, `inputs` and `labels`")]
    faults = [_unknown(source, name) for name in value if name not in _FIELDS]
    faults += [
        _fault(source, pointer_to(name), f"{name!r} is not supported yet: send a `definition`")
        for name in _NAMED
        if name in value
    ]
    if "definition" not in value and not any(name in value for name in _NAMED):
        faults.append(_fault(source, "", "`definition` is missing"))
    return faults + _faults_of_labels(source, value.get("labels"))


def _unknown(source: Source, name: str) -> Fault:
    near = get_close_matches(name[:100], _FIELDS, n=1)
    meant = f"; did you mean {near[0]!r}?" if near else ""
    return _fault(source, pointer_to(name), f"unknown key {name[:80]!r}{meant}")


def _faults_of_labels(source: Source, labels: Any) -> list[Fault]:
    if labels is None:
        return []
    if not isinstance(labels, dict):
        return [_fault(source, "/labels", "labels are an object of texts")]
    faults = [
        _fault(source, pointer_to("labels", name), f"a label is a text of at most {MAX_LABEL_CHARS} characters")
        for name, text in labels.items()
        if not (isinstance(text, str) and len(text) <= MAX_LABEL_CHARS and 0 < len(name) <= MAX_LABEL_CHARS)
    ]
    if len(labels) > MAX_LABELS:
        faults = [_fault(source, "/labels", f"at most {MAX_LABELS} labels may be given")]
    return faults


def _fault(source: Source, pointer: str, message: str) -> Fault:
    line, column = source.position(pointer) or (None, None)
    return Fault(pointer, message, line, column)
