"""The doctor finds nothing on a healthy installation, and on a broken one what is broken."""

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import aiohttp

from anabranch.deploy.local.ports import free_port
from anabranch.deploy.local.services import anabranch_services
from anabranch.deploy.local.stack import LocalStack
from anabranch.shared.contracts.topics import CHECKPOINT_KEY
from anabranch.shared.diagnosis.doctor import examine, is_well
from anabranch.shared.diagnosis.findings import Finding, Verdict
from anabranch.shared.record.settings import RecordSettings
from anabranch.shared.runtime.clients import new_producer
from tests.performance.submitter import Submitter
from tests.performance.throughput import diamonds

WITHIN_S = 120.0


def bad(findings: Sequence[Finding]) -> dict[str, Verdict]:
    """Return the checks that found something, with how bad it is."""
    return {each.check: each.verdict for each in findings if each.verdict is not Verdict.OK}


async def command(settings: RecordSettings) -> tuple[int, dict[str, str]]:
    """Return the exit code of `anabranch doctor`, and its verdicts."""
    env = os.environ | {
        "KAFKA_BOOTSTRAP_SERVERS": settings.kafka_bootstrap_servers,
        "REDIS_URL": settings.redis_url,
        "DATABASE_URL": settings.database_url,
    }
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("anabranch")), "doctor", "--json", env=env, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    said = json.loads(out)
    assert said["is_well"] is (process.returncode == 0)
    assert process.returncode is not None
    return process.returncode, {each["check"]: each["verdict"] for each in said["findings"]}


async def test_what_is_broken_is_found_and_nothing_else(tmp_path: Path) -> None:
    """One part after the other is taken away; all that is left answers as before."""
    services = anabranch_services()
    async with (
        asyncio.timeout(10 * WITHIN_S),
        LocalStack(tmp_path, services=services, restart=False, port=free_port()) as stack,
    ):
        settings = RecordSettings(
            kafka_bootstrap_servers=stack.bootstrap, redis_url=stack.redis_url, database_url=stack.database_url
        )
        async with Submitter(stack.gateway_url) as submitter:
            await submitter.submit(diamonds(20, b"?wait=30s"))
        found = await examine(settings)
        assert bad(found) == {}, found
        checked = {each.check for each in found}
        assert checked >= {
            "Kafka", "topics", "step types", "orchestrators", "inbox", "history", "record keeping", "workers of http",
            "checkpoints", "dead letters", "Redis", "record", "record tables", "clock of Kafka",
            "clock of Redis", "versions",
        }  # fmt: skip
        assert (await command(settings))[0] == 0

        await stack.service("html").stop(WITHIN_S)
        assert bad(await examine(settings)) == {"workers of html": Verdict.WARNING}

        async with new_producer(settings) as producer:
            await producer.send_and_wait(settings.topics.inbox, b"{", key=b"odd", partition=0)
            await _until(settings, {"workers of html": Verdict.WARNING, "dead letters": Verdict.WARNING})

        stack.service("orchestrator").kill()
        broken = {
            "workers of html": Verdict.WARNING, "dead letters": Verdict.WARNING, "orchestrators": Verdict.FAULT,
        }  # fmt: skip
        await _until(settings, broken)  # the group knows of a kill when its session is over
        async with aiohttp.ClientSession() as session, session.get(f"{stack.gateway_url}/v1/doctor") as answer:
            said = await answer.json()
        assert (answer.status, said["is_well"]) == (200, False)
        (of_orchestrators,) = [each for each in said["findings"] if each["check"] == "orchestrators"]
        assert of_orchestrators["do"] == "start an orchestrator"
        assert "12 partitions have no owner" in of_orchestrators["says"]
        assert await command(settings) == (1, {each.check: each.verdict for each in await examine(settings)})

        async with new_producer(settings) as producer:
            await producer.send_and_wait(settings.topics.state, b"odd", key=CHECKPOINT_KEY, partition=0)
        assert bad(await examine(settings)) == broken | {"checkpoints": Verdict.UNKNOWN}

        assert stack.redis is not None
        assert stack.kafka is not None
        await stack.redis.kill()
        assert (await _found(settings, "Redis")).verdict is Verdict.WARNING
        await stack.kafka.kill()
        kafka = await _found(settings, "Kafka")
        assert (kafka.verdict, stack.bootstrap in kafka.says) == (Verdict.FAULT, True)
        assert not is_well([kafka])

        elsewhere = settings.model_copy(update={"database_url": f"sqlite:///{tmp_path}/new.db"})
        tables = await _found(elsewhere, "record tables")
        assert (tables.verdict, tables.do) == (Verdict.FAULT, "run `anabranch db upgrade`")


async def test_an_installation_that_is_not_there_is_told_in_time(tmp_path: Path) -> None:
    """Nothing answers: each part says so, and what to do."""
    settings = RecordSettings(
        kafka_bootstrap_servers=f"127.0.0.1:{free_port()}",
        redis_url=f"redis://127.0.0.1:{free_port()}/0",
        database_url=f"postgresql://u:secret@127.0.0.1:{free_port()}/x",
    )
    async with asyncio.timeout(WITHIN_S):
        found = await examine(settings)
    assert bad(found) == {"Kafka": Verdict.FAULT, "Redis": Verdict.WARNING, "record": Verdict.FAULT}
    assert all(each.do for each in found)
    assert "secret" not in str(found)


async def _found(settings: RecordSettings, check: str) -> Finding:
    (finding,) = [each for each in await examine(settings) if each.check == check]
    return finding


async def _until(settings: RecordSettings, wanted: dict[str, Verdict]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while (found := bad(await examine(settings))) != wanted:
            assert (
                found.items() <= {**wanted, "checkpoints": Verdict.FAULT, "orchestrators": Verdict.WARNING}.items()
            ), found
            await asyncio.sleep(0.2)
