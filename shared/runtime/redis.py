"""Redis for services: the one place that builds keys, and a client that gives up soon."""

from dataclasses import dataclass
from typing import Final

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from anabranch.shared.runtime.settings import Settings

_CONNECT_TIMEOUT_S: Final = 1.0
_READ_TIMEOUT_S: Final = 2.0

# More connections do not make one Redis faster; who finds none free waits for his turn, as long as for an answer.
_CONNECTIONS: Final = 32


@dataclass(frozen=True, slots=True)
class RedisKeys:
    """Every key of a prefix."""

    prefix: str

    def run(self, run_id: str) -> str:
        """A run's live snapshot."""
        return f"{self.prefix}:run:{run_id}"

    def channel(self, run_id: str) -> str:
        """The pub/sub channel of a run's events."""
        return f"{self.prefix}:events:{run_id}"

    def worker_memory(self, uses: str, bucket: int | str) -> str:
        """What workers of a step type know about attempts, by bucket."""
        return f"{self.prefix}:worker:{uses}:{bucket}"

    def idempotency(self, run_id: str) -> str:
        """The body's hash of a submission with an idempotency key."""
        return f"{self.prefix}:idempotency:{run_id}"

    def rate_limit(self, tenant: str, window: int | str) -> str:
        """Requests of a tenant in a window."""
        return f"{self.prefix}:rate:{tenant}:{window}"

    def result(self, key_hash: str) -> str:
        """A cached step result, by the hash of (type, version, resolved input)."""
        return f"{self.prefix}:result:{key_hash}"


def new_redis(settings: Settings) -> Redis:
    """Return a client, bytes in and out, that gives up soon: nobody may wait for a help that is away."""
    pool = BlockingConnectionPool.from_url(
        settings.redis_url,
        max_connections=_CONNECTIONS,
        timeout=_READ_TIMEOUT_S,
        socket_connect_timeout=_CONNECT_TIMEOUT_S,
        socket_timeout=_READ_TIMEOUT_S,
        decode_responses=False,
        retry=Retry(NoBackoff(), 0),
        client_name=settings.instance,
    )
    return Redis.from_pool(pool)
