"""The Python client against a gateway that misbehaves."""

import pytest
from aiohttp import web
from aiohttp.test_utils import unused_port

from anabranch.client import AnabranchClient, Fault, GatewayUnreachableError, ProblemError

from .fake_gateway import FakeGateway, a_problem, a_run, a_step, served

ONE_STEP = "name: demo\nsteps:\n  one: {uses: simulate}\n"


def busy() -> web.Response:
    return a_problem(503, "Busy", detail="the inbox lags")


async def test_submitted_text_is_sent_as_the_value_it_holds() -> None:
    gateway = FakeGateway()
    with served(gateway) as url:
        async with AnabranchClient(url) as client:
            run = await client.submit(ONE_STEP, inputs={"n": 1}, labels={"team": "a"})
    assert (run.id, run.status) == ("run-1", "accepted")
    assert gateway.submissions == [
        {
            "definition": {"name": "demo", "steps": {"one": {"uses": "simulate"}}},
            "inputs": {"n": 1},
            "labels": {"team": "a"},
        }
    ]


async def test_watch_yields_each_change_once_and_stops_at_the_end() -> None:
    running, done = a_run("running"), a_run(outputs={"answer": 42}, steps={"one": a_step()})
    gateway = FakeGateway([running, running, done])
    with served(gateway) as url:
        async with AnabranchClient(url) as client:
            run = await client.submit(ONE_STEP)
            seen = [state async for state in client.watch(run.id)]
    assert [state.status for state in seen] == ["running", "succeeded"]
    assert seen[-1].outputs == {"answer": 42}
    assert seen[-1].steps["one"].duration_s() == 1.5
    assert gateway.waits == [None, "250ms", "250ms"], "the first look is at once, the others are long polls"


async def test_watch_outlives_a_gateway_that_is_busy_for_a_while() -> None:
    gateway = FakeGateway([a_run("running"), a_run()])
    with served(gateway) as url:
        async with AnabranchClient(url) as client:
            run = await client.submit(ONE_STEP)
            statuses = []
            async for state in client.watch(run.id):
                statuses.append(state.status)
                if state.status == "running":
                    gateway.next_answers = [busy, busy]
    assert statuses == ["running", "succeeded"]


async def test_submission_with_a_key_is_repeated_until_it_is_answered() -> None:
    gateway = FakeGateway()
    gateway.next_answers = [busy, lambda: a_problem(503, "Outcome unknown", id="run-1")]
    with served(gateway) as url:
        async with AnabranchClient(url) as client:
            first = await client.submit(ONE_STEP, idempotency_key="k")
            again = await client.submit(ONE_STEP, idempotency_key="k")
    assert first.id == again.id == "run-1"


async def test_submission_without_a_key_is_sent_once() -> None:
    gateway = FakeGateway()
    gateway.next_answers = [busy]
    with served(gateway) as url:
        async with AnabranchClient(url) as client:
            with pytest.raises(ProblemError) as caught:
                await client.submit(ONE_STEP)
    assert caught.value.is_passing
    assert gateway.submissions == []


async def test_invalid_pipeline_carries_every_fault() -> None:
    with served(FakeGateway()) as url:
        async with AnabranchClient(url) as client:
            with pytest.raises(ProblemError) as caught:
                await client.submit({"name": "Demo", "steps": {"a": {"uses": "simulate", "needs": ["b"]}}})
    assert caught.value.problem.status == 422
    assert {fault.pointer for fault in caught.value.problem.errors} == {
        "/definition/name",
        "/definition/steps/a/needs/0",
    }


async def test_validate_returns_faults_with_their_places() -> None:
    with served(FakeGateway()) as url:
        async with AnabranchClient(url) as client:
            assert await client.validate(ONE_STEP) == ()
            faults = await client.validate("name: demo\nsteps:\n  one: {uses: simulate, needs: [two]}\n")
    assert faults == (Fault(pointer="/steps/one/needs/0", message=faults[0].message, line=3, column=33),)


async def test_answer_that_is_no_problem_document_keeps_its_words() -> None:
    gateway = FakeGateway()
    gateway.next_answers = [lambda: web.Response(status=502, text="bad gateway of a proxy")]
    with served(gateway) as url:
        async with AnabranchClient(url) as client:
            with pytest.raises(ProblemError, match="bad gateway of a proxy"):
                await client.run("x")


async def test_step_types_are_listed() -> None:
    with served(FakeGateway()) as url:
        async with AnabranchClient(url) as client:
            assert [one.name for one in await client.step_types()] == ["simulate"]


async def test_nobody_at_the_url_is_told_in_a_sentence() -> None:
    url = f"http://127.0.0.1:{unused_port()}"
    async with AnabranchClient(url) as client:
        with pytest.raises(GatewayUnreachableError, match="start one with `anabranch up`"):
            await client.run("x")
