"""The guarantees of architecture.md §9 on random graphs, under repeats, losses, stale attempts, cancels, timeouts."""

import copy
import random
from collections import Counter
from collections.abc import Iterator
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anabranch.services.orchestrator.core import turn
from anabranch.services.orchestrator.core.changelog import restore, take_changes
from anabranch.services.orchestrator.core.decide import Decision
from anabranch.services.orchestrator.core.graph import Node
from anabranch.services.orchestrator.core.state import Run
from anabranch.services.orchestrator.core.status import IN_FLIGHT, TERMINAL, StepStatus
from anabranch.services.orchestrator.core.transitions import Ignore
from anabranch.shared.contracts import messages as m
from anabranch.shared.contracts.limits import STEPS_PER_TURN
from tests.support.builders import a_run
from tests.support.random_runs import Life, decide_again, live, outputs_of


@pytest.fixture(autouse=True, scope="module", params=[3, STEPS_PER_TURN])
def _steps_per_turn(request: pytest.FixtureRequest) -> Iterator[None]:
    """A turn may settle a few steps only: most of these lives go on by `ContinueRun`; or as many as in truth."""
    with mock.patch.object(turn, "STEPS_PER_TURN", request.param):
        yield


lives = st.integers(min_value=0, max_value=2**32).map(random.Random)


def _counters(run: Run) -> tuple[object, ...]:
    pending = [index for index in run.backlog if run.steps[index].status is StepStatus.PENDING]
    return run.unmet, run.unhappy, pending, run.in_flight, run.in_flight_bytes, run.held, run.open


def _check_counters(life: Life, _: Decision) -> None:
    """What is counted along the way is what counting from scratch gives; the window holds."""
    if life.run.is_over:
        return
    run = life.run.run
    fresh = copy.copy(run)
    fresh.recount()
    assert _counters(run) == _counters(fresh)
    assert run.in_flight <= life.submission.settings.window
    assert run.in_flight == sum(step.status in IN_FLIGHT for step in run.steps)


@given(lives)
def test_counters_follow_from_the_steps_and_the_window_holds(chance: random.Random) -> None:
    """`unmet`, `unhappy`, `backlog`, `in_flight`, `held` and `open` after every record."""
    live(chance, _check_counters)


@given(lives)
def test_run_ends_and_its_events_are_one_sequence_without_gap(chance: random.Random) -> None:
    """Guarantees 1 and 2: a terminal event, once, and `seq` from 1."""
    events = live(chance).run.events
    ended = [event for event in events if isinstance(event, m.RunEnded)]
    begun = [index for index, event in enumerate(events) if isinstance(event, m.RunStarted)]
    for first, last in zip(begun, [*begun[1:], len(events)], strict=True):  # without a key, an echo begins it anew
        assert [event.seq for event in events[first:last]] == list(range(1, last - first + 1))
    assert events[-1 if len(begun) == 1 else begun[1] - 1] is ended[0]


@given(lives)
def test_step_starts_when_what_it_needs_has_finished_and_has_one_result(chance: random.Random) -> None:
    """Guarantees 2 and 3, as whoever reads the events sees them."""
    life = live(chance)
    nodes = {node.id: node for node in life.decisions[0].run.pipeline.steps}  # type: ignore[union-attr]
    names = list(nodes)
    done: set[str] = set()
    results: Counter[str] = Counter()
    for event in life.run.events:
        if isinstance(event, m.StepChanged) and event.status in TERMINAL:
            done.add(event.step)
            results[event.step] += 1
        for queued in event.queued or ():
            assert {names[need] for need in nodes[queued.step].needs} <= done
            assert queued.step not in done
        if isinstance(event, m.RunEnded):
            break
    assert done == set(names)
    assert set(results.values()) == {1}


@given(lives)
def test_message_that_is_handled_again_at_once_changes_nothing(chance: random.Random) -> None:
    """Guarantee 4: every repeat is ignored with a reason, or finds nothing to do."""
    repeating = False

    def repeat(life: Life, decision: Decision) -> None:
        nonlocal repeating
        message = life.inbox[-1][0]
        if repeating or life.run.is_over or decision.ignored is not None or isinstance(message, m.LeaseRenewed):
            return  # a renewal renews again, or gives back an attempt that is current no more
        before = repr(life.run.run.steps), life.run.run.seq
        again = life.run.partition.decide(message, life.run.at)
        assert (again.ignored is not None) or isinstance(message, m.ContinueRun | m.TimerFired), message
        assert all(not hasattr(effect, "channel") for effect in again.effects)
        repeating = True
        life.run.partition.commit(again, life.run.at)
        repeating = False
        assert (repr(life.run.run.steps), life.run.run.seq) == before

    live(chance, repeat)


@given(lives)
def test_ignored_message_leaves_the_run_as_it_was(chance: random.Random) -> None:
    """Whatever is ignored changes no bit of the run, and appends no event and no command."""
    known = ""

    def compare(life: Life, decision: Decision) -> None:
        nonlocal known
        now = "" if life.run.is_over else repr(life.run.run)
        if decision.ignored is not None:
            assert now == known
            assert all(output.channel == "control" for output in outputs_of([decision]))
            assert len(decision.effects) <= 1
        known = now

    live(chance, compare)


@given(lives)
def test_final_statuses_are_what_the_language_says(chance: random.Random) -> None:
    """Compared with a reading of pipeline-language.md that shares no code with the core."""
    life = live(chance)
    end = life.decisions[0].run
    assert end is not None
    final = {event.step: event for event in life.run.events if isinstance(event, m.StepChanged)}
    if life.submission.keep_s == 0 and sum(isinstance(e, m.RunStarted) for e in life.run.events) > 1:
        return  # an echo has begun it anew
    nodes = {node.id: node for node in end.pipeline.steps}
    names = list(nodes)
    stopped = end.stop is not None
    for name, event in final.items():
        node = nodes[name]
        needs = {names[need]: final[names[need]].status for need in node.needs}
        tolerated = {need for need in needs if nodes[need].continue_on_error}
        runs = _may_run(node, life.submission, needs, tolerated)
        if event.status == "skipped":
            assert runs is False, (name, needs)
        elif event.attempt > 0:
            assert runs is True, (name, needs)
        elif event.status == "failed":
            assert runs is None, "only an `if` that cannot be evaluated fails a step that was not tried"
        else:
            assert (event.status, stopped) == ("cancelled", True)
    _check_outcome(life, end, {name: event.status for name, event in final.items()}, nodes)


def _check_outcome(life: Life, run: Run, statuses: dict[str, str], nodes: dict[str, Node]) -> None:
    ended = next(event for event in life.run.events if isinstance(event, m.RunEnded))
    broken = [
        n for n, status in statuses.items() if status in ("failed", "timed_out") and not nodes[n].continue_on_error
    ]
    reason = run.stop.reason.value if run.stop is not None else None
    if reason in ("cancelled", "timed_out"):
        assert ended.status == reason
    elif broken:
        assert ended.status == "failed"
        assert ended.error is not None
        assert ended.error.message.startswith(tuple(f"step {name}: " for name in broken))
    else:
        bad_outputs = "bad" in life.submission.definition
        assert ended.status == ("failed" if bad_outputs else "succeeded")
        assert "cancelled" not in statuses.values()
    assert (reason == "fail_fast") <= run.pipeline.fail_fast


def _may_run(node: Node, submission: m.SubmitRun, needs: dict[str, str], tolerated: set[str]) -> bool | None:
    """Return whether the step's condition holds; None when it cannot be evaluated."""
    fine = all(s == "succeeded" or (n in tolerated and s in ("failed", "timed_out")) for n, s in needs.items())
    broken = any(s in ("failed", "timed_out") for s in needs.values())
    source = None if node.condition is None else node.condition.program.source  # type: ignore[union-attr]
    answers: dict[str | None, bool | None] = {
        None: fine,
        "succeeded()": fine,
        "failed()": broken,
        "!failed()": not broken,
        "always()": True,
        "true": fine,
        "inputs.n > 1": fine and submission.inputs["n"] > 1,
        "inputs.gone.x == 1": None if fine else False,
    }
    for name, status in needs.items():
        answers[f"succeeded('{name}')"] = status == "succeeded"
        answers[f"failed('{name}')"] = status in ("failed", "timed_out")
    return answers[source]


# --- determinism ----------------------------------------------------------------------------------------------------


@given(lives)
def test_the_same_inbox_is_decided_alike_twice(chance: random.Random) -> None:
    """Every effect, byte for byte."""
    life = live(chance)
    assert [d.effects for d in decide_again(life.inbox)] == [d.effects for d in life.decisions]


@given(lives)
def test_the_same_inbox_is_decided_alike_when_state_is_restored_after_every_record(chance: random.Random) -> None:
    """Nothing hides in memory: effects and armed timers are those of the process that never stopped."""
    life = live(chance)
    topic: dict[bytes, bytes] = {}
    partition, _ = restore(topic)
    for offset, ((message, at), lived) in enumerate(zip(life.inbox, life.decisions, strict=True)):
        decision = partition.decide(message, at)
        assert decision.effects == lived.effects
        assert decision.ignored is lived.ignored
        partition.commit(decision, at)
        for key, value in take_changes(partition, offset):
            topic.pop(key, None)
            if value is not None:
                topic[key] = value
        partition, checkpoint = restore(topic)
        assert checkpoint is not None
        assert checkpoint.offset == offset
    assert {key.decode() for key in topic} <= {"_checkpoint", life.submission.run_id} or partition.runs


@given(lives)
def test_timers_of_a_restored_run_are_those_that_were_armed(chance: random.Random) -> None:
    """No timer is lost with the process, none comes back from the dead."""

    def compare(life: Life, _: Decision) -> None:
        if not life.run.is_over:
            assert life.run.run.timers() == life.run.armed

    live(chance, compare)


def test_the_random_lives_are_not_vacuous() -> None:
    """They end in every way, ignore for every reason that a random life can meet, and restore what is under way."""
    ends: Counter[str] = Counter()
    ignored: Counter[Ignore] = Counter()
    statuses: Counter[str] = Counter()
    for seed in range(400):
        life = live(random.Random(seed))
        ends[next(e.status for e in life.run.events if isinstance(e, m.RunEnded))] += 1
        ignored.update(decision.ignored for decision in life.decisions if decision.ignored is not None)
        statuses.update(life.run.statuses.values())
    assert ends.keys() == {"succeeded", "failed", "cancelled", "timed_out"}
    assert statuses.keys() >= {"succeeded", "failed", "timed_out", "cancelled", "skipped"}
    rare = {
        Ignore.CONFLICTING_SUBMISSION, Ignore.QUARANTINED, Ignore.NO_LEASE, Ignore.NOT_WAITING, Ignore.NOT_DISPATCHED,
    }  # fmt: skip
    assert ignored.keys() >= set(Ignore) - rare


def test_a_life_that_is_drawn_twice_is_the_same() -> None:
    """A failing seed replays."""
    assert live(random.Random(3)).inbox == live(random.Random(3)).inbox
    assert a_run().events
