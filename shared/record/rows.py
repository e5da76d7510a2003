"""Run events to rows of the record. Pure: the same events on the same record make the same rows.

A run's events come in the order of its partition, some of them again. What the record holds of a run (`Known`) says
which are new: those with a higher number, and a start after its end, for an idempotency key that is used again long
after its run has ended begins another run with the same id, whose rows then take the place of the first one's.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import orjson
from pydantic_core import to_json

from anabranch.shared.contracts.errors import StepError
from anabranch.shared.contracts.limits import (
    MAX_RECORDED_NAME_BYTES,
    MAX_RECORDED_NUMBER,
    MAX_SEARCHED_ERROR_CHARS,
    MAX_SEARCHED_INPUTS,
    MAX_SEARCHED_VALUE_BYTES,
)
from anabranch.shared.contracts.messages import (
    QueuedStep,
    RunEnded,
    RunEventMessage,
    RunStarted,
    StepChanged,
    StepsQueued,
)
from anabranch.shared.contracts.times import milliseconds
from anabranch.shared.runtime.snapshots import END, RUN, RUNNING, STEP_PREFIX, Fields, fields_of

Row = tuple[Any, ...]

# The tables by name, and their columns in the order in which rows have them.
COLUMNS: Final[Mapping[str, tuple[str, ...]]] = {
    "runs": (
        "run_id", "tenant", "pipeline", "revision", "status", "created_at", "started_at", "finished_at", "seq",
        "error_type", "error_text", "body_hash", "header", "ending",
    ),
    "run_values": ("run_id", "name", "value", "tenant", "created_at"),
    "steps": (
        "run_id", "step", "seq", "uses", "status", "attempt", "queued_at", "started_at", "finished_at", "error_type",
        "document",
    ),
    "attempts": ("run_id", "step", "attempt", "seq", "status", "queued_at", "started_at", "finished_at", "error"),
    "events": ("run_id", "seq", "type", "at", "partition", "offset", "body"),
    "revisions": ("tenant", "pipeline", "revision", "first_used_at"),
    "progress": ("partition", "next_offset", "at"),
}  # fmt: skip

_RETRYING: Final = "StepRetrying"  # its attempt is over, and its step waits for the next one


class Unrecordable(ValueError):
    """An event that the record has no place for: no service of ours writes such."""


class Known(NamedTuple):
    """What the record holds of a run: up to which event, when it began (None: unknown) and ended (None: it goes on)."""

    seq: int = 0
    created_at: int | None = None
    finished_at: int | None = None


class Place(NamedTuple):
    """Where an event stands in Kafka, when it was written there (ms), and what it is, byte for byte."""

    partition: int
    offset: int
    written_at: int
    body: bytes


@dataclass(slots=True)
class _Run:
    """What a batch says of one run."""

    run_id: str
    seq: int
    created_at: int | None
    finished_at: int | None
    first_at: int = 0
    started: RunStarted | None = None
    ended: RunEnded | None = None
    header: bytes | None = None
    ending: bytes | None = None
    replaces: bool = False
    steps: dict[str, Row] = field(default_factory=dict)
    attempts: dict[tuple[str, int], Row] = field(default_factory=dict)
    events: list[Row] = field(default_factory=list)


class Rows:
    """The rows of one batch of events: `known` is what the record holds of their runs."""

    def __init__(self, known: Mapping[str, Known]) -> None:
        self._known = known
        self._runs: dict[str, _Run] = {}
        self._progress: dict[int, Row] = {}
        self._first_used: dict[Row, int] = {}
        self.repeated = 0
        self.missing = 0

    def passed(self, place: Place) -> None:
        """Note that the record is as far as this, whatever stands there."""
        self._progress[place.partition] = (place.partition, place.offset + 1, place.written_at)

    def add(self, event: RunEventMessage, place: Place, fields: Fields | None = None) -> None:
        """Add what an event says; `fields` are what `fields_of` makes of it, where the caller has them.

        Changes nothing if it raises, `Unrecordable` or what a value that is none raises.
        """
        at = milliseconds(event.at)
        fields = fields_of(event) if fields is None else fields
        _check(event)
        run = self._runs.get(event.run_id) or self._first_of(event.run_id)
        if isinstance(event, RunStarted) and run.finished_at is not None and at > run.finished_at:
            run = _Run(event.run_id, 0, None, None, replaces=True)
        elif event.seq <= run.seq or (run.created_at is not None and at < run.created_at):
            self.repeated += 1
            return
        steps, attempts = _step_rows(event, at, fields)
        self._runs[event.run_id] = run
        self.missing += event.seq - run.seq - 1
        run.seq = event.seq
        run.first_at = run.first_at or at
        run.steps.update(steps)
        for key, row in attempts.items():
            if key not in run.attempts or run.attempts[key][7] is None:  # one that is over stays as it ended
                run.attempts[key] = row
        run.events.append((event.run_id, event.seq, _text(event.type), at, place.partition, place.offset, place.body))
        if isinstance(event, RunStarted):
            run.started, run.header, run.created_at = event, fields[RUN], at
            used = (event.tenant, event.pipeline, event.revision or 0)
            self._first_used[used] = min(at, self._first_used.get(used, at))  # partitions are not in order of time
        elif isinstance(event, RunEnded):
            run.ended, run.ending, run.finished_at = event, fields[END], at

    @property
    def recorded(self) -> int:
        """How many events are new."""
        return sum(len(run.events) for run in self._runs.values())

    def replaced(self) -> list[str]:
        """Return the runs of which everything that the record holds has to go first."""
        return [run.run_id for run in self._runs.values() if run.replaces and run.run_id in self._known]

    def changed(self) -> list[tuple[str, int, str]]:
        """Return each changed run, its last event's number, and the status it has ended with or nothing."""
        return [(run.run_id, run.seq, run.ended.status if run.ended else "") for run in self._runs.values()]

    def tables(self) -> dict[str, list[Row]]:
        """Return the rows by table, in the order of their keys: two writers wait for each other in one order."""
        runs = [run for _, run in sorted(self._runs.items())]
        return {
            "runs": [_run_row(run) for run in runs],
            "run_values": [row for run in runs for row in _value_rows(run)],
            "steps": [row for run in runs for row in run.steps.values()],
            "attempts": [row for run in runs for row in run.attempts.values()],
            "events": [row for run in runs for row in run.events],
            "revisions": sorted((*used, at) for used, at in self._first_used.items()),
            "progress": [row for _, row in sorted(self._progress.items())],
        }

    def _first_of(self, run_id: str) -> _Run:
        known = self._known.get(run_id, Known())
        return _Run(run_id, known.seq, known.created_at, known.finished_at)


def _check(event: RunEventMessage) -> None:
    """Raise `Unrecordable` for what no key or column takes."""
    names, numbers = _names_and_numbers(event)
    for name in names:
        if len(name) > MAX_RECORDED_NAME_BYTES // 4 and len(name.encode()) > MAX_RECORDED_NAME_BYTES:
            raise Unrecordable(f"the name {name[:40]!r}… is longer than {MAX_RECORDED_NAME_BYTES} bytes")
        if "\0" in name:
            raise Unrecordable(f"the name {name[:40]!r} has a NUL in it")
    if min(numbers) < 0 or max(numbers) > MAX_RECORDED_NUMBER or event.seq < 1:
        raise Unrecordable(f"a number of the event is not within 0 and {MAX_RECORDED_NUMBER}: {numbers}")


def _names_and_numbers(event: RunEventMessage) -> tuple[list[str], list[int]]:
    names, numbers = [event.run_id], [event.seq]
    for queued in event.queued or ():
        names += [queued.step, queued.uses]
        numbers.append(queued.attempt)
    match event:
        case RunStarted():
            names += [event.pipeline, event.tenant]
            numbers.append(event.revision or 0)
        case StepChanged():
            names += [event.step, event.uses, event.status]
            numbers.append(event.attempt)
        case RunEnded():
            names.append(event.status)
        case StepsQueued():
            pass
    return names, numbers


def _step_rows(event: RunEventMessage, at: int, fields: Fields) -> tuple[dict[str, Row], dict[tuple[str, int], Row]]:
    steps: dict[str, Row] = {}
    attempts: dict[tuple[str, int], Row] = {}
    if isinstance(event, StepChanged):
        _add_changed(event, at, fields, steps, attempts)
    for queued in event.queued or ():
        document = fields[STEP_PREFIX + queued.step.encode()]
        steps[queued.step] = _queued_step(event, queued, at, document)
        attempts[queued.step, queued.attempt] = _queued_attempt(event, queued, at)
    return steps, attempts


def _add_changed(
    event: StepChanged, at: int, fields: Fields, steps: dict[str, Row], attempts: dict[tuple[str, int], Row]
) -> None:
    queued_at, started_at, finished_at = (
        None if time is None else milliseconds(time) for time in (event.queued_at, event.started_at, event.finished_at)
    )
    error_type = None if event.error is None else _cut(event.error.type, MAX_SEARCHED_VALUE_BYTES)
    steps[event.step] = (
        event.run_id, event.step, event.seq, event.uses, event.status, event.attempt, queued_at, started_at,
        finished_at, error_type, fields[STEP_PREFIX + event.step.encode()],
    )  # fmt: skip
    if not event.attempt or (finished_at is not None and queued_at is None):
        return  # it was never sent out
    is_over = event.type == _RETRYING
    status, over_at = ("failed", at) if is_over else (event.status, finished_at)
    attempts[event.step, event.attempt] = (
        event.run_id, event.step, event.attempt, event.seq, status, queued_at, started_at, over_at,
        None if event.error is None else _json(event.error),
    )  # fmt: skip


def _queued_step(event: RunEventMessage, queued: QueuedStep, at: int, document: bytes) -> Row:
    return (
        event.run_id, queued.step, event.seq, queued.uses, "queued", queued.attempt, at, None, None, None, document,
    )  # fmt: skip


def _queued_attempt(event: RunEventMessage, queued: QueuedStep, at: int) -> Row:
    return (event.run_id, queued.step, queued.attempt, event.seq, "queued", at, None, None, None)


def _run_row(run: _Run) -> Row:
    started, ended = run.started, run.ended
    error = ended.error if ended else None
    began = run.created_at if started else None
    if began is None and ended:
        began = milliseconds(ended.started_at)
    return (
        run.run_id,
        started.tenant if started else None,
        started.pipeline if started else None,
        started.revision if started else None,
        ended.status if ended else RUNNING,
        run.created_at if run.created_at is not None else run.first_at,
        began,
        run.finished_at if ended else None,
        run.seq,
        None if error is None else _cut(error.type, MAX_SEARCHED_VALUE_BYTES),
        None if error is None else _text(error.message)[:MAX_SEARCHED_ERROR_CHARS],
        _cut(started.body_hash, MAX_RECORDED_NAME_BYTES) if started else "",
        run.header,
        run.ending,
    )


def _value_rows(run: _Run) -> list[Row]:
    started = run.started
    if started is None:
        return []
    assert run.created_at is not None
    found = {f"label:{name}": text for name, text in started.labels.items()}
    searched = 0
    for name, value in started.inputs.items():
        if searched == MAX_SEARCHED_INPUTS:
            break
        if value is None or isinstance(value, str | int | float | bool):
            searched += 1
            found[f"input:{name}"] = _searched_value(value)
    return [
        (
            run.run_id,
            _cut(name, MAX_RECORDED_NAME_BYTES),
            _cut(text, MAX_SEARCHED_VALUE_BYTES),
            started.tenant,
            run.created_at,
        )
        for name, text in found.items()
    ]


def searched(text: str) -> str:
    """Return a name or value as the record has it: the beginning of a long one, without NUL."""
    return _cut(text, MAX_SEARCHED_VALUE_BYTES)


def _searched_value(value: str | float | bool | None) -> str:
    return value if isinstance(value, str) else to_json(value).decode()


def _json(error: StepError) -> bytes:
    try:
        return orjson.dumps(error.model_dump())
    except TypeError:  # an integer beyond 64 bits in its details
        return error.model_dump_json().encode()


def _text(text: str) -> str:
    """Return a text as every database takes it: PostgreSQL has no NUL."""
    return text.replace("\0", "\ufffd")


def _cut(text: str, most: int) -> str:
    """Return the beginning of a text, so many bytes at most."""
    if 4 * len(text) > most:
        text = text.encode()[:most].decode(errors="ignore")
    return _text(text)
