"""Run events to what they overwrite in their runs' snapshots. Pure: the same events make the same changes."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from anabranch.shared.contracts.messages import RunEnded, RunEventMessage
from anabranch.shared.runtime.snapshots import Fields, fields_of


@dataclass(slots=True)
class RunChange:
    """What events `first_seq` to `last_seq` of one run overwrite; `missing` is how many between them are absent."""

    run_id: str
    first_seq: int
    last_seq: int
    fields: Fields = field(default_factory=dict)
    ended: str = ""
    missing: int = 0
    repeated: int = 0

    def missing_after(self, seq: int) -> int:
        """Return how many events are absent, if the snapshot holds everything up to `seq`."""
        return self.missing + max(0, self.first_seq - seq - 1)


def project(events: Iterable[RunEventMessage]) -> list[RunChange]:
    """Return one change per run, in the order in which the runs appear; of one field the last event counts."""
    changes: dict[str, RunChange] = {}
    for event in events:
        add(changes, event, fields_of(event))
    return list(changes.values())


def add(changes: dict[str, RunChange], event: RunEventMessage, fields: Fields) -> None:
    """Have the change of the event's run say what the event says, too: its `fields`."""
    change = changes.get(event.run_id)
    if change is None:
        changes[event.run_id] = change = RunChange(event.run_id, event.seq, event.seq - 1)
    if event.seq <= change.last_seq:
        change.repeated += 1  # an orchestrator decided it again after a crash: the same bytes
        return
    change.missing += event.seq - change.last_seq - 1
    change.last_seq = event.seq
    change.fields.update(fields)
    if isinstance(event, RunEnded):
        change.ended = event.status
