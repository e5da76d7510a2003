"""What is exported as Parquet is what the record holds, row by row."""

import asyncio
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncEngine

from anabranch.client import cli
from anabranch.client import export as of_export
from anabranch.client.export import Wanted, write
from anabranch.shared.contracts.times import milliseconds
from anabranch.shared.record.tables import ATTEMPTS, EVENTS, RUNS, STEPS

FILES = {"runs.parquet", "steps.parquet", "attempts.parquet", "events.parquet"}
T0 = milliseconds("2026-01-31T00:00:00.000000Z")
HOUR_MS = 3600 * 1000
OUTPUTS = {"n": 2**70, "text": "ü\u0000\u2028", "list": [1, 1.5, None, {"a": {}}]}


def a_run(number: int) -> dict[str, Any]:
    """Return the row of a run: one an hour, of two tenants in turn, every third one live."""
    is_live = number % 3 == 2
    at = T0 + number // 2 * HOUR_MS
    header = {"labels": {"team": f"t{number}", "": "ü"}, "inputs": {"n": number}, "steps": {"a": "x"}}
    ending = {"outputs": OUTPUTS, "error": {"type": "Boom", "message": "no"} if number % 2 else None}
    ended = {
        "finished_at": at + 5,
        "error_type": "Boom" if number % 2 else None,
        "ending": of_export.to_json(ending),
    }
    return {
        "run_id": f"run-{(number * 7) % 100:02}",
        "tenant": f"tenant-{number % 2}",
        "pipeline": "p",
        "revision": number or None,
        "status": "running" if is_live else "succeeded",
        "created_at": at,
        "started_at": at + 1,
        "seq": number + 1,
        "header": orjson.dumps(header),
        **({} if is_live else ended),
    }


def events_of(run: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of a run's events."""
    return [
        {
            "run_id": run["run_id"], "seq": seq, "type": "StepStarted", "at": run["created_at"] + seq, "partition": 3,
            "offset": 2**40 + seq, "body": orjson.dumps({"seq": seq, "text": "ü" * seq}),
        }
        for seq in range(1, run["seq"] + 1)
    ]  # fmt: skip


def steps_of(run: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of a run's steps, in the order of their names: one succeeded, one failed."""
    at = run["created_at"]
    same = {"run_id": run["run_id"], "seq": 2, "uses": "x", "attempt": 2, "queued_at": at, "started_at": at + 1}
    return [
        same | {
            "step": "B", "status": "succeeded", "finished_at": at + 3, "error_type": None,
            "document": of_export.to_json({"output": OUTPUTS, "error": None}),
        },
        same | {
            "step": "a", "status": "failed", "finished_at": None, "error_type": "Boom",
            "document": of_export.to_json({"output": None, "error": {"type": "Boom", "message": "ü"}}),
        },
    ]  # fmt: skip


def attempts_of(run: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of the attempts of a run's steps: the first of each was lost, the last one may go on."""
    at = run["created_at"]
    return [
        {
            "run_id": run["run_id"], "step": step, "attempt": attempt, "seq": 1, "status": "running", "queued_at": at,
            "started_at": at + attempt, "finished_at": None, "error": b'{"type":"Boom"}' if step == "a" else None,
        }
        for step in ("B", "a") for attempt in (1, 2)
    ]  # fmt: skip


ROWS = [a_run(number) for number in range(40)]
"""In no order that an export has."""


@pytest.fixture
async def filled(database: AsyncEngine) -> AsyncEngine:
    """Return a database with runs, and one that is nobody's, of which nothing but an event is known."""
    nobodys = {"run_id": "nobody's", "status": "running", "created_at": T0, "seq": 1}
    async with database.begin() as connection:
        for run in [*reversed(ROWS), nobodys]:
            await connection.execute(insert(RUNS), run)
            await connection.execute(insert(EVENTS), events_of(run))
            await connection.execute(insert(STEPS), [*reversed(steps_of(run))])
            await connection.execute(insert(ATTEMPTS), [*reversed(attempts_of(run))])
    return database


def expected(runs: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the rows of runs and events: by tenant, age and id, and of each run by number."""
    ordered = sorted(runs, key=lambda run: (run["tenant"], run["created_at"], run["run_id"]))
    events = [event | {"tenant": run["tenant"]} for run in ordered for event in events_of(run)]
    return ordered, events


def read(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the rows of a file, and how many row groups it has."""
    return pq.read_table(path).to_pylist(), pq.ParquetFile(path).num_row_groups


def in_ms(row: dict[str, Any], *names: str) -> dict[str, Any]:
    """Return a row with times as they are in the record."""
    return row | {name: row[name] and round(row[name].timestamp() * 1000) for name in names}


def check(out: Path, runs: list[dict[str, Any]]) -> tuple[int, int]:
    """Compare the files with the rows of runs; return how many row groups runs and events have."""
    wanted_runs, wanted_events = expected(runs)
    (found_runs, run_groups), (found_events, event_groups) = read(out / "runs.parquet"), read(out / "events.parquet")
    assert len(found_runs) == len(wanted_runs)
    for found, wanted in zip(found_runs, wanted_runs, strict=True):
        same = ("run_id", "tenant", "pipeline", "revision", "status", "created_at", "started_at")
        shown = in_ms(found, "created_at", "started_at", "finished_at")
        header, ending = orjson.loads(wanted["header"]), of_export.from_json(wanted.get("ending") or b"{}")
        assert {name: shown[name] for name in same} == {name: wanted[name] for name in same}
        assert shown["finished_at"] == wanted.get("finished_at")
        assert (shown["last_seq"], shown["error_type"]) == (wanted["seq"], wanted.get("error_type"))
        assert dict(found["labels"]) == header["labels"]
        assert orjson.loads(found["inputs"]) == header["inputs"]
        for name in ("outputs", "error"):
            assert (found[name] and of_export.from_json(found[name])) == ending.get(name)
    _check_steps(out, wanted_runs)
    assert len(found_events) == len(wanted_events)
    for event, stored in zip(found_events, wanted_events, strict=True):
        shown = in_ms(event, "at")
        assert shown.pop("event").encode() == stored.pop("body")
        assert shown == stored
    return run_groups, event_groups


def _check_steps(out: Path, runs: list[dict[str, Any]]) -> None:
    times = ("queued_at", "started_at", "finished_at")
    steps = [step | {"tenant": run["tenant"]} for run in runs for step in steps_of(run)]
    found_steps, _ = read(out / "steps.parquet")
    assert len(found_steps) == len(steps)
    for found, wanted in zip(found_steps, steps, strict=True):
        del wanted["seq"]
        document = of_export.from_json(wanted.pop("document"))
        said = {name: found[name] and of_export.from_json(found[name]) for name in ("output", "error")}
        assert in_ms(found, *times) | said == wanted | document
    attempts = [attempt | {"tenant": run["tenant"]} for run in runs for attempt in attempts_of(run)]
    found_attempts, _ = read(out / "attempts.parquet")
    for attempt in attempts:
        del attempt["seq"]
        attempt["status"] = "lost" if attempt["attempt"] == 1 else "running"
        attempt["error"] = attempt["error"] and attempt["error"].decode()
    assert [in_ms(found, *times) for found in found_attempts] == attempts


async def test_the_files_hold_the_record_row_by_row(
    filled: AsyncEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In an order of their own, by pages and row groups, the same bytes each time."""
    monkeypatch.setattr(of_export, "PAGE_RUNS", 7)
    monkeypatch.setattr(of_export, "GROUP_ROWS", 100)
    rows = {"runs": 40, "steps": 80, "attempts": 160, "events": sum(run["seq"] for run in ROWS)}
    assert await write(filled, tmp_path / "a", Wanted()) == rows
    assert check(tmp_path / "a", ROWS) == (1, 9)
    await write(filled, tmp_path / "b", Wanted())
    for name in FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    monkeypatch.setattr(of_export, "GROUP_BYTES", 2000)
    await write(filled, tmp_path / "c", Wanted())
    groups = check(tmp_path / "c", ROWS)
    assert min(groups) > 1
    assert {path.name for path in (tmp_path / "c").iterdir()} == FILES


@pytest.mark.parametrize(
    ("wanted", "numbers"),
    [
        (Wanted(tenant="tenant-1"), range(1, 40, 2)),
        (Wanted(since_ms=T0 + 5 * HOUR_MS), range(10, 40)),
        (Wanted(until_ms=T0 + 5 * HOUR_MS), range(10)),
        (Wanted(T0 + HOUR_MS, T0 + 3 * HOUR_MS, "tenant-0"), (2, 4)),
        (Wanted(tenant="nobody"), ()),
    ],
)
async def test_what_is_wanted_is_exported_alone(
    filled: AsyncEngine, tmp_path: Path, wanted: Wanted, numbers: range, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a time on, before a time, of a tenant; a file without rows has its columns still."""
    monkeypatch.setattr(of_export, "PAGE_RUNS", 3)
    await write(filled, tmp_path, wanted)
    check(tmp_path, [ROWS[number] for number in numbers])
    for name, columns in of_export.COLUMNS.items():
        assert pq.read_schema(tmp_path / f"{name}.parquet").equals(columns)


async def test_an_export_that_breaks_off_leaves_no_file(
    filled: AsyncEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does it touch one that is there."""

    out = tmp_path / "out"

    def broken(_: object) -> dict[str, Any]:
        raise OSError("the disk is full")

    monkeypatch.setattr(of_export, "_run", broken)
    with pytest.raises(OSError, match="full"):
        await write(filled, out, Wanted())
    assert list(out.iterdir()) == []
    (out / "events.parquet").write_text("mine")
    with pytest.raises(FileExistsError):
        await write(filled, out, Wanted())
    assert [path.read_text() for path in out.iterdir()] == ["mine"]


async def test_the_command_says_what_it_wrote_and_what_it_lacks(
    filled: AsyncEngine, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A time without a zone is in UTC; without pyarrow it says what to install."""

    def anabranch(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(cli.main, ["export", "--out", str(tmp_path / "out"), *arguments])
        return result.exit_code, result.output

    monkeypatch.setenv("DATABASE_URL", database_url)
    code, said = await asyncio.to_thread(anabranch, "--since", "2026-01-31T05:00:00", "--until", "2026-02-01")
    assert (code, said.partition(" in ")[0]) == (0, "30 runs, 60 steps, 120 attempts and 765 events are")
    check(tmp_path / "out", ROWS[10:])
    assert await asyncio.to_thread(anabranch) == (
        1,
        f"nothing was exported: {tmp_path}/out/runs.parquet is there already\n",
    )
    code, said = await asyncio.to_thread(anabranch, "--since", "yesterday")
    assert code == 2
    assert "'yesterday' is no time" in said
    monkeypatch.setattr(cli, "find_spec", lambda _: None)
    assert await asyncio.to_thread(anabranch) == (
        1, "an export needs one more package: pip install 'anabranch[export]'\n",
    )  # fmt: skip
