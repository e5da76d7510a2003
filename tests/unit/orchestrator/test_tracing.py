"""Which spans decisions come to: of each attempt one, when it ends, however it ends, and of each run one."""

from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest

from anabranch.services.orchestrator.core.effects import Append, Channel
from anabranch.services.orchestrator.ports import InboxRecord
from anabranch.services.orchestrator.refusals import refusal_of
from anabranch.services.orchestrator.tracing import DecisionSpans
from anabranch.shared.contracts import messages as m
from anabranch.shared.contracts.codec import Headers, header
from anabranch.shared.contracts.ids import attempt_id, span_id, traceparent
from anabranch.shared.contracts.traces import TraceContext, trace_context_in
from tests.support.builders import (
    RETRIES,
    RUN,
    T0,
    a_step,
    a_submission,
    cancel_run,
    cancelled,
    failed,
    fired,
    gave_back,
    lease_due,
    refused,
    renewed,
    retry_due,
    started,
    succeeded,
)
from tests.support.builders import ARun as Builder

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
NOW_NS = 7


@dataclass
class Written:
    """Keeps the spans that are written."""

    spans: list[tuple[str, TraceContext | None, dict[str, Any]]] = field(default_factory=list)

    def now_ns(self) -> int:
        return NOW_NS

    def write(self, name: str, parent: TraceContext | None, **values: Any) -> None:
        self.spans.append((name, parent, values))

    def failing_alone(self) -> AbstractContextManager[None]:
        return nullcontext()


class Broken(Written):
    """Raises whatever it is to write."""

    def write(self, name: str, parent: TraceContext | None, **values: Any) -> None:
        raise ZeroDivisionError

    def failing_alone(self) -> AbstractContextManager[None]:
        return suppress(ZeroDivisionError)


class Traced(Builder):
    """A run whose decisions are written down as the partition task does it."""

    def __init__(self, written: Written | None = None) -> None:
        super().__init__()
        self.written = written or Written()
        self.spans = DecisionSpans(self.written, 3)  # type: ignore[arg-type]
        self.headers: Headers = ()
        self.offset = 0

    def take(self, message: m.RunMessage, after_ms: int = 0) -> Any:
        self.at += after_ms
        decision = self.partition.decide(message, self.at)
        record = InboxRecord(self.offset, self.at, None, b"", self.headers, 1)
        self.spans.decided(record, message, decision, NOW_NS - 1)
        self.offset += 1
        self.partition.commit(decision, self.at)
        self.act(decision)
        return decision

    def named(self, start: str) -> list[tuple[str, TraceContext | None, dict[str, Any]]]:
        return [span for span in self.written.spans if span[0].startswith(start)]

    def outcomes(self) -> list[tuple[str, int, str, str]]:
        """What became of each attempt."""
        return [
            (
                name,
                values["attributes"]["anabranch.attempt"],
                values["attributes"]["anabranch.outcome"],
                values["error"],
            )
            for name, _, values in self.named("attempt")
        ]


def traced(submission: m.SubmitRun, **trace: Any) -> Traced:
    """Return a run that has begun."""
    run = Traced()
    run.takes(submission.model_copy(update=trace))
    return run


def a(**more: Any) -> m.SubmitRun:
    """Return the submission of one step."""
    return a_submission({"a": a_step(**more)})


def test_an_attempt_has_the_logs_times_and_the_commands_span() -> None:
    """The `traceparent` of the command names it, so that any step service goes on from there."""
    run = traced(a(), trace_id=TRACE, parent_span=PARENT)
    run.take(started("a"), after_ms=10)
    run.take(succeeded("a"), after_ms=20)
    (command,) = run.of(Channel.COMMANDS)
    said = trace_context_in(header(command.headers, "traceparent"))
    assert said == TraceContext(TRACE, span_id(attempt_id(RUN, "a", 1)))
    ((_, parent, values),) = run.named("attempt a")
    assert parent == TraceContext(TRACE, span_id(RUN))
    assert values["span_id"] == said.span_id
    assert (values["start_ns"], values["end_ns"]) == (T0 * 10**6, (T0 + 30) * 10**6)
    ((name, parent, values),) = run.named("run")
    assert (name, parent) == ("run p", TraceContext(TRACE, PARENT))
    assert (values["span_id"], values["error"]) == (span_id(RUN), "")
    assert (values["start_ns"], values["end_ns"]) == (T0 * 10**6, (T0 + 30) * 10**6)


def test_every_way_an_attempt_ends_is_one_span_with_its_outcome() -> None:
    """Failed, lost with its worker, given back, failed for good; the next one has a link to the one before."""
    run = traced(a(retry=RETRIES))
    run.takes(failed("a"))
    run.takes(run_retry(run, 1))
    assert run.outcomes() == [("attempt a", 1, "failed", "Boom: no luck")]
    run.takes(started("a", 2))
    run.at = run.armed["lease/a/2"]
    run.take(lease_due("a", 2))
    run.at = run.armed["lease/a/2"]
    run.take(lease_due("a", 2))
    assert run.outcomes()[1:] == [("attempt a", 2, "lost", "lost")]
    run.takes(started("a", 3), gave_back("a", 3))
    assert run.outcomes()[2:] == [("attempt a", 3, "given_back", "given_back")]
    run.takes(failed("a", attempt=4, terminal=True))
    assert run.outcomes()[3:] == [("attempt a", 4, "failed", "Boom: no luck")]
    links = [values["links"] for _, _, values in run.named("attempt")]
    before = [TraceContext(RUN.replace("-", ""), span_id(attempt_id(RUN, "a", number))) for number in (1, 2, 3)]
    assert links == [(), (before[0],), (before[1],), (before[2],)]
    ((_, _, values),) = run.named("run")
    assert values["attributes"]["anabranch.outcome"] == "RunFailed"
    assert values["error"] == "Boom: step a: no luck"


def run_retry(run: Traced, attempt: int) -> m.TimerFired:
    """Return the end of the retry's delay, when it is due."""
    run.at = run.armed[f"retry/a/{attempt}"]
    return retry_due("a", attempt)


def test_an_attempt_that_goes_on_has_no_span_yet() -> None:
    """Its lease is renewed, its command held back."""
    run = traced(a())
    run.takes(refused("a"))
    run.fire("send/a/1")
    run.takes(started("a"), renewed("a", progress=1))
    assert run.named("attempt") == run.named("run") == []
    assert [name for name, _, _ in run.named("decide")][-1] == "decide LeaseRenewed"


def test_a_cancelled_attempt_and_run_say_so() -> None:
    run = traced(a())
    run.takes(started("a"), cancel_run(), cancelled("a"))
    assert run.outcomes() == [("attempt a", 1, "cancelled", "cancelled")]
    ((_, _, values),) = run.named("run")
    assert values["attributes"]["anabranch.outcome"] == "RunCancelled"


def test_decided_again_they_are_the_same_spans() -> None:
    """After a crash the same records are decided once more."""
    one, two = (traced(a()) for _ in range(2))
    for run in (one, two):
        run.takes(succeeded("a"))
    assert one.written.spans == two.written.spans
    ids = [values["span_id"] for _, _, values in one.written.spans]
    assert len(set(ids)) == len(ids) == 4  # two decisions, an attempt, the run


def test_a_decision_stands_below_what_it_is_about_and_says_why_it_changes_nothing() -> None:
    run = traced(a(), trace_id=TRACE)
    run.take(succeeded("a", attempt=9))
    run.take(fired("grace"))
    begun, stale, timer = run.named("decide")
    of_run = TraceContext(TRACE, span_id(RUN))
    assert begun[:2] == ("decide SubmitRun", of_run)
    assert stale[:2] == ("decide AttemptSucceeded", of_run._replace(span_id=span_id(attempt_id(RUN, "a", 9))))
    assert stale[2]["attributes"]["anabranch.ignored"] == "stale_attempt"
    assert timer[:2] == ("decide TimerFired", of_run)
    assert (timer[2]["start_ns"], timer[2]["end_ns"]) == (NOW_NS - 1, NOW_NS)


def test_a_message_of_another_trace_is_linked() -> None:
    """Whoever asks for a cancellation has a trace of their own."""
    run = traced(a(), trace_id=TRACE)
    run.headers = (("traceparent", traceparent("b" * 32, "x").encode()),)
    run.take(cancel_run())
    assert run.named("decide CancelRun")[0][2]["links"] == (TraceContext("b" * 32, span_id("x")),)


@pytest.mark.parametrize("trace", [{"sampled": False}, {"trace_id": "no trace"}, {"trace_id": "0" * 32}])
def test_of_a_run_that_is_not_sampled_or_has_no_trace_nothing_is_written(trace: dict[str, Any]) -> None:
    run = traced(a(), **trace)
    run.takes(succeeded("a"))
    assert run.written.spans == []


def test_a_span_that_cannot_be_written_stops_no_decision() -> None:
    """Its partition would be taken over, and the next owner stop at the same record."""
    run = Traced(Broken())
    run.takes(a(), succeeded("a"))
    assert run.of(Channel.COMMANDS)
    assert run.of(Channel.RUN_EVENTS)


def test_every_record_of_a_run_that_is_not_sampled_says_so() -> None:
    """Its events, its commands, what refuses these, and the word to whoever holds a stale attempt."""
    run = traced(a(), sampled=False, trace_id=TRACE)
    (command,) = run.of(Channel.COMMANDS)
    run.outputs.append(refusal_of(command, "away"))
    run.take(renewed("a", attempt=9))
    run.takes(succeeded("a"))
    channels = {output.channel for output in run.outputs}
    assert channels == {Channel.COMMANDS, Channel.INBOX, Channel.CONTROL, Channel.RUN_EVENTS}
    assert {_flags(output) for output in run.outputs} == {(TRACE, False)}
    assert run.commands[0].sampled is False


def _flags(output: Append) -> tuple[str, bool]:
    said = trace_context_in(header(output.headers, "traceparent"))
    assert said is not None
    return said.trace_id, said.is_sampled
