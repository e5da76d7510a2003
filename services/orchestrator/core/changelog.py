"""A partition's state as records of the changelog, and back.

| key | value |
|---|---|
| `<run_id>` | the run: status, counters that its steps do not tell; or `Finished` |
| `<run_id>/.submission` | the submission as it was, written once |
| `<run_id>/<step>` | the step, as of the last checkpoint that found it changed |
| `_checkpoint` | the inbox offset up to which everything is in here, the rules it was decided under, the time |

A change costs a record for the step and one for its run. A run that begins and ends between two checkpoints costs none.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import TypeAdapter

from anabranch.services.orchestrator.core.decide import RULES_VERSION
from anabranch.services.orchestrator.core.graph import compile_pipeline
from anabranch.services.orchestrator.core.partition import HEAD, Partition
from anabranch.services.orchestrator.core.state import Run, Step, Stop
from anabranch.shared.contracts.errors import AnabranchError, StepError
from anabranch.shared.contracts.expressions import ExpressionError
from anabranch.shared.contracts.messages import SubmitRun

CHECKPOINT_KEY: Final = b"_checkpoint"
_SUBMISSION: Final = ".submission"

Records = Mapping[bytes, bytes]
"""The live records of a changelog partition."""

Change = tuple[bytes, bytes | None]
"""A record of the changelog: its key, and its value or None to delete it."""


class ChangelogCorrupt(AnabranchError):
    """A record of the changelog cannot be read; says which and what to do."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Up to where the inbox is in the changelog."""

    offset: int
    at_ms: int
    rules: int = RULES_VERSION


@dataclass(frozen=True, slots=True)
class Finished:
    """A run that ended and is remembered for `keep_s` seconds."""

    finished_at: int
    keep_s: int


@dataclass(frozen=True, slots=True)
class Head:
    """What a run is beside its submission and its steps."""

    seq: int
    at: int
    started_at: int
    continued: int = 0
    stop: Stop | None = None
    error: StepError | None = None
    quarantined: bool = False


_HEAD: Final = TypeAdapter(Head | Finished)
_STEP: Final = TypeAdapter(Step)
_CHECKPOINT: Final = TypeAdapter(Checkpoint)
_SUBMISSIONS: Final = TypeAdapter(SubmitRun)


def take_changes(partition: Partition, offset: int) -> list[Change]:
    """Return the records that bring the changelog to `offset`, and count the partition as unchanged from here."""
    changes: list[Change] = []
    for run_id, indices in partition.changed.items():
        run = partition.runs.get(run_id)
        changes += _ended(partition, run_id)
        if run is not None:
            changes += _changed(run, indices, partition.written.setdefault(run_id, set()))
    partition.changed = {}
    changes += [(run_id.encode(), None) for run_id in partition.forget_expired()]
    changes.append((CHECKPOINT_KEY, _CHECKPOINT.dump_json(Checkpoint(offset, partition.at))))
    return changes


def _changed(run: Run, indices: set[int], written: set[int]) -> Iterable[Change]:
    key = run.id
    if HEAD not in written:
        # With its defaults: what the gateway stamped stays, although a later version may have others.
        yield f"{key}/{_SUBMISSION}".encode(), _SUBMISSIONS.dump_json(run.submission)
    head = Head(run.seq, run.at, run.started_at, run.continued, run.stop, run.error, run.quarantined)
    yield key.encode(), _dump(_HEAD, head)
    for index in sorted(indices):
        if index != HEAD:
            yield f"{key}/{run.pipeline.steps[index].id}".encode(), _dump_step(run.steps[index])
    written |= indices | {HEAD}


def _ended(partition: Partition, run_id: str) -> Iterable[Change]:
    """Delete what an ended run of this id left in the changelog, and keep that it has finished if that is promised."""
    finished = next(
        (Finished(ended[run_id], keep_s) for keep_s, ended in partition.finished.items() if run_id in ended), None
    )
    left_over = partition.left_over.pop(run_id, None)
    if finished is not None or left_over is not None:
        yield run_id.encode(), None if finished is None else _dump(_HEAD, finished)
    if left_over is not None:
        for name in (_SUBMISSION, *left_over):
            yield f"{run_id}/{name}".encode(), None


def restore(records: Mapping[bytes, bytes]) -> tuple[Partition, Checkpoint | None]:
    """Return the partition that the live records of a changelog stand for, and its checkpoint if it has one.

    Raises `ChangelogCorrupt` when a record cannot be read.
    """
    partition = Partition()
    checkpoint: Checkpoint | None = None
    heads: dict[str, Head] = {}
    steps: dict[str, dict[str, Step]] = {}
    submissions: dict[str, SubmitRun] = {}
    for key, value in records.items():
        run_id, _, rest = key.decode().partition("/")
        if key == CHECKPOINT_KEY:
            checkpoint = _load(_CHECKPOINT, key, value)
        elif rest == _SUBMISSION:
            submissions[run_id] = _load(_SUBMISSIONS, key, value)
        elif rest:
            steps.setdefault(run_id, {})[rest] = _load(_STEP, key, value)
        else:
            head = _load(_HEAD, key, value)
            if isinstance(head, Finished):
                partition.finished.setdefault(head.keep_s, {})[run_id] = head.finished_at
            else:
                heads[run_id] = head
    partition.finished = {k: dict(sorted(ended.items(), key=lambda e: e[1])) for k, ended in partition.finished.items()}
    for run_id, head in heads.items():
        if run_id not in submissions:
            raise ChangelogCorrupt(f"run {run_id} has no submission in the changelog; restore the topic from a backup")
        run = _understood(submissions[run_id], head, steps.get(run_id, {}))
        partition.runs[run_id] = run
        partition.written[run_id] = {HEAD, *(run.pipeline.index[step] for step in steps.get(run_id, {}))}
    partition.at = checkpoint.at_ms if checkpoint is not None else 0
    return partition, checkpoint


def _understood(submission: SubmitRun, head: Head, steps: Mapping[str, Step]) -> Run:
    try:
        return _restore_run(submission, head, steps)
    except (ValueError, KeyError, ExpressionError) as error:
        raise ChangelogCorrupt(
            f"run {submission.run_id} cannot be restored, its definition is not understood: {error!r}; start the"
            " version that wrote it and let the run end, or delete its records"
        ) from error


def _restore_run(submission: SubmitRun, head: Head, steps: Mapping[str, Step]) -> Run:
    run = Run.begin(submission, compile_pipeline(submission.definition), head.started_at)
    run.at, run.seq, run.continued = head.at, head.seq, head.continued
    run.stop, run.error, run.quarantined = head.stop, head.error, head.quarantined
    for step_id, step in steps.items():
        run.steps[run.pipeline.index[step_id]] = step
    run.recount()
    return run


def _dump_step(step: Step) -> bytes:
    """Return the step; its output is JSON already."""
    dumped: bytes = _STEP.serializer.to_json(step, exclude_defaults=True, exclude={"output"})
    return dumped if step.output is None else b'%b,"output":%b}' % (dumped[:-1], step.output)


def _dump(adapter: TypeAdapter[Any], value: Any) -> bytes:
    return adapter.serializer.to_json(value, exclude_defaults=True)


def _load(adapter: TypeAdapter[Any], key: bytes, value: bytes) -> Any:
    try:
        return adapter.validate_json(value)
    except ValueError as error:
        raise ChangelogCorrupt(f"the changelog record {key!r} cannot be read: {error}") from error
