"""A definition that was read before in the same letters: only what stands around it is parsed, and just as strictly."""

import json
from typing import Any

import pytest

from anabranch.services.gateway import reading
from anabranch.services.gateway.problems import ProblemError
from anabranch.services.gateway.reading import BATCH, DEFINITION, SUBMISSION, Found, Part, Reading
from anabranch.shared.contracts.report import Budget
from anabranch.shared.contracts.source import Source, parse_source
from tests.unit.gateway.fakes import DIAMOND

_JSON, _YAML = "application/json", "application/yaml"
_SPACED = json.dumps(DIAMOND, indent=1)
_DEEP = json.dumps(DIAMOND | {"outputs": {"x": json.loads("[" * 61 + "]" * 61)}})


def _read(into: Reading, body: str, what: Part = SUBMISSION, media_type: str = _JSON) -> Found | tuple[Any, ...]:
    try:
        return into.read(what, body.encode(), media_type, Budget())[0]
    except ProblemError as problem:
        return problem.kind, problem.detail, problem.faults


def _warm(*definitions: str) -> Reading:
    made = Reading({"simulate": {}})
    for definition in definitions:
        _read(made, _body(definition, {"n": 1}))
    return made


def _body(definition: str, inputs: object) -> str:
    return f'{{"definition":{definition},"inputs":{json.dumps(inputs)}}}'


def _parsed_bytes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    sizes = []

    def parse(body: bytes, media_type: str = _JSON) -> Source:
        sizes.append(len(body))
        return parse_source(body, media_type)

    monkeypatch.setattr(reading, "parse_source", parse)
    return sizes


@pytest.mark.parametrize(
    "body",
    [
        '{"definition":%s}',
        ' {\n"definition" : %s , "inputs" : {"n": 7}, "labels": {"a": "b"} } ',
        '{"definition":%s,"labels":{"a":"b"}}',
        '{"definition":%s,"inputs":{"n":7},"labels":{}}',
        '{"definition":%s,"inputs":null}',
    ],
)
@pytest.mark.parametrize("definition", [json.dumps(DIAMOND, separators=(",", ":")), _SPACED])
def test_a_definition_in_known_letters_is_not_parsed(
    body: str, definition: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever its spacing is, what is parsed of the body is what stands around the definition."""
    warm, body = _warm(definition), body.replace("%s", definition)
    sizes = _parsed_bytes(monkeypatch)
    found = _read(warm, body)
    assert sizes == [len(body.encode()) - len(definition.encode()) + len("{}")]
    assert found == _read(_warm(), body)


@pytest.mark.parametrize(
    "body",
    [
        '{"definition":%s,"inputs":{"n":7},"inputs":{"n":8}}',
        '{"definition":%s,"definition":{}}',
        '{"definition":%s,"definition":%s}',
        '{"definition":{},"definition":%s}',
        '{"definition":%s,"inputs":{"n":"seven"}}',
        '{"definition":%s,"inputs":{"m":7}}',
        '{"definition":%s,"inputs":{"n":99999999999999999999}}',
        '{"definition":%s,"inputs":{"n":NaN}}',
        '{"definition":%s,"inputs":{"n":"\\u0000"}}',
        '{"definition":%s,"labels":{"a":"\\ud800"}}',
        '{"definition":%s,"labels":[]}',
        '{"definition":%s,"idempotency_key":"k"}',
        '{"definition":%s,"other":1}',
        '{"definition":%s,"pipeline":"p"}',
        '{"definition":%s,"inputs":{"n":7}} {}',
        '{"definition":%s,"inputs":{"n":7}',
        '{"definition":%s"inputs":{"n":7}}',
        '{"definition":%s,}',
        '{"definition":%s}}',
        '[{"definition":%s}]',
        '{"definition":[%s]}',
        '{"definition":{"a":%s}}',
        '{"labels":{"definition":%s}}',
        '\f{"definition":%s}',
        '{"inputs":{"n":7},"definition":%s}',
    ],
)
def test_what_stands_around_a_known_definition_is_read_as_strictly(body: str) -> None:
    """A reader that knows the definition finds in a body what one that knows nothing finds."""
    definition = json.dumps(DIAMOND)
    body = body.replace("%s", definition)
    assert _read(_warm(definition), body) == _read(_warm(), body)


def test_a_definition_that_was_only_checked_is_not_recognised() -> None:
    """In a submission it is a level deeper, and may be too deep there: alone it is not."""
    warm = _warm()
    assert not isinstance(_read(warm, _DEEP, DEFINITION), tuple)
    body = _body(_DEEP, {"n": 1})
    assert _read(warm, body) == _read(_warm(), body)


def test_yaml_is_not_recognised_as_json() -> None:
    """What JSON says in the same letters, YAML may say otherwise or not at all."""
    definition = json.dumps(DIAMOND)
    body = _body(definition, {"n": 1}).replace('"inputs": {"n": 1}', "inputs: {n: 7}")
    for text in (body, body + " # yes", _body(definition, {"n": 1})):
        assert _read(_warm(definition), text, media_type=_YAML) == _read(_warm(), text, media_type=_YAML)


def test_definitions_that_begin_alike_are_told_apart() -> None:
    """The longer of two, and one with other letters of the same length, are not taken for the one that is known."""
    one, longer, other = (json.dumps(DIAMOND | {"outputs": {"o": text}}) for text in ("1", "1}", "2"))
    warm = _warm(one)
    for definition in (longer, other):
        body = _body(definition, {"n": 2})
        assert _read(warm, body) == _read(_warm(), body) != _read(warm, body.replace(definition, one))


def test_runs_of_a_batch_recognise_their_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run of a batch may bring the same definition; its own key is read."""
    definition = json.dumps(DIAMOND)
    warm = _warm(definition)
    runs = [f'{_body(definition, {"n": n})[:-1]},"idempotency_key":"k{n}"}}' for n in range(3)]
    sizes = _parsed_bytes(monkeypatch)
    found = _read(warm, f'{{"runs":[{",".join(runs)}]}}', BATCH)
    assert isinstance(found, list)
    assert [getattr(run, "key", None) for run in found] == ["k0", "k1", "k2"]
    assert max(sizes) < len(definition)


def test_what_a_known_definition_costs_is_counted_once() -> None:
    """Inputs that turn out to be wrong are checked again by whoever says what is wrong, on the same budget."""
    definition = json.dumps(DIAMOND)
    wrong = _body(definition, {"n": "x"}).encode()
    left = []
    for made in (_warm(definition), _warm(_SPACED)):
        budget = Budget()
        with pytest.raises(ProblemError):
            made.read(SUBMISSION, wrong, _JSON, budget)
        left.append(budget.left)
    assert left[0] == left[1]
