"""One time limit for many waits: who is late is told so, whoever else waits."""

import asyncio

import pytest

from anabranch.shared.runtime.time_limit import TimeLimit


def _future() -> "asyncio.Future[int]":
    return asyncio.get_running_loop().create_future()


async def test_each_wait_that_is_not_done_in_time_fails() -> None:
    """Also one that was begun while the timer of another one ran, and one begun after all were over."""
    limit = TimeLimit(0.02)
    first = limit.give(_future())
    await asyncio.sleep(0)
    for late in (first, limit.give(_future())):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(late, 60)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(limit.give(_future()), 60)


async def test_what_is_done_in_time_keeps_what_it_has() -> None:
    """A result, an error and a cancellation, before and behind one that is late."""
    limit = TimeLimit(0.02)
    done, failed, cancelled, late = (limit.give(_future()) for _ in range(4))
    behind = limit.give(_future())
    done.set_result(1)
    failed.set_exception(ValueError("its own"))
    cancelled.cancel()
    behind.set_result(2)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(late, 60)
    assert (await done, await behind, cancelled.cancelled()) == (1, 2, True)
    with pytest.raises(ValueError, match="its own"):
        await failed


async def test_what_is_done_is_not_kept() -> None:
    """Thousands of waits that are over weigh nothing, long before their time is up; one timer is set for all."""
    limit = TimeLimit(3600)
    for _ in range(1000):
        limit.give(_future()).set_result(1)
    assert len(limit._waiting) == 1
