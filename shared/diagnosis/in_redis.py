"""How Redis is: a cache, so that nothing of this keeps a run from going on."""

import time
from typing import Any, Final

from anabranch.shared.diagnosis.findings import Finding, ok, warning
from anabranch.shared.runtime.redis import Redis, RedisError, ResponseError, new_redis
from anabranch.shared.runtime.settings import Settings

_SLOW_MS: Final = 50.0
SKEW_S: Final = 2.0
"""Clocks that are further apart make leases and stale reads look older or younger than they are."""


async def examine_redis(settings: Settings) -> list[Finding]:
    """Return whether it answers, how fast, and whether its clock is ours."""
    client = new_redis(settings)
    try:
        await client.ping()  # the first one connects
        began = time.perf_counter()
        seconds, micros = await client.time()
        took_ms = 1000 * (time.perf_counter() - began)
        info = await _info(client)
    except (RedisError, OSError, TimeoutError) as error:
        return [
            warning(
                "Redis",
                f"it does not answer: {error}",
                "start it, or set REDIS_URL; until then reads come from the record, each gateway counts limits alone, "
                "and a step's repeat is recognised by its own worker only",
            )
        ]
    finally:
        await client.aclose()
    version = info.get("valkey_version") or info.get("redis_version") or "unknown"
    found = [ok("Redis", f"version {version}, answers in {took_ms:.1f} ms")]
    if took_ms > _SLOW_MS:
        found = [
            warning("Redis", f"it answers in {took_ms:.0f} ms", "look at its load (redis-cli --latency, SLOWLOG GET)")
        ]
    if info.get("maxmemory") and info.get("maxmemory_policy") == "noeviction":
        found.append(
            warning(
                "Redis memory",
                f"it refuses writes at {info.get('maxmemory_human')} (noeviction)",
                "set maxmemory-policy to volatile-ttl: whatever is lost there is read from the record",
            )
        )
    found.append(clock("Redis", seconds + micros / 1e6))
    return found


async def _info(client: Redis) -> dict[str, Any]:
    """Return what it says of itself; nothing where its user may not ask."""
    try:
        return await client.info()
    except ResponseError:
        return {}


def clock(whose: str, now_s: float) -> Finding:
    """Compare a server's clock with this machine's."""
    apart_s = now_s - time.time()
    if abs(apart_s) <= SKEW_S:
        return ok(f"clock of {whose}", f"{1000 * abs(apart_s):.0f} ms from this machine's")
    return warning(
        f"clock of {whose}",
        f"{abs(apart_s):.1f} s {'ahead of' if apart_s > 0 else 'behind'} this machine's",
        "have both follow the same NTP servers (chronyc tracking)",
    )
