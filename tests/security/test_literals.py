"""A literal that the step type's own model would refuse is refused at submission."""

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from anabranch.services.steps.duration import Duration
from anabranch.services.steps.http.step import Request
from anabranch.services.steps.simulate.step import Simulation
from anabranch.shared.contracts.messages import StepTypeAnnounced
from tests.unit.gateway.fakes import Bench, problem


def announce(gateway: Bench) -> None:
    for name, model in (("simulate", Simulation), ("http", Request)):
        schema = model.model_json_schema(by_alias=True, mode="validation")
        gateway.step_types.announce(StepTypeAnnounced(name=name, version="2", input_schema=schema, output_schema={}))


@pytest.mark.parametrize(
    ("uses", "given"),
    [
        ("simulate", {"sleep": "a while"}),
        ("simulate", {"sleep": ""}),
        ("simulate", {"sleep": "1s1m"}),
        ("simulate", {"sleep": -1}),
        ("simulate", {"sleep": 10**9}),
        ("simulate", {"sleep": True}),
        ("simulate", {"fail_attempts": -1}),
        ("http", {"url": "ftp://example.org"}),
        ("http", {"url": "example.org"}),
        ("http", {"url": "http://example.org", "method": "BREW"}),
        ("http", {"url": "http://example.org", "timeout": "soon"}),
        ("http", {"url": "http://example.org", "body": "half"}),
    ],
)
async def test_a_literal_that_the_model_refuses_is_422(gateway: Bench, uses: str, given: dict[str, Any]) -> None:
    """Not the run's first step."""
    announce(gateway)
    answer = await gateway.submit({"name": "p", "steps": {"a": {"uses": uses, "with": given}}})
    assert answer.status == 422
    assert (await problem(answer))["errors"][0]["pointer"].startswith("/definition/steps/a/with")


@pytest.mark.parametrize("given", ["${{ inputs.n }}", "500ms", "1h30m", "1d2h3m4s5ms", "1.5s", 0, 2.5])
async def test_a_duration_or_an_expression_is_accepted(gateway: Bench, given: Any) -> None:
    """What an expression gives is known later."""
    announce(gateway)
    definition = {"name": "p", "inputs": {"n": {"type": "number", "default": 1}}}
    answer = await gateway.submit(definition | {"steps": {"a": {"uses": "simulate", "with": {"sleep": given}}}})
    assert answer.status == 202, await answer.text()


@pytest.mark.parametrize(
    "given",
    ["1s", "1ms", "1m", "1m1ms", "2d1ms", "0.5h", "1.1234567s", "1 s", "s", "", "1s\n", "1h1d", "1s1s", "-1s", "1.s"],
)
def test_the_announced_pattern_says_what_the_model_says(given: str) -> None:
    """Of texts."""
    import jsonschema_rs

    schema = TypeAdapter(Duration).json_schema(mode="validation")
    try:
        TypeAdapter(Duration).validate_python(given)
        fits = True
    except ValidationError:
        fits = False
    assert jsonschema_rs.is_valid(schema, given) is fits
