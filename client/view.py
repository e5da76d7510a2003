"""A run as a person watches it: a table that changes on a terminal, lines that follow one another elsewhere."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Final, Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from anabranch.client.events import Event
from anabranch.client.model import Attempt, Figures, ListedRun, Run, Step
from anabranch.shared.contracts.text import printable

_STYLES: Final = {
    "succeeded": "green",
    "failed": "bold red",
    "timed_out": "bold red",
    "cancelled": "yellow",
    "skipped": "dim",
    "running": "cyan",
    "queued": "cyan",
    "waiting": "magenta",
}
# What a person wants to see first of a run that does not fit on the screen.
_INTEREST: Final = (
    "failed",
    "timed_out",
    "waiting",
    "running",
    "queued",
    "cancelled",
    "pending",
    "skipped",
    "succeeded",
)
_NEVER: Final = datetime.max.replace(tzinfo=UTC)
_LINES_AROUND_TABLE: Final = 7
_FEWEST_ROWS: Final = 5
_STEPS_TOLD_ONE_BY_ONE: Final = 60
_TROUBLES_TOLD: Final = 50  # of a large run; the summary counts the others
_SUMMARIES: Final = 20  # of a large run, one for every so many steps

Needs = Mapping[str, Sequence[str]]


class View(Protocol):
    """What a run is shown on while it is watched."""

    def show(self, run: Run) -> None:
        """Show the run as it is now."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def view_on(console: Console, needs: Needs | None = None) -> View:
    """Return the view that suits where the output goes."""
    return LiveTable(console, needs or {}) if console.is_terminal else Lines(console)


class LiveTable:
    """The run's steps as a table with a progress bar, drawn anew while it goes on."""

    def __init__(self, console: Console, needs: Needs) -> None:
        self._console = console
        self._needs = needs
        self._run: Run | None = None
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=5, transient=False)

    def show(self, run: Run) -> None:
        """Show the run as it is now; durations go on by themselves."""
        self._run = run

    def _render(self) -> RenderableType:
        if self._run is None:
            return Text("submitting …", style="dim")
        room = max(self._console.height - _LINES_AROUND_TABLE, _FEWEST_ROWS)
        return run_table(self._run, self._needs, rows=room)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)


class Lines:
    """One line per step that ended or waits; of a large run only troubles, and a summary now and then."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._told: dict[str, tuple[str, int]] = {}
        self._troubles = 0
        self._ended_at_summary = 0

    def show(self, run: Run) -> None:
        """Print what has changed since the last time."""
        is_large = len(run.steps) > _STEPS_TOLD_ONE_BY_ONE
        for name in in_order(run):
            step = run.steps[name]
            if self._told.get(name) != (step.status, step.attempt):
                self._told[name] = (step.status, step.attempt)
                self._tell(name, step, is_large)
        if is_large:
            self._summarise(run)

    def _tell(self, name: str, step: Step, is_large: bool) -> None:
        is_trouble = step.status in ("failed", "timed_out", "waiting")
        if is_large:
            self._troubles += is_trouble
            if not is_trouble or self._troubles > _TROUBLES_TOLD:
                return
        if step.ended or is_trouble:
            named = f"{printable(name):<24} {printable(step.status):<10}"
            words = f"  {named} {_seconds(step.duration_s()):>8}  {_remark(step, ())}"
            self._console.print(words.rstrip(), markup=False, highlight=False, soft_wrap=True)

    def _summarise(self, run: Run) -> None:
        ended = sum(step.ended for step in run.steps.values())
        if run.ended or ended - self._ended_at_summary >= len(run.steps) / _SUMMARIES:
            self._ended_at_summary = ended
            self._console.print(f"  {summary(run)}", markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


def run_table(run: Run, needs: Needs | None = None, *, rows: int = 40) -> RenderableType:
    """Return the run as a table of at most `rows` steps, the interesting ones, over a progress bar."""
    table = Table(box=None, pad_edge=False, header_style="dim", expand=True)
    table.add_column("step", no_wrap=True)
    table.add_column("uses", style="dim", no_wrap=True)
    table.add_column("status", no_wrap=True)
    table.add_column("attempt", justify="right")
    table.add_column("time", justify="right", no_wrap=True)
    table.add_column("", overflow="ellipsis", no_wrap=True, ratio=1)  # takes what the others leave
    shown = interesting(run, list(needs) if needs else in_order(run), rows)
    for name in shown:
        step = run.steps[name]
        table.add_row(
            Text(printable(name)),
            Text(printable(step.uses)),
            Text(printable(step.status), style=_STYLES.get(step.status, "dim")),
            str(step.attempt or ""),
            _seconds(step.duration_s()),
            Text(_remark(step, _unmet(run, (needs or {}).get(name, ())))),
        )
    parts: list[RenderableType] = [Text(printable(f"{run.pipeline or 'run'}  {run.id}"), style="bold"), table]
    if len(shown) < len(run.steps):
        parts.append(Text(f"… and {len(run.steps) - len(shown):,} more steps", style="dim"))
    return Group(*parts, _progress(run))


def in_order(run: Run) -> list[str]:
    """Return the steps in the order in which they ended, then those that go on, then those that have not begun."""
    steps = run.steps
    return sorted(steps, key=lambda name: steps[name].finished_at or steps[name].queued_at or _NEVER)


def interesting(run: Run, order: Sequence[str], rows: int) -> list[str]:
    """Return the names of at most `rows` steps in the given order: all, or else troubles before the rest."""
    names = [name for name in order if name in run.steps]
    if len(names) <= rows:
        return names
    rank = {status: number for number, status in enumerate(_INTEREST)}
    ranked = sorted(names, key=lambda name: rank.get(run.steps[name].status, 0))  # stable: the order stays within
    chosen = set(ranked[:rows])
    return [name for name in names if name in chosen]


def summary(run: Run) -> str:
    """Return how far the run is, in one line."""
    counts = run.counts()
    ended = sum(step.ended for step in run.steps.values())
    told = ", ".join(f"{counts[status]:,} {status}" for status in reversed(_INTEREST) if counts[status])
    return f"{ended:,} of {len(run.steps):,} steps  {_seconds(run.duration_s())}  {told}"


def ending(run: Run) -> str:
    """Return how the run ended and why, in one line."""
    why = f": {run.error.type}: {run.error.message}" if run.error else ""
    return printable(f"run {run.id} {run.status} after {_seconds(run.duration_s()) or '0 ms'}{why}")


def _progress(run: Run) -> RenderableType:
    ended = sum(step.ended for step in run.steps.values())
    style = {"succeeded": "green", "failed": "red", "timed_out": "red", "cancelled": "yellow"}.get(run.status, "cyan")
    grid = Table.grid(padding=(0, 2))
    bar = ProgressBar(
        total=max(len(run.steps), 1), completed=ended, width=32, complete_style=style, finished_style=style
    )
    grid.add_row(bar, Text(printable(run.status), style=style), Text(summary(run), style="dim"))
    return grid


def _unmet(run: Run, needs: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in needs if name in run.steps and not run.steps[name].ended)


def _remark(step: Step, unmet: Sequence[str]) -> str:
    error = f"{step.error.type}: {step.error.message}" if step.error else ""
    waits = "" if step.ended else step.waiting_on or ""
    if step.status == "pending" and unmet:
        waits = f"waits for {', '.join(unmet[:4])}{' …' if len(unmet) > 4 else ''}"
    return printable("; ".join(filter(None, (waits, error))) or ("cached" if step.cached else ""))


def _seconds(duration_s: float | None) -> str:
    if duration_s is None:
        return ""
    if duration_s < 1:
        return f"{duration_s * 1000:.0f} ms"
    if duration_s < 60:
        return f"{duration_s:.1f} s"
    return f"{int(duration_s // 60)} min {int(duration_s % 60)} s"


def event_line(event: Event, *, with_run: bool) -> str:
    """Return an event as one line: its time, its run where there are several, what happened to what, and the error."""
    said = event.document
    error = said.get("error") or {}
    words = [
        str(said.get("at", ""))[11:23],
        str(said.get("run_id", "")) if with_run else f"{said.get('seq', ''):>5}",
        f"{event.type:<15}",
        str(said.get("step", said.get("pipeline", ""))),
        ", ".join(f"queued {each.get('step')} ({each.get('attempt')})" for each in said.get("queued") or ()),
        f"{error.get('type')}: {error.get('message')}" if error else str(said.get("waiting_on") or ""),
    ]
    return "  ".join(word for word in words if word.strip())


def runs_table(runs: Sequence[ListedRun]) -> RenderableType:
    """Return runs as a table, a line each."""
    table = Table(box=None, pad_edge=False, header_style="dim", expand=True)
    for name in ("run", "pipeline", "status", "created"):
        table.add_column(name, no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    table.add_column("", overflow="ellipsis", no_wrap=True, ratio=1)
    for run in runs:
        said = [run.error_type or "", *(f"{name}={value}" for name, value in run.labels.items())]
        table.add_row(
            Text(printable(run.id)),
            Text(printable(run.pipeline)),
            Text(printable(run.status), style=_STYLES.get(run.status, "dim")),
            f"{run.created_at:%Y-%m-%d %H:%M:%S}",
            _seconds(run.duration_s()),
            Text(printable(" ".join(filter(None, said)))),
        )
    return table


def statistics_table(figures: Sequence[Figures]) -> RenderableType:
    """Return figures as a table, a line for each pipeline or step."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    has_steps = any(each.step for each in figures)
    for name in ("pipeline", *(["step"] if has_steps else [])):
        table.add_column(name, no_wrap=True)
    for name in ("ended", "failed", "", "p50", "p95"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in figures:
        table.add_row(
            Text(printable(each.pipeline)),
            *([Text(printable(each.step or ""))] if has_steps else []),
            f"{each.ended:,}",
            f"{each.failed:,}",
            f"{100 * each.failure_rate:.1f} %",
            *(_seconds(None if ms is None else ms / 1000) for ms in (each.p50_ms, each.p95_ms)),
        )
    return table


def attempts_table(attempts: Mapping[str, Sequence[Attempt]]) -> RenderableType:
    """Return the attempts of steps as a table, the first one of each first."""
    table = Table(box=None, pad_edge=False, header_style="dim", expand=True)
    table.add_column("step", no_wrap=True)
    table.add_column("attempt", justify="right")
    table.add_column("status", no_wrap=True)
    table.add_column("queued", justify="right", no_wrap=True)
    table.add_column("ran", justify="right", no_wrap=True)
    table.add_column("", overflow="ellipsis", no_wrap=True, ratio=1)
    for step, of_step in attempts.items():
        for each in of_step:
            table.add_row(
                Text(printable(step)),
                str(each.attempt),
                Text(printable(each.status), style=_STYLES.get(each.status, "dim")),
                *(_seconds(None if ms is None else ms / 1000) for ms in (each.queued_ms, each.ran_ms)),
                Text(printable(f"{each.error.type}: {each.error.message}" if each.error else "")),
            )
    return table
