"""Redis for services: the one place that builds keys, and a client that gives up soon."""

from dataclasses import dataclass

from redis.asyncio import Redis

from anabranch.shared.runtime.settings import Settings


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
    """Return a client with short timeouts, bytes in and out, and no hidden retries."""
    raise NotImplementedError
