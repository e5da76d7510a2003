"""When a waiting request asks Redis how its run is, and when it is told."""

import asyncio
from typing import Any, cast

from prometheus_client import CollectorRegistry
from redis.asyncio import Redis
from structlog import get_logger

from anabranch.services.gateway.followers import Followers
from anabranch.services.gateway.metrics import GatewayMetrics
from anabranch.services.gateway.waiting import ChannelListener, Watch, Watches, until_ended
from anabranch.shared.runtime.deadline import Deadline
from anabranch.shared.runtime.redis import RedisKeys

RUN = "01a2160d-9ce2-71ab-b50c-f8ce0bbd3296"
KEYS = RedisKeys("pipelines")
HANG_S = 60.0


class Looks:
    """Answers whether a run has ended, and counts how often it is asked."""

    def __init__(self, has_ended: bool = False) -> None:
        self.answer = has_ended
        self.count = 0

    async def has_ended(self, run_id: str) -> bool:
        self.count += 1
        return self.answer


class Waiting:
    """Watches, the channels that tell them, and a request that waits for the end of `RUN`."""

    def __init__(self, looks: Looks) -> None:
        metrics = GatewayMetrics(CollectorRegistry())
        self.looks = looks
        self.watches = Watches(10, metrics)
        followers, redis = Followers(1, 1, metrics), cast("Redis", None)
        self.channels = ChannelListener(redis, KEYS, self.watches, followers, metrics=metrics, log=get_logger())

    def hear(self, kind: str, data: bytes = b"") -> None:
        self.channels._take({"type": kind, "channel": KEYS.channel(RUN).encode(), "data": data})

    async def until_ended(self, watch: Watch, look_s: float = HANG_S) -> None:
        reads: Any = self.looks
        async with asyncio.timeout(HANG_S):
            await until_ended(watch, RUN, reads, Deadline.after(HANG_S), connected=lambda: True, look_s=look_s)


async def test_run_that_was_subscribed_before_it_was_acknowledged_is_never_looked_up() -> None:
    """The message of its end is all that is needed: it says the size, too."""
    waiting = Waiting(Looks())
    with waiting.watches.watching(RUN) as watch:
        waiting.hear("subscribe")
        watch.seen_open()
        ended = asyncio.create_task(waiting.until_ended(watch))
        waiting.hear("message", b"3")
        waiting.channels._take({"type": "pong", "channel": None, "data": b""})  # the connection is alive
        waiting.hear("message", b"9 succeeded 1234")
        await ended
    assert (watch.ended_bytes, waiting.looks.count) == (1234, 0)


async def test_run_that_is_subscribed_after_it_was_acknowledged_is_looked_up() -> None:
    """It may have ended before anybody could be told."""
    waiting = Waiting(Looks(has_ended=True))
    with waiting.watches.watching(RUN) as watch:
        watch.seen_open()
        waiting.hear("subscribe")
        await waiting.until_ended(watch)
    assert (watch.ended_bytes, waiting.looks.count) == (0, 1)


async def test_message_that_is_lost_is_made_up_for_by_a_look() -> None:
    """The connection may break while a run ends."""
    waiting = Waiting(Looks(has_ended=True))
    with waiting.watches.watching(RUN) as watch:
        await waiting.until_ended(watch, look_s=0.001)
    assert waiting.looks.count == 1


async def test_everybody_who_waits_for_a_run_is_told() -> None:
    waiting = Waiting(Looks())
    with waiting.watches.watching(RUN) as one, waiting.watches.watching(RUN) as other:
        waiting.hear("message", b"9 failed 10")
        await asyncio.gather(waiting.until_ended(one), waiting.until_ended(other))
    assert (one.ended_bytes, other.ended_bytes, waiting.looks.count) == (10, 10, 0)


async def test_the_record_tells_of_ends_too_and_never_of_a_size() -> None:
    """A line for each run that changed; one that names no status goes on. What Redis told before counts."""
    waiting = Waiting(Looks())
    other = "01a2160d-9ce2-71ab-b50c-f8ce0bbd3297"
    with waiting.watches.watching(RUN) as one, waiting.watches.watching(other) as going_on:
        lines = f"{other} 7 \n01a2160d-9ce2-71ab-b50c-f8ce0bbd3298 3 failed\n{RUN} 9 succeeded"
        waiting.channels._take({"type": "message", "channel": KEYS.record().encode(), "data": lines.encode()})
        await waiting.until_ended(one)
        assert (one.ended_bytes, going_on.ended_bytes, waiting.looks.count) == (0, None, 0)
        waiting.hear("message", b"9 succeeded 10")
        waiting.channels._take({"type": "message", "channel": KEYS.record().encode(), "data": lines.encode()})
        assert (one.take_end(), one.take_end()) == (10, None)


async def test_a_subscription_to_the_record_has_nobody_look() -> None:
    """It is of no run."""
    waiting = Waiting(Looks())
    with waiting.watches.watching(RUN) as watch:
        watch.seen_open()
        waiting.channels._take({"type": "subscribe", "channel": KEYS.record().encode(), "data": 1})
        assert not watch._changed.is_set()
