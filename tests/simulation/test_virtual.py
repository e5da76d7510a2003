"""What the simulation stands on: a clock that jumps, and processes that end between two awaits."""

import asyncio
import gc
import time
from collections.abc import Callable, Iterator

import pytest

from tests.simulation.virtual import Host, Stuck, VirtualLoop


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    loop = VirtualLoop()
    loop.set_exception_handler(lambda *_: None)
    yield loop
    loop.close()
    gc.collect()  # tasks that were killed end here, not in the middle of another test


def test_time_passes_without_waiting(loop: VirtualLoop) -> None:
    """An hour of sleep takes no time."""
    began = time.monotonic()
    loop.run_until_complete(asyncio.sleep(3600))
    assert loop.now == 3600
    assert time.monotonic() - began < 5


def test_waiting_for_nothing_is_an_error(loop: VirtualLoop) -> None:
    """Nothing from outside can ever end it."""
    with pytest.raises(Stuck):
        loop.run_until_complete(loop.create_future())


async def _counting(said: list[str], tidy: Callable[[], None]) -> None:
    try:
        for number in range(1000):
            said.append(str(number))
            await asyncio.sleep(1)
    finally:
        tidy()


def test_a_killed_process_does_nothing_more_not_even_its_cleanup(loop: VirtualLoop) -> None:
    """As after SIGKILL."""
    said: list[str] = []
    host = Host("one", loop)
    host.spawn(_counting(said, lambda: said.append("cleanup")), "counting")
    loop.later(2.5, host.kill)
    loop.run_until_complete(asyncio.sleep(10))
    assert said == ["0", "1", "2"]


def test_a_process_dies_at_any_await(loop: VirtualLoop) -> None:
    """It is told how many more callbacks it has."""
    said: list[str] = []
    host = Host("one", loop)
    host.handles_left = 3
    host.spawn(_counting(said, lambda: said.append("cleanup")), "counting")
    loop.run_until_complete(asyncio.sleep(10))
    assert said == ["0"]
    assert not host.is_alive


def test_a_frozen_process_goes_on_where_it_stood(loop: VirtualLoop) -> None:
    """As after SIGSTOP and SIGCONT: what came due meanwhile happens then."""
    said: list[str] = []
    host = Host("one", loop)
    host.spawn(_counting(said, lambda: None), "counting")
    loop.later(1.5, host.freeze)
    loop.later(50.5, said.append, "thaw")
    loop.later(50.5, host.thaw)
    loop.run_until_complete(asyncio.sleep(51))
    assert said == ["0", "1", "thaw", "2"]


def test_what_the_world_does_is_not_stopped_with_the_process_that_asked_for_it(loop: VirtualLoop) -> None:
    """A request that has left a process arrives."""
    said: list[str] = []
    host = Host("one", loop)

    async def ask() -> None:
        loop.later(5, said.append, "arrived")
        await asyncio.sleep(100)

    host.spawn(ask(), "asking")
    loop.later(1, host.kill)
    loop.run_until_complete(asyncio.sleep(10))
    assert said == ["arrived"]


def test_a_process_that_is_busy_does_nothing_else_and_the_others_go_on(loop: VirtualLoop) -> None:
    """Time goes on for it while it works; what came due meanwhile happens afterwards."""
    said: list[tuple[str, float]] = []

    async def ticking(name: str, host: Host) -> None:
        for number in range(4):
            if name == "busy" and number == 1:
                host.works_for(2.5)
                assert loop.time() == loop.now + 2.5
            said.append((name, loop.now))
            await asyncio.sleep(1)

    for name in ("busy", "other"):
        host = Host(name, loop)
        host.spawn(ticking(name, host), name)
    loop.run_until_complete(asyncio.sleep(20))
    assert [at for name, at in said if name == "other"] == [0, 1, 2, 3]
    assert [at for name, at in said if name == "busy"] == [0, 1, 4.5, 5.5]
