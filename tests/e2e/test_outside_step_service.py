"""A team in another repository writes its step service against an installed `anabranch`."""

import asyncio
import os
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiokafka.structs import TopicPartition

from anabranch.deploy.local.kafka import LocalKafka
from anabranch.deploy.local.redis import LocalRedis
from anabranch.shared.contracts.codec import decode, encode
from anabranch.shared.contracts.messages import INBOX as INBOX_MESSAGES
from anabranch.shared.contracts.messages import STEP_TYPES as ANNOUNCEMENTS
from anabranch.shared.contracts.messages import AttemptSucceeded, RunStep, StepTypeAnnounced
from anabranch.shared.contracts.topics import CONTROL, DEAD_LETTERS, INBOX, STEP_TYPES
from anabranch.shared.runtime.kafka import Outbox, ensure_topics, new_consumer
from anabranch.shared.runtime.settings import Settings

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "outside-step-service"
RUN = "0190b0a0-0000-7000-8000-000000000001"


def wheel_of(project: Path, directory: Path) -> Path:
    """Build a project's wheel, as its users would."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        str(directory),
        str(project),
    ]
    subprocess.run(command, check=True, timeout=120)
    (wheel,) = directory.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheels of anabranch and of the example."""
    place = tmp_path_factory.mktemp("wheels")
    return wheel_of(ROOT, place / "anabranch"), wheel_of(EXAMPLE, place / "example")


@pytest.fixture(scope="module")
def environment(wheels: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with both wheels in it; the dependencies are those of the suite's own environment."""
    place = tmp_path_factory.mktemp("outside")
    subprocess.run([sys.executable, "-m", "venv", str(place / "env")], check=True, timeout=120)
    python = place / "env" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", *map(str, wheels)], check=True, timeout=120)
    (packages,) = (place / "env" / "lib").glob("python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return place / "env"


def test_nothing_but_anabranch_lands_in_site_packages(wheels: tuple[Path, Path]) -> None:
    """`services` and `shared` are names that others have too."""
    with zipfile.ZipFile(wheels[0]) as wheel:
        tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"anabranch"}


def test_the_installed_package_is_the_one_that_is_used(environment: Path) -> None:
    """Not the working copy that the suite itself imports."""
    script = "import anabranch.services.steps.http.__main__, anabranch.steps; print(anabranch.steps.__file__)"
    printed = subprocess.run(
        [environment / "bin" / "python", "-c", script],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=environment,
    ).stdout
    assert Path(printed.strip()).is_relative_to(environment)


async def test_the_example_announces_its_type_serves_it_and_stops(environment: Path, tmp_path: Path) -> None:
    """Announced with its schemas, answered once, exit code 0 on SIGTERM."""
    async with LocalKafka(tmp_path / "kafka") as kafka, LocalRedis(tmp_path / "redis") as redis:
        settings = Settings(
            kafka_bootstrap_servers=kafka.bootstrap, redis_url=redis.url, run_partitions=2, step_partitions=2
        )
        others = (INBOX, CONTROL, DEAD_LETTERS, STEP_TYPES)
        await ensure_topics(settings, [(topic, topic.name(settings.topic_prefix)) for topic in others])
        async with service(environment, settings) as process:
            announced = await first_of(settings, settings.topics.step_types, 1, ANNOUNCEMENTS)
            assert isinstance(announced, StepTypeAnnounced)
            assert (announced.name, announced.version, announced.description) == ("shout", "1.0", "Say it louder.")
            assert announced.input_schema["required"] == ["text"]
            await command(settings)
            answer = await first_of(settings, settings.topics.inbox, 2, INBOX_MESSAGES)
            assert isinstance(answer, AttemptSucceeded)
            assert answer == AttemptSucceeded(
                run_id=RUN, step="hello", attempt=1, output={"text": "HELLO!"}, duration_ms=answer.duration_ms
            )
            process.terminate()
            assert await asyncio.wait_for(process.wait(), 60) == 0


@asynccontextmanager
async def service(environment: Path, settings: Settings) -> AsyncIterator[asyncio.subprocess.Process]:
    told = {
        "KAFKA_BOOTSTRAP_SERVERS": settings.kafka_bootstrap_servers,
        "REDIS_URL": settings.redis_url,
        "ANABRANCH_RUN_PARTITIONS": "2",
        "ANABRANCH_STEP_PARTITIONS": "2",
    }
    process = await asyncio.create_subprocess_exec(environment / "bin" / "acme-shout", env=os.environ | told)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def command(settings: Settings) -> None:
    """Dispatch one attempt, as the orchestrator does."""
    message = RunStep(
        run_id=RUN, step="hello", attempt=1, uses="shout", tenant="t", input={"text": "hello"}, timeout_s=10, at_ms=0
    )
    record = encode(message, message_id=f"{RUN}/hello/1", source="test", at_ms=0, trace_id="1" * 32)
    outbox = Outbox(settings)
    await outbox.start()
    await outbox.append_and_wait(settings.topics.steps("shout"), 0, RUN.encode(), record.value, record.headers)
    await outbox.stop()


async def first_of(settings: Settings, topic: str, partitions: int, adapter: Any) -> Any:
    """Return the first message of a topic, when there is one."""
    consumer = new_consumer(settings)
    await consumer.start()
    try:
        every = [TopicPartition(topic, number) for number in range(partitions)]
        consumer.assign(every)
        await consumer.seek_to_beginning(*every)
        async with asyncio.timeout(60):
            return decode(adapter, (await consumer.getone()).value)
    finally:
        await consumer.stop()
