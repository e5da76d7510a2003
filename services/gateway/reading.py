"""A body to a submission that may run, or to a problem that says everything that is wrong with it. No I/O.

A definition is validated once per content: what is parsed is parsed strictly (duplicate keys, numbers, surrogates), and
what stands under `definition` is looked up by its JSON text. Where a body begins with a definition that has been read
in the same letters before, only what stands around it is parsed.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Literal

import orjson

from anabranch.services.gateway.problems import Fault, Kind, ProblemError
from anabranch.shared.contracts.bounded import BoundedMemory
from anabranch.shared.contracts.ids import is_idempotency_key
from anabranch.shared.contracts.limits import (
    MAX_BATCH_RUNS,
    MAX_IDEMPOTENCY_KEY_CHARS,
    MAX_LABEL_CHARS,
    MAX_LABELS,
    MAX_PROBLEMS,
    MAX_PROBLEMS_OF_BATCH_RUN,
    MIB,
)
from anabranch.shared.contracts.report import Budget, InvalidError, Problem, Report, TooCostly
from anabranch.shared.contracts.source import Piece, Source, SourceError, parse_source, pieces_of, pointer_to
from anabranch.shared.contracts.validation import ValidPipeline, validate_inputs, validate_pipeline

_FIELDS: Final = ("definition", "pipeline", "revision", "inputs", "labels")
_BATCH_FIELDS: Final = (*_FIELDS, "idempotency_key")
_JSON: Final = "application/json"
_RUNS: Final = "runs"
_NAMED: Final = ("pipeline", "revision")

_CACHE_BYTES: Final = 16 * MIB  # by content, and as much by the letters
_CACHE_ENTRIES: Final = 2_000
_WEIGHT_OF_TEXT: Final = 4  # its JSON text as a key and as a value, its steps and its inputs' schemas as objects

Part = Literal["submission", "batch", "definition"]  # what a body is
SUBMISSION: Final = "submission"
BATCH: Final = "batch"
DEFINITION: Final = "definition"

_BEGINNING: Final = re.compile(rb'[ \t\n\r]*\{[ \t\n\r]*"definition"[ \t\n\r]*:[ \t\n\r]*(?=\{)')
_FOLLOWERS: Final = (b'"inputs"', b'"labels"', b"}")  # one of them, its last in the body, stands behind a definition

StepTypeSchemas = Mapping[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Definition:
    """What the gateway keeps of a valid definition: light, where the model of 10,000 steps has 30 MB."""

    name: str
    inputs: dict[str, dict[str, Any]]
    steps: dict[str, str]  # id to step type
    canonical: str
    content_hash: str


@dataclass(frozen=True, slots=True)
class Submission:
    """What a client wants to run: valid as it stands."""

    definition: Definition
    inputs: dict[str, Any]
    labels: dict[str, str]
    weight: int  # bytes of the body, about what it weighs in memory
    key: str | None = None  # the Idempotency-Key of a run of a batch


@dataclass(frozen=True, slots=True)
class Refusal:
    """A `ProblemError` that is one result of several, or crosses between processes."""

    kind: Kind
    detail: str
    faults: tuple[Fault, ...]

    def problem(self) -> ProblemError:
        """Return it to be raised."""
        return ProblemError(self.kind, self.detail, faults=self.faults)


Found = Submission | list[Submission | Refusal] | Definition


class Reading:
    """Reads bodies; knows the definitions it has read lately."""

    def __init__(self, step_types: StepTypeSchemas) -> None:
        self._step_types = step_types
        self._definitions: BoundedMemory[bytes, Definition] = BoundedMemory(
            max_entries=_CACHE_ENTRIES, max_weight=_CACHE_BYTES
        )
        self._written: BoundedMemory[bytes, Definition] = BoundedMemory(
            max_entries=_CACHE_ENTRIES, max_weight=_CACHE_BYTES
        )

    def read(self, what: Part, body: bytes, media_type: str, budget: Budget) -> tuple[Found, bool]:
        """Return what a body is, and whether its definition was known. Raises `ProblemError`, `TooCostly`."""
        if what == SUBMISSION:
            return self._submission(body, media_type, budget)
        if what == BATCH:
            return self._batch(body, budget)
        return self._definition(body, media_type, budget)

    def _batch(self, body: bytes, budget: Budget) -> tuple[list[Submission | Refusal], bool]:
        pieces = _pieces(body)
        if pieces is None or not 0 < len(pieces) <= MAX_BATCH_RUNS:
            raise _no_batch(body, budget)
        found = [self._run_of_batch(number, piece, budget) for number, piece in enumerate(pieces)]
        return [run for run, _ in found], all(known for _, known in found)

    def _run_of_batch(self, number: int, piece: Piece, budget: Budget) -> tuple[Submission | Refusal, bool]:
        try:
            return self._submission(piece.text.encode(), _JSON, budget, _BATCH_FIELDS)
        except InvalidError as error:
            _give_up_if_costly(error, budget)
            return _moved(_invalid(_faults(error.errors), error.more), number, piece), True
        except ProblemError as problem:
            return _moved(problem, number, piece), True

    def _submission(
        self, body: bytes, media_type: str, budget: Budget, fields: Collection[str] = _FIELDS
    ) -> tuple[Submission, bool]:
        recognised = self._recognised(body, budget, fields) if media_type == _JSON else None
        if recognised is not None:
            return recognised, True
        source = _parsed(body, media_type)
        envelope = Report(source, budget)
        _check_envelope(source, envelope, fields)
        definition, known, inputs = None, False, {}
        value = source.value
        faults, more = _faults(envelope.sorted()) if envelope.problems else [], envelope.more
        if envelope.full:
            raise _invalid(faults, more)
        if isinstance(value, dict) and "definition" in value:
            try:
                definition, known = self._valid(source.part("definition"), budget)
                inputs = validate_inputs(definition.inputs, value.get("inputs"), source=source, budget=budget)
            except InvalidError as error:
                _give_up_if_costly(error, budget)
                faults += _faults(error.errors)
                more += error.more
        if faults or definition is None:
            raise _invalid(faults, more)
        if media_type == _JSON:
            self._recognise(body, definition)
        return _submission_of(value, definition, inputs, len(body)), known

    def _recognised(self, body: bytes, budget: Budget, fields: Collection[str]) -> Submission | None:
        """Return the submission in a body whose definition was read before in the same letters, None for any other.

        Whole JSON at the place of the definition is the definition, whatever stands behind it; so the body is right if
        it is right with anything else at this place. When it is wrong, whoever reads all of it says what is.
        """
        for start, end in _places_of_definition(body):
            definition = self._written.get(body[start:end])
            if definition is not None:
                break
        else:
            return None
        left = budget.left
        try:
            source = parse_source(b"%b{}%b" % (body[:start], body[end:]))
            envelope = Report(source, budget)
            _check_envelope(source, envelope, fields)
            inputs = validate_inputs(definition.inputs, source.value.get("inputs"), source=source, budget=budget)
        except (SourceError, InvalidError):
            envelope = None
        if envelope is None or envelope.problems:
            budget.left = left
            return None
        return _submission_of(source.value, definition, inputs, len(body))

    def _recognise(self, body: bytes, definition: Definition) -> None:
        """Know a definition by the letters in which a body, that is right, has it."""
        for start, end in _places_of_definition(body):
            text = body[start:end]
            with suppress(orjson.JSONDecodeError):  # it ends elsewhere
                orjson.loads(text)
                self._written.put(text, definition, weight=_WEIGHT_OF_TEXT * len(text))
                return

    def _definition(self, body: bytes, media_type: str, budget: Budget) -> tuple[Definition, bool]:
        try:
            return self._valid(_parsed(body, media_type), budget)
        except InvalidError as error:
            _give_up_if_costly(error, budget)
            raise _invalid(_faults(error.errors), error.more) from error

    def _valid(self, source: Source, budget: Budget) -> tuple[Definition, bool]:
        content = orjson.dumps(source.value)
        known = self._definitions.get(content)
        if known is not None:
            return known, True
        found = _kept_of(validate_pipeline(source, step_types=self._step_types, budget=budget))
        self._definitions.put(content, found, weight=_WEIGHT_OF_TEXT * len(content))
        return found, False


def _submission_of(value: dict[str, Any], definition: Definition, inputs: dict[str, Any], weight: int) -> Submission:
    return Submission(definition, inputs, value.get("labels") or {}, weight, value.get("idempotency_key"))


def _places_of_definition(body: bytes) -> Iterator[tuple[int, int]]:
    """Yield where the definition that a JSON body begins with may start and end."""
    beginning = _BEGINNING.match(body)
    if beginning is None:
        return
    start = beginning.end()
    for follower in _FOLLOWERS:
        behind = body.rfind(follower, start)
        end = body.rfind(b"}", start, max(behind, start)) + 1
        if end:
            yield start, end


def _kept_of(valid: ValidPipeline) -> Definition:
    steps = {name: step.uses for name, step in valid.spec.steps.items()}
    return Definition(valid.spec.name, valid.spec.inputs, steps, valid.canonical, valid.content_hash)


def _give_up_if_costly(error: InvalidError, budget: Budget) -> None:
    """Let `TooCostly` through where somebody with a larger budget may try again."""
    if isinstance(error, TooCostly) and not budget.is_whole:
        raise error


def _parsed(body: bytes, media_type: str) -> Source:
    try:
        return parse_source(body, media_type)
    except SourceError as error:
        fault = Fault("", error.message, error.line, error.column)
        raise ProblemError(Kind.UNREADABLE, f"The body cannot be read: {error.message}.", faults=[fault]) from error


def _faults(problems: list[Problem]) -> list[Fault]:
    return [Fault(each.pointer, each.message, each.line, each.column) for each in problems]


def _invalid(faults: list[Fault], more: int) -> ProblemError:
    listed, more = faults[:MAX_PROBLEMS], more + len(faults[MAX_PROBLEMS:])
    count = len(listed) + more
    what = "1 thing is" if count == 1 else f"{count:,} things are"
    if len(listed) == MAX_PROBLEMS:  # what is costly to find was not looked for any more
        what = f"At least {what}"
    if more:
        listed.append(Fault("", f"and at least {more:,} more"))
    return ProblemError(Kind.INVALID, f"{what} wrong with what was sent; see errors.", faults=listed)


def _pieces(body: bytes) -> list[Piece] | None:
    try:
        return pieces_of(body, _RUNS)
    except SourceError:
        return None


def _no_batch(body: bytes, budget: Budget) -> ProblemError:
    """Return what is wrong with a body that is no list of runs."""
    source = _parsed(body, _JSON)
    report = Report(source, budget)
    runs = source.value.get(_RUNS) if isinstance(source.value, dict) else None
    if not isinstance(runs, list):
        report.add("", "a batch is an object with `runs`, a list")
    elif not 0 < len(runs) <= MAX_BATCH_RUNS:
        report.add(pointer_to(_RUNS), f"a batch has 1 to {MAX_BATCH_RUNS} runs, not {len(runs)}")
    else:
        report.add("", "a batch has `runs` and nothing else")
    return _invalid(_faults(report.sorted()), report.more)


def _moved(problem: ProblemError, number: int, piece: Piece) -> Refusal:
    """Return what is wrong with a run of a batch, with places in the whole body."""
    base = pointer_to(_RUNS, number)
    faults = [
        Fault(
            base + each.pointer,
            each.message,
            None if each.line is None else each.line + piece.line - 1,
            None if each.column is None else each.column + (piece.column - 1 if each.line == 1 else 0),
        )
        for each in problem.faults[:MAX_PROBLEMS_OF_BATCH_RUN]
    ]
    return Refusal(problem.kind, problem.detail, tuple(faults))


def _check_envelope(source: Source, report: Report, fields: Collection[str]) -> None:
    """Report what is wrong around the definition and the inputs."""
    value = source.value
    if not isinstance(value, dict):
        report.add("", "a submission is an object with `definition`, `inputs` and `labels`")
        return
    for name in value:
        if name not in fields:
            if report.full:
                report.more += len(value) - len(report.problems) - sum(each in value for each in fields)
                break
            report.add(pointer_to(name), f"unknown key {name[:80]!r}{report.suggest(name, fields)}")
    for name in _NAMED:
        if name in value:
            report.add(pointer_to(name), f"{name!r} is not supported yet: send a `definition`")
    if "definition" not in value and not any(name in value for name in _NAMED):
        report.add("", "`definition` is missing")
    _check_labels(value.get("labels"), report)
    _check_key(value.get("idempotency_key"), fields, report)


def _check_key(key: Any, fields: Collection[str], report: Report) -> None:
    if key is None or "idempotency_key" not in fields:
        return
    if not (isinstance(key, str) and is_idempotency_key(key)):
        words = f"a key is a text of 1 to {MAX_IDEMPOTENCY_KEY_CHARS} visible ASCII characters"
        report.add("/idempotency_key", words)


def _check_labels(labels: Any, report: Report) -> None:
    if labels is None:
        return
    if not isinstance(labels, dict):
        report.add("/labels", "labels are an object of texts")
    elif len(labels) > MAX_LABELS:
        report.add("/labels", f"at most {MAX_LABELS} labels may be given")
    else:
        for name, text in labels.items():
            if not (isinstance(text, str) and len(text) <= MAX_LABEL_CHARS and 0 < len(name) <= MAX_LABEL_CHARS):
                report.add(pointer_to("labels", name), f"a label is a text of at most {MAX_LABEL_CHARS} characters")
