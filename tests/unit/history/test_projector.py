import json
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from structlog.stdlib import get_logger
from structlog.testing import capture_logs

from anabranch.services.history import decoded
from anabranch.services.history.decoded import DecodedEvents
from anabranch.services.history.metrics import HistoryMetrics
from anabranch.services.history.projector import Projector
from anabranch.services.history.tracing import BatchSpans
from anabranch.shared.contracts.ids import span_id, traceparent
from anabranch.shared.contracts.traces import TraceContext

from .fakes import (
    FakeDeadLetters,
    FakeEventLog,
    FakeSnapshots,
    records,
    run_ended,
    run_started,
    step_succeeded,
    steps_queued,
)

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def traced(of_run: list[Any], is_sampled: bool = True) -> list[Any]:
    """Return records that say of which trace they are."""
    said = (("traceparent", traceparent(TRACE, "x", is_sampled=is_sampled).encode()),)
    return [replace(record, headers=said) for record in of_run]


class Written:
    """Keeps the spans that are written."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, TraceContext, dict[str, Any]]] = []

    def now_ns(self) -> int:
        return 5_000_000_000

    def write(self, name: str, parent: TraceContext, **values: Any) -> None:
        self.spans.append((name, parent, values))

    def failing_alone(self) -> AbstractContextManager[None]:
        return nullcontext()


class Bench:
    def __init__(self, *batches: list[Any], spans: BatchSpans | None = None, **snapshots: Any) -> None:
        self.registry = CollectorRegistry()
        self.log = FakeEventLog(*batches)
        self.snapshots = FakeSnapshots(**snapshots)
        self.dead_letters = FakeDeadLetters()
        self.projector = Projector(
            self.log, self.snapshots, self.dead_letters, DecodedEvents(are_shared=False),
            metrics=HistoryMetrics(self.registry), log=get_logger(), now_s=lambda: 1.5, spans=spans,
        )  # fmt: skip

    async def run(self) -> "Bench":
        await self.projector.run(self.log.stopping)
        return self

    def count(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"anabranch_history_{name}", labels) or 0


async def test_a_run_is_written_once_per_batch() -> None:
    """However many events it has in it."""
    bench = await Bench(records(run_started(), steps_queued(2, "a"), step_succeeded(3, "a"), run_ended(4))).run()
    assert bench.snapshots.flushes == [["r"]]
    assert bench.snapshots.seq == {"r": 4}
    assert bench.log.offsets_done == [0, 1, 2, 3]
    assert bench.count("events_total", outcome="projected") == 4


async def test_offsets_wait_for_the_store_and_nothing_is_lost_while_it_is_down() -> None:
    """The batch is tried again, ever less often, until it is taken."""
    bench = await Bench(records(run_started(), run_ended(2)), refusals=6).run()
    assert bench.log.held_s == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0]
    assert (bench.snapshots.seq, bench.log.offsets_done) == ({"r": 2}, [0, 1])
    assert bench.count("paused") == 0


async def test_stopping_while_the_store_is_down_leaves_the_records_to_the_next_reader() -> None:
    """They are not done."""
    bench = Bench(records(run_started()), refusals=1000)
    bench.log.stopping.set()
    bench.log.stopping.is_set = iter([False, True, True]).__next__  # type: ignore[method-assign]
    await bench.run()
    assert (bench.log.offsets_done, bench.snapshots.seq) == ([], {})


@pytest.mark.parametrize("poison", [b"", b"{", b"[]", b'{"type":"Unheard"}', b'{"type":"RunStarted"}', b"\xff\xfe"])
async def test_a_poison_event_goes_to_the_dead_letters_and_the_rest_goes_on(poison: bytes) -> None:
    """Its offset is released only when the dead letter is acknowledged."""
    bench = await Bench(records(poison, run_started())).run()
    assert bench.dead_letters.sent == [(0, "Undecodable")]
    assert bench.dead_letters.waits == 1
    assert (bench.snapshots.seq, bench.log.offsets_done) == ({"r": 1}, [0, 1])


async def test_a_run_whose_key_is_taken_does_not_stop_the_others() -> None:
    """Its events go to the dead letters."""
    bench = await Bench(records(run_started("bad"), run_started("good")), rejects=frozenset({"bad"})).run()
    assert bench.dead_letters.sent == [(0, "ChangeRejected")]
    assert bench.snapshots.seq == {"good": 1}


async def test_a_gap_is_counted_and_logged_and_the_run_goes_on() -> None:
    """Events 2 and 3 never came."""
    with capture_logs() as logs:
        bench = await Bench(records(run_started()), traced(records(run_ended(4)))).run()
    assert bench.count("missing_events_total") == 2
    said = [(line["run_id"], line["trace_id"], line["missing"]) for line in logs if "missing" in line]
    assert said == [("r", TRACE, 2)]
    assert bench.snapshots.seq == {"r": 4}


async def test_the_line_of_a_dead_letter_names_the_run_and_its_trace() -> None:
    with capture_logs() as logs:
        await Bench(traced(records(b"no event"))).run()
    assert [(line["run_id"], line["trace_id"]) for line in logs if "offset" in line] == [("r", TRACE)]


class BrokenSpans(Written):
    """Raises whatever it is to write."""

    def write(self, name: str, parent: TraceContext, **values: Any) -> None:
        raise ZeroDivisionError

    def failing_alone(self) -> AbstractContextManager[None]:
        return suppress(ZeroDivisionError)


async def test_a_span_that_cannot_be_written_holds_nothing_up() -> None:
    spans = BatchSpans(BrokenSpans(), "project")  # type: ignore[arg-type]
    bench = await Bench(traced(records(run_started(), run_ended(2))), spans=spans).run()
    assert (bench.snapshots.seq, bench.log.offsets_done) == ({"r": 2}, [0, 1])


async def test_each_run_of_a_batch_has_a_span_below_its_own() -> None:
    """One that is not sampled, or whose records say nothing of a trace, has none."""
    written = Written()
    bench = Bench(
        [*traced(records(run_started(), run_ended(2)), is_sampled=True), *traced(records(run_started("no")), False),
         *records(run_started("mute"))],
        spans=BatchSpans(written, "project"),  # type: ignore[arg-type]
    )  # fmt: skip
    await bench.run()
    ((name, parent, values),) = written.spans
    assert (name, parent) == ("project", TraceContext(TRACE, span_id("r")))
    assert (values["start_ns"], values["end_ns"]) == (5_000_000_000, 5_000_000_000)
    assert values["attributes"] == {"anabranch.run.id": "r", "anabranch.events": 2, "anabranch.delay_ms": 4_000}


async def test_events_projected_twice_are_counted_as_repeats() -> None:
    """A crash before the commit gives them again, with more behind them."""
    first, again = records(run_started(), steps_queued(2, "a")), records(steps_queued(2, "a"), run_ended(3))
    bench = await Bench(first, again, again).run()
    assert bench.count("events_total", outcome="projected") == 3
    assert bench.count("events_total", outcome="repeated") == 3
    assert bench.count("missing_events_total") == 0


DEEP = {levels: b"[" * levels + b"]" * levels for levels in (70, 199, 253, 254, 900)}


@pytest.mark.parametrize("levels", DEEP)
async def test_an_event_that_is_nested_too_deep_is_a_dead_letter_and_the_others_go_on(levels: int) -> None:
    """No writer of JSON takes it, so no snapshot could hold it."""
    whole = step_succeeded(2, "a", output="OUTPUT").model_dump_json().encode()
    deep = whole.replace(b'"OUTPUT"', DEEP[levels])
    bench = await Bench(records(run_started(), deep, run_ended(3), run_started("other"))).run()
    assert bench.dead_letters.sent == [(1, "Undecodable")]
    assert bench.snapshots.seq == {"r": 3, "other": 1}
    assert bench.log.offsets_done == [0, 1, 2, 3]


async def test_an_event_that_cannot_be_projected_is_a_dead_letter_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever it is that raises, and whatever that says."""

    def fields_of(event: Any) -> Any:
        if event.seq == 2:
            raise RecursionError("\udcff")
        return real(event)

    real = decoded.fields_of
    monkeypatch.setattr(decoded, "fields_of", fields_of)
    bench = await Bench(records(run_started(), step_succeeded(2, "a"), run_ended(3))).run()
    assert bench.dead_letters.sent == [(1, "RecursionError")]
    assert bench.snapshots.seq == {"r": 3}
    assert bench.count("events_total", outcome="dead_lettered") == 1
    assert bench.count("missing_events_total") == 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
EVENTS = [run_started(), steps_queued(2, "a"), step_succeeded(3, "a"), run_ended(4)]
FIELDS = st.sampled_from(EVENTS).flatmap(
    lambda event: st.tuples(st.just(event), st.sampled_from(sorted(event.model_dump(mode="json"))), JSON)
)


def _changed(drawn: tuple[Any, str, Any]) -> bytes:
    event, name, value = drawn
    return json.dumps({**json.loads(event.model_dump_json()), name: value}).encode()


@given(st.lists(FIELDS.map(_changed) | JSON.map(lambda value: json.dumps(value).encode()) | st.binary(), max_size=8))
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
async def test_whatever_stands_in_the_topic_the_projector_goes_on(values: list[bytes]) -> None:
    """Each record is projected or a dead letter, and all of them are done."""
    batch = records(*values, run_started("other"))
    bench = await Bench(batch).run()
    assert bench.log.offsets_done == list(range(len(batch)))
    assert bench.snapshots.seq["other"] == 1
