"""Who ran what: every handler start, seen from outside of the workers."""

import asyncio
from dataclasses import dataclass, field

from anabranch.services.steps.context import StepContext
from anabranch.shared.contracts.ids import attempt_id
from anabranch.shared.contracts.partitioner import partition_of

from .broker import Broker
from .virtual import Host
from .worker_ports import Redis


@dataclass(frozen=True, slots=True)
class Start:
    """A handler was started."""

    attempt: str
    run_id: str
    step: str
    host: Host
    at_s: float
    inbox_end: int  # of the run's partition: what was decided by then stands before it
    cancelled_before: bool  # its cancellation was in the control topic when the worker started
    needlessly_again: bool  # it ran before, on a worker that lives, and Redis was there all the time


@dataclass(slots=True)
class Journal:
    """What all witnesses saw."""

    starts: list[Start] = field(default_factory=list)
    hosts: dict[str, list[Host]] = field(default_factory=dict)  # that started the attempt
    numbers: int = 0

    def runs_of(self, step: str) -> int:
        """Return how often a handler of this step was started."""
        return sum(f"{start.run_id}/{start.step}" == step for start in self.starts)


class Witness:
    """What the handlers of one worker tell."""

    def __init__(self, journal: Journal, host: Host, broker: Broker, redis: Redis) -> None:
        self._journal = journal
        self._host = host
        self._broker = broker
        self._redis = redis
        control = broker.log(broker.topics.control, 0)
        self._cancelled = {dict(record.headers)["ce_id"] for record in control.records}

    async def handler(self, context: StepContext, sleep_s: float, kills_first: int) -> int:
        """Note the start, take the time, return a number that no other handler returns."""
        attempt = attempt_id(context.run_id, context.step, context.attempt)
        place = partition_of(context.run_id.encode(), self._broker.topics.runs)
        before = self._journal.hosts.setdefault(attempt, [])
        was_excused = self._redis.was_lost or self._host.has_failed or any(host.has_failed for host in before)
        self._journal.starts.append(
            Start(
                attempt, context.run_id, context.step, self._host, self._broker.loop.now,
                inbox_end=self._broker.log(self._broker.topics.inbox, place).end,
                cancelled_before=f"{attempt}/cancel".encode() in self._cancelled,
                needlessly_again=bool(before) and not was_excused,
            )
        )  # fmt: skip
        before.append(self._host)
        self._journal.numbers += 1
        number = self._journal.numbers
        if sleep_s:
            await asyncio.sleep(sleep_s)
        if kills_first and self._journal.runs_of(context.idempotency_key) <= kills_first:
            self._broker.weather.count("workers that a step took down")
            self._host.kill()
            await asyncio.sleep(0)  # and never again
        return number

    def gave(self, odd: str) -> None:
        """Count a value that a run cannot hold, or hardly."""
        self._broker.weather.count(f"odd values: {odd}")
