"""What need not be kept is deleted, whole runs at a time, and nothing else."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import func, insert, select, text
from sqlalchemy.ext.asyncio import AsyncEngine
from structlog.testing import capture_logs

from anabranch.services.history import retention as history_retention
from anabranch.services.history.metrics import HistoryMetrics
from anabranch.services.history.retention import RecordRetention
from anabranch.services.history.settings import HistorySettings
from anabranch.shared.record import retention
from anabranch.shared.record.retention import Keep, Keeping, Retention
from anabranch.shared.record.tables import ATTEMPTS, EVENTS, PROGRESS, REVISIONS, RUN_VALUES, RUNS, STEPS
from anabranch.shared.runtime.log import get_logger

NOW_MS = 1_770_000_000_000
DAY_MS = 24 * 3600 * 1000
ACME, OTHERS = "acme", "others"


async def put(
    database: AsyncEngine, run_id: str, *, days: float, tenant: str | None = ACME, live: bool = False, events: int = 3
) -> None:
    """Put a run into the record that began and ended so many days ago, with rows in every table."""
    at = NOW_MS - round(days * DAY_MS)
    of_run: dict[str, Any] = {"run_id": run_id}
    status = "running" if live else "succeeded"
    run = {"tenant": tenant, "status": status, "created_at": at, "finished_at": None if live else at, "seq": events}
    step = {"step": "a", "seq": 1, "status": "succeeded"}
    event = {"type": "StepStarted", "at": at, "partition": 0, "offset": 0, "body": b"{}"}
    async with database.begin() as connection:
        await connection.execute(insert(RUNS), of_run | run)
        value = {"name": "label:x", "value": "1", "tenant": str(tenant), "created_at": at}
        await connection.execute(insert(RUN_VALUES), of_run | value)
        await connection.execute(insert(STEPS), of_run | step | {"uses": "x", "attempt": 1, "document": b"{}"})
        await connection.execute(insert(ATTEMPTS), [of_run | step | {"attempt": number} for number in (1, 2)])
        await connection.execute(insert(EVENTS), [of_run | event | {"seq": seq} for seq in range(1, events + 1)])


async def kept(database: AsyncEngine) -> set[str]:
    """Return which runs there are: the same in every table."""
    async with database.connect() as connection:
        found = [
            set(await connection.scalars(select(table.c.run_id).distinct()))
            for table in (RUNS, RUN_VALUES, STEPS, ATTEMPTS, EVENTS)
        ]
    assert all(one == found[0] for one in found), found
    return found[0]


class Swept:
    """What a sweep did: how many runs each batch took, and the pause after it."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.pauses: list[float] = []

    async def pause(self, seconds: float) -> None:
        """Take note of a pause, and let the others go on."""
        self.pauses.append(seconds)
        await asyncio.sleep(0)


async def sweep(database: AsyncEngine, default: Keep, **tenants: Keep) -> Swept:
    """Delete what is due now."""
    swept = Swept()
    keeping = Keeping(default, tenants)
    await Retention(database, keeping, now_ms=lambda: NOW_MS, deleted=swept.batches.append, pause=swept.pause).sweep()
    return swept


async def test_runs_that_ended_long_ago_are_deleted_with_all_their_rows(database: AsyncEngine) -> None:
    """Not those that are live however old, nor those of tenants that keep more, nor what is no run's."""
    for run_id, days in {"old": 91, "older": 200, "young": 89, "new": 0}.items():
        await put(database, run_id, days=days)
    await put(database, "live", days=200, live=True)
    await put(database, "theirs", days=200, tenant=OTHERS)
    await put(database, "nobody's", days=91, tenant=None)
    async with database.begin() as connection:
        used = {"tenant": ACME, "pipeline": "p", "revision": 1, "first_used_at": 0}
        await connection.execute(insert(REVISIONS), used)
        await connection.execute(insert(PROGRESS), {"partition": 0, "next_offset": 7, "at": 0})
    swept = await sweep(database, Keep(days=90), others=Keep(days=365))
    assert await kept(database) == {"young", "new", "live", "theirs"}
    assert sum(swept.batches) == 3
    async with database.connect() as connection:
        for table in (REVISIONS, PROGRESS):
            assert await connection.scalar(select(func.count()).select_from(table)) == 1
    assert not (await sweep(database, Keep(days=90), others=Keep(days=365))).batches


async def test_a_run_that_took_long_is_kept_from_its_end_on(database: AsyncEngine) -> None:
    await put(database, "long", days=100)
    async with database.begin() as connection:
        await connection.execute(RUNS.update(), {"finished_at": NOW_MS - 80 * DAY_MS})
    await sweep(database, Keep(days=90))
    assert await kept(database) == {"long"}


async def test_of_each_tenant_the_newest_runs_are_kept(database: AsyncEngine) -> None:
    """Live ones count, and stay; runs of one millisecond are told apart by their ids."""
    for number in range(6):
        await put(database, f"a{number}", days=1, live=number == 0)
        await put(database, f"b{number}", days=number + 1, tenant=OTHERS, live=number == 0)
    await sweep(database, Keep(runs=3), others=Keep(runs=2))
    assert await kept(database) == {"a0", "a3", "a4", "a5", "b0", "b1"}


@pytest.mark.parametrize("tenants", [{}, {ACME: Keep()}])
async def test_nothing_is_deleted_where_everything_is_kept(database: AsyncEngine, tenants: Mapping[str, Keep]) -> None:
    await put(database, "old", days=5000)
    await sweep(database, Keep(days=1, runs=1) if tenants else Keep(), **tenants)
    assert await kept(database) == {"old"}


async def test_a_transaction_deletes_a_bounded_part_and_pauses(
    database: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So many runs or so many events; a run that is larger goes alone, and whole."""
    monkeypatch.setattr(retention, "MAX_DELETED_EVENTS", 10)
    monkeypatch.setattr(retention, "MAX_DELETED_RUNS", 4)
    for number, events in enumerate((30, 4, 4, 4, 1, 1, 1, 1, 1)):
        await put(database, f"r{number}", days=100 - number, events=events)
    swept = await sweep(database, Keep(days=10))
    assert swept.batches == [1, 2, 4, 2]
    assert len(swept.pauses) == 4
    assert min(swept.pauses) >= 0.05
    assert await kept(database) == set()


async def test_two_that_sweep_at_once_delete_each_run_once(
    database: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever finds the other at it leaves the rest to it, or to the next time."""
    monkeypatch.setattr(retention, "MAX_DELETED_RUNS", 3)
    for number in range(20):
        await put(database, f"r{number}", days=100)
    swept = await asyncio.gather(*(sweep(database, Keep(days=10)) for _ in range(3)))
    again = await sweep(database, Keep(days=10))
    assert sum(sum(each.batches) for each in (*swept, again)) == 20
    assert await kept(database) == set()


async def test_nobody_deletes_while_another_process_does(database: AsyncEngine) -> None:
    """On PostgreSQL: SQLite has one writer anyway."""
    if database.dialect.name == "sqlite":
        pytest.skip("SQLite has one writer")
    await put(database, "old", days=100)
    async with database.begin() as other:
        assert await other.scalar(text(f"SELECT pg_try_advisory_xact_lock({retention.LOCK})"))
        assert not (await sweep(database, Keep(days=10))).batches
    assert (await sweep(database, Keep(days=10))).batches == [1]


def test_what_is_kept_can_be_set_for_each_tenant(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the limits of their clients are: what is not named is as for everybody."""
    monkeypatch.setenv("ANABRANCH_TENANT_RECORD_KEEP", '{"acme": {"days": 365}, "others": {"days": 0, "runs": 5}}')
    monkeypatch.setenv("ANABRANCH_RECORD_KEEP_RUNS", "100")
    keeping = HistorySettings().keeping
    assert keeping.of("somebody") == keeping.of(None) == Keep(days=90, runs=100)
    assert (keeping.of("acme"), keeping.of("others")) == (Keep(days=365, runs=100), Keep(days=0, runs=5))


async def test_history_sweeps_when_it_starts_and_goes_on_when_it_cannot(
    database: AsyncEngine, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it deleted is counted; a database that is away for a while is swept later."""
    monkeypatch.setattr(history_retention, "_EVERY_S", 0.05)
    await put(database, "old", days=5000)
    await put(database, "live", days=5000, live=True)
    registry = CollectorRegistry()
    settings = HistorySettings(database_url=database_url)
    task = RecordRetention(settings, metrics=HistoryMetrics(registry), log=get_logger())
    async with database.begin() as connection:
        await connection.execute(text("ALTER TABLE steps RENAME TO elsewhere"))
    stopping = asyncio.Event()
    running = asyncio.create_task(task.run(stopping))
    with capture_logs() as said:
        async with asyncio.timeout(60):
            while not said:
                await asyncio.sleep(0.01)
    assert "was not swept" in said[0]["event"]
    async with database.begin() as connection:
        await connection.execute(text("ALTER TABLE elsewhere RENAME TO steps"))
    async with asyncio.timeout(60):
        while registry.get_sample_value("anabranch_history_record_runs_deleted_total") != 1:
            await asyncio.sleep(0.01)
        stopping.set()
        await running
    assert await kept(database) == {"live"}
