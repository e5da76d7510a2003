"""Tells the gateways which runs the record has more of: one message for each batch, on one channel."""

from anabranch.services.history.metrics import HistoryMetrics
from anabranch.services.history.recording import Changed
from anabranch.shared.runtime.redis import Redis, RedisError, RedisKeys


class RedisNotices:
    """A line `<run id> <last event's number> <status>` for each run; the status only of one that has ended."""

    def __init__(self, redis: Redis, keys: RedisKeys, metrics: HistoryMetrics) -> None:
        self._redis = redis
        self._channel = keys.record()
        self._metrics = metrics

    async def tell(self, changed: Changed) -> None:
        """Tell them, if Redis answers: what follows runs looks for itself every few seconds, too."""
        if not changed:
            return
        try:
            await self._redis.publish(self._channel, "\n".join(f"{run} {seq} {ended}" for run, seq, ended in changed))
        except (RedisError, OSError, TimeoutError):
            self._metrics.notice_lost()
