"""The step types of the house, each by what its handler returns or raises."""

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import duckdb
import pytest
import structlog
from aiohttp import web
from aiohttp.test_utils import TestServer
from pydantic import ValidationError

from anabranch.services.steps.context import StepContext
from anabranch.services.steps.html.step import html
from anabranch.services.steps.http.step import http
from anabranch.services.steps.simulate.step import simulate
from anabranch.services.steps.sql.step import sql
from anabranch.services.steps.step_type import StepType
from anabranch.shared.contracts.errors import RetryableError, TerminalError


async def call(step_type: StepType[Any, Any], *, attempt: int = 1, **given: Any) -> dict[str, Any]:
    """Run a handler as a worker does, and return its output as JSON."""
    async with _resource(step_type) as resource:
        context = StepContext(
            run_id="r", step="s", attempt=attempt, tenant="t", deadline=0, clock=lambda: 0,
            log=structlog.get_logger(), resource=resource,
        )  # fmt: skip
        output = await step_type.handler(step_type.input_model.model_validate(given), context)
    dumped: dict[str, Any] = output.model_dump(mode="json", by_alias=True)
    return dumped


@asynccontextmanager
async def _resource(step_type: StepType[Any, Any]) -> AsyncIterator[Any]:
    if step_type.lifespan is None:
        yield None
    else:
        async with step_type.lifespan() as resource:
            yield resource


@asynccontextmanager
async def a_site() -> AsyncIterator[str]:
    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path.startswith("/status/"):
            headers = {"Retry-After": request.query["after"]} if "after" in request.query else {}
            return web.Response(status=int(request.path.removeprefix("/status/")), headers=headers, text="sorry")
        if request.path == "/big":
            return web.Response(body=b"x" * 3_000_000)
        if request.path == "/table.csv":
            return web.Response(text="name,n\na,1\nb,2\n")
        if request.path == "/slow":
            await asyncio.sleep(5)
        echo = {"method": request.method, "query": sorted(request.query.items()), "body": await request.text()}
        return web.json_response(
            echo | {"type": request.headers.get("Content-Type"), "x": request.headers.get("X-One")}
        )

    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", answer)
    async with TestServer(app) as server:
        yield str(server.make_url("/")).rstrip("/")


# --- simulate ---------------------------------------------------------------------------------------------------------


async def test_simulate_outputs_its_value() -> None:
    assert await call(simulate, value={"a": None}) == {"value": {"a": None}}


async def test_simulate_sleeps_for_a_duration() -> None:
    begun = asyncio.get_running_loop().time()
    await call(simulate, sleep="50ms")
    assert asyncio.get_running_loop().time() - begun >= 0.05


async def test_simulate_fails_its_first_attempts() -> None:
    for attempt in (1, 2):
        with pytest.raises(RetryableError) as failure:
            await call(simulate, attempt=attempt, fail_attempts=2, error="Flaky")
        assert failure.value.error_type == "Flaky"
    assert await call(simulate, attempt=3, fail_attempts=2, value=1) == {"value": 1}


async def test_simulate_with_an_error_alone_always_fails() -> None:
    with pytest.raises(TerminalError):
        await call(simulate, attempt=9, error="Broken", terminal=True)


# --- html -------------------------------------------------------------------------------------------------------------

PAGE = """<title> A
 page </title><a href="b.html">b</a><a name=c>c</a><a href="mailto:x@y">m</a><input data-x disabled>"""


async def test_html_selects_texts_and_attributes_in_order() -> None:
    select = {
        "title": "title",
        "hrefs": "a[href]@href",
        "mail": 'a[href*="@"]',
        "flags": "input@disabled",
        "no": "table",
    }
    assert await call(html, html=PAGE, select=select) == {
        "title": ["A page"],
        "hrefs": ["b.html", "mailto:x@y"],
        "mail": ["m"],
        "flags": [""],
        "no": [],
    }


async def test_html_resolves_links_against_the_base() -> None:
    found = await call(html, html=PAGE, select={"hrefs": "a@href", "names": "a@name"}, base_url="http://h/d/a.html")
    assert found == {"hrefs": ["http://h/d/b.html", "mailto:x@y"], "names": ["c"]}


async def test_html_refuses_what_is_no_selector() -> None:
    with pytest.raises(TerminalError, match=r"select\.bad: 'a\[' is not a CSS selector"):
        await call(html, html=PAGE, select={"bad": "a["})


# --- http -------------------------------------------------------------------------------------------------------------


async def test_http_sends_what_it_is_told_and_reads_json() -> None:
    async with a_site() as url:
        answer = await call(
            http,
            url=f"{url}/x",
            method="POST",
            headers={"X-One": "1"},
            query={"q": ["a", "b"], "n": 1},
            json={"k": None},
        )
    assert answer["status"] == 200
    assert answer["json"] == {
        "method": "POST", "query": [["n", "1"], ["q", "a"], ["q", "b"]], "body": '{"k":null}',
        "type": "application/json", "x": "1",
    }  # fmt: skip
    assert answer["headers"]["content-type"] == "application/json; charset=utf-8"


@pytest.mark.parametrize(
    ("status", "error", "after"),
    [("404", TerminalError, None), ("503", RetryableError, None), ("503?after=7", RetryableError, 7),
     ("429?after=1.5e3", RetryableError, None),
     ("429?after=Thu,%2001%20Jan%201970%2000:00:00%20GMT", RetryableError, 0)],
)  # fmt: skip
async def test_http_tells_what_is_worth_another_try(status: str, error: type[Exception], after: float | None) -> None:
    async with a_site() as url:
        with pytest.raises(error) as failure:
            await call(http, url=f"{url}/status/{status}")
    assert failure.value.details["body"] == "sorry"  # type: ignore[attr-defined]
    if error is RetryableError:
        assert failure.value.after_s == after  # type: ignore[attr-defined]


async def test_http_succeeds_with_a_status_that_is_expected() -> None:
    async with a_site() as url:
        assert (await call(http, url=f"{url}/status/404", expect_status=[404, 410]))["status"] == 404
        with pytest.raises(TerminalError):
            await call(http, url=f"{url}/x", expect_status=201)


async def test_http_outputs_only_the_digest_of_a_body_that_is_too_large() -> None:
    async with a_site() as url:
        with pytest.raises(TerminalError, match="body: digest") as failure:
            await call(http, url=f"{url}/big")
        answer = await call(http, url=f"{url}/big", body="digest")
    assert failure.value.error_type == "PayloadTooLarge"
    assert (answer["size"], answer["body"]) == (3_000_000, None)
    assert answer["sha256"] == hashlib.sha256(b"x" * 3_000_000).hexdigest()


async def test_http_that_cannot_connect_or_takes_too_long_may_be_retried() -> None:
    with pytest.raises(RetryableError):
        await call(http, url="http://127.0.0.1:1/")
    async with a_site() as url:
        with pytest.raises(RetryableError, match="took too long"):
            await call(http, url=f"{url}/slow", timeout="50ms")


async def test_http_refuses_unknown_fields_and_schemes() -> None:
    for given in ({"url": "file:///etc/passwd"}, {"url": "http://h/", "verb": "GET"}):
        with pytest.raises(ValidationError):
            await call(http, **given)


# --- sql --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("ANABRANCH_SQL_DIRECTORY", str(tmp_path))
    yield tmp_path


async def test_sql_joins_rows_text_files_and_urls(directory: Path) -> None:
    duckdb.sql(f"COPY (SELECT 'a' AS name, 10 AS p) TO '{directory}/p.parquet'")
    async with a_site() as url:
        answer = await call(
            sql,
            sources={
                "t": {"url": f"{url}/table.csv"},
                "r": {"rows": [{"name": "a", "r": 1.5}, {"name": "b", "r": None}]},
                "c": {"csv": "name;c\na;x\n"},
                "p": {"path": "p.parquet"},
            },
            query="SELECT t.name, n, r, c, p FROM t LEFT JOIN r USING (name) LEFT JOIN c USING (name) "
            "LEFT JOIN p USING (name) ORDER BY name",
        )
    assert answer["rows"] == [
        {"name": "a", "n": 1, "r": 1.5, "c": "x", "p": 10},
        {"name": "b", "n": 2, "r": None, "c": None, "p": None},
    ]
    assert answer["row_count"] == 2
    assert answer["columns"][0] == {"name": "name", "type": "VARCHAR"}


async def test_sql_outputs_json_values_only() -> None:
    query = """SELECT 170141183460469231731687303715884105727 AS huge, 1.5::DECIMAL(9,2) AS money,
        2::DECIMAL(9,2) AS two, 'nan'::DOUBLE AS nan, DATE '2026-01-31' AS day,
        TIMESTAMP '2026-01-31 12:00:00' AS at, INTERVAL 90 SECOND AS took,
        '\\x00'::BLOB AS raw, [1, NULL] AS list, {'k': DATE '2026-01-31'} AS map,
        uuid() IS NOT NULL AS id, TIME '12:00' AS t"""
    (row,) = (await call(sql, query=query))["rows"]
    assert row == {
        "huge": str(2**127 - 1), "money": 1.5, "two": 2, "nan": "NaN", "day": "2026-01-31", "at": "2026-01-31T12:00:00",
        "took": "PT1M30S", "raw": base64.b64encode(b"\0").decode(), "list": [1, None], "map": {"k": "2026-01-31"},
        "id": True, "t": "12:00:00",
    }  # fmt: skip


@pytest.mark.parametrize(
    "query",
    [
        "SELECT * FROM read_text('{path}')",
        "SELECT * FROM '{path}'",
        "COPY (SELECT 1) TO '{path}.out'",
        "ATTACH '{path}.db'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "RESET lock_configuration",
        "SELECT * FROM read_csv('http://127.0.0.1:1/x.csv')",
        "SELECT getenv('HOME')",
        "CREATE PERSISTENT SECRET s (TYPE http)",
    ],
)
async def test_sql_reaches_nothing_but_its_sources(query: str, directory: Path) -> None:
    (directory / "secret.csv").write_text("a\n1\n")
    with pytest.raises(TerminalError) as failure:
        await call(sql, sources={"t": {"csv": "a\n1\n"}}, query=query.format(path=directory / "secret.csv"))
    assert failure.value.error_type == "SqlError"
    assert [path.name for path in directory.iterdir()] == ["secret.csv"]


async def test_sql_types_of_columns_are_read_behind_closed_doors(directory: Path) -> None:
    kind = f"INTEGER); COPY (SELECT 1) TO '{directory}/out.csv'; CREATE TABLE u (a INTEGER"
    with pytest.raises(TerminalError):
        await call(sql, sources={"t": {"rows": [], "columns": {"a": kind}}}, query="SELECT 1")
    assert list(directory.iterdir()) == []


async def test_sql_paths_outside_of_the_directory_are_refused(directory: Path) -> None:
    for path in ("../x.csv", "/etc/passwd.csv"):
        with pytest.raises(TerminalError, match="outside"):
            await call(sql, sources={"t": {"path": path}}, query="SELECT 1")


async def test_sql_paths_are_refused_where_no_directory_is_set() -> None:
    with pytest.raises(TerminalError, match="ANABRANCH_SQL_DIRECTORY"):
        await call(sql, sources={"t": {"path": "x.csv"}}, query="SELECT 1")


async def test_sql_rows_that_may_be_empty_declare_their_columns() -> None:
    with pytest.raises(TerminalError, match="say `columns`"):
        await call(sql, sources={"t": {"rows": []}}, query="SELECT a FROM t")
    for rows, n in (([], 0), ([{"a": "1"}], 1)):
        source = {"rows": rows, "columns": {"a": "INTEGER", "b": "VARCHAR"}}
        assert (await call(sql, sources={"t": source}, query="SELECT a, b FROM t"))["rows"] == [{"a": 1, "b": None}] * n


async def test_sql_with_too_many_rows_fails() -> None:
    with pytest.raises(TerminalError, match="more than 10 rows"):
        await call(sql, query="SELECT * FROM range(11)", max_rows=10)


async def test_sql_error_says_what_the_query_said() -> None:
    with pytest.raises(TerminalError, match="only 3 airports"):
        await call(sql, query="SELECT error('only 3 airports')")


async def test_sql_that_is_cancelled_ends_its_query() -> None:
    query = "SELECT count(*) FROM range(100000000) a, range(100000) b WHERE hash(a.range, b.range) = 1"
    running = asyncio.create_task(call(sql, query=query))
    await asyncio.sleep(0.3)
    running.cancel()
    async with asyncio.timeout(60):
        with pytest.raises(asyncio.CancelledError):
            await running


def test_every_type_announces_what_it_takes_and_gives() -> None:
    for step_type in (http, sql, html, simulate):
        announced = step_type.announcement()
        assert announced.description
        assert announced.input_schema["type"] == "object"
        assert announced.output_schema["type"] == "object"
