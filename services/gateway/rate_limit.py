"""How many requests a client may send in a minute, counted in Redis for all gateways, else by this process.

The counter is the sliding window of `limits`: the minute before counts by how much of it the last sixty seconds still
reach into. Its two scripts, which take and which tell, run as one: a request costs one round trip.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

import anyio
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from limits.aio.storage import MemoryStorage
from limits.aio.storage.redis.bridge import RedisBridge

from anabranch.services.gateway import keys
from anabranch.services.gateway.client import client_of, tenant_of
from anabranch.services.gateway.metrics import GatewayMetrics
from anabranch.services.gateway.problems import Kind, ProblemError
from anabranch.services.gateway.route_classes import RouteClass, class_of
from anabranch.services.gateway.settings import GatewaySettings
from anabranch.shared.contracts.bounded import BoundedMemory
from anabranch.shared.runtime.redis import Redis, RedisError, RedisKeys

WINDOW_S: Final = 60

_REDIS_WITHIN_S: Final = 0.25  # no request may wait longer for being counted
_REDIS_PAUSE_S: Final = 1.0  # after a failure: one request in a second tries again
_COUNTED_ALONE: Final = 10_000  # clients in this process's own counter, which walks through them now and then
_REMEMBERED: Final = 10_000  # clients whose last answer is known
_AT_ONCE: Final = 1000  # a thousandth of a limit is taken at once, so that large limits do not cost a round trip each
_HELD_S: Final = 1.0  # and used within this time

_NO_LIMITS: Final[Mapping[str, int]] = {}

_SCRIPT: Final = f"""
local function take()
{RedisBridge.SCRIPT_ACQUIRE_SLIDING_WINDOW.decode()}
end
local function tell(ARGV)
{RedisBridge.SCRIPT_SLIDING_WINDOW.decode()}
end
local taken = take()
local window = tell({{ARGV[2]}})
return {{taken and 1 or 0, window[1], window[2], window[3], window[4]}}
"""


@dataclass(frozen=True, slots=True)
class Window:
    """What was counted in the window before and in this one, and for how long each counts (milliseconds)."""

    taken: bool
    before: int
    before_ms: float
    current: int
    current_ms: float

    @property
    def weighted(self) -> int:
        """What counts now."""
        return math.floor(self.before * self.before_ms / (WINDOW_S * 1000)) + self.current


@dataclass(slots=True)
class Standing:
    """Where a client stands: whether its request may go on, how many more may, and when that changes."""

    limit: int
    allowed: bool
    remaining: int
    reset_s: float
    held: int = 0  # taken already and not used
    until_s: float = 0.0  # for how long this is known

    def headers(self, name: str) -> dict[str, str]:
        """Return the headers of draft-ietf-httpapi-ratelimit-headers-10."""
        return {
            "RateLimit-Policy": f'"{name}";q={self.limit};w={WINDOW_S}',
            "RateLimit": f'"{name}";r={self.remaining};t={math.ceil(self.reset_s)}',
        }


class Counts(Protocol):
    """Something that counts."""

    async def take(self, key: str, limit: int, amount: int) -> Window:
        """Count `amount` more unless that is too much, and tell the window."""
        ...


class SharedCounts:
    """Counts in Redis."""

    def __init__(self, redis: Redis) -> None:
        self._script = redis.register_script(_SCRIPT)

    async def take(self, key: str, limit: int, amount: int) -> Window:
        """Raises `RedisError`, `OSError`."""
        found = await self._script(keys=[f"{key}/-1", key], args=[limit, WINDOW_S, amount])
        taken, before, before_ms, current, current_ms = found
        return Window(bool(taken), int(before or 0), max(0, before_ms), int(current or 0), max(0, current_ms))


class OwnCounts:
    """Counts in this process."""

    def __init__(self) -> None:
        self._counts = MemoryStorage()

    async def take(self, key: str, limit: int, amount: int) -> Window:
        """Count; with too many clients everybody begins anew."""
        if len(self._counts.storage) > _COUNTED_ALONE:
            await self._counts.reset()
        taken = await self._counts.acquire_sliding_window_entry(key, limit, WINDOW_S, amount)
        before, before_s, current, current_s = await self._counts.get_sliding_window(key, WINDOW_S)
        return Window(taken, before, before_s * 1000, current, current_s * 1000)


class RateLimits:
    """Each client's limits."""

    def __init__(
        self,
        shared: Counts,
        redis_keys: RedisKeys,
        settings: GatewaySettings,
        metrics: GatewayMetrics,
        *,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._shared = shared
        self._own = OwnCounts()
        self._key = redis_keys.rate_limit
        self._default = {RouteClass.CHANGE: settings.rate_limit, RouteClass.READ: settings.read_rate_limit}
        self._failures = settings.auth_failure_limit
        self._of_tenant: Mapping[str, Mapping[str, int]] = {
            tenant: {str(name): limit for name, limit in own.items()}
            for tenant, own in settings.tenant_rate_limits.items()
        }
        self._metrics = metrics
        self._monotonic_s = monotonic_s
        self._no_redis_until_s = 0.0
        self._known: BoundedMemory[str, Standing] = BoundedMemory(max_entries=_REMEMBERED)
        self._asking: dict[str, anyio.Event] = {}

    def limit(self, route_class: RouteClass, tenant: str) -> int:
        """Return the requests of a minute; 0 is no limit."""
        own = self._of_tenant.get(tenant, _NO_LIMITS)
        return own.get(route_class.value, self._default.get(route_class, 0))

    async def take(self, route_class: RouteClass, tenant: str, client: str) -> Standing | None:
        """Count a request; None when it is not limited."""
        return await self._take(self.limit(route_class, tenant), self._key(route_class.value, tenant, client))

    async def take_failure(self, address: str) -> Standing | None:
        """Count credentials that do not work; None when they are not limited."""
        return await self._take(self._failures, self._key("failure", "", address))

    async def _take(self, limit: int, key: str) -> Standing | None:
        if limit == 0:
            return None
        while (asking := self._asking.get(key)) is not None:
            await asking.wait()
        return self._from_memory(key) or await self._ask(key, limit)

    async def take_up_to(
        self, route_class: RouteClass, tenant: str, client: str, amount: int
    ) -> tuple[int, Standing | None]:
        """Count so many more, or as many as there is room for; return how many, and where the client stands then."""
        limit = self.limit(route_class, tenant)
        if limit == 0 or amount == 0:
            return amount, None
        key = self._key(route_class.value, tenant, client)
        window = await self._counted(key, limit, amount)
        if window.taken:
            return amount, standing_of(limit, window)
        room = limit - window.weighted
        taken = room > 0 and (await self._counted(key, limit, room)).taken  # not so when somebody else was quicker
        return room if taken else 0, standing_of(limit, window)

    def _from_memory(self, key: str) -> Standing | None:
        """Return what need not be asked: a refusal lasts until its time is over, and what was taken ahead is there."""
        known = self._known.get(key)
        if known is None or known.until_s <= (now_s := self._monotonic_s()):
            return None
        if not known.allowed:
            return Standing(known.limit, False, 0, known.until_s - now_s)
        if known.held == 0:
            return None
        known.held -= 1
        return known

    async def _ask(self, key: str, limit: int) -> Standing:
        amount = max(1, limit // _AT_ONCE)
        if amount == 1:
            return self._remembered(key, limit, amount, await self._counted(key, limit, amount))
        asking = self._asking[key] = anyio.Event()
        try:
            return self._remembered(key, limit, amount, await self._counted(key, limit, amount))
        finally:
            del self._asking[key]
            asking.set()

    async def _counted(self, key: str, limit: int, amount: int) -> Window:
        now_s = self._monotonic_s()
        if now_s < self._no_redis_until_s:
            return await self._own.take(key, limit, amount)
        if self._no_redis_until_s:
            self._no_redis_until_s = now_s + _REDIS_PAUSE_S  # this request tries, the others go on without
        try:
            with anyio.fail_after(_REDIS_WITHIN_S):
                counted = await self._shared.take(key, limit, amount)
        except (RedisError, OSError, TimeoutError):
            self._metrics.redis_failed("rate_limit")
            self._no_redis_until_s = self._monotonic_s() + _REDIS_PAUSE_S
            return await self._own.take(key, limit, amount)
        self._no_redis_until_s = 0.0
        return counted

    def _remembered(self, key: str, limit: int, amount: int, window: Window) -> Standing:
        standing = standing_of(limit, window)
        standing.held = amount - 1 if standing.allowed else 0
        standing.until_s = self._monotonic_s() + (_HELD_S if standing.allowed else standing.reset_s)
        if standing.held or not standing.allowed:
            self._known.put(key, standing)
        return standing


def standing_of(limit: int, window: Window) -> Standing:
    """Return where a client stands in its window; a refusal says when the next request may come."""
    shift_s = window.current_ms / 1000 % WINDOW_S or WINDOW_S
    if window.taken:
        return Standing(limit, True, max(0, limit - window.weighted), shift_s)
    if window.current >= limit or window.before == 0:
        return Standing(limit, False, 0, max(shift_s, 0.001))
    until_s = (limit - window.current) * WINDOW_S / window.before  # what of the window before may still count
    return Standing(limit, False, 0, max(0.001, window.before_ms / 1000 - until_s))


def rate_limit(limits: RateLimits, metrics: GatewayMetrics) -> Middleware:
    """Refuse what is too much with 429; tell every client where it stands."""

    @web.middleware
    async def limited(request: web.Request, handler: Handler) -> web.StreamResponse:
        await count(request, limits, metrics)
        return await handler(request)

    return limited


async def count(request: web.Request, limits: RateLimits, metrics: GatewayMetrics) -> None:
    """Count a request for its client. Raises a 429 problem when it is one too many."""
    route_class = class_of(request)
    standing = await limits.take(route_class, tenant_of(request), client_of(request))
    if standing is None:
        return
    request[keys.HEADERS].update(standing.headers(route_class.value))
    if not standing.allowed:
        metrics.rate_limited(route_class.value)
        raise _too_many(route_class, standing)


async def take_more(request: web.Request, amount: int) -> tuple[int, ProblemError | None]:
    """Count what a request asks for beside itself, as far as there is room; return how much, and why not the rest."""
    route_class = class_of(request)
    limits = request.app[keys.RATE_LIMITS]
    taken, standing = await limits.take_up_to(route_class, tenant_of(request), client_of(request), amount)
    if standing is None:
        return taken, None
    request[keys.HEADERS].update(standing.headers(route_class.value))
    if taken == amount:
        return taken, None
    request.app[keys.METRICS].rate_limited(route_class.value, amount - taken)
    return taken, _too_many(route_class, standing)


def _too_many(route_class: RouteClass, standing: Standing) -> ProblemError:
    what = "submit or change something" if route_class is RouteClass.CHANGE else "read"
    return ProblemError(
        Kind.TOO_MANY,
        f"At most {standing.limit} requests a minute may {what} here.",
        retry_after_s=max(1, math.ceil(standing.reset_s)),
    )
