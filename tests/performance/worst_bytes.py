"""`python -m tests.performance.worst_bytes`: what is the most that one record makes a partition append, and hold?

Searched for, not guessed: every combination of what a value looks like, where it comes from, what is done with it and
by how many steps. Each runs in a process of its own, on a real partition with checkpoints, and answers its commands.
Prints, of each combination, the heaviest record (bytes appended), the longest (CPU time), the longest tick of a
checkpoint, the most the run held, and the process's memory above what it had before.
"""

import argparse
import json
import re
import resource
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any, Final, NamedTuple

from anabranch.services.orchestrator.core.changelog import take_changes
from anabranch.services.orchestrator.core.effects import Append, Channel
from anabranch.services.orchestrator.core.partition import Partition
from anabranch.shared.contracts import messages as m
from anabranch.shared.contracts.errors import StepError
from anabranch.shared.contracts.limits import KIB, MAX_CHECKPOINT_BYTES, MIB
from anabranch.shared.contracts.spec import MAX_INPUTS

RUN: Final = "r"
_CASE_S: Final = 5.0  # of CPU time; then the rest of a case is more of the same

SHAPES: Final[Mapping[str, Callable[[int], Any]]] = {
    "text": lambda size: "x" * size,
    "empty objects": lambda size: [{}] * (size // 3 - 1),
    "small objects": lambda size: [{"a": 1.5}] * (size // 10 - 1),
    "escapes": lambda size: "\x01" * (size // 6 - 1),
    "one long list": lambda size: [0] * (size // 2 - 1),
}
SOURCES: Final = ("inputs", "output")
USES: Final = ("command", "transform", "condition", "outputs", "error", "retry")
COUNTS: Final = (8, 200, 3_000)


class Case(NamedTuple):
    """One combination."""

    shape: str
    source: str
    use: str
    steps: int


@dataclass(slots=True)
class Weighed:
    """What a case came to."""

    case: Case
    records: int = 0
    appended: int = 0
    cpu_ms: float = 0.0
    tick_ms: float = 0.0
    held: int = 0
    memory: int = 0
    end: str = ""


def submission_of(case: Case) -> m.SubmitRun:
    """Return what a client sends: at most 2 MiB of definition, 256 KiB of inputs."""
    value = SHAPES[case.shape](255 * KIB)
    given = "inputs.x" if case.source == "inputs" else "steps.source.output"
    steps: dict[str, Any] = {"source": {"uses": "http"}} if case.source == "output" else {}
    needs = {"needs": ["source"]} if case.source == "output" else {}
    for number in range(case.steps):
        steps[f"s{number}"] = {**needs, "continue_on_error": True, **_step(case.use, given)}
    definition: dict[str, Any] = {"name": "p", "steps": steps}
    if case.use == "outputs":
        outputs = range(min(case.steps, MAX_INPUTS))
        definition["outputs"] = {f"o{number}": f"${{{{ steps.s{number}.output }}}}" for number in outputs}
    inputs = {"x": value} if case.source == "inputs" else {}
    return m.SubmitRun(run_id=RUN, tenant="t", definition=json.dumps(definition), inputs=inputs)


def _step(use: str, given: str) -> dict[str, Any]:
    match use:
        case "command":
            return {"uses": "http", "with": {"x": f"${{{{ {given} }}}}"}}
        case "transform" | "outputs":
            return {"uses": "transform", "with": {"value": f"${{{{ {given} }}}}"}}
        case "condition":
            return {"uses": "http", "if": f"size({given}) > 1", "with": {"x": f"${{{{ size({given}) }}}}"}}
        case _:
            retry = {"max_attempts": 3 if use == "retry" else 1, "initial": 1}
            return {"uses": "http", "with": {"x": f"${{{{ {given} }}}}"}, "retry": retry}


def answer_to(case: Case, command: m.RunStep) -> m.RunMessage:
    """Return what the world answers: as much as it may."""
    who = {"run_id": command.run_id, "step": command.step, "attempt": command.attempt}
    if case.use in ("error", "retry") and command.step != "source":
        error = StepError(type="T" * 256, message="m" * 4_096, details=SHAPES[case.shape](15 * KIB))
        return m.AttemptFailed(error=error, **who)
    return m.AttemptSucceeded(output=SHAPES[case.shape](MIB - 64), **who)


def weigh(case: Case) -> Weighed:
    """Run a case to its end, or for as long as it may take."""
    weighed, partition, at = Weighed(case), Partition(), 1_770_000_000_000
    waiting: deque[Callable[[], m.RunMessage]] = deque([partial(submission_of, case)])
    before, began, since_checkpoint = _reset_peak(), time.process_time(), 0
    while waiting and time.process_time() - began < _CASE_S:
        message, at = waiting.popleft()(), at + 5_000
        started = time.process_time()
        decision = partition.decide(message, at)
        partition.commit(decision, at)
        weighed.cpu_ms = max(weighed.cpu_ms, 1000 * (time.process_time() - started))
        appended = sum(len(effect.value) for effect in decision.effects if isinstance(effect, Append))
        weighed.records += 1
        weighed.appended = max(weighed.appended, appended)
        weighed.held = max(weighed.held, getattr(partition.runs.get(RUN), "held", 0))
        since_checkpoint += appended
        if since_checkpoint >= MAX_CHECKPOINT_BYTES:
            since_checkpoint, started = 0, time.process_time()
            take_changes(partition, weighed.records)
            weighed.tick_ms = max(weighed.tick_ms, 1000 * (time.process_time() - started))
        for effect in decision.effects:
            waiting += _follows(case, effect)
        weighed.end = "ended" if decision.ended else weighed.end
    weighed.memory = _peak() - before
    return weighed


def _follows(case: Case, effect: Any) -> Iterator[Callable[[], m.RunMessage]]:
    if isinstance(effect, Append) and effect.channel is Channel.INBOX:
        yield partial(m.INBOX.validate_json, effect.value)  # type: ignore[arg-type]
    elif isinstance(effect, Append) and effect.channel is Channel.COMMANDS:
        yield partial(_answer, case, effect.value)
    elif getattr(effect, "timer_id", "").startswith("retry/") and hasattr(effect, "due_ms"):
        yield partial(m.TimerFired, run_id=RUN, timer_id=effect.timer_id)


def _answer(case: Case, command: bytes) -> m.RunMessage:
    return answer_to(case, m.COMMANDS.validate_json(command))


def _reset_peak() -> int:
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found.group(1)) * KIB if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB


def main() -> None:
    """Weigh every combination, and print the worst first."""
    parser = argparse.ArgumentParser(prog="python -m tests.performance.worst_bytes", description=__doc__)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--sample", type=int, help="only so many combinations, drawn from --seed")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    cases = [Case(*each) for each in product(SHAPES, SOURCES, USES, COUNTS)]
    if arguments.sample is not None:
        cases = Random(arguments.seed).sample(cases, min(arguments.sample, len(cases)))
    with get_context("spawn").Pool(arguments.processes, maxtasksperchild=1) as pool:
        weighed = sorted(pool.imap_unordered(weigh, cases, chunksize=1), key=lambda one: -one.appended)
    _print(weighed)


def _print(weighed: list[Weighed]) -> None:
    print(f"{'appended':>10} {'cpu':>8} {'tick':>8} {'held':>9} {'memory':>9}  records  what")
    for one in weighed[:20]:
        print(_line(one))
    print("\nworst of all combinations:")
    for name in ("appended", "cpu_ms", "tick_ms", "held", "memory"):
        print(f"{name:>10}: {_line(max(weighed, key=lambda one: getattr(one, name)))}")


def _line(one: Weighed) -> str:
    return (
        f"{one.appended / MIB:>6.2f} MiB {one.cpu_ms:>5.0f} ms {one.tick_ms:>5.1f} ms {one.held / MIB:>5.1f} MiB"
        f" {one.memory / MIB:>5.0f} MiB {one.records:>8}  {', '.join(map(str, one.case))} {one.end}"
    )


if __name__ == "__main__":
    main()
