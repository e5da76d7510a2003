"""What the gateway tells of itself is what it does."""

import re
from collections.abc import Container
from pathlib import Path
from typing import Any

import jsonschema_rs
import orjson
import pytest
import yaml
from hypothesis import assume, given, settings
from pydantic import ValidationError

from anabranch.services.gateway.openapi import OPERATIONS, openapi_document
from anabranch.services.gateway.problems import Kind
from anabranch.services.gateway.route_classes import CLASSES
from anabranch.shared.contracts.spec import (
    NOT_YET_TYPES,
    PipelineSpec,
    StepSpec,
    not_yet,
    parse_spec,
    pipeline_json_schema,
)
from tests.fuzz.language import pipelines
from tests.unit.gateway.fakes import Bench

LANGUAGE = jsonschema_rs.validator_for(pipeline_json_schema())
EXAMPLES = sorted((Path(__file__).parents[3] / "examples").rglob("*.yaml"))


async def test_every_route_stands_in_the_document(gateway: Bench) -> None:
    """The routes of a running gateway, those of operators too, and no other; each has its class."""
    routes = {
        (route.method, route.resource.canonical)
        for route in gateway.client.app.router.routes()
        if route.method != "HEAD" and route.resource is not None
    }
    assert set(OPERATIONS) == routes == set(CLASSES)
    document = await (await gateway.client.get("/openapi.json")).json()
    assert document["openapi"] == "3.1.0"
    assert {(method.upper(), path) for path, of in document["paths"].items() for method in of} == routes


def test_every_problem_is_documented_in_one_list() -> None:
    """The document's types of problem are the registry's."""
    schema = openapi_document(asks_for_keys=True)["components"]["schemas"]["ProblemDocument"]
    assert schema["properties"]["type"]["enum"] == [kind.urn for kind in Kind]


def test_keys_are_asked_for_where_a_route_is_not_open() -> None:
    """With the route's scope; optional where the gateway asks nobody."""
    asked = openapi_document(asks_for_keys=True)["paths"]
    assert asked["/v1/runs"]["post"]["security"] == [{"apiKey": ["submit"]}, {"bearer": ["submit"]}]
    assert asked["/docs"]["get"]["security"] == []
    assert {} in openapi_document(asks_for_keys=False)["paths"]["/v1/runs"]["post"]["security"]


async def test_the_page_runs_under_its_policy(gateway: Bench) -> None:
    """It names files of this origin alone, each of which is there, and has no script of its own within it."""
    answer = await gateway.client.get("/docs")
    text = await answer.text()
    assert "script-src 'self';" in answer.headers["Content-Security-Policy"]
    assert re.findall(r"<script(?! src=)", text) == []
    for file in re.findall(r'(?:src|href)="([^"]+)"', text):
        found = await gateway.client.get("/" + file)
        assert (found.status, len(await found.read()) > 0) == (200, True), file
    assert (await gateway.client.get("/docs/..%2f__init__.py")).status == 404


async def test_the_schema_of_the_language_is_served(gateway: Bench) -> None:
    """As the model has it."""
    answer = await gateway.client.get("/schemas/pipeline.json")
    assert orjson.loads(await answer.read()) == pipeline_json_schema()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_examples_fit_the_schema(path: Path) -> None:
    """Each of them."""
    LANGUAGE.validate(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize(
    "change",
    [{"name": "Bad"}, {"nmae": "x"}, {"timeout": 0}, {"timeout": "1x"}, {"timeout": ""}, {"steps": {}},
     {"steps": {"A": {"uses": "x"}}}, {"steps": {"a": {}}}, {"steps": {"a": {"uses": "x", "for_each": "items"}}},
     {"outputs": {"a b": 1}}, {"max_parallel": 0}],
)  # fmt: skip
def test_what_the_language_refuses_the_schema_refuses(change: dict[str, object]) -> None:
    """So that an editor says it first."""
    assert not LANGUAGE.is_valid({"name": "p", "steps": {"a": {"uses": "x"}}, **change})


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(pipelines())
def test_the_schema_refuses_nothing_that_the_models_accept(pipeline: object) -> None:
    """Whatever is drawn, but for what does not run yet."""
    try:
        text = orjson.dumps(pipeline)
        parse_spec(text)
    except (TypeError, ValidationError):  # what cannot be written as JSON in UTF-8 never comes as far
        return
    value = _without(not_yet(PipelineSpec), orjson.loads(text))
    steps = {name: _without(not_yet(StepSpec), step) for name, step in value["steps"].items()}
    running = {name: step for name, step in steps.items() if step["uses"] not in NOT_YET_TYPES}
    assume(running)
    LANGUAGE.validate({**value, "steps": running})


def _without(keys: Container[str], value: dict[str, Any]) -> dict[str, Any]:
    return {key: each for key, each in value.items() if key not in keys}
