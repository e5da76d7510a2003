"""A run is rebuilt from its partition of the inbox, whatever happened to it (and to whoever decided it: simulation)."""

import random
from collections.abc import Iterable

from anabranch.services.orchestrator.core.effects import Channel
from anabranch.services.orchestrator.replay import Replay
from anabranch.shared.contracts import messages as m
from anabranch.shared.contracts.ids import run_id_for_key
from anabranch.shared.runtime.topic_reader import Record
from tests.support.builders import T0, a_step, a_submission, succeeded
from tests.support.random_runs import Life, live, outputs_of


def replayed(run_id: str, records: Iterable[Record]) -> Replay:
    """Return the run after these records of its partition."""
    replay = Replay(run_id)
    for record in records:
        replay.take(record)
    return replay


def a_record(offset: int, at_ms: int, message: m.RunMessage) -> Record:
    """Return a message as it lies in the inbox, where leases are renewed many at once."""
    if isinstance(message, m.LeaseRenewed):
        lease = m.Lease.model_validate(message.model_dump(exclude={"type", "lease_s"}))
        others = m.Lease(run_id="another", step="s0", attempt=1)
        renewed = m.LeasesRenewed(worker="w", lease_s=message.lease_s, leases=(others, lease))
        return Record(offset, at_ms, None, renewed.model_dump_json(exclude_none=True).encode(), ())
    return Record(offset, at_ms, None, message.model_dump_json(exclude_none=True).encode(), ())


def events_of(life: Life) -> list[bytes]:
    """Return the events that the run's life led to: those of its second one if its start came again after its end."""
    events = [output.value for output in outputs_of(life.decisions) if output.channel is Channel.RUN_EVENTS]
    starts = [number for number, value in enumerate(events) if b'"type":"RunStarted"' in value]
    return events[starts[-1] :]


def kinds_of(replay: Replay) -> list[str]:
    """Return the types of the run's events."""
    return [m.RUN_EVENTS.validate_json(event.value).type for event in replay.events]


def test_random_lives_are_rebuilt_byte_for_byte() -> None:
    """Retries, lapsed leases, time-outs, cancellations, skipped steps, transforms, early timers, repeats, nonsense."""
    kinds: set[str] = set()
    for seed in range(60):
        life = live(random.Random(seed), largest=6)
        records = [a_record(offset, at, message) for offset, (message, at) in enumerate(life.inbox)]
        replay = replayed(life.submission.run_id, records)
        assert [event.value for event in replay.events] == events_of(life), seed
        assert replay.has_ended == (kinds_of(replay)[-1] in m.RUN_ENDED_TYPES)
        assert [event.cause.offset for event in replay.events] == sorted(event.cause.offset for event in replay.events)
        assert all(records[event.cause.offset].timestamp_ms == event.cause.at_ms for event in replay.events)
        kinds.update(kinds_of(replay))
    assert kinds >= {
        "StepRetrying", "StepSkipped", "StepTimedOut", "StepCancelled", "RunCancelled", "RunTimedOut", "RunFailed",
    }  # fmt: skip


def test_a_second_run_with_an_id_is_another_run() -> None:
    """A key is promised for a while after the run's end: then its submission begins anew, from event 1."""
    run_id = run_id_for_key("t", "key")
    submission = a_submission({"a": a_step()}, run_id=run_id, keep_s=1)
    records = [
        a_record(0, T0, submission),
        a_record(1, T0 + 1, succeeded("a", 1, run_id=run_id)),
        a_record(2, T0 + 500, submission),  # a repeat
        a_record(3, T0 + 5000, submission),
    ]
    first, second = replayed(run_id, records[:3]), replayed(run_id, records)
    assert [event.cause.offset for event in first.events] == [0, 1, 1]
    assert first.has_ended
    assert [event.cause.offset for event in second.events] == [3]
    assert not second.has_ended


def test_time_goes_on_with_the_records_of_others() -> None:
    """A repeat is recognised by the partition's latest time, which another run's record may have set."""
    run_id = run_id_for_key("t", "key")
    submission = a_submission({"a": a_step()}, run_id=run_id, keep_s=1)
    records = [
        a_record(0, T0, submission),
        a_record(1, T0 + 1, succeeded("a", 1, run_id=run_id)),
        a_record(2, T0 + 5000, m.CancelRun(run_id="another")),
        a_record(3, T0 + 500, submission),  # the broker's clock stepped back
    ]
    assert [event.cause.offset for event in replayed(run_id, records).events] == [3]


def test_what_is_no_message_is_passed_over_and_an_escaped_id_is_read() -> None:
    """As the partition's task does."""
    submission = a_submission({"a": a_step()}, run_id="run-1")
    value = submission.model_dump_json().replace('"run-1"', '"\\u0072un-1"').encode()
    replay = replayed(
        "run-1",
        [Record(0, T0, b"run-1", b'{"run-1"', ()), Record(1, T0, None, None, ()), Record(2, T0, None, value, ())],
    )
    assert [event.cause.offset for event in replay.events] == [2]
