"""What must hold at the end of every simulation: the guarantees of the architecture, §9."""

import hashlib
from base64 import b64decode
from collections import Counter
from collections.abc import Sized
from functools import partial
from typing import TYPE_CHECKING

from anabranch.services.orchestrator.core import changelog
from anabranch.services.orchestrator.core.effects import Channel
from anabranch.services.orchestrator.partition_task import PartitionTask
from anabranch.services.orchestrator.replay import Replay
from anabranch.shared.contracts import messages as m
from anabranch.shared.contracts.codec import decode
from anabranch.shared.contracts.errors import ErrorType
from anabranch.shared.contracts.partitioner import partition_of
from anabranch.shared.runtime.topic_reader import Record as TopicRecord

from .harm import Drawn
from .oracle import Output, Restored, Told, tell
from .processes import OrchestratorProcess, WorkerProcess
from .workload import USES

if TYPE_CHECKING:
    from .broker import Record
    from .simulation import World


def check_quiet(world: "World") -> None:
    """Nothing is in flight: no run, timer, lease or command. Called before the processes stop."""
    owned: Counter[int] = Counter()
    for process in [slot.process for slot in world.slots if slot.process is not None]:
        if not process.host.is_alive:
            continue
        if isinstance(process, OrchestratorProcess):
            owned.update(process.owner.tasks.keys())
            for number, task in process.owner.tasks.items():
                world.unhandled += [f"{process.host.name}, partition {number}: {fault}" for fault in _in_flight(task)]
        elif isinstance(process, WorkerProcess):
            world.unhandled += [f"{process.host.name}: {fault}" for fault in _in_hand(process)]
    if owned != Counter(range(world.broker.topics.runs)):
        world.unhandled.append(f"partitions are owned {dict(owned)} times")


def _in_flight(task: PartitionTask) -> list[str]:
    partition = task.partition
    quarantined = {run.id for run in partition.runs.values() if run.quarantined}
    quarantined |= {run_id for run_id, stored in partition.stored.items() if stored.head.quarantined}
    left: dict[str, Sized] = {
        "runs": partition.runs.keys() - quarantined,
        "runs that were not decided on": partition.stored.keys() - quarantined,
        "runs that were not understood": partition.broken,
        "timers": task._timers,
        "changes": partition.changed,
        "steps in the changelog": partition.written.keys() - quarantined,
        "steps of ended runs in the changelog": partition.left_over,
    }
    return [f"still has {len(what)} {name}" for name, what in left.items() if len(what)]


def _in_hand(process: WorkerProcess) -> list[str]:
    worker = process.worker
    left: dict[str, Sized] = {
        "attempts": worker._attempts,
        "leases": worker._leases._held,
        "notes to be written": worker._notes._waiting,
        "acknowledgements to be awaited": worker._sending._waiting,
    }
    return [f"still has {len(what)} {name}" for name, what in left.items() if len(what)]


def check(world: "World") -> list[str]:
    """Return everything that is wrong."""
    faults = list(world.unhandled)
    told = [_tell(world, partition) for partition in range(world.broker.topics.runs)]
    faults += [f"partition {number}: {fault}" for number, one in enumerate(told) for fault in one.faults]
    faults += _check_lateness(world, told)
    faults += _check_ends(world, told)
    faults += _check_harmed(told)
    faults += _check_events(world, told)
    faults += _check_outputs(world, told)
    faults += _check_handlers(world, told)
    faults += _check_leases(world)
    faults += _check_commands(world)
    faults += _check_dead_letters(world, told)
    faults += _check_forgetting(world, told)
    faults += _check_replays(world)
    return faults


def _tell(world: "World", partition: int) -> Told:
    inbox = world.broker.log(world.broker.topics.inbox, partition).records
    last = Restored(partition, world.broker.changelogs[partition].live(), tuple(world.harm.harmed.get(partition, ())))
    restored = [r for r in world.restored if r.partition == partition] + [last]
    told = tell(inbox, restored, partial(world.holding.between, partition))
    value = last.live.get(changelog.CHECKPOINT_KEY)
    offset = 0 if value is None else changelog.restore({changelog.CHECKPOINT_KEY: value})[1].offset  # type: ignore[union-attr]
    if offset != len(inbox):
        told.faults.append(f"stopped at offset {offset} of {len(inbox)}")
    return told


LATE_S = 6.0  # of holding the partition: as long as an outage of it, with what is slow added
"""How late a timer may be acted upon."""


def _check_lateness(world: "World", told: list[Told]) -> list[str]:
    """A timer that is due is acted upon as soon as somebody holds the partition, whoever held it when it was set."""
    if world.is_restoring:
        return []
    return [f"timer {one.late} was acted upon {one.latest_s:g} s late" for one in told if one.latest_s > LATE_S]


def _check_ends(world: "World", told: list[Told]) -> list[str]:
    """Every accepted run ends, and none because it hung; but for those that nobody can end."""
    done = world.ended.union(world.harm.buried, *(one.untouched for one in told))
    world.weather.count("decisions that raised", sum(len(one.raised) for one in told))
    world.weather.count("runs that could not even be failed", sum(len(one.untouched) for one in told))
    return [f"run {s.message.run_id} has no end" for s in world.submissions if s.message.run_id not in done]


def _check_harmed(told: list[Told]) -> list[str]:
    """A run whose records were harmed fails for it."""
    faults = []
    for one in told:
        for run_id in one.harmed:
            last = m.RUN_EVENTS.validate_json(one.events[run_id][-1])
            if isinstance(last, m.RunEnded) and (last.error is None or last.error.type != ErrorType.ENGINE_ERROR):
                faults.append(f"run {run_id} was harmed and ended as {last}")
    return faults


def _check_events(world: "World", told: list[Told]) -> list[str]:
    """One sequence per run, without gap, each repeat byte for byte; and it is what the inbox says."""
    faults = []
    for partition, one in enumerate(told):
        seen: dict[str, list[bytes]] = {}
        for record in world.broker.log(world.broker.topics.run_events, partition).records:
            faults += _check_event(seen, record)
        for run_id, events in one.events.items():
            if seen.get(run_id, []) != events:
                faults.append(
                    f"run {run_id}: {len(seen.get(run_id, []))} events, the inbox says {len(events)}, or others"
                )
        faults += [
            f"run {run_id}: events, but the inbox knows no such run" for run_id in seen.keys() - one.events.keys()
        ]
        for events in seen.values():
            faults += _check_results(events)
    return faults


def _check_event(seen: dict[str, list[bytes]], record: "Record") -> list[str]:
    assert record.key is not None and record.value is not None
    run_id, _, number = dict(record.headers)["ce_id"].decode().rpartition("/")
    events, seq = seen.setdefault(run_id, []), int(number)
    if seq <= len(events):
        return [] if events[seq - 1] == record.value else [f"run {run_id}: event {seq} was repeated as another"]
    if seq > len(events) + 1:
        return [f"run {run_id}: event {seq} follows {len(events)}"]
    events.append(record.value)
    return []


def _check_results(events: list[bytes]) -> list[str]:
    """At most one result per step."""
    ends = Counter[str]()
    for value in events:
        event = m.RUN_EVENTS.validate_json(value)
        if isinstance(event, m.StepChanged) and event.status in _ENDED_STEPS:
            ends[f"{event.run_id}/{event.step}"] += 1
    return [f"step {step} has {count} results" for step, count in ends.items() if count > 1]


_ENDED_STEPS = {"succeeded", "failed", "timed_out", "cancelled", "skipped"}


def _check_outputs(world: "World", told: list[Told]) -> list[str]:
    """What the core appends is what the inbox says, channel by channel, no more and no fewer, byte for byte.

    But for commands that were refused; and every run has ended, so those were sent again.
    """
    topics = world.broker.topics
    faults = []
    refused = _refused(world)
    for channel, name, partitions in (
        (Channel.COMMANDS, topics.steps(USES), topics.steps_partitions),
        (Channel.CONTROL, topics.control, 1),
        (Channel.RUN_EVENTS, topics.run_events, topics.runs),
        (Channel.INBOX, topics.inbox, topics.runs),
        (Channel.DEAD_LETTERS, topics.dead_letters, topics.runs),
    ):
        said = set[Output]().union(*(one.outputs[channel] for one in told))
        sent = {
            Output(record.key or b"", record.value or b"", record.headers)
            for log in world.logs(name, partitions)
            for record in log.records
            if _is_the_cores(channel, record)
        }
        missing = {each for each in said - sent if channel is not Channel.COMMANDS or _sending(each) not in refused}
        if missing or sent - said:
            faults.append(f"{channel}: {len(missing)} records are missing, {len(sent - said)} should not be there")
    return faults


def _is_the_cores(channel: Channel, record: "Record") -> bool:
    """Return whether the core itself made the record: others append to the inbox and to the dead letters too."""
    headers = dict(record.headers)
    if channel is Channel.INBOX:
        return headers.get("ce_type") == b"ContinueRun"
    return channel is not Channel.DEAD_LETTERS or headers["ce_id"].endswith(b"/lost")


def _sending(command: Output) -> tuple[str, str, int, int]:
    message = m.COMMANDS.validate_json(command.value)
    return message.run_id, message.step, message.attempt, message.sending or 0


def _refused(world: "World") -> set[tuple[str, str, int, int]]:
    """Return the commands that did not get out, or seemed not to: the inbox says so of each."""
    topics = world.broker.topics
    records = (r for log in world.logs(topics.inbox, topics.runs) for r in log.records)
    messages = (decode(m.INBOX, record.value) for record in records)
    return {(r.run_id, r.step, r.attempt, r.sending) for r in messages if isinstance(r, m.CommandRefused)}


def _check_handlers(world: "World", told: list[Told]) -> list[str]:
    """A handler starts after what it needs, not after its cancellation, and once while its worker and Redis live."""
    faults = []
    ended = {key: offset for one in told for key, offset in one.ended_at.items()}
    needs = {key: names for one in told for key, names in one.needs.items()}
    for start in world.journal.starts:
        for need in needs.get((start.run_id, start.step), ()):
            if ended.get((start.run_id, need), 1 << 60) >= start.inbox_end:
                faults.append(f"{start.attempt} was started before {need} had ended")
        if start.cancelled_before:
            faults.append(f"{start.attempt} was started by {start.host.name}, which was started after its cancellation")
        if start.needlessly_again:
            faults.append(f"{start.attempt} was started again by {start.host.name} at {start.at_s:.3f}")
    return faults


def _check_leases(world: "World") -> list[str]:
    """No lease is lost while workers live and the inbox takes their renewals."""
    if world.weather.drew["outages of a partition"] or any(
        host.has_failed for host in world.started if host.name.startswith("worker")
    ):
        return []
    lapsed = world.weather.drew["lapsed leases"]
    return [f"{lapsed} leases of workers that live have lapsed"] if lapsed else []


def _check_commands(world: "World") -> list[str]:
    """No command is left unreleased."""
    topics = world.broker.topics
    return [
        f"command partition {number} is committed up to {world.steps_group.committed.get(number, 0)} of {log.end}"
        for number, log in enumerate(world.logs(topics.steps(USES), topics.steps_partitions))
        if world.steps_group.committed.get(number, 0) != log.end
    ]


def _check_dead_letters(world: "World", told: list[Told]) -> list[str]:
    """What was poison, raised or was buried is a dead letter, each repeat byte for byte; and steps that were lost."""
    topics = world.broker.topics
    faults, letters = [], dict[bytes, bytes]()
    for record in (r for log in world.logs(topics.dead_letters, topics.runs) for r in log.records):
        assert record.value is not None
        if letters.setdefault(dict(record.headers)["ce_id"], record.value) != record.value:
            faults.append(f"the dead letter {record.headers[0]} was repeated as another")
    of = [m.DEAD_LETTERS.validate_json(value) for value in letters.values()]
    poison = [letter for letter in of if letter.error_type == "Undecodable"]
    if len(poison) != world.poisoned:
        faults.append(f"{len(poison)} dead letters of {world.poisoned} poison messages")
    raised = {(letter.partition, letter.offset) for letter in of if letter.error_type == Drawn.__name__}
    if raised != {(number, offset) for number, one in enumerate(told) for offset in one.raised}:
        faults.append(f"other dead letters of records on which deciding raised than the inbox says: {raised}")
    buried = [b64decode(letter.key_base64 or "") for letter in of if letter.error_type == "ChangelogUnreadable"]
    if {key.partition(b"/")[0].decode() for key in buried} != world.harm.buried:
        faults.append(f"dead letters of {buried}, buried were {world.harm.buried}")
    known = {"Undecodable", Drawn.__name__, "ChangelogUnreadable", ErrorType.WORKER_LOST}
    return faults + [f"a dead letter of {letter!r}" for letter in of if letter.error_type not in known]


def _check_forgetting(world: "World", told: list[Told]) -> list[str]:
    """When every key's time is over, nothing is left but the checkpoint."""
    faults = []
    for number, one in enumerate(told):
        live = dict(world.broker.changelogs[number].live())
        try:
            partition, _ = changelog.restore(live)
        except changelog.ChangelogCorrupt:  # said when it was compared
            continue
        partition.at += 10**12
        for key, value in changelog.take_changes(partition, 0):
            if value is None:
                live.pop(key, None)
        live = {key: value for key, value in live.items() if key.partition(b"/")[0].decode() not in one.untouched}
        if live.keys() - {changelog.CHECKPOINT_KEY}:
            faults.append(f"the changelog of partition {number} keeps {sorted(live)[:3]}")
        if left := one.partition.runs.keys() - one.untouched:
            faults.append(f"partition {number}: the inbox says that {len(left)} runs have not ended")
    return faults


def _check_replays(world: "World") -> list[str]:
    """A run can be rebuilt from the inbox alone, whatever befell the processes. Every third is: it takes time."""
    topics, faults = world.broker.topics, []
    harmed = {run_id for runs in world.harm.harmed.values() for run_id in runs}
    for run_id in sorted({submission.message.run_id for submission in world.submissions} - harmed)[::3]:
        partition = partition_of(run_id.encode(), topics.runs)
        replay = Replay(run_id)
        for record in world.broker.log(topics.inbox, partition).records:
            replay.take(TopicRecord(*record))
        events = world.broker.log(topics.run_events, partition).records
        written = list(dict.fromkeys(record.value for record in events if record.key == run_id.encode()))
        if [event.value for event in replay.events] != written:
            faults.append(f"run {run_id} is replayed otherwise than it was decided")
    return faults


def digest(world: "World") -> str:
    """Return a digest of everything that was ever appended."""
    hashed = hashlib.blake2b(digest_size=16)
    topics = world.broker.topics
    for name, partitions in (
        (topics.inbox, topics.runs), (topics.run_events, topics.runs), (topics.control, 1),
        (topics.steps(USES), topics.steps_partitions), (topics.dead_letters, topics.runs),
    ):  # fmt: skip
        for log in world.logs(name, partitions):
            for record in log.records:
                hashed.update(repr(record).encode())
    return hashed.hexdigest()
