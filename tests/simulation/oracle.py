"""What the inbox alone says: every record decided once, in order, in one process that nothing happens to."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from anabranch.services.orchestrator.core import changelog
from anabranch.services.orchestrator.core.decide import Decision
from anabranch.services.orchestrator.core.effects import Append, Channel
from anabranch.services.orchestrator.core.partition import Partition, to_runs
from anabranch.services.orchestrator.core.state import Run
from anabranch.services.orchestrator.core.status import TERMINAL, StepStatus
from anabranch.shared.contracts import messages as m
from anabranch.shared.contracts.codec import Headers, Undecodable, decode

from .broker import Record
from .harm import Drawn


class Output(NamedTuple):
    """A record that deciding the inbox leads to."""

    key: bytes
    value: bytes
    headers: Headers


class Restored(NamedTuple):
    """A changelog as a partition task read it when it took over."""

    partition: int
    live: Mapping[bytes, bytes]
    harmed: Sequence[str] = ()  # runs of which records were spoilt by then


@dataclass(slots=True)
class Told:
    """What one partition of the inbox says."""

    partition: Partition = field(default_factory=Partition)
    outputs: dict[Channel, set[Output]] = field(default_factory=lambda: {channel: set() for channel in Channel})
    events: dict[str, list[bytes]] = field(default_factory=dict)  # by run
    ended_at: dict[tuple[str, str], int] = field(default_factory=dict)  # (run, step) -> offset of its end
    needs: dict[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)
    raised: set[int] = field(default_factory=set)  # offsets of records on which deciding raised
    untouched: set[str] = field(default_factory=set)  # runs that could not even be failed
    harmed: set[str] = field(default_factory=set)  # runs that a take-over found harmed
    faults: list[str] = field(default_factory=list)
    latest_s: float = 0.0  # how long the latest of all timers was due while somebody could have acted upon it
    late: str = ""  # which that was


Held = Callable[[int, int], float]
"""How many seconds between two broker times (ms) somebody held the partition and could append to it."""


def tell(inbox: Iterable[Record], restored: Iterable[Restored], held: Held) -> Told:
    """Decide a partition of the inbox, and compare every changelog that was restored on the way."""
    told = Told()
    waiting = sorted(((_offset(one.live), one) for one in restored), key=lambda pair: pair[0])
    waiting.reverse()
    for record in inbox:
        while waiting and waiting[-1][0] <= record.offset:
            _compare(told, *waiting.pop())
        _note_lateness(told, record, held)
        _decide(told, record)
    while waiting:
        _compare(told, *waiting.pop())
    return told


def _offset(live: Mapping[bytes, bytes]) -> int:
    value = live.get(changelog.CHECKPOINT_KEY)
    return 0 if value is None else changelog.restore({changelog.CHECKPOINT_KEY: value})[1].offset  # type: ignore[union-attr]


def _decide(told: Told, record: Record) -> None:
    message = decode(m.INBOX, record.value)
    if isinstance(message, Undecodable):
        return
    for part in to_runs(message):
        decision = _decision(told, part, record)
        told.partition.commit(decision, record.at_ms)
        for effect in decision.effects:
            if isinstance(effect, Append):
                _note(told, part.run_id, effect)
        if decision.turn is not None:
            _note_ends(told, decision.turn.run, decision.turn.changed, record.offset)


def _decision(told: Told, message: m.RunMessage, record: Record) -> Decision:
    try:
        return told.partition.decide(message, record.at_ms)
    except Drawn as error:
        told.raised.add(record.offset)
        try:
            return told.partition.abandon(message, error, record.at_ms)
        except Drawn:
            told.partition.quarantine(message.run_id)
            told.untouched.add(message.run_id)
            return Decision(None)


def _note_lateness(told: Told, record: Record, held: Held) -> None:
    """See for how long the timers that are due by the time of this record could have been acted upon."""
    at = max(told.partition.at, record.at_ms)
    for run in told.partition.runs.values():
        if run.quarantined:
            continue
        for timer_id, due_ms in run.timers().items():
            if at > due_ms and (late_s := held(due_ms, at)) > told.latest_s:
                told.latest_s, told.late = late_s, f"{timer_id} of run {run.id} at offset {record.offset}"


def _note(told: Told, run_id: str, effect: Append) -> None:
    told.outputs[effect.channel].add(Output(effect.key.encode(), effect.value, effect.headers))
    if effect.channel is Channel.RUN_EVENTS:
        told.events.setdefault(run_id, []).append(effect.value)


def _note_ends(told: Told, run: Run, changed: Mapping[int, Any], offset: int) -> None:
    for index, step in changed.items():
        node = run.pipeline.steps[index]
        if step.status in TERMINAL:
            told.ended_at.setdefault((run.id, node.id), offset)
        told.needs[run.id, node.id] = tuple(run.pipeline.steps[need].id for need in node.needs)


def _harm(told: Told, harmed: Sequence[str], found: Partition) -> None:
    """Make what was harmed what the take-over that found it makes of it: from here on, that is what the inbox says."""
    expected = told.partition
    for run_id in harmed:
        if run_id not in told.harmed:
            told.harmed.add(run_id)
            del expected.runs[run_id]
            expected.changed.pop(run_id, None)
            if run_id in found.broken:
                expected.broken[run_id] = found.broken[run_id]


def _compare(told: Told, offset: int, restored: Restored) -> None:
    """A restored changelog is what deciding everything before its offset leads to."""
    try:
        partition, _ = changelog.restore(restored.live)
    except changelog.ChangelogCorrupt as error:
        told.faults.append(f"the changelog at offset {offset} cannot be restored: {error}")
        return
    _harm(told, restored.harmed, partition)
    expected = told.partition
    if _runs(partition) != _runs(expected):
        told.faults.append(f"the changelog at offset {offset} restores to other runs than the inbox says")
    if partition.at != expected.at or _finished(partition) != _finished(expected):
        told.faults.append(f"the changelog at offset {offset} restores to other finished runs or another time")


def _runs(partition: Partition) -> dict[str, object]:
    return {
        run.id: (run.submission, run.started_at, run.at, run.seq, run.continued, run.stop, run.error, run.quarantined,
                 run.steps, run.open, run.in_flight, run.in_flight_bytes, run.held, run.unmet, run.unhappy, _ready(run))
        for run in partition.runs.values()
    } | dict.fromkeys(partition.broken, "not understood")  # fmt: skip


def _ready(run: Run) -> list[int]:
    """The pending steps of the backlog: those that a stop has swept since are passed over when their turn comes."""
    return [index for index in run.backlog if run.steps[index].status is StepStatus.PENDING]


def _finished(partition: Partition) -> dict[str, int]:
    return {
        run_id: at
        for keep_s, ended in partition.finished.items()
        for run_id, at in ended.items()
        if partition.at < at + 1000 * keep_s
    }
