"""A consumer is stopped whatever its own tasks do, and only who is cancelled himself hears of it."""

import asyncio
from typing import Any

import pytest

from anabranch.shared.runtime.clients import stop_consumer


class Client:
    """The client of a consumer."""

    def __init__(self) -> None:
        self.is_closed = False

    async def close(self) -> None:
        self.is_closed = True


class Consumer:
    """Stops as aiokafka's does while a fetch of its own rests after an error."""

    def __init__(self) -> None:
        self._client = Client()
        self.rests = asyncio.Event()

    async def stop(self) -> None:
        fetch = asyncio.create_task(asyncio.sleep(3600))
        await asyncio.sleep(0)
        fetch.cancel()
        self.rests.set()
        await fetch
        await self._client.close()


async def test_a_fetch_that_rested_after_an_error_cancels_nobody_else() -> None:
    """And the connections are closed."""
    consumer: Any = Consumer()
    await stop_consumer(consumer)
    assert consumer._client.is_closed
    task = asyncio.current_task()
    assert task is not None
    assert not task.cancelling()


async def test_who_is_cancelled_himself_is() -> None:
    """His connections are closed all the same."""
    consumer: Any = Consumer()
    stopping = asyncio.create_task(stop_consumer(consumer))
    await consumer.rests.wait()
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    assert consumer._client.is_closed
