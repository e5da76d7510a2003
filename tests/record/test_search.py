"""Runs are found by what is asked for, whole and in order, along an index, and each tenant finds its own."""

import math
import random
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

import pytest
from sqlalchemy import insert, select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from anabranch.shared.record import search as search_module
from anabranch.shared.record.database import is_sqlite
from anabranch.shared.record.rows import COLUMNS
from anabranch.shared.record.search import Filter, Place, RunSearch, UnreadableCursor, _places, _ways
from anabranch.shared.record.statistics import RecordStatistics
from anabranch.shared.record.tables import METADATA

STATUSES: Final = ("succeeded", "succeeded", "failed", "running", "cancelled", "timed_out")
COUNT: Final = 400


def a_run(number: int, tenant: str = "acme") -> dict[str, Any]:
    """Return a run's row; every tenth time is that of the one before."""
    status = STATUSES[number % len(STATUSES)]
    at = 1_000 + number - (number % 10 == 9)
    error = "HttpError" if status == "failed" else None
    return {
        "run_id": f"{tenant}-{number:05}", "tenant": tenant, "pipeline": f"p{number % 3}", "status": status,
        "revision": number % 2 or None, "created_at": at, "started_at": at,
        "finished_at": None if status == "running" else at + number, "seq": 9, "error_type": error,
        "error_text": f"50% of_{number} WENT" if error else None, "body_hash": "",
        "header": b"{}", "ending": None,
    }  # fmt: skip


def values_of(run: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what the run is found by: a label that is rare, one of all, and an input."""
    number = int(run["run_id"][-5:])
    of_run = {"run_id": run["run_id"], "tenant": run["tenant"], "created_at": run["created_at"]}
    found = [("label:all", "yes"), ("input:n", str(number % 7))] + ([("label:rare", "1")] if number % 50 == 0 else [])
    return [of_run | {"name": name, "value": value} for name, value in found]


async def fill(database: AsyncEngine, runs: Sequence[dict[str, Any]]) -> None:
    """Insert runs, and a step of each that took as long."""
    steps = [
        {
            "run_id": run["run_id"], "step": "s", "seq": 1, "uses": "http", "status": run["status"], "attempt": 1,
            "queued_at": 0, "started_at": run["started_at"], "finished_at": run["finished_at"], "document": b"{}",
            "error_type": None,
        }
        for run in runs
    ]  # fmt: skip
    async with database.begin() as connection:
        for table, rows in {
            "runs": runs,
            "run_values": [v for r in runs for v in values_of(r)],
            "steps": steps,
        }.items():
            assert set(rows[0]) == set(COLUMNS[table])
            await connection.execute(insert(METADATA.tables[table]), list(rows))


@pytest.fixture
async def search(database: AsyncEngine) -> AsyncIterator[RunSearch]:
    """Yield a search over the runs of two tenants."""
    await fill(database, [a_run(number) for number in range(COUNT)] + [a_run(n, "other") for n in range(COUNT)])
    yield RunSearch(database)


FILTERS: Final = [
    Filter(),
    Filter(statuses=("failed",)),
    Filter(statuses=("failed", "running", "timed_out")),
    Filter(pipeline="p1"),
    Filter(pipeline="p1", revision=1),
    Filter(pipeline="p1", statuses=("running",)),
    Filter(pipeline="p1", statuses=("failed", "succeeded"), until_ms=1_300),
    Filter(pipeline="p2", error_type="HttpError", revision=1),
    Filter(since_ms=1_100, until_ms=1_200),
    Filter(error_type="HttpError", until_ms=1_200),
    Filter(values=(("label:rare", "1"),)),
    Filter(values=(("label:all", "yes"), ("input:n", "3"))),
    Filter(values=(("input:n", "3"),), statuses=("succeeded", "failed"), pipeline="p0"),
    Filter(text="went"),
    Filter(text="50% of_8"),
    Filter(text="P2", statuses=("failed",)),
    Filter(text="acme-0012"),
    Filter(text="%"),
    Filter(pipeline="none"),
]  # fmt: skip


def fits(run: dict[str, Any], wanted: Filter) -> bool:
    """Return whether a run is one that is asked for, as plainly as it can be said."""
    values = {each["name"]: each["value"] for each in values_of(run)}
    words = (wanted.text or "").lower()
    return (
        (not wanted.statuses or run["status"] in wanted.statuses)
        and all(getattr(wanted, n) in (None, run[n]) for n in ("pipeline", "revision", "error_type"))
        and (wanted.since_ms or 0) <= run["created_at"] < (wanted.until_ms or math.inf)
        and all(values.get(name) == value for name, value in wanted.values)
        and (
            words in run["pipeline"].lower()
            or words in (run["error_text"] or "").lower()
            or run["run_id"].startswith(words)
        )
    )


@pytest.mark.parametrize("looked_through", [60, 5_000])
async def test_every_page_of_every_filter_has_the_right_runs(
    search: RunSearch, looked_through: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In order, each once, and counted right, also when there are more than are looked through at a time."""
    monkeypatch.setattr(search_module, "LOOKED_THROUGH", looked_through)
    for wanted in FILTERS:
        expected = [run for run in map(a_run, range(COUNT)) if fits(run, wanted)]
        expected.sort(key=lambda run: (run["created_at"], run["run_id"]), reverse=True)
        found, behind = [], None
        while True:
            page = await search.page("acme", wanted, most=37, behind=behind)
            found += page.runs
            behind = page.next and Place.of(page.next.cursor())
            if behind is None:
                break
        assert [run.run_id for run in found] == [run["run_id"] for run in expected], wanted
        counted = {status: sum(run["status"] == status for run in expected) for status in set(STATUSES)}
        counts = await search.counts("acme", wanted)
        if counts.are_all:
            assert counts.by_status == {status: count for status, count in counted.items() if count}, wanted
        else:
            assert looked_through == 60
            assert all(count <= counted[status] for status, count in counts.by_status.items()), wanted
        assert counts.are_all or search_module._ways(wanted)[0] != wanted


async def test_pages_stay_right_while_runs_arrive(search: RunSearch, database: AsyncEngine) -> None:
    """What was there at the first page is seen once, whatever begins meanwhile."""
    rng, seen, behind, arrived = random.Random(7), [], None, COUNT
    while True:
        page = await search.page("acme", Filter(), most=50, behind=behind)
        seen += [run.run_id for run in page.runs]
        behind = page.next
        if behind is None:
            break
        more = [a_run(number) for number in range(arrived, arrived + rng.randint(1, 9))]
        await fill(database, more)
        arrived += len(more)
    assert sorted(seen) == [f"acme-{number:05}" for number in range(COUNT)]


async def test_a_list_shows_what_a_run_is_labelled_with(search: RunSearch) -> None:
    """And when it began and ended."""
    run = (await search.page("acme", Filter(text="acme-00050"), most=1)).runs[0]
    assert run.labels == {"all": "yes", "rare": "1"}
    assert (run.created_at, run.finished_at, run.status) == (1_050, 1_100, "failed")


@pytest.mark.parametrize("odd", ["\0", "\ud800", "'; DROP TABLE runs; --", "%", "_" * 10_000, "\\", "é\U0001f600"])
async def test_odd_texts_find_nothing_and_harm_nothing(search: RunSearch, odd: str) -> None:
    """Wherever they are asked for."""
    for wanted in (
        Filter(statuses=(odd,)), Filter(pipeline=odd), Filter(error_type=odd), Filter(values=((odd, odd),)),
        Filter(text=odd + "x"),
    ):  # fmt: skip
        assert (await search.page("acme", wanted, most=10)).runs == []
    assert len((await search.page("acme", Filter(), most=10)).runs) == 10


@pytest.mark.parametrize("cursor", ["x", "", "AAAA", "MTAwMA", "é", "a" * 5_000])
def test_a_cursor_that_is_none_is_told(cursor: str) -> None:
    """It is not guessed what it may have meant."""
    with pytest.raises(UnreadableCursor):
        Place.of(cursor)


async def test_counts_stop_somewhere_and_say_so(search: RunSearch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each status where an index has them; else of those that are looked through."""
    monkeypatch.setattr(search_module, "COUNTED", 70)
    monkeypatch.setattr(search_module, "LOOKED_THROUGH", 60)
    counts = await search.counts("acme", Filter(statuses=("succeeded", "failed")))
    assert (counts.by_status, counts.are_all) == ({"succeeded": 70, "failed": 67}, False)
    assert (await search.counts("acme", Filter(statuses=("failed",)))).are_all
    worded = await search.counts("acme", Filter(text="acme"))
    assert (sum(worded.by_status.values()), worded.are_all) == (60, False)


async def test_what_is_rare_is_found_along_the_way_that_has_the_fewest(
    search: RunSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one page, whatever else is asked for."""
    monkeypatch.setattr(search_module, "LOOKED_THROUGH", 60)
    for values in ([("label:all", "yes"), ("label:rare", "1")], [("label:rare", "1"), ("label:all", "yes")]):
        page = await search.page("acme", Filter(values=tuple(values), pipeline="p0"), most=10)
        assert ([run.run_id for run in page.runs], page.next) == (["acme-00300", "acme-00150", "acme-00000"], None)


INDEXED: Final = [
    ("runs_by_age", Filter()),
    ("runs_by_status", Filter(statuses=("failed",))),
    ("runs_by_status", Filter(statuses=("failed", "running"))),
    ("runs_by_pipeline", Filter(pipeline="p1")),
    ("runs_by_pipeline", Filter(pipeline="p1", statuses=("failed",))),
    ("runs_by_error", Filter(error_type="Rare")),
    ("run_values_by_value", Filter(values=(("label:rare", "1"),))),
]


@pytest.mark.parametrize(("index", "wanted"), INDEXED)
async def test_each_way_goes_along_its_index(database: AsyncEngine, index: str, wanted: Filter) -> None:
    """As the database itself explains it, once it knows how many runs there are."""
    rng = random.Random(1)
    runs = [a_run(number, rng.choice(["acme", "b", "c"])) for number in range(5_000)]
    await fill(database, runs)
    async with database.connect() as connection:
        await (await connection.execution_options(isolation_level="AUTOCOMMIT")).execute(text("ANALYZE"))
    (way,) = _ways(wanted)
    statement = select(_places("acme", way, Place(4_000, "acme"), 51))
    query = statement.compile(database.sync_engine, compile_kwargs={"literal_binds": True})
    explain = "EXPLAIN QUERY PLAN" if is_sqlite(database.url) else "EXPLAIN"
    async with database.connect() as connection:
        plan = "\n".join(str(row) for row in await connection.execute(text(f"{explain} {query}".replace(":", r"\:"))))
    assert index in plan, plan
    assert "Seq Scan" not in plan, plan
    assert "SCAN runs" not in plan, plan


async def test_figures_are_those_of_the_runs(search: RunSearch, database: AsyncEngine) -> None:
    """By pipeline and by step: how many ended and failed, and the nearest ranks of their durations."""
    statistics = RecordStatistics(database)
    for by_step in (False, True):
        ask = statistics.of_steps if by_step else statistics.of_pipelines
        found = await ask("acme", since_ms=1_100)
        for figures in found.figures:
            runs = [
                r for r in map(a_run, range(COUNT)) if r["created_at"] >= 1_100 and r["pipeline"] == figures.pipeline
            ]
            ended = [run for run in runs if run["finished_at"] is not None]
            took = sorted(run["finished_at"] - run["created_at"] for run in ended)
            assert figures.step == ("s" if by_step else "")
            assert figures.ended == len(ended)
            assert figures.failed == sum(run["status"] in ("failed", "timed_out") for run in ended)
            ranks = [took[math.ceil(len(took) * share) - 1] for share in (0.5, 0.95)]
            assert [figures.p50_ms, figures.p95_ms] == ranks
        assert [each.pipeline for each in found.figures] != []
        assert found.is_all
    assert (await statistics.of_pipelines("acme", since_ms=0, pipeline="p1")).figures[0].pipeline == "p1"
    assert (await statistics.of_pipelines("nobody", since_ms=0)).figures == []
