"""A partition's state as records of the changelog, and back.

| key | value |
|---|---|
| `<run_id>` | the run: status, counters that its steps do not tell; or `Finished` |
| `<run_id>/.submission` | the submission as it was, written once |
| `<run_id>/<step>` | the step, as of the last checkpoint that found it changed |
| `_checkpoint` | the inbox offset up to which everything is in here, the rules it was decided under, the time |

A change costs a record for the step and one for its run. A run that begins and ends between two checkpoints costs none.
"""

from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import orjson
from pydantic import TypeAdapter

from anabranch.services.orchestrator.core.decide import RULES_VERSION
from anabranch.services.orchestrator.core.partition import HEAD, SUBMISSION, Partition
from anabranch.services.orchestrator.core.state import Run, Step
from anabranch.services.orchestrator.core.stored import Broken, Head, Stored
from anabranch.shared.contracts.errors import AnabranchError
from anabranch.shared.contracts.messages import SubmitRun
from anabranch.shared.contracts.topics import CHECKPOINT_KEY

Records = Mapping[bytes, bytes]
"""The live records of a changelog partition."""

Change = tuple[bytes, bytes | None]
"""A record of the changelog: its key, and its value or None to delete it."""


class ChangelogCorrupt(AnabranchError):
    """The changelog does not say where the inbox goes on; says why and what to do."""


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


class Buried(NamedTuple):
    """A record that stands for nothing, and why."""

    key: bytes
    value: bytes
    reason: str


class Restored(NamedTuple):
    """What was made of a changelog."""

    partition: Partition
    checkpoint: Checkpoint | None
    buried: list[Buried]


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
    changes += [(_key(run_id), None) for run_id in partition.forget_expired()]
    changes.append((CHECKPOINT_KEY, _CHECKPOINT.dump_json(Checkpoint(offset, partition.at))))
    return changes


def _changed(run: Run, indices: set[int], written: set[int]) -> Iterable[Change]:
    key = run.id
    if HEAD not in written:
        # With its defaults: what the gateway stamped stays, although a later version may have others.
        yield f"{key}/{SUBMISSION}".encode(), _SUBMISSIONS.dump_json(run.submission)
    yield key.encode(), _dump(_HEAD, Head.of(run))
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
        yield _key(run_id), None if finished is None else _dump(_HEAD, finished)
    for name in left_over or ():
        yield _key(run_id, name), None


def restore(records: Records) -> tuple[Partition, Checkpoint | None]:
    """Return the partition that the live records of a changelog stand for, its runs compiled, and its checkpoint.

    Raises `ChangelogCorrupt` when the checkpoint cannot be read.
    """
    slices = restoring(records)
    while True:
        try:
            next(slices)
        except StopIteration as done:
            restored: Restored = done.value
            restored.partition.awaken_all()
            return restored.partition, restored.checkpoint


def restoring(records: Records) -> Generator[None, None, Restored]:
    """Return the partition that the live records of a changelog stand for, and yield after every record.

    What cannot be read is its own run's affair: the run fails with the next message to it; where not even its head can
    be read, its records are buried. Nothing here depends on when it is done, so that doing it again repeats it.
    Raises `ChangelogCorrupt` when the checkpoint cannot be read: nobody knows then which record is to be decided next.
    """
    value = records.get(CHECKPOINT_KEY)
    checkpoint = None if value is None else _checkpoint(value)
    partition = Partition(at=0 if checkpoint is None else checkpoint.at_ms)
    restored = Restored(partition, checkpoint, [])
    for run_id, named in _by_run(records).items():
        yield from _restoring_run(restored, run_id, named)
    partition.finished = {k: dict(sorted(ended.items(), key=lambda e: e[1])) for k, ended in partition.finished.items()}
    return restored


def _checkpoint(value: bytes) -> Checkpoint:
    try:
        checkpoint: Checkpoint = _load(_CHECKPOINT, value)
    except ValueError as error:
        raise ChangelogCorrupt(
            f"the changelog record {CHECKPOINT_KEY!r} cannot be read: {error}; write it again, or restore the topic"
        ) from error
    return checkpoint


_Named = dict[str | None, bytes]
"""The records of a run by their names; that of its head has none."""


def _by_run(records: Records) -> dict[str, _Named]:
    runs: dict[str, _Named] = {}
    for key, value in records.items():
        if key != CHECKPOINT_KEY:
            run_id, slash, name = key.decode(errors="surrogateescape").partition("/")
            runs.setdefault(run_id, {})[name if slash else None] = value
    return runs


def _restoring_run(restored: Restored, run_id: str, named: _Named) -> Iterator[None]:
    partition = restored.partition
    try:
        head = _load(_HEAD, named[None])
    except (KeyError, ValueError) as error:
        _bury(restored, run_id, named, "its head is missing" if None not in named else f"its head: {error}")
        return
    yield
    if isinstance(head, Finished):
        partition.finished.setdefault(head.keep_s, {})[run_id] = head.finished_at
        if len(named) > 1:
            _bury(restored, run_id, {name: value for name, value in named.items() if name is not None}, "it has ended")
        return
    read = _Read(run_id)
    for name, value in named.items():
        if name is not None:
            read.take(name, value)
            yield
    if (stored := read.stored(head)) is not None:
        partition.stored[run_id] = stored
        return
    names = [name for name in named if name is not None]
    try:
        partition.broken[run_id] = read.broken(head, names)
    except ValueError as error:  # the key is no run's id
        _bury(restored, run_id, named, f"its key: {error}")


class _Read:
    """What could be read of a run, and the first reason why it is not whole."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._submission: SubmitRun | None = None
        self._steps: dict[str, Step] = {}
        self._fault = ""

    def take(self, name: str, value: bytes) -> None:
        """Read a record."""
        try:
            if name != SUBMISSION:
                self._steps[name] = _load(_STEP, value)
            elif (submission := _load(_SUBMISSIONS, value)).run_id == self._run_id:
                self._submission = submission
        except ValueError as error:
            self._fault = self._fault or f"its record {name!r} cannot be read: {error}"

    def stored(self, head: Head) -> Stored | None:
        """Return the run if all of it could be read."""
        whole = self._submission is not None and not self._fault
        return Stored(self._submission, head, self._steps) if whole and self._submission is not None else None

    def broken(self, head: Head, names: list[str]) -> Broken:
        """Return the run as one that is not understood. Raises `ValueError` for what is no run's id."""
        submission = self._submission or SubmitRun(run_id=self._run_id, tenant="", definition="")
        return Broken(submission, head, tuple(names), self._fault or "it has no submission")


def _bury(restored: Restored, run_id: str, named: _Named, reason: str) -> None:
    """Have these records leave the changelog with the next checkpoint."""
    partition = restored.partition
    partition.changed[run_id] = set()
    partition.left_over[run_id] = tuple(name for name in named if name is not None)
    for name, value in named.items():
        restored.buried.append(Buried(_key(run_id, name), value, reason))


def _key(run_id: str, name: str | None = None) -> bytes:
    return (run_id if name is None else f"{run_id}/{name}").encode(errors="surrogateescape")


def _dump_step(step: Step) -> bytes:
    """Return the step; its output is JSON already."""
    dumped: bytes = _STEP.serializer.to_json(step, exclude_defaults=True, exclude={"output"})
    return dumped if step.output is None else b'%b,"output":%b}' % (dumped[:-1], step.output)


def _dump(adapter: TypeAdapter[Any], value: Any) -> bytes:
    return adapter.serializer.to_json(value, exclude_defaults=True)


def _load(adapter: TypeAdapter[Any], value: bytes) -> Any:
    """Return what a record holds, read as messages are (`codec.decode`). Raises `ValueError`."""
    return adapter.validator.validate_python(orjson.loads(value))
