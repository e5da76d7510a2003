"""Whatever a step type's code raises, returns or says is the failure of its own attempt.

The real worker and the real threads and processes, on ports in memory. `pytest -s` prints the table.
"""

import asyncio
import time
from dataclasses import dataclass, field
from itertools import count

import pytest

from anabranch.services.steps.invoke import invoker
from anabranch.services.steps.step_type import RunsIn
from anabranch.shared.contracts.messages import AttemptFailed, AttemptSucceeded
from tests.support.oddities import ERRORS, ODD_TYPES, ODDITIES, PLACES

from .fakes import World, a_command, a_world

_WITHIN_S = 60.0  # a hang guard: the printed table says how long it took
_TOGETHER = 20
_NUMBERS = count()


@dataclass
class Table:
    """What was tried in one place to run, and what came of it."""

    runs_in: RunsIn
    deaths: int = 0
    slowest_ms: int = 0
    longest_batch_s: float = 0.0
    slowest: str = ""
    answers: dict[tuple[str, str], AttemptFailed | AttemptSucceeded] = field(default_factory=dict)
    unanswered: list[tuple[str, str]] = field(default_factory=list)
    disturbed: list[str] = field(default_factory=list)

    def line(self) -> str:
        """One row of the printed table."""
        tried = len(self.answers) + len(self.unanswered)
        return (
            f"{self.runs_in:8} cells tried {tried:5}   answered {len(self.answers):5}   worker deaths {self.deaths}   "
            f"neighbours disturbed {len(self.disturbed)}   slowest answer {self.slowest_ms} ms ({self.slowest})   "
            f"slowest {2 * _TOGETHER} together {self.longest_batch_s:.3f} s"
        )


async def fill(table: Table, cells: list[tuple[str, str]]) -> None:
    """Try each cell beside an innocent neighbour, some together; begin again with a new worker where one died."""
    serves = ODD_TYPES[table.runs_in]
    while cells:
        async with invoker(serves, serves.concurrency) as invoke:
            world = a_world(serves=serves, invoke=invoke)
            world.running = asyncio.create_task(world.worker.run(world.stopping))
            await asyncio.sleep(0.6)  # the control topic is read
            await try_together(Table(table.runs_in), world, [("none", "null")] * 4)  # processes are started
            while cells and not world.running.done():
                some, cells = cells[:_TOGETHER], cells[_TOGETHER:]
                await try_together(table, world, some)
            if world.running.done():
                table.deaths += 1
            await world.crash()


async def try_together(table: Table, world: World, cells: list[tuple[str, str]]) -> None:
    """Send some cells and as many neighbours, and wait for the answers of all."""
    assert world.running is not None
    began, seen = time.perf_counter(), len(world.results.appended)
    wanted = {}
    for place, odd in cells:
        number = next(_NUMBERS)
        cell, neighbour = a_command(f"c{number}"), a_command(f"n{number}")
        wanted[cell.step] = (place, odd)
        for command, given in ((cell, {"place": place, "odd": odd}), (neighbour, {"place": "none", "odd": "null"})):
            world.send(command.model_copy(update={"uses": "odd", "input": given}))
            wanted.setdefault(command.step, ("neighbour of " + place, odd))
    while wanted and not world.running.done() and time.perf_counter() - began < _WITHIN_S:
        await asyncio.sleep(0.001)
        for message in (record.message for record in world.results.appended[seen:]):
            seen += 1
            if isinstance(message, AttemptFailed | AttemptSucceeded) and message.step in wanted:
                note(table, wanted.pop(message.step), message)
    table.longest_batch_s = max(table.longest_batch_s, time.perf_counter() - began)
    for place, odd in wanted.values():
        if place.startswith("neighbour"):
            table.disturbed.append(f"{place}: {odd} (no answer)")
        else:
            table.unanswered.append((place, odd))


def note(table: Table, cell: tuple[str, str], message: AttemptFailed | AttemptSucceeded) -> None:
    """Enter an answer, and how long it took once the guard was called, the handler's own time included."""
    if message.duration_ms > table.slowest_ms:
        table.slowest_ms, table.slowest = message.duration_ms, " ".join(cell)
    if not cell[0].startswith("neighbour"):
        table.answers[cell] = message
    elif not isinstance(message, AttemptSucceeded):
        table.disturbed.append(f"{cell[0]}: {cell[1]}")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("runs_in", ["loop", "thread", "process"])
async def test_whatever_a_step_types_code_does_is_the_failure_of_its_own_attempt(
    runs_in: RunsIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each cell is answered, no worker dies, no neighbour is disturbed, and what was raised is named."""
    monkeypatch.setattr("sys.unraisablehook", lambda _: None)  # pytest's own looks at rude objects
    table = Table(runs_in)
    await fill(table, [(place, odd) for place in PLACES for odd in ODDITIES])
    print("\n" + table.line())
    assert (table.deaths, table.disturbed, table.unanswered) == (0, [], [])
    for odd in ERRORS:
        answer = table.answers["handler", odd]
        assert isinstance(answer, AttemptFailed), odd
        if odd.isidentifier():
            assert answer.error.type == odd
