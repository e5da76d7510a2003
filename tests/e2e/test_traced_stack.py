"""A run is one trace, from its request to its record, as a collector is sent it by the real stack."""

import sys
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from anabranch.deploy.local.ports import free_port
from anabranch.deploy.local.services import Service, anabranch_services
from anabranch.deploy.local.stack import LocalStack
from anabranch.shared.contracts.ids import attempt_id, span_id
from tests.support.collector import Collector, Received

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROLES = {"gateway", "orchestrator", "history", "http"}
SPANNED = Service("spanned", (sys.executable, "-m", "tests.support.spanned"))
CLIENTS_TRACE, CLIENTS_SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SERVER, CONSUMER = 2, 5  # kinds of spans, in OTLP
EVENTS = 8  # of a diamond's run, at least: it starts, four steps succeed, one is tried again and queued, it ends


def diamond(url: str) -> dict[str, Any]:
    """Return a -> b, c -> d: `b` asks a server, the first attempt of `c` fails, `d` is a handler that sees its span."""
    return {
        "name": "diamond",
        "steps": {
            "a": {"uses": "spanned", "with": {"value": 1}},
            "b": {"uses": "http", "needs": ["a"], "with": {"url": f"{url}/asked"}},
            "c": {
                "uses": "spanned", "needs": ["a"], "with": {"fail_attempts": 1, "value": 3},
                "retry": {"max_attempts": 2, "initial": "50ms"},
            },
            "d": {"uses": "spanned", "needs": ["b", "c"], "with": {"value": "${{ steps.c.output.value }}"}},
        },
        "outputs": {"seen": "${{ steps.d.output }}"},
    }  # fmt: skip


class Bench:
    """The stack, the collector, and a client."""

    def __init__(self, stack: LocalStack, collector: Collector, http: aiohttp.ClientSession) -> None:
        self.stack = stack
        self.collector = collector
        self.http = http

    async def run(self, **headers: str) -> dict[str, Any]:
        """Return a diamond that has succeeded."""
        async with self.http.post(
            "/v1/runs?wait=60s", json={"definition": diamond(self.collector.url)}, headers=headers
        ) as response:
            run: dict[str, Any] = await response.json()
        assert run.get("status") == "succeeded", run
        return run

    async def trace(self, trace_id: str) -> list[Received]:
        """Return the spans of a run that has ended, when history has written what it has of its end."""

        def is_whole(spans: list[Received]) -> bool:
            of_run = [span for span in spans if span.trace_id == trace_id]
            names = [span.name for span in of_run]
            events = {"project": 0, "record": 0}
            for span in of_run:
                events[span.name] = events.get(span.name, 0) + span.attributes.get("anabranch.events", 0)
            return (
                {"POST /v1/runs", "run diamond"} <= set(names)
                and sum(name.startswith("handler ") for name in names) == 5
                and names.count("work of the handler") == 4
                and min(events["project"], events["record"]) >= EVENTS
            )

        return [span for span in await self.collector.until(is_whole) if span.trace_id == trace_id]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    """The stack as an operator starts it beside a collector; spans are sent at once."""
    async with Collector() as collector:
        env = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "50",
            "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
        }  # fmt: skip
        services = (*(each for each in anabranch_services() if each.role in ROLES), SPANNED)
        async with (
            LocalStack(tmp_path_factory.mktemp("traced"), services=services, port=free_port(), env=env) as stack,
            aiohttp.ClientSession(stack.gateway_url) as http,
        ):
            yield Bench(stack, collector, http)


def one(spans: list[Received], name: str, **attributes: Any) -> Received:
    """Return the one span of this name with these attributes, `step` for `anabranch.step` and so on."""
    found = [
        span
        for span in spans
        if span.name == name
        and all(span.attributes.get(f"anabranch.{key}") == value for key, value in attributes.items())
    ]
    assert len(found) == 1, (name, attributes, found)
    return found[0]


async def test_a_diamond_with_a_retry_is_one_trace_from_the_request_to_the_record(bench: Bench) -> None:
    """Every span stands below what led to it, the retry names the attempt before, and the client can find it all."""
    run = await bench.run()
    run_id, trace_id = run["id"], run["id"].replace("-", "")
    spans = await bench.trace(trace_id)

    request = one(spans, "POST /v1/runs")
    assert (request.service, request.parent_id, request.kind) == ("anabranch.gateway", "", SERVER)
    assert request.attributes["http.response.status_code"] == 200
    assert request.attributes["http.route"] == "/v1/runs"
    assert request.attributes["anabranch.run.id"] == run_id

    whole = one(spans, "run diamond")
    assert (whole.service, whole.parent_id) == ("anabranch.orchestrator", request.span_id)
    assert whole.span_id == span_id(run_id)
    assert whole.attributes == {
        "anabranch.run.id": run_id, "anabranch.tenant": "default", "anabranch.pipeline": "diamond",
        "anabranch.outcome": "RunSucceeded", "anabranch.steps": 4,
    }  # fmt: skip

    uses = {"a": "spanned", "b": "http", "c": "spanned", "d": "spanned"}
    for step, attempt in (("a", 1), ("b", 1), ("c", 1), ("c", 2), ("d", 1)):
        of_attempt = one(spans, f"attempt {step}", attempt=attempt)
        failed = (step, attempt) == ("c", 1)
        assert of_attempt.parent_id == whole.span_id
        assert of_attempt.span_id == span_id(attempt_id(run_id, step, attempt))
        assert of_attempt.attributes["anabranch.outcome"] == ("failed" if failed else "succeeded")
        assert of_attempt.error == ("NotYet: attempt 1 fails" if failed else "")
        wait = one(spans, "queue wait", step=step, attempt=attempt)
        handler = one(spans, f"handler {uses[step]}", step=step, attempt=attempt)
        said = "AttemptFailed" if failed else "AttemptSucceeded"
        decision = one(spans, f"decide {said}", step=step, attempt=attempt)
        assert {wait.parent_id, handler.parent_id, decision.parent_id} == {of_attempt.span_id}
        assert {wait.service, handler.service} == {f"anabranch.steps.{uses[step]}"}
        assert handler.kind == CONSUMER
        assert handler.error == of_attempt.error
        assert handler.attributes.get("error.type") == ("NotYet" if failed else None)
        assert wait.start_ns == of_attempt.start_ns <= wait.end_ns == handler.start_ns <= handler.end_ns

    retry, before = one(spans, "attempt c", attempt=2), one(spans, "attempt c", attempt=1)
    assert [(link.trace_id, link.span_id) for link in retry.links] == [(trace_id, before.span_id)]
    assert all(not span.links for span in spans if span is not retry)

    assert one(spans, "decide SubmitRun").parent_id == whole.span_id
    timer = one(spans, "decide TimerFired", ignored=None)  # of the retry
    assert (timer.parent_id, timer.service) == (whole.span_id, "anabranch.orchestrator")
    for name in ("project", "record"):
        assert {s.parent_id for s in spans if s.name == name} == {whole.span_id}
        assert {s.service for s in spans if s.name == name} == {"anabranch.history"}

    handler = one(spans, "handler spanned", step="d")
    assert run["outputs"]["seen"] | {"pid": 0} == {
        "value": 3, "trace_id": trace_id, "span_id": handler.span_id, "is_sampled": True, "pid": 0,
    }  # fmt: skip
    assert handler.attributes["said"] == 3
    below = [span.parent_id for span in spans if span.name == "work of the handler"]
    assert sorted(below) == sorted(span.span_id for span in spans if span.name == "handler spanned")
    asked = one(spans, "handler http")
    assert bench.collector.headers_asked[-1]["traceparent"] == f"00-{trace_id}-{asked.span_id}-01"

    names = {span.span_id for span in spans}
    assert len(names) == len(spans), "each span is written once"
    assert all(span.parent_id in names for span in spans if span is not request), "no parent is missing"
    told = {resource["service.name"]: resource for resource in bench.collector.resources}["anabranch.history"]
    assert told["deployment.environment.name"] == "test"
    assert told["service.namespace"] == "anabranch"


async def test_a_clients_trace_goes_on(bench: Bench) -> None:
    """The request is below the client's span; all else is in its trace."""
    run = await bench.run(traceparent=f"00-{CLIENTS_TRACE}-{CLIENTS_SPAN}-01")
    spans = await bench.trace(CLIENTS_TRACE)
    request = one(spans, "POST /v1/runs")
    assert request.parent_id == CLIENTS_SPAN
    assert one(spans, "run diamond").parent_id == request.span_id
    names = {span.span_id for span in spans}
    assert {span.parent_id for span in spans} - names == {CLIENTS_SPAN}
    assert run["outputs"]["seen"]["trace_id"] == CLIENTS_TRACE
    assert not [span for span in bench.collector.spans if span.trace_id == run["id"].replace("-", "")]


async def test_a_trace_that_its_client_does_not_sample_has_no_span(bench: Bench) -> None:
    """Nor do a handler's own spans come: it finds a current span that is not sampled, and servers are told so."""
    unsampled = "5bf92f3577b34da6a3ce929d0e0e4736"
    run = await bench.run(traceparent=f"00-{unsampled}-{CLIENTS_SPAN}-00")
    assert run["outputs"]["seen"]["trace_id"] == unsampled
    assert run["outputs"]["seen"]["is_sampled"] is False
    assert bench.collector.headers_asked[-1]["traceparent"].startswith(f"00-{unsampled}-")
    assert bench.collector.headers_asked[-1]["traceparent"].endswith("-00")
    later = await bench.run()
    await bench.trace(later["id"].replace("-", ""))  # what came before that has been sent
    of_run = [s for s in bench.collector.spans if s.attributes.get("anabranch.run.id") == run["id"]]
    assert not [span for span in bench.collector.spans if span.trace_id == unsampled]
    assert not of_run


async def test_each_run_of_a_batch_has_its_trace_and_names_the_request(bench: Bench) -> None:
    """A client's trace would have them all."""
    definition = {"name": "p", "steps": {"a": {"uses": "spanned"}}}
    async with bench.http.post("/v1/runs:batch", json={"runs": [{"definition": definition}] * 2}) as response:
        ids = [result["run"]["id"] for result in (await response.json())["results"]]
    traces = [run_id.replace("-", "") for run_id in ids]

    def are_whole(spans: list[Received]) -> bool:
        return "POST /v1/runs:batch" in {span.name for span in spans} and all(
            {span.trace_id for span in spans if span.name == name} >= set(traces) for name in ("run p", "submit")
        )

    spans = await bench.collector.until(are_whole)
    request = one(spans, "POST /v1/runs:batch")
    for run_id, trace_id in zip(ids, traces, strict=True):
        submitted = one(spans, "submit", **{"run.id": run_id})
        assert (submitted.trace_id, submitted.parent_id) == (trace_id, "")
        assert [(link.trace_id, link.span_id) for link in submitted.links] == [(request.trace_id, request.span_id)]
        assert one(spans, "run p", **{"run.id": run_id}).parent_id == submitted.span_id


async def test_a_request_to_cancel_is_named_by_the_decision_it_leads_to(bench: Bench) -> None:
    """It has a trace of its own; the run's decision has a link there."""
    definition = {"name": "long", "steps": {"a": {"uses": "spanned", "with": {"sleep_s": 60}}}}
    async with bench.http.post("/v1/runs", json={"definition": definition}) as response:
        run_id = (await response.json())["id"]
    async with bench.http.post(f"/v1/runs/{run_id}/cancel") as response:
        assert response.status == 202
    ended = await bench.collector.until(lambda spans: [s for s in spans if s.name == "run long"])
    spans = await bench.collector.until(lambda spans: [s for s in spans if s.name == "POST /v1/runs/{id}/cancel"])
    request, decision = one(spans, "POST /v1/runs/{id}/cancel"), one(spans, "decide CancelRun")
    assert decision.trace_id == run_id.replace("-", "") != request.trace_id
    assert [(link.trace_id, link.span_id) for link in decision.links] == [(request.trace_id, request.span_id)]
    assert one(ended, "run long").error.startswith("RunCancelled")
