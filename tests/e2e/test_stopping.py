"""A service that still waits for Kafka stops at once when it is told to."""

import asyncio
import os
import signal
import sys

import aiohttp
import pytest

from anabranch.deploy.local.ports import free_port

SERVICES = ["gateway", "orchestrator", "history", "steps.simulate"]


@pytest.mark.parametrize("service", SERVICES)
async def test_sigterm_ends_a_service_that_waits_for_kafka(service: str) -> None:
    """Nothing is in hand yet, so there is nothing to wait for: exit code 0, long before the time to stop is over."""
    port = free_port()
    env = os.environ | {
        "KAFKA_BOOTSTRAP_SERVERS": f"127.0.0.1:{free_port()}",
        "ANABRANCH_HTTP_PORT": str(port),
        "ANABRANCH_STOP_TIMEOUT_S": "60",
    }
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", f"anabranch.services.{service}", env=env)
    try:
        async with asyncio.timeout(60):
            await _until_it_answers(f"http://127.0.0.1:{port}/healthz")
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _until_it_answers(url: str) -> None:
    async with aiohttp.ClientSession() as session:
        while True:
            try:
                async with session.get(url) as answer:
                    assert answer.status == 200
                    return
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.05)
