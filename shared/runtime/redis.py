"""Redis for services: the one place that builds keys, and a client that gives up soon."""

import asyncio
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from anabranch.shared.runtime.absence import import_without

# redis-py imports OpenTelemetry's metrics, of which nobody asks it any, wherever that is installed: 0.2 s and 3 MB.
import_without("opentelemetry", "redis.asyncio")

from redis import Redis as BlockingRedis
from redis.asyncio import BlockingConnectionPool, Connection, Redis, SSLConnection
from redis.asyncio.client import Pipeline, PubSub
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.connection import HiredisRespSerializer
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from anabranch.shared.runtime.settings import Settings
from anabranch.shared.runtime.tls import trust

__all__ = [
    "BlockingRedis", "NoScriptError", "Pipeline", "PubSub", "Redis", "RedisError", "RedisKeys", "ResponseError",
    "new_redis", "redis_arguments",
]  # fmt: skip

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

    def progress(self) -> str:
        """How far the live snapshots are, by partition of the run events: the next offset."""
        return f"{self.prefix}:progress"

    def record(self) -> str:
        """The pub/sub channel that is told which runs a batch of the record has changed."""
        return f"{self.prefix}:record"

    def worker_memory(self, uses: str, bucket: int | str) -> str:
        """What workers of a step type know about attempts, by bucket."""
        return f"{self.prefix}:worker:{uses}:{bucket}"

    def worker_end(self, name: str) -> str:
        """How a worker, or the process it was in, ended."""
        return f"{self.prefix}:worker-end:{name}"

    def idempotency(self, run_id: str) -> str:
        """The body's hash of a submission with an idempotency key."""
        return f"{self.prefix}:idempotency:{run_id}"

    def rate_limit(self, route_class: str, tenant: str, client: str) -> str:
        """Requests of a client of a tenant, by what they are for; the window before ends in `/-1`."""
        return f"{self.prefix}:rate:{route_class}:{tenant}:{client}"

    def result(self, key_hash: str) -> str:
        """A cached step result, by the hash of (type, version, resolved input)."""
        return f"{self.prefix}:result:{key_hash}"


_PACKER: Final = HiredisRespSerializer()


class _Connection(Connection):
    """A connection that packs commands in C, as the blocking client does, and does not lose a cancellation.

    The client's own way to send is `asyncio.wait_for`, which takes a task per command and on Python 3.11 swallows a
    cancellation that arrives as the sending ends (cpython#86296): a service told to stop then goes on waiting.
    """

    def pack_command(self, *args: Any) -> list[bytes]:
        """Return the command as it is sent."""
        packed: list[bytes] = _PACKER.pack(*args)
        return packed

    async def send_packed_command(self, command: bytes | str | Iterable[bytes], check_health: bool = True) -> None:
        """Send, within the socket's timeout; whatever goes wrong, the connection is not used again."""
        if not self.is_connected:
            await self.connect_check_health(check_health=False)
        if check_health:
            await self.check_health()  # type: ignore[no-untyped-call]
        assert self._writer is not None, "connected above"
        parts = [command.encode()] if isinstance(command, str) else command
        try:
            async with asyncio.timeout(self.socket_timeout):
                self._writer.writelines([parts] if isinstance(parts, bytes) else parts)
                await self._writer.drain()
        except BaseException as error:
            await self.disconnect(nowait=True)
            if isinstance(error, TimeoutError):
                raise RedisTimeoutError("Timeout writing to socket") from error
            if isinstance(error, OSError):
                raise RedisConnectionError(f"writing to the socket: {error!r}") from error
            raise


class _TlsConnection(_Connection, SSLConnection):
    """The same with TLS."""


def redis_arguments(settings: Settings) -> dict[str, Any]:
    """Return what a client of Redis is given beside the URL, the same for a blocking one; `UnusableSettings`.

    The server's certificate is checked; what the URL itself says (`?ssl_cert_reqs=none`) counts before that.
    """
    if urlsplit(settings.redis_url).scheme != "rediss":
        return {}
    trust(settings.redis_ssl_cafile, "REDIS_SSL_CAFILE")  # says what is wrong with the file now, not at each connection
    return {
        "ssl_cert_reqs": "required",
        "ssl_check_hostname": True,
        "ssl_ca_certs": settings.redis_ssl_cafile or None,
        "ssl_min_version": ssl.TLSVersion.TLSv1_2,
    }


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
        **redis_arguments(settings),
    )
    # A URL brings its own class, which would win over one named above; that of `unix://` stays.
    if pool.connection_class is Connection:
        pool.connection_class = _Connection
    elif pool.connection_class is SSLConnection:
        pool.connection_class = _TlsConnection
    return Redis.from_pool(pool)
