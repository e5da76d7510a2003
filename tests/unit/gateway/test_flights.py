"""What many ask for at once is looked up once, and nobody is told what was known before he asked."""

import asyncio

import pytest

from anabranch.services.gateway.flights import Flights

HANG_S = 60.0


class Look:
    """Answers with the number of its call, once it is let through."""

    def __init__(self) -> None:
        self.began = 0
        self.through = asyncio.Event()

    async def __call__(self) -> int:
        self.began += 1
        number = self.began
        await self.through.wait()
        if number == 3:
            raise LookupError("the third")
        return number


async def test_those_who_come_while_a_look_is_under_way_share_the_next_one() -> None:
    """What it answers may be older than what they know."""
    flights, look = Flights[str, int]("test"), Look()
    first = asyncio.create_task(flights.join("k", look))
    await asyncio.sleep(0)
    others = [asyncio.create_task(flights.join("k", look)) for _ in range(10)]
    await asyncio.sleep(0)
    assert look.began == 1
    look.through.set()
    async with asyncio.timeout(HANG_S):
        assert (await first, await asyncio.gather(*others)) == (1, 10 * [2])
        with pytest.raises(LookupError):
            await flights.join("k", look)
        assert await flights.join("k", look) == 4
    assert (flights._under_way, flights._next) == ({}, {})


async def test_a_look_goes_on_for_the_others_when_one_leaves() -> None:
    """A client may go away at any moment. Another key is another look."""
    flights, look, elsewhere = Flights[str, int]("test"), Look(), Look()
    first = asyncio.create_task(flights.join("k", look))
    await asyncio.sleep(0)
    leaving, staying = (asyncio.create_task(flights.join("k", look)) for _ in range(2))
    other = asyncio.create_task(flights.join("another", elsewhere))
    await asyncio.sleep(0)
    first.cancel()
    leaving.cancel()
    look.through.set()
    elsewhere.through.set()
    async with asyncio.timeout(HANG_S):
        assert (await staying, await other) == (2, 1)
    assert (flights._under_way, flights._next) == ({}, {})
