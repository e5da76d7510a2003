"""Redis: keys of one prefix do not meet."""

import asyncio

import pytest
from redis import exceptions

from anabranch.shared.runtime.redis import RedisKeys, new_redis
from anabranch.shared.runtime.settings import Settings


def test_every_key_is_under_the_prefix_and_no_two_are_alike() -> None:
    keys = RedisKeys("p")
    made = [
        keys.run("1"), keys.channel("1"), keys.worker_memory("1", 1), keys.idempotency("1"),
        keys.rate_limit("1", "1", "1"), keys.result("1"),
    ]  # fmt: skip
    assert all(key.startswith("p:") for key in made)
    assert len(set(made)) == len(made)


async def test_client_gives_up_soon_and_keeps_bytes() -> None:
    client = new_redis(Settings(redis_url="redis://127.0.0.1:1/3"))
    options = client.connection_pool.connection_kwargs
    assert (options["db"], options["decode_responses"]) == (3, False)
    assert options["socket_timeout"] <= 2
    await client.aclose()


async def test_a_cancellation_is_not_lost_while_it_connects() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    for turns in range(40):
        client = new_redis(Settings(redis_url=f"redis://127.0.0.1:{port}"))
        asking = asyncio.create_task(client.ping())
        for _ in range(turns):
            await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await client.aclose()
    server.close()
    await server.wait_closed()


async def test_redis_that_is_away_is_the_clients_own_error() -> None:
    client = new_redis(Settings(redis_url="redis://127.0.0.1:1"))
    with pytest.raises(exceptions.ConnectionError):
        await client.ping()
    await client.aclose()
