"""`make demo`: both examples on a stack of their own, from nothing to nothing.

Starts Kafka, Redis and every service, serves the real data on the loopback address, runs the two pipelines with live
progress, prints what came out and how long each phase took, and stops everything. Exit code 0 when both runs succeeded.
"""

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from rich import box
from rich.console import Console
from rich.table import Table
from serve import served

from anabranch.client import AnabranchClient, ClientError, Run
from anabranch.client.commands import follow, words_of
from anabranch.client.model import ProblemError
from anabranch.client.pipeline_file import read_pipeline
from anabranch.client.view import ending
from anabranch.deploy.local.console import Console as StackConsole
from anabranch.deploy.local.stack import LocalStack
from anabranch.deploy.local.supervisor import StackFailedError

EXAMPLES: Final = Path(__file__).parent
DATA_DIR: Final = Path(".anabranch/demo")


class Phases:
    """How long each phase took."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    @asynccontextmanager
    async def phase(self, name: str) -> AsyncIterator[None]:
        """Measure what happens in the context."""
        since = time.monotonic()
        try:
            yield
        finally:
            self.took(name, time.monotonic() - since)

    def took(self, name: str, seconds: float) -> None:
        """Note a phase that was measured elsewhere."""
        self._seconds[name] = seconds

    def __str__(self) -> str:
        told = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self._seconds.items())
        return f"{told}; {sum(self._seconds.values()):.1f} s in all"


class Told(StackConsole):
    """Of all the stack has to say, what a person who waits wants to know: downloads and deaths."""

    def say(self, name: str, line: str) -> None:
        """Write a line of Kafka's or of the stack itself."""
        if name in ("kafka", "stack"):
            super().say(name, line)


async def run_example(
    client: AnabranchClient, console: Console, file: str, inputs: dict[str, Any], phases: Phases
) -> Run:
    """Run one pipeline with live progress and return the run as it ended."""
    pipeline = read_pipeline(str(EXAMPLES / file))
    console.print(f"\n[bold]{pipeline.definition['description']}[/]\n[dim]examples/{file}[/]")
    async with phases.phase(pipeline.definition["name"]):
        accepted = await client.submit(pipeline.definition, inputs=inputs)
        ended = await follow(client.watch(accepted.id), console, pipeline.needs)
    console.print(ending(ended), style="green" if ended.succeeded else "bold red", markup=False)
    return ended


def show_airports(console: Console, run: Run) -> None:
    """Print the report of the data pipeline."""
    report = (run.outputs or {})["report"]
    table = _table(f"{report['airports']:,} airports in {report['countries']} countries")
    table.add_column("country")
    for heading in ("airports", "IATA", "zones"):
        table.add_column(heading, justify="right")
    table.add_column("busiest time zone", no_wrap=True)
    table.add_column("highest", no_wrap=True)
    table.add_column("feet", justify="right")
    for row in report["top"]:
        counts = (f"{row[name]:,}" for name in ("airports", "with_iata", "zones"))
        table.add_row(row["country"], *counts, row["busiest_zone"], row["highest"], f"{row['highest_ft']:,}")
    console.print(table)


def show_audit(console: Console, run: Run) -> None:
    """Print the report of the site audit."""
    audit = (run.outputs or {})["audit"]
    table = _table(f"{audit['title']}: score {audit['score']} of 100")
    table.add_column("broken link", no_wrap=True)
    table.add_column("why")
    for row in audit["broken"]:
        table.add_row(row["page"], row["error"])
    console.print(table)
    console.print(
        f"{audit['links']} links on the page, {audit['checked']} places checked: {len(audit['broken'])} broken, "
        f"{len(audit['unlisted'])} not in the site map; {len(audit['broken_anchors'])} broken anchors"
    )


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)


async def demo(console: Console) -> int:
    """Run both examples; return the exit code."""
    phases = Phases()
    stack = LocalStack(DATA_DIR, console=Told())
    since = time.monotonic()
    console.print("starting Apache Kafka, Redis and the services …", style="dim")
    async with stack, served() as site, AnabranchClient(stack.gateway_url) as client:
        phases.took("start", time.monotonic() - since)
        console.print(f"ready {stack.gateway_url}")
        runs = [
            await run_example(client, console, "data-pipeline/airports.yaml", {"url": f"{site}/airports.csv"}, phases),
            await run_example(client, console, "site-audit/audit.yaml", {"site": f"{site}/docs/"}, phases),
        ]
        for run, show in zip(runs, (show_airports, show_audit), strict=True):
            if run.succeeded:
                show(console, run)
        stopping = time.monotonic()
    phases.took("stop", time.monotonic() - stopping)
    console.print(f"\n{phases}", style="bold")
    return 0 if all(run.succeeded for run in runs) else 1


def main() -> int:
    """Run the demo and return its exit code."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=120)  # a log has no width of its own
    try:
        return asyncio.run(demo(console))
    except ProblemError as error:
        console.print(f"the gateway refused the example: {words_of(error.problem)}", style="bold red", markup=False)
        for fault in error.problem.errors:
            console.print(f"  {fault.pointer}: {fault.message}", markup=False)
    except (ClientError, StackFailedError, RuntimeError, OSError) as error:
        console.print(str(error), style="bold red", markup=False)
    except KeyboardInterrupt:
        return 130
    return 1


if __name__ == "__main__":
    sys.exit(main())
