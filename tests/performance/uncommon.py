"""What a healthy stack never has, so that the panels that show it have something to show."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final
from urllib.parse import urlsplit

import aiohttp
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from anabranch.shared.contracts import messages as m
from anabranch.shared.contracts.codec import encode
from anabranch.shared.contracts.ids import new_run_id, trace_id_of_run
from anabranch.shared.contracts.partitioner import partition_of
from anabranch.shared.contracts.topics import STEPS
from anabranch.shared.runtime.clients import new_admin, new_producer
from anabranch.shared.runtime.settings import Settings
from tests.performance.bed import Bed

_USES: Final = "html"  # nothing else uses it
_REFUSED_S: Final = 5.0


@asynccontextmanager
async def uncommon_things(ours: Bed, api_key: str) -> AsyncIterator[None]:
    """Have all of it happen, and a second orchestrator join and leave again, which takes partitions over."""
    await _strangers(ours)
    await _letters(ours.settings)
    await _refused_commands(ours, api_key)
    joined = await ours.stack.add("orchestrator")
    await asyncio.sleep(10)  # scraped once or twice, so that what comes after is seen as an increase
    await joined.stop(deadline_s=30)
    yield


async def _strangers(ours: Bed) -> None:
    async with (
        aiohttp.ClientSession(ours.stack.gateway_url) as http,
        http.get("/v1/runs", headers={"Authorization": "Bearer nothing"}) as answer,
    ):
        assert answer.status == 401
    address = urlsplit(ours.stack.gateway_url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write(b"this is not HTTP\r\n\r\n")
    await reader.read()
    writer.close()


async def _letters(settings: Settings) -> None:
    """A record of the inbox and a command that nobody can read, and a message for a run that nobody knows."""
    topics, run_id = settings.topics, new_run_id()
    stray = encode(
        m.CancelRun(run_id=run_id, reason="nobody's"), message_id=run_id, source="test", at_ms=0,
        trace_id=trace_id_of_run(run_id),
    )  # fmt: skip
    producer = new_producer(settings)
    await producer.start()
    try:
        partition = partition_of(run_id.encode(), topics.runs)
        await producer.send_and_wait(topics.inbox, b"{", key=b"nobody")
        await producer.send_and_wait(topics.steps("simulate"), b"{", key=b"nobody")
        await producer.send_and_wait(
            topics.inbox, stray.value, key=run_id.encode(), headers=list(stray.headers), partition=partition
        )
    finally:
        await producer.stop()


async def _refused_commands(ours: Bed, api_key: str) -> None:
    """The topic takes no command of any length for a few seconds."""
    topic, table = ours.settings.topics.steps(_USES), STEPS.settings()
    admin = new_admin(ours.settings)
    await admin.start()
    try:
        await admin.alter_configs([_configured(topic, {**table, "max.message.bytes": "100"})])
        definition = {"name": "refused", "steps": {"h": {"uses": _USES, "with": {"html": "<p>", "select": {"p": "p"}}}}}
        async with aiohttp.ClientSession(ours.stack.gateway_url) as http:
            headers = {"Authorization": f"Bearer {api_key}"}
            async with http.post("/v1/runs", json={"definition": definition}, headers=headers) as answer:
                assert answer.status == 202, await answer.text()
        await asyncio.sleep(_REFUSED_S)
        await admin.alter_configs([_configured(topic, dict(table))])
    finally:
        await admin.close()


def _configured(topic: str, configs: dict[str, str]) -> ConfigResource:
    return ConfigResource(ConfigResourceType.TOPIC, topic, configs=configs)
