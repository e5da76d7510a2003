"""What a process does is shown, and what it says is changed, by a signal; it goes on all the while."""

import asyncio
import os
import signal
import sys

import aiohttp
import orjson
import pytest

from anabranch.deploy.local.ports import free_port

WITHIN_S = 60.0


@pytest.mark.parametrize("service", ["gateway", "orchestrator", "history", "steps.simulate"])
async def test_an_operator_sees_where_tasks_wait_and_hears_more_or_less(service: str) -> None:
    """Each service waits for Kafka here."""
    port = free_port()
    env = os.environ | {
        "KAFKA_BOOTSTRAP_SERVERS": f"127.0.0.1:{free_port()}", "ANABRANCH_HTTP_PORT": str(port),
        "ANABRANCH_LOG_LEVEL": "warning", "ANABRANCH_STOP_TIMEOUT_S": "60",
    }  # fmt: skip
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", f"anabranch.services.{service}", env=env,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        async with asyncio.timeout(WITHIN_S):
            await _until_it_answers(f"http://127.0.0.1:{port}/healthz")
            process.send_signal(signal.SIGUSR2)
            told = await _line(process.stdout, "stacks are written to stderr")
            process.send_signal(signal.SIGUSR1)
            assert (await _line(process.stdout, "log level"))["level"] in ("debug", "warning")
            process.send_signal(signal.SIGUSR1)
            await _line(process.stdout, "log level")
            process.send_signal(signal.SIGTERM)
            _, stacks = await process.communicate()
        assert process.returncode == 0
        text = stacks.decode()
        assert f"{told['tasks']} tasks, " in text
        assert "in wait_for_kafka" in text
        assert "main" in text
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _line(lines: asyncio.StreamReader, event: str) -> dict[str, object]:
    async for line in lines:
        said: dict[str, object] = orjson.loads(line)
        if said["event"] == event:
            return said
    raise AssertionError(f"{event!r} was not said")


async def _until_it_answers(url: str) -> None:
    async with aiohttp.ClientSession() as session:
        while True:
            try:
                async with session.get(url):
                    return
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.05)
