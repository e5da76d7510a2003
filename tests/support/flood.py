"""Many diamonds in flight over HTTP, everything that Kafka then says of them, and whether it is right."""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self
from uuid import uuid4

import aiohttp
import orjson
from aiokafka import AIOKafkaConsumer, TopicPartition

from anabranch.shared.contracts.codec import header
from anabranch.shared.contracts.messages import RUN_ENDED_TYPES
from anabranch.shared.runtime.kafka import new_consumer
from anabranch.shared.runtime.settings import Settings
from tests.support.diamond import diamond, right_outputs

_RESULTS: Final = frozenset({"StepSucceeded", "StepFailed", "StepTimedOut", "StepCancelled", "StepSkipped"})
_LANES: Final = 32  # submissions under way at once
_RETRY_STATUS: Final = frozenset({502, 503})


@dataclass(slots=True)
class Seen:
    """What the topics say: events by run and number, and how often each command was appended."""

    events: dict[str, dict[int, bytes]] = field(default_factory=dict)
    ended: dict[str, dict[str, Any]] = field(default_factory=dict)
    results: dict[tuple[str, str], set[bytes]] = field(default_factory=dict)
    commands: Counter[str] = field(default_factory=Counter)
    repeated_events: int = 0
    differing_repeats: list[tuple[str, int]] = field(default_factory=list)

    @property
    def repeated_commands(self) -> int:
        """Commands that were appended again."""
        return sum(count - 1 for count in self.commands.values())

    def take_event(self, value: bytes) -> None:
        """Count a run event in."""
        event = orjson.loads(value)
        run_id, seq = event["run_id"], event["seq"]
        events = self.events.setdefault(run_id, {})
        if seq in events:
            self.repeated_events += 1
            if events[seq] != value:
                self.differing_repeats.append((run_id, seq))
            return
        events[seq] = value
        if event["type"] in _RESULTS:
            self.results.setdefault((run_id, event["step"]), set()).add(value)
        if event["type"] in RUN_ENDED_TYPES:
            self.ended[run_id] = event


class Observer:
    """Reads run events and commands from the start of their topics, without a group."""

    def __init__(self, settings: Settings, step_type: str) -> None:
        self._settings = settings
        self._step_type = step_type
        self.seen = Seen()
        self._changed = asyncio.Condition()

    async def __aenter__(self) -> Self:
        topics = self._settings.topics
        self._command_topic = topics.steps(self._step_type)
        self._consumer: AIOKafkaConsumer = new_consumer(self._settings, isolation_level="read_committed")
        await self._consumer.start()
        partitions = [TopicPartition(topics.run_events, p) for p in range(topics.runs)]
        partitions += [TopicPartition(self._command_topic, p) for p in range(topics.steps_partitions)]
        self._consumer.assign(partitions)
        await self._consumer.seek_to_beginning(*partitions)
        self._reading = asyncio.create_task(self._read(), name="observer")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        await self._consumer.stop()

    async def _read(self) -> None:
        while True:
            for tp, records in (await self._consumer.getmany(timeout_ms=500)).items():
                for record in records:
                    if tp.topic == self._command_topic:
                        self.seen.commands[header(record.headers, "ce_id") or "?"] += 1
                    else:
                        self.seen.take_event(record.value)
            async with self._changed:
                self._changed.notify_all()

    async def changed(self) -> None:
        """Wait until more was read."""
        async with self._changed:
            await self._changed.wait()

    async def until(self, holds: Callable[[Seen], bool], what: str, timeout_s: float) -> None:
        """Wait until the topics say so; raise when they do not within the time."""
        try:
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(lambda: self._reading.done() or holds(self.seen))
        except TimeoutError:
            raise AssertionError(f"after {timeout_s} s: {what}; {len(self.seen.ended)} runs have ended") from None
        if self._reading.done():
            self._reading.result()


class Flood:
    """Keeps a number of diamonds in flight until it is told to stop."""

    def __init__(self, gateway_url: str, observer: Observer, *, in_flight: int, definition: Mapping[str, Any]) -> None:
        self._url = f"{gateway_url}/v1/runs"
        self._observer = observer
        self._in_flight = in_flight
        self._definition = definition
        self._stopping = False
        self._name = uuid4().hex
        self.accepted: dict[str, int] = {}

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=_LANES))
        self._submitting = asyncio.create_task(self._submit_all(), name="flood")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopping = True
        self._submitting.cancel()
        await asyncio.gather(self._submitting, return_exceptions=True)
        await self._session.close()

    async def drained(self, timeout_s: float) -> dict[str, int]:
        """Submit no more, wait until every accepted run has ended, and return them: run id -> n."""
        self._stopping = True
        await self._submitting
        accepted = self.accepted
        await self._observer.until(
            lambda seen: accepted.keys() <= seen.ended.keys(), "accepted runs have not all ended", timeout_s
        )
        return accepted

    async def until_in_flight(self, count: int, timeout_s: float = 60.0) -> None:
        """Wait until so many accepted runs have not ended."""
        await self._observer.until(
            lambda seen: self._submitting.done() or len(self.accepted) - len(seen.ended) >= count,
            f"fewer than {count} runs in flight",
            timeout_s,
        )
        if self._submitting.done():
            self._submitting.result()

    async def _submit_all(self) -> None:
        async with asyncio.TaskGroup() as submitters:
            for lane in range(_LANES):
                submitters.create_task(self._keep_submitting(lane), name=f"flood lane {lane}")

    async def _keep_submitting(self, lane: int) -> None:
        n = lane
        while not self._stopping:
            if len(self.accepted) - len(self._observer.seen.ended) >= self._in_flight:
                await self._observer.changed()
                continue
            await self._submit(n)
            n += _LANES

    async def _submit(self, n: int) -> None:
        body = {"definition": self._definition, "inputs": {"n": n}}
        while True:
            try:
                async with self._session.post(
                    self._url, json=body, headers={"Idempotency-Key": f"{self._name}-{n}"}
                ) as answer:
                    if answer.status in _RETRY_STATUS:
                        await asyncio.sleep(float(answer.headers.get("Retry-After", 1)))
                        continue
                    said = await answer.json()
                    assert answer.status == 202, said
                    self.accepted[said["id"]] = n
                    return
            except aiohttp.ClientConnectionError:
                continue


def faults_of(seen: Seen, accepted: Mapping[str, int]) -> list[str]:
    """Return what is wrong with the ends of accepted runs and with their events; nothing, it is to be hoped."""
    faults = [f"{run_id} never ended" for run_id in accepted if run_id not in seen.ended]
    for run_id, n in accepted.items():
        end = seen.ended.get(run_id)
        if end is not None and end.get("outputs") != right_outputs(n):
            faults.append(f"{run_id} ended as {end['type']} with {end.get('outputs')}, {end.get('error')}")
        events = seen.events.get(run_id, {})
        if sorted(events) != list(range(1, len(events) + 1)):
            faults.append(f"{run_id} has a gap: {sorted(events)}")
    faults += [f"{run} {step} has {len(r)} results" for (run, step), r in seen.results.items() if len(r) > 1]
    faults += [f"event {seq} of {run_id} was repeated with other bytes" for run_id, seq in seen.differing_repeats]
    return faults


def default_definition(sleep_s: float = 0.3) -> dict[str, Any]:
    """Return the diamond of witnesses."""
    return diamond("witness", sleep=sleep_s)
