"""`AnabranchClient.submit_batch` against a gateway on fakes, and one that misbehaves."""

from collections.abc import Callable
from typing import Any

import orjson
import pytest
from aiohttp import web
from aiohttp.test_utils import unused_port

from anabranch.client import AnabranchClient, GatewayUnreachableError, ProblemError, Run, Submission
from anabranch.client import api as client_api
from anabranch.client.batches import requests_of
from anabranch.shared.contracts.ids import run_id_for_key
from anabranch.shared.contracts.limits import MAX_BATCH_RUNS, MAX_BODY_BYTES
from anabranch.shared.contracts.source import SourceError
from tests.unit.gateway.fakes import a_gateway

from .fake_gateway import FakeGateway, a_problem, served

YAML = "name: p\ninputs: {n: {type: integer, default: 0}}\nsteps:\n  a: {uses: simulate}\n"
WRONG = {"name": "p", "steps": {"a": {"uses": "simulat"}}}


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_api, "_pause_s", lambda _: 0.0)


async def test_each_submission_has_its_result() -> None:
    """The runs that were accepted as they were meant, and what is wrong with the others, as if they had come alone."""
    async with a_gateway() as gateway, AnabranchClient(str(gateway.client.make_url(""))) as client:
        results = await client.submit_batch(
            [
                Submission(YAML, {"n": 5}, {"team": "x"}, "key-1"),
                Submission(WRONG),
                Submission(YAML, {"n": "five"}),
                Submission(YAML),
            ]
        )
        with pytest.raises(ProblemError) as alone:
            await client.submit(WRONG)
    first, wrong, wrong_input, last = results
    assert isinstance(first, Run)
    assert isinstance(last, Run)
    assert first.id == run_id_for_key("default", "key-1")
    submitted = gateway.log.submitted
    assert [(run.run_id, run.inputs, run.labels) for run in submitted] == [
        (first.id, {"n": 5}, {"team": "x"}), (last.id, {"n": 0}, {})
    ]  # fmt: skip
    assert isinstance(wrong, ProblemError)
    assert str(wrong) == str(alone.value)
    assert [(e.pointer, e.message) for e in wrong.problem.errors] == [
        (e.pointer, e.message) for e in alone.value.problem.errors
    ]
    assert isinstance(wrong_input, ProblemError)
    assert wrong_input.problem.errors[0].pointer == "/inputs/n"


async def test_any_number_is_submitted_by_requests_that_the_gateway_takes() -> None:
    """By count and by size; one that is too large alone refuses itself only."""
    large = "x" * (MAX_BODY_BYTES // 2 - 1_000)
    async with a_gateway() as gateway, AnabranchClient(str(gateway.client.make_url(""))) as client:
        many = await client.submit_batch(Submission(YAML) for _ in range(2 * MAX_BATCH_RUNS + 1))
        assert await client.submit_batch([]) == []
        results = await client.submit_batch([Submission(YAML), Submission(YAML, {"n": large * 3}), Submission(YAML)])
    assert len({run.id for run in many if isinstance(run, Run)}) == 2 * MAX_BATCH_RUNS + 1
    assert isinstance(results[0], Run)
    assert isinstance(results[1], ProblemError)
    assert results[1].problem.status == 413
    assert isinstance(results[2], Run)


@pytest.mark.parametrize(
    ("sizes", "packed"),
    [
        ([], []),
        ([10] * MAX_BATCH_RUNS, [MAX_BATCH_RUNS]),
        ([10] * (MAX_BATCH_RUNS + 1), [MAX_BATCH_RUNS, 1]),
        ([MAX_BODY_BYTES - 12, 1], [1, 1]),
        ([MAX_BODY_BYTES - 14, 1], [2]),
        ([MAX_BODY_BYTES - 13, 1], [1, 1]),
        ([1, 2 * MAX_BODY_BYTES, 1], [1, 1, 1]),
    ],
)
def test_a_request_is_as_full_as_it_may_be(sizes: list[int], packed: list[int]) -> None:
    """Not a byte more, unless one run has it alone."""
    requests = list(requests_of({number: b"1" * size for number, size in enumerate(sizes)}))
    assert [len(numbers) for numbers, _ in requests] == packed
    assert [number for numbers, _ in requests for number in numbers] == list(range(len(sizes)))
    for numbers, body in requests:
        assert len(body) <= MAX_BODY_BYTES or len(numbers) == 1
        assert body.startswith(b'{"runs":[1') and body.endswith(b"1]}")


async def test_what_cannot_be_read_is_told_before_anything_is_sent() -> None:
    """It is the caller's own text."""
    async with a_gateway() as gateway, AnabranchClient(str(gateway.client.make_url(""))) as client:
        with pytest.raises(SourceError):
            await client.submit_batch([Submission(YAML), Submission("a: [")])
    assert gateway.log.records == []


class BatchGateway(FakeGateway):
    """Answers batches from a list, and accepts all behind it."""

    def __init__(self, *answers: Callable[[int], web.Response]) -> None:
        super().__init__()
        self.answers = list(answers)
        self.sent: list[list[str | None]] = []
        self.app.router.add_post("/v1/runs:batch", self._batch)

    async def _batch(self, request: web.Request) -> web.Response:
        runs: list[dict[str, Any]] = orjson.loads(await request.read())["runs"]
        self.sent.append([run.get("idempotency_key") for run in runs])
        if self.answers:
            return self.answers.pop(0)(len(runs))
        return results_of(*[{"status": 202, "run": {"id": f"r{n}", "status": "accepted"}} for n in range(len(runs))])


def results_of(*results: dict[str, Any]) -> web.Response:
    return web.json_response({"accepted": 0, "refused": 0, "results": list(results)})


def limited(count: int) -> web.Response:
    one = {"status": 429, "problem": {"title": "Too many requests", "status": 429}, "retry_after": 7}
    return results_of({"status": 202, "run": {"id": "first", "status": "accepted"}}, *[one] * (count - 1))


async def test_those_with_a_key_are_sent_again_while_the_gateway_is_busy() -> None:
    """They alone, and not for ever."""
    wanted = [Submission(YAML, idempotency_key=key) for key in ("a", "b", None, "d")]
    busy = lambda _: a_problem(503, "Busy")  # noqa: E731
    gateway = BatchGateway(limited, busy, limited)
    with served(gateway) as url:
        async with AnabranchClient(url) as client:
            first, second, third, fourth = await client.submit_batch(wanted)
    assert gateway.sent == [["a", "b", None, "d"], ["b", "d"], ["b", "d"], ["d"]]
    assert [run.id for run in (first, second, fourth) if isinstance(run, Run)] == ["first", "first", "r0"]
    assert isinstance(third, ProblemError)
    assert (third.problem.status, third.retry_after_s) == (429, 7)
    gateway = BatchGateway(*[busy] * 9)
    with served(gateway) as url:
        async with AnabranchClient(url) as client:
            results = await client.submit_batch(wanted)
    assert [result.problem.status for result in results if isinstance(result, ProblemError)] == [503] * 4
    assert len(gateway.sent) == 4


async def test_a_gateway_that_is_not_there_is_the_result_of_all() -> None:
    """Nothing behind the first request is tried."""
    async with AnabranchClient(f"http://127.0.0.1:{unused_port()}") as client:
        results = await client.submit_batch(Submission(YAML) for _ in range(MAX_BATCH_RUNS + 1))
    assert len(results) == MAX_BATCH_RUNS + 1
    assert all(isinstance(result, GatewayUnreachableError) for result in results)
    assert results[0] is results[-1]
