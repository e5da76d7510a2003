"""`python -m tests.performance.bare_gateway BOOTSTRAP TOPIC PORT HOW`: what a gateway cannot be faster than.

An aiohttp handler that reads a body, appends it to Kafka with `acks=all`, and answers 202. HOW is `own`: each request
appends a batch of its own (`send_batch`); or `shared`: a record, to a batch that it shares with others (`send`).
"""

import itertools
import sys
from collections.abc import AsyncIterator

import uvloop
from aiohttp import web
from aiokafka import AIOKafkaProducer

from anabranch.shared.runtime.settings import Settings


def main() -> None:
    """Serve until it is killed."""
    bootstrap, topic, port, how = sys.argv[1:]
    numbers = range(Settings().run_partitions)
    partitions = itertools.cycle(numbers)

    async def accept_shared(request: web.Request) -> web.Response:
        await producer.send_and_wait(topic, await request.read())
        return web.json_response({"id": "-"}, status=202)

    async def accept_own(request: web.Request) -> web.Response:
        batch = producer.create_batch()
        batch.append(key=None, value=await request.read(), timestamp=None)
        await (await producer.send_batch(batch, topic, partition=next(partitions)))
        return web.json_response({"id": "-"}, status=202)

    async def connected(_: web.Application) -> AsyncIterator[None]:
        await producer.start()
        for number in numbers:  # the topic is new: a record is sent again until its partition has a leader
            await producer.send_and_wait(topic, b"", partition=number)
        yield
        await producer.stop()

    async def app() -> web.Application:
        nonlocal producer
        producer = AIOKafkaProducer(
            bootstrap_servers=bootstrap,
            acks="all",
            enable_idempotence=True,
            # `send_batch` takes the time since its first look off this at each look: many that wait run out of it soon.
            request_timeout_ms=3_600_000,
        )
        application = web.Application()
        application.router.add_post("/v1/runs", {"own": accept_own, "shared": accept_shared}[how])
        application.cleanup_ctx.append(connected)
        return application

    producer: AIOKafkaProducer
    web.run_app(app(), host="127.0.0.1", port=int(port), access_log=None, print=None, loop=uvloop.new_event_loop())


if __name__ == "__main__":
    main()
