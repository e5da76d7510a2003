"""What a case may cost is measured where the case costs it."""

import asyncio
import time

import pytest

from tests.fuzz import guard
from tests.fuzz.guard import MeteredLoop, TooCostly, bounded, close


def _use(seconds: float) -> None:
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


async def _hold(seconds: float) -> None:
    await asyncio.sleep(0)
    _use(seconds)
    await asyncio.sleep(0)


def test_what_is_done_between_two_runs_of_a_loop_held_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing a case takes its time, and the loop of the one before stands still meanwhile."""
    monkeypatch.setattr(guard, "HELD_S", 0.3)
    loop = MeteredLoop(is_virtual=False)
    try:
        loop.run_until_complete(_hold(0))
        _use(0.4)
        with bounded("a turn") as meter:
            loop.meter.begin_anew()
            loop.run_until_complete(_hold(0))
            meter.held_s = loop.meter.held_s
    finally:
        close(loop)


def test_a_turn_that_is_too_long_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    """However short the others are."""
    monkeypatch.setattr(guard, "HELD_S", 0.05)
    loop = MeteredLoop(is_virtual=False)
    try:
        with pytest.raises(TooCostly), bounded("a turn") as meter:
            loop.meter.begin_anew()
            loop.run_until_complete(_hold(0.1))
            meter.held_s = loop.meter.held_s
    finally:
        close(loop)
