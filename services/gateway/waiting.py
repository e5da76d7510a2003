"""Requests that wait for a run's end: one pub/sub connection tells all of them, and a slow look is the net below."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from structlog.typing import FilteringBoundLogger

from anabranch.services.gateway.followers import Followers
from anabranch.services.gateway.metrics import GatewayMetrics
from anabranch.services.gateway.reads import RunReads
from anabranch.shared.runtime.deadline import Deadline
from anabranch.shared.runtime.redis import PubSub, Redis, RedisError, RedisKeys

LOOK_S: Final = 5.0  # how late a waiter is at worst: a message may be lost with its connection
_ALIVE_S: Final = 10.0  # a connection that has been silent so long is pinged
_FIRST_DELAY_S: Final = 0.1
_LONGEST_DELAY_S: Final = 5.0
_WORDS_OF_AN_END: Final = 3


class Watch:
    """One request's interest in one run: it is told of the end, or that it has to look whether that was before."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()
        self._has_to_look = False
        self.ended_bytes: int | None = None  # once the run has ended: of its snapshot, 0 where nobody has said that
        self.released = False

    def look(self) -> None:
        """The run may have ended without a message: the channel is subscribed only now."""
        self._has_to_look = True
        self._changed.set()

    def seen_open(self) -> None:
        """The run had not ended by now: whatever is told after the subscription, which was before, is enough."""
        self._has_to_look = False
        self._changed.clear()

    def end(self, size: int = 0) -> None:
        """The run has ended, and its snapshot takes so many bytes, as far as that is known."""
        self.ended_bytes = max(size, self.ended_bytes or 0)
        self._changed.set()

    def take_end(self) -> int | None:
        """Return what was told of the end; what is told from now on is another message of it."""
        told, self.ended_bytes = self.ended_bytes, None
        self._changed.clear()
        return told

    def release(self) -> None:
        """Wait no longer."""
        self.released = True
        self._changed.set()

    async def until_look(self, within_s: float) -> bool:
        """Return whether there is something to look at: also when the time is up, for a message may be lost."""
        if not self._has_to_look:
            try:
                async with asyncio.timeout(within_s):
                    await self._changed.wait()
            except TimeoutError:
                self._has_to_look = True
        self._changed.clear()
        has_to_look, self._has_to_look = self._has_to_look, False
        return has_to_look


class Watches:
    """Who waits for which run, and which channels have to be subscribed or left for it."""

    def __init__(self, max_watches: int, metrics: GatewayMetrics, *, max_of_client: int | None = None) -> None:
        self._max_watches = max_watches
        self._max_of_client = max_watches if max_of_client is None else max_of_client
        self._of_client: Counter[str] = Counter()
        self._metrics = metrics
        self._count = 0
        self._closed = False
        self._of_run: dict[str, list[Watch]] = {}
        self._turned: dict[str, None] = {}  # runs that have got a first watch or lost their last
        self.turned = asyncio.Event()

    @property
    def full(self) -> bool:
        """Whether nobody else may wait now."""
        return self._closed or self._count >= self._max_watches

    @property
    def any(self) -> bool:
        """Whether anybody waits."""
        return self._count > 0

    def full_for(self, client: str) -> bool:
        """Return whether this client may not wait now."""
        return self.full or self._of_client[client] >= self._max_of_client

    @contextmanager
    def watching(self, run_id: str, client: str = "") -> Iterator[Watch]:
        """Watch a run as long as the context lasts."""
        watch = Watch()
        self._add(run_id, watch)
        self._of_client[client] += 1
        try:
            yield watch
        finally:
            self._remove(run_id, watch)
            self._of_client[client] -= 1
            if not self._of_client[client]:
                del self._of_client[client]

    def take_turned(self) -> tuple[list[str], list[str]]:
        """Return the runs to subscribe to and those to leave, each once."""
        self.turned.clear()
        turned, self._turned = self._turned, {}
        return [run for run in turned if run in self._of_run], [run for run in turned if run not in self._of_run]

    def runs(self) -> list[str]:
        """Return every run that somebody watches."""
        return list(self._of_run)

    def look(self, run_id: str) -> None:
        """The run may have ended before anybody could be told."""
        for watch in self._of_run.get(run_id, ()):
            watch.look()

    def end(self, run_id: str, size: int = 0) -> None:
        """The run has ended, and its snapshot takes so many bytes, as far as that is known."""
        for watch in self._of_run.get(run_id, ()):
            watch.end(size)

    def release_all(self) -> None:
        """The process stops: everybody is answered with what is known now."""
        self._closed = True
        for watches in self._of_run.values():
            for watch in watches:
                watch.release()

    def _add(self, run_id: str, watch: Watch) -> None:
        watches = self._of_run.setdefault(run_id, [])
        watches.append(watch)
        if len(watches) == 1:
            self._turn(run_id)
        self._count += 1
        self._metrics.waiting(+1)

    def _remove(self, run_id: str, watch: Watch) -> None:
        self._of_run[run_id].remove(watch)
        if not self._of_run[run_id]:
            del self._of_run[run_id]
            self._turn(run_id)
        self._count -= 1
        self._metrics.waiting(-1)

    def _turn(self, run_id: str) -> None:
        self._turned[run_id] = None
        self.turned.set()


async def until_ended(
    watch: Watch,
    run_id: str,
    reads: RunReads,
    deadline: Deadline,
    *,
    connected: Callable[[], bool],
    look_s: float = LOOK_S,
) -> None:
    """Return when the run has ended, when the time is up, or when nobody is there to be told."""
    while watch.ended_bytes is None and not (deadline.passed or watch.released) and connected():
        if await watch.until_look(min(look_s, deadline.remaining())) and await reads.has_ended(run_id):
            watch.end()


class ChannelListener:
    """Keeps one pub/sub connection subscribed to the channels of all watched runs."""

    def __init__(
        self,
        redis: Redis,
        keys: RedisKeys,
        watches: Watches,
        followers: Followers,
        *,
        metrics: GatewayMetrics,
        log: FilteringBoundLogger,
    ) -> None:
        self._redis = redis
        self._followers = followers
        self._watches = watches
        self._metrics = metrics
        self._log = log
        self._channel_of = keys.channel
        self._prefix = keys.channel("").encode()
        self._record = keys.record().encode()
        self._delay_s = _FIRST_DELAY_S

    async def listen(self) -> None:
        """Listen for ever; without Redis the waiters look for themselves, and this tries again."""
        while True:
            pubsub = self._redis.pubsub()
            try:
                await self._follow(pubsub)
            except* (RedisError, OSError) as errors:
                self._metrics.redis_failed("channels")
                self._log.warning("no channels: waiting requests look every few seconds", error=repr(errors.exceptions))
            finally:
                await _closed(pubsub)
            await asyncio.sleep(self._delay_s)
            self._delay_s = min(2 * self._delay_s, _LONGEST_DELAY_S)

    async def _follow(self, pubsub: PubSub) -> None:
        self._watches.take_turned()
        # The record's keeps the connection in subscribed mode while nobody waits.
        await pubsub.subscribe(self._record, *map(self._channel_of, self._watches.runs()))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._subscribe(pubsub), name="subscribe to runs")
            tasks.create_task(self._receive(pubsub), name="receive run channels")

    async def _subscribe(self, pubsub: PubSub) -> None:
        while True:
            await self._watches.turned.wait()
            subscribe, leave = self._watches.take_turned()
            if subscribe:
                await pubsub.subscribe(*map(self._channel_of, subscribe))
            if leave:
                await pubsub.unsubscribe(*map(self._channel_of, leave))

    async def _receive(self, pubsub: PubSub) -> None:
        silent = False
        while True:
            message = await pubsub.get_message(timeout=_ALIVE_S)
            if message is not None:
                silent, self._delay_s = False, _FIRST_DELAY_S
                self._take(message)
            elif silent:
                raise ConnectionError("no answer to a ping")
            else:
                silent = True
                await pubsub.ping()

    def _take(self, message: dict[str, Any]) -> None:
        """Tell who waits when the run ends; have them look when a subscription is confirmed: it may have ended before.

        History says `<seq>`, and `<seq> <status> <bytes of the snapshot>` when the run has ended. Once a run is in the
        record it says so on a channel of all: a line `<run id> <seq> <status>`, without a status while it goes on.
        """
        kind = message["type"]
        if message["channel"] == self._record:
            self._take_record(message)
        elif kind == "subscribe":
            self._watches.look(self._run_of(message))
        elif kind == "message" and len(said := message["data"].split()) == _WORDS_OF_AN_END:
            self._watches.end(self._run_of(message), int(said[-1]))

    def _take_record(self, message: dict[str, Any]) -> None:
        if message["type"] != "message" or not (self._watches.any or self._followers.any):
            return
        lines = [line.decode(errors="replace").split() for line in message["data"].splitlines()]
        self._followers.tell(said[0] for said in lines if said)
        for said in lines:
            if len(said) == _WORDS_OF_AN_END:
                self._watches.end(said[0])

    def _run_of(self, message: dict[str, Any]) -> str:
        channel: bytes = message["channel"]
        return channel.removeprefix(self._prefix).decode()


async def _closed(pubsub: PubSub) -> None:
    try:
        await pubsub.aclose()  # type: ignore[no-untyped-call]
    except (RedisError, OSError):
        return  # it is gone already
