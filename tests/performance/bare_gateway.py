"""`python -m tests.performance.bare_gateway BOOTSTRAP TOPIC PORT`: what a gateway cannot be faster than.

An aiohttp handler that reads a body, appends it to Kafka with `acks=all`, and answers 202.
"""

import sys
from collections.abc import AsyncIterator

import uvloop
from aiohttp import web
from aiokafka import AIOKafkaProducer


def main() -> None:
    """Serve until it is killed."""
    bootstrap, topic, port = sys.argv[1:]

    async def accept(request: web.Request) -> web.Response:
        await producer.send_and_wait(topic, await request.read())
        return web.json_response({"id": "-"}, status=202)

    async def connected(_: web.Application) -> AsyncIterator[None]:
        await producer.start()
        yield
        await producer.stop()

    async def app() -> web.Application:
        nonlocal producer
        producer = AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all", enable_idempotence=True)
        application = web.Application()
        application.router.add_post("/v1/runs", accept)
        application.cleanup_ctx.append(connected)
        return application

    producer: AIOKafkaProducer
    web.run_app(app(), host="127.0.0.1", port=int(port), access_log=None, print=None, loop=uvloop.new_event_loop())


if __name__ == "__main__":
    main()
