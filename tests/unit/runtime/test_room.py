"""Room: bytes are taken in line and given back."""

import asyncio

from anabranch.shared.runtime.room import Room

from .fakes import turns


async def test_who_does_not_fit_waits_and_who_comes_later_waits_behind() -> None:
    room = Room(10)
    assert await room.take(8) == 8
    large, small = asyncio.ensure_future(room.take(5)), asyncio.ensure_future(room.take(1))
    await turns()
    assert (large.done(), small.done()) == (False, False)
    room.give_back(8)
    assert (await large, await small) == (5, 1)


async def test_what_is_larger_than_the_room_gets_all_of_it() -> None:
    room = Room(10)
    taken = await room.take(99)
    assert taken == 10
    after = asyncio.ensure_future(room.take(1))
    room.give_back(taken)
    assert await after == 1


async def test_who_gave_up_takes_nothing() -> None:
    room = Room(10)
    await room.take(10)
    gone, next_one = asyncio.ensure_future(room.take(10)), asyncio.ensure_future(room.take(10))
    await turns()
    gone.cancel()
    await turns()
    room.give_back(10)
    assert await next_one == 10


async def test_who_gave_up_lets_the_next_one_through() -> None:
    """Who is smaller and waits behind does not wait for what is not wanted any more."""
    room = Room(10)
    await room.take(8)
    gone, next_one = asyncio.ensure_future(room.take(10)), asyncio.ensure_future(room.take(1))
    await turns()
    gone.cancel()
    await turns()
    assert next_one.done()


async def test_who_gave_up_as_the_turn_came_gives_it_back() -> None:
    """Bytes that nobody took would be missing for ever."""
    room = Room(10)
    await room.take(10)
    gone = asyncio.ensure_future(room.take(10))
    await turns()
    room.give_back(10)
    gone.cancel()
    await turns()
    assert await asyncio.wait_for(room.take(10), 60) == 10
