"""How long a client waits for a search, for figures of runs, and for one run, in a record of a million runs.

Asked over HTTP, one question at a time, of a gateway in this process with a record on SQLite and one on PostgreSQL.
Each kind of question is asked many times, never twice the same: that is *uncached*. Then the same is asked again at
once, and answered from memory, or from Redis where it is one run.
"""

import random
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from aiohttp import ClientSession
from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from anabranch.deploy.local.ports import free_port
from anabranch.deploy.local.redis import LocalRedis
from anabranch.shared.contracts.times import rfc3339
from anabranch.shared.record.database import is_sqlite
from anabranch.shared.record.rows import Row
from tests.performance.recording import database_of, insert_rows
from tests.performance.report import Report, percentile
from tests.performance.sizes import Sizes
from tests.support.databases import a_database, a_postgres
from tests.unit.gateway.fakes import a_gateway

UNCACHED_MS: Final = 50
CACHED_MS: Final = 10
BEGAN_MS: Final = 1_760_000_000_000
EVERY_MS: Final = 2_000  # between two runs
PIPELINES: Final = 40
TENANTS: Final = ("default",) * 9 + ("other",)
STATUSES: Final = ("succeeded",) * 180 + ("failed",) * 15 + ("cancelled",) * 2 + ("timed_out",) * 2 + ("running",)
ERRORS: Final = ("HttpError",) * 9 + ("OutOfMemory",)
WORDS: Final = ("connection refused", "timed out after 30 s", "no such host", "disk quota exceeded")

_AT_ONCE: Final = 20_000

Query = Mapping[str, str | list[str]]


async def measure(sizes: Sizes) -> None:
    """Measure and report."""
    report = Report("search")
    with a_postgres() as server, tempfile.TemporaryDirectory(prefix="anabranch-bench-") as folder:
        async with LocalRedis(Path(folder) / "redis", free_port()) as redis, a_database(server) as url:
            for name, each in {"PostgreSQL": url, "SQLite": f"sqlite:///{Path(folder)}/record.db"}.items():
                async with database_of(each) as database:
                    began = time.perf_counter()
                    await _fill(database, sizes.recorded_runs)
                    report.row(
                        f"{name}: {sizes.recorded_runs:,} runs inserted, s", f"{time.perf_counter() - began:.0f}"
                    )
                    client = Redis.from_url(redis.url)
                    await client.flushall()
                    async with a_gateway(client, record=database) as gateway:  # type: ignore[arg-type]
                        await _ask(report, name, gateway.client.session, str(gateway.client.make_url("")), sizes)
                    await client.aclose()
    report.finish()


async def _ask(report: Report, name: str, session: ClientSession, url: str, sizes: Sizes) -> None:
    rng = random.Random(11)
    report.row(f"{name}, ms at the client", "first p50, first p95, again p95", f"p95 < {UNCACHED_MS}, < {CACHED_MS}")

    async def ask(path: str, query: Query) -> float:
        began = time.perf_counter()
        async with session.get(f"{url.rstrip('/')}{path}", params=query) as answer:
            body = await answer.read()
        took_ms = 1000 * (time.perf_counter() - began)
        assert answer.status == 200, body
        return took_ms

    for kind, draw in KINDS.items():
        first, again = [], []
        for number in range(sizes.searches + 3):
            path, query = draw(rng, sizes.recorded_runs)
            took = await ask(path, query), await ask(path, query)
            if number >= 3:  # the connection and the statement are new to the database before that
                first.append(took[0])
                again.append(took[1])
        percentiles = percentile(first, 50), percentile(first, 95), percentile(again, 95)
        report.row(f"  {kind}", "  ".join(f"{each:.1f}" for each in percentiles))
        report.note(**{f"{name}: {kind}": percentiles})


def _searching(*draws: Callable[[random.Random], Query], **always: str | list[str]) -> Callable[..., tuple[str, Query]]:
    """Return how a question is drawn: what is asked for, and a time before which the runs began."""

    def draw(rng: random.Random, runs: int) -> tuple[str, Query]:
        query: dict[str, str | list[str]] = {"until": _time(rng.randrange(runs // 10, runs) + rng.random())} | always
        for each in draws:
            query |= each(rng)
        return "/v1/runs", query

    return draw


def _a_run(rng: random.Random, runs: int) -> tuple[str, Query]:
    number = rng.randrange(runs)
    while TENANTS[number % len(TENANTS)] != "default":
        number = rng.randrange(runs)
    return f"/v1/runs/{_id(number)}", {}


def _figures(**always: str) -> Callable[..., tuple[str, Query]]:
    def draw(rng: random.Random, runs: int) -> tuple[str, Query]:
        return "/v1/statistics", {"since": _time(runs - rng.randrange(10_000, 40_000) + rng.random())} | always

    return draw


def _pipeline(rng: random.Random) -> Query:
    return {"pipeline": f"p{rng.randrange(PIPELINES)}"}


def _status(rng: random.Random) -> Query:
    return {"status": rng.choice(sorted(set(STATUSES)))}


def _input(rng: random.Random) -> Query:
    return {"input": f"n={rng.randrange(1000)}"}


def _label(rng: random.Random) -> Query:
    return {"label": f"team=t{rng.randrange(20)}"}


KINDS: Final[Mapping[str, Callable[[random.Random, int], tuple[str, Query]]]] = {
    "one run": _a_run,
    "the newest": _searching(),
    "200 runs": _searching(limit="200"),
    "a status": _searching(_status),
    "several statuses": _searching(status=["failed", "timed_out", "running"]),
    "a pipeline": _searching(_pipeline),
    "a pipeline and a status": _searching(_pipeline, _status),
    "a pipeline and a revision": _searching(_pipeline, revision="3"),
    "an error's type": _searching(lambda rng: {"error_type": rng.choice(("HttpError", "OutOfMemory", "None"))}),
    "an error's type and a pipeline": _searching(_pipeline, error_type="OutOfMemory"),
    "a label": _searching(_label),
    "a label and a status": _searching(_label, _status),
    "two labels": _searching(lambda rng: {"label": [f"team=t{rng.randrange(20)}", f"env=e{rng.randrange(3)}"]}),
    "an input, a label and a pipeline": _searching(_pipeline, _label, _input),
    "a text": _searching(lambda rng: {"text": rng.choice(("Refused", "quota", "nowhere"))}),
    "a text and a pipeline": _searching(_pipeline, text="QUOTA"),
    "counts": _searching(counts="true"),
    "counts of a pipeline": _searching(_pipeline, counts="true"),
    "counts with a text": _searching(text="refused", counts="true"),
    "figures of pipelines": _figures(),
    "figures of steps": _figures(by="step"),
}  # fmt: skip


async def _fill(database: AsyncEngine, runs: int) -> None:
    """Insert runs as history would, by the driver's own way, and let the database look at what it has."""
    rng = random.Random(7)
    for first in range(0, runs, _AT_ONCE):
        await insert_rows(database, _tables(rng, range(first, min(runs, first + _AT_ONCE))))
    async with database.connect() as connection:
        alone = await connection.execution_options(isolation_level="AUTOCOMMIT")
        await alone.execute(text("ANALYZE" if is_sqlite(database.url) else "VACUUM ANALYZE"))  # as autovacuum does


def _tables(rng: random.Random, numbers: Sequence[int]) -> dict[str, list[Row]]:
    tables: dict[str, list[Row]] = {"runs": [], "run_values": [], "steps": []}
    for number in numbers:
        run, tenant, at = _id(number), TENANTS[number % len(TENANTS)], BEGAN_MS + EVERY_MS * number
        status, ended_at = rng.choice(STATUSES), at + rng.randrange(10, 100_000)
        error = rng.choice(ERRORS) if status in ("failed", "timed_out") else None
        tables["runs"].append((
            run, tenant, f"p{rng.randrange(PIPELINES)}", rng.randrange(5) or None, status, at, at,
            None if status == "running" else ended_at, 9, error, error and f"{rng.choice(WORDS)} ({number})",
            64 * "0", b'{"inputs":{"n":1},"labels":{"team":"t1"},"steps":{"only":"simulate"}}', b'{"outputs":{}}',
        ))  # fmt: skip
        values = {"label:team": f"t{rng.randrange(20)}", "label:env": f"e{rng.randrange(3)}"}
        values["input:n"] = str(rng.randrange(1000))
        tables["run_values"] += [(run, each, value, tenant, at) for each, value in values.items()]
        document = b'{"status":"%s","uses":"simulate","attempt":1}' % status.encode()
        tables["steps"].append((run, "only", 8, "simulate", status, 1, at, at, ended_at, error, document))
    return tables


def _id(number: int) -> str:
    return f"0199c000-0000-7000-8000-{number:012x}"


def _time(number: float) -> str:
    return rfc3339(BEGAN_MS + int(EVERY_MS * number))
