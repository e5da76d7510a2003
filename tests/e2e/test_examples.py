"""The examples on the real stack, on the data that `make demo` reads, and what else such a stack must do."""

import sys
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestServer
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from redis.asyncio import Redis
from sqlalchemy import Table, select

from anabranch.client import AnabranchClient, ProblemError, Run, stored_events
from anabranch.client.rebuilt import rebuild
from anabranch.client.replay import document_at, replay
from anabranch.deploy.local.stack import LocalStack
from anabranch.services.orchestrator.replay import Cause
from anabranch.shared.contracts.partitioner import partition_of
from anabranch.shared.contracts.topics import TopicNames
from anabranch.shared.record.database import open_database
from anabranch.shared.record.settings import RecordSettings
from anabranch.shared.record.tables import EVENTS, RUNS
from tests.contract.described import judge
from tests.support.one_service import eventually

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))  # the examples are scripts, not a package

from serve import documented_modules, served  # noqa: E402

pytestmark = pytest.mark.asyncio(loop_scope="module")


TOKEN = "s3cret/t0ken+of-orders"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalStack]:
    env = {"ANABRANCH_SECRET_ORDERS_TOKEN": TOKEN, "ANABRANCH_LOG_LEVEL": "debug"}
    async with LocalStack(tmp_path_factory.mktemp("stack"), env=env) as stack:
        yield stack


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(stack: LocalStack) -> AsyncIterator[AnabranchClient]:
    async with AnabranchClient(stack.gateway_url) as client:
        yield client


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site() -> AsyncIterator[str]:
    async with served() as url:
        yield url


async def run_of(client: AnabranchClient, file: str, **inputs: object) -> Run:
    accepted = await client.submit((EXAMPLES / file).read_text(), inputs=inputs)
    return [run async for run in client.watch(accepted.id)][-1]


def failures(run: Run) -> dict[str, object]:
    """Why a run did not succeed: the run's error and those of its steps, in full."""
    return {"run": run.error, **{name: step.error for name, step in run.steps.items() if step.error}}


async def test_airports_are_profiled(client: AnabranchClient, site: str) -> None:
    run = await run_of(client, "data-pipeline/airports.yaml", url=f"{site}/airports.csv", top=5)
    assert run.succeeded, failures(run)
    report = (run.outputs or {})["report"]
    assert report["airports"] > 25_000
    assert report["countries"] > 200
    assert report["top"][0]["country"] == "US"
    assert len(report["top"]) == 5
    aggregations = [run.steps[name] for name in ("by_country", "by_elevation", "by_time_zone")]
    assert max(step.queued_at for step in aggregations) <= min(step.finished_at for step in aggregations), "in parallel"


async def test_table_that_is_not_whole_fails_before_it_is_aggregated(client: AnabranchClient, site: str) -> None:
    run = await run_of(client, "data-pipeline/airports.yaml", url=f"{site}/airports.csv", min_rows=1_000_000)
    assert run.status == "failed"
    assert run.steps["validate"].error is not None
    assert "airports" in run.steps["validate"].error.message
    assert {run.steps[name].status for name in ("by_country", "profile", "report")} <= {"skipped", "cancelled"}


async def test_audit_finds_the_links_to_pages_that_nobody_wrote(client: AnabranchClient, site: str) -> None:
    run = await run_of(client, "site-audit/audit.yaml", site=f"{site}/docs/")
    assert run.succeeded, failures(run)
    audit = (run.outputs or {})["audit"]
    broken = {row["page"] for row in audit["broken"]}
    assert {"builtins.html", "re.html"} <= broken
    assert broken.isdisjoint(f"{module}.html" for module in documented_modules())
    assert audit["score"] == 100 * (audit["checked"] - len(broken)) // audit["checked"]
    assert audit["unlisted"] == ["."]
    assert run.steps["sitemap"].attempt == 3, "it answers 503 twice"


async def test_a_run_is_cancelled_while_its_step_sleeps(client: AnabranchClient) -> None:
    """However often it is asked; afterwards it is over."""
    slow = {"name": "slow", "steps": {"nap": {"uses": "simulate", "with": {"sleep": "10m"}}}}
    accepted = await client.submit(slow)
    assert not (await client.cancel(accepted.id)).ended
    with suppress(ProblemError):  # it may be over by now
        assert not (await client.cancel(accepted.id)).ended
    run = [run async for run in client.watch(accepted.id)][-1]
    assert (run.status, run.steps["nap"].status) == ("cancelled", "cancelled")
    with pytest.raises(ProblemError) as refused:
        await client.cancel(accepted.id)
    assert (refused.value.problem.status, refused.value.problem.run_status) == (409, "cancelled")


@asynccontextmanager
async def a_private_service() -> AsyncIterator[tuple[str, list[str]]]:
    """A service that wants the token, and repeats it wherever it can; under `/broken` it answers 500."""
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.headers["Authorization"])
        said = {"orders": [1, 2], "you": asked[-1], "basic": b64encode(asked[-1].encode()).decode()}
        status = 500 if request.path == "/broken" else 200 if asked[-1] == f"Bearer {TOKEN}" else 401
        return web.json_response(said, status=status, headers={"X-Your": asked[-1]})

    app = web.Application()
    app.router.add_get("/{path}", answer)
    async with TestServer(app) as server:
        yield str(server.make_url("/")), asked


async def test_a_secret_reaches_its_service_and_nobody_else(stack: LocalStack, client: AnabranchClient) -> None:
    """Its value is in no record of any topic, under no key of Redis, in no line of a log and in no answer."""
    async with a_private_service() as (url, asked):
        run = await run_of(client, "private-api/orders.yaml", url=f"{url}orders")
        broken = await run_of(client, "private-api/orders.yaml", url=f"{url}broken")
    assert asked == [f"Bearer {TOKEN}"] * 2
    assert (run.outputs or {})["orders"] == {"orders": [1, 2], "you": "Bearer ***", "basic": "QmVhcmVyIH***M="}
    assert broken.status == "failed"
    forms = [
        TOKEN.encode(),
        TOKEN.replace("/", "\\/").encode(),
        TOKEN.replace("/", "%2F").encode(),
        b64encode(TOKEN.encode())[:-2],
    ]
    for what, kept in [
        *[(f"topic {topic}", records) for topic, records in (await everything_in_kafka(stack.bootstrap)).items()],
        ("redis", await everything_in_redis(stack.redis_url)),
        *[(str(path), path.read_bytes()) for path in (stack.home.path / "logs").iterdir()],
        ("run", repr((run, broken)).encode()),
    ]:
        assert kept or "log" in what, f"{what}: nothing was found"
        for form in forms:
            assert form not in kept, what


async def everything_in_kafka(bootstrap: str) -> dict[str, bytes]:
    """Return all keys, values and headers, by topic; topics with nothing in them are left out."""
    found: dict[str, bytes] = {}
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        topics = await admin.describe_topics()
    finally:
        await admin.close()
    partitions = [
        TopicPartition(topic["topic"], partition["partition"]) for topic in topics for partition in topic["partitions"]
    ]
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap)
    await consumer.start()
    try:
        consumer.assign(partitions)
        await consumer.seek_to_beginning()
        ends = await consumer.end_offsets(partitions)
        while any([await consumer.position(partition) < end for partition, end in ends.items()]):
            for partition, records in (await consumer.getmany(timeout_ms=1000)).items():
                for record in records:
                    parts = (record.key, record.value, *(value for _, value in record.headers))
                    found[partition.topic] = found.get(partition.topic, b"") + b"\n".join(part or b"" for part in parts)
    finally:
        await consumer.stop()
    return found


async def everything_in_redis(url: str) -> bytes:
    """Return all keys and their values."""
    found = []
    async with Redis.from_url(url) as redis:
        async for key in redis.scan_iter():
            kind = await redis.type(key)
            value = await redis.hgetall(key) if kind == b"hash" else await redis.get(key) if kind == b"string" else None
            assert value is not None, f"{key}: a {kind}, which this test cannot read"
            found.append(repr((key, value)).encode())
    return b"\n".join(found)


EVENTFUL = {
    "name": "eventful",
    "fail_fast": False,
    "inputs": {"n": {}},
    "outputs": {"sum": "${{ steps.sum.output }}"},
    "steps": {
        "flaky": {
            "uses": "simulate",
            "with": {"fail_attempts": 1},
            "retry": {"max_attempts": 2, "initial": "10ms"},
        },
        "slow": {"uses": "simulate", "with": {"sleep": "10m"}, "timeout": "100ms", "continue_on_error": True},
        "sum": {"uses": "transform", "needs": ["flaky"], "with": {"value": "${{ inputs.n + 1 }}"}},
        "never": {"uses": "simulate", "needs": ["sum"], "if": "false"},
        "after": {"uses": "simulate", "needs": ["slow"], "if": "failed()"},
    },
}


async def test_runs_are_replayed_from_kafka_and_a_flipped_byte_is_found(
    stack: LocalStack, client: AnabranchClient, capsys: pytest.CaptureFixture[str]
) -> None:
    """One with a retry, a time-out, a transform and a skipped step, and one that was cancelled."""
    without_record = RecordSettings(kafka_bootstrap_servers=stack.bootstrap, database_url="")
    settings = RecordSettings(kafka_bootstrap_servers=stack.bootstrap, database_url=stack.database_url)
    engine = open_database(stack.database_url, name="test")

    async def set_to(table: Table, column: str, run_id: str, value: bytes, **row: object) -> None:
        where = [table.c.run_id == run_id, *(table.c[name] == key for name, key in row.items())]
        async with engine.begin() as connection:
            assert (await connection.execute(table.update().where(*where), {column: value})).rowcount == 1

    nap = {"name": "nap", "steps": {"nap": {"uses": "simulate", "with": {"sleep": "10m"}}}}
    accepted = [await client.submit(EVENTFUL, inputs={"n": 1}), await client.submit(nap)]
    await client.cancel(accepted[1].id)
    for submitted, status in zip(accepted, ("succeeded", "cancelled"), strict=True):
        run = [run async for run in client.watch(submitted.id)][-1]
        assert run.status == status, failures(run)

        rebuilt = await rebuild(without_record, run.id)
        assert rebuilt is not None
        assert (rebuilt.is_decided, rebuilt.is_equal, rebuilt.stored_in) == (True, True, stored_events.TOPIC)
        assert Run.model_validate_json(document_at(run.id, rebuilt.events)) == run

        count = len(rebuilt.events)
        await eventually(partial(_is_recorded, settings, run.id, count))
        assert await replay(settings, run.id, at=2, as_json=False) == 0
        assert f"equal: {count} events" in capsys.readouterr().err
        second = rebuilt.events[1]
        await set_to(EVENTS, "body", run.id, second[:-3] + b"?" + second[-2:], seq=2)
        assert await replay(settings, run.id, at=None, as_json=False) == 1
        assert "different: event 2 in the record" in capsys.readouterr().err
        await set_to(EVENTS, "body", run.id, second, seq=2)
        async with engine.connect() as connection:
            ending = await connection.scalar(select(RUNS.c.ending).where(RUNS.c.run_id == run.id))
        await set_to(RUNS, "ending", run.id, b"{}")
        assert await replay(settings, run.id, at=None, as_json=False) == 1
        assert "different: the rows in runs of the record" in capsys.readouterr().err
        await set_to(RUNS, "ending", run.id, ending)

        await forget_inbox_before(stack.bootstrap, run.id, rebuilt.causes[0])
        for told in (settings, without_record):
            kept = await rebuild(told, run.id)
            assert kept is not None
            assert (kept.is_decided, kept.is_equal, list(kept.events)) == (False, True, list(rebuilt.events))
        assert await replay(settings, run.id, at=1, as_json=False) == 0
        assert f"its {count} events in the record are whole" in capsys.readouterr().err
    await engine.dispose()
    assert await replay(settings, "00000000-0000-7000-8000-000000000000", at=None, as_json=False) == 2


async def forget_inbox_before(bootstrap: str, run_id: str, start: Cause | None) -> None:
    """Delete a run's first record and what stands before it, as retention does in time."""
    assert start is not None
    topics = TopicNames()
    place = TopicPartition(topics.inbox, partition_of(run_id.encode(), topics.runs))
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.delete_records({place: RecordsToDelete(start.offset + 1)})
    finally:
        await admin.close()


async def _is_recorded(settings: RecordSettings, run_id: str, events: int) -> bool:
    return len(await stored_events.from_database(settings, run_id)) == events


async def test_drawn_requests_are_answered_as_described(client: AnabranchClient, tmp_path: Path) -> None:
    """By this stack too, as it stands here already; `make schemathesis` draws more."""
    drawn = ("--phases", "fuzzing", "--max-examples", "5", "--seed", "9", "--generation-deterministic")
    code, printed = await judge(client.base_url, tmp_path, *drawn)
    assert code == 0, printed
