"""Bodies become plain JSON, or an error with its place; nothing else ever leaves the reader."""

import time

import orjson
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from anabranch.shared.contracts.limits import MAX_BODY_BYTES, MAX_NESTING
from anabranch.shared.contracts.source import Source, SourceError, nearest_pointer, parse_source, pointer_to

YAML = "application/yaml"
JSON = "application/json"

_scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
)
_text = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20)
json_values = st.recursive(
    _scalars | _text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_text, inner, max_size=4),
    max_leaves=20,
)


def refused(body: bytes, media_type: str) -> SourceError:
    with pytest.raises(SourceError) as caught:
        parse_source(body, media_type)
    return caught.value


def test_yaml_words_of_1_1_are_strings() -> None:
    body = b"on: yes\noff: no\nn: 0o17\nx: 010\nh: 0x1F\nt: 12:30:45\n"
    body += b"d: 2026-01-01\nnull_: ~\nempty:\ntrue_: True\nu: 1_000\n"
    assert parse_source(body, YAML).value == {
        "on": "yes", "off": "no", "n": 15, "x": 10, "h": 31, "t": "12:30:45", "d": "2026-01-01", "null_": None,
        "empty": None, "true_": True, "u": "1_000",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("body", "words", "place"),
    [
        (b"a: 1\nb: 2\na: 3", "stands twice", (3, 1)),
        (b"a:\n  !!str b", "tags", (2, 3)),
        (b"a: 1\n---\nb: 1", "another one starts", (2, 1)),
        (b"a: &x [*x]", "contains itself", (1, 8)),
        (b"a: *x", "names no anchor", (1, 4)),
        (b"<<: {a: 1}", "merge keys", (1, 1)),
        (b"1: a", "in quotes", (1, 1)),
        (b"{[a]: 1}", "key is a string", (1, 2)),
        (b"a: .nan", "not a number that JSON has", (1, 4)),
        (b"a: 1e999", "too large", (1, 4)),
        (b"a: 9223372036854775808", "64 bits", (1, 4)),
        (b'a: "\\0"', "NUL", (1, 4)),
        (b"a: [", "not YAML", (2, 1)),
        (b"a: \xff", "not UTF-8", (1, 4)),
        (b"a: b\x00", "NUL", (1, 5)),
        (b"%YAML 1.1\n---\na", "only YAML 1.2", (1, 1)),
        (b"", "empty", (1, 1)),
        (b"[" * 1000, "deeper", (1, MAX_NESTING + 1)),
        (b"- " * 1000, "deeper", (1, 2 * MAX_NESTING + 1)),
    ],
)
def test_yaml_that_is_not_read_is_refused_with_its_place(body: bytes, words: str, place: tuple[int, int]) -> None:
    error = refused(body, YAML)
    assert words in error.message
    assert (error.line, error.column) == place


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"a": 1, "a": 2}', "stands twice"),
        (b"[9223372036854775808]", "64 bits"),
        (b"[" + b"1" * 100_000 + b"]", "64 bits"),
        (b"[1e999]", "too large"),
        (b"[NaN]", "not JSON"),
        (b'["\\u0000"]', "NUL"),
        (b'["\\ud800"]', "surrogate"),
        (b'{"\\udc00": 1}', "surrogate"),
        (b"[" * 100 + b"]" * 100, "deeper"),
        (b"[" * 1_000_000, "deeper"),
        (b'{"a" 1}', "not JSON"),
        (b" " * (MAX_BODY_BYTES + 1), "at most"),
    ],
)
def test_json_that_is_not_read_is_refused(body: bytes, words: str) -> None:
    assert words in refused(body, JSON).message


def test_a_media_type_that_is_not_read_is_named() -> None:
    assert "text/html" in refused(b"{}", "text/html; charset=utf-8").message


def test_aliases_are_values_and_a_bomb_of_them_is_refused() -> None:
    assert parse_source(b"a: &x {b: 1}\nc: *x", YAML).value == {"a": {"b": 1}, "c": {"b": 1}}
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 8)}]" for i in range(1, 12)]
    assert "aliases" in refused("\n".join(lines).encode(), YAML).message
    assert "aliases" in refused(b"a: &a " + b"x" * 100_000 + b"\nb: [" + b"*a, " * 50 + b"]", YAML).message


def test_nesting_through_aliases_counts() -> None:
    lines = ["a0: &a0 []"] + [f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 80)]
    assert "deeper" in refused("\n".join(lines).encode(), YAML).message


@pytest.mark.parametrize("media_type", [JSON, YAML])
def test_positions_are_those_of_the_text(media_type: str) -> None:
    source = parse_source(b'{\n  "a/b": [1,\n    {"c": "x y"}]\n}', media_type)
    places = {"": (1, 1), "/a~1b": (2, 10), "/a~1b/0": (2, 11), "/a~1b/1": (3, 5), "/a~1b/1/c": (3, 11)}
    assert {pointer: source.position(pointer) for pointer in places} == places
    assert source.position("/a~1b/1/nope/deeper") == (3, 5)
    assert source.within(source.position("/a~1b/1/c"), "x y", 2) == (3, 14)
    part = source.part("a/b", 1)
    assert (part.value, part.base, part.position("/a~1b/1/c")) == ({"c": "x y"}, "/a~1b/1", (3, 11))


@given(json_values)
def test_json_reads_as_orjson_reads_it(value: object) -> None:
    body = orjson.dumps(value)
    source = parse_source(body)
    assert source.value == value
    found = [source.position(pointer) for pointer in sorted(pointers(value))]
    assert len(set(found)) == len(found)


@given(json_values)
def test_yaml_reads_what_a_yaml_writer_wrote(value: object) -> None:
    body = yaml.safe_dump(value, allow_unicode=True).encode()
    if b"1e" in body or b"\n..." in body[:-5]:
        return  # the writer's 1.1 spelling of floats
    assert parse_source(body, YAML).value == value


def pointers(value: object, at: str = "") -> set[str]:
    below: dict[str, object] = {}
    if isinstance(value, dict):
        below = {at + pointer_to(k): v for k, v in value.items()}
    elif isinstance(value, list):
        below = {at + pointer_to(i): v for i, v in enumerate(value)}
    return {at}.union(*(pointers(v, k) for k, v in below.items()))


@given(
    st.binary(max_size=200) | st.text("{}[]&*!|>'\"%@:-?,#\n \t01aeo.~<\\u", max_size=60).map(str.encode),
    st.sampled_from([JSON, YAML]),
)
def test_any_bytes_are_a_source_or_a_source_error(body: bytes, media_type: str) -> None:
    try:
        source = parse_source(body, media_type)
    except SourceError:
        return
    assert source.position("/a/b") is not None
    orjson.dumps(source.value)


def test_two_mebibytes_of_yaml_are_read() -> None:
    step = '  step-{0}:\n    uses: http\n    needs: [step-{0}]\n    with: {{url: "x", n: {0}, on: yes}}\n'
    body = ("steps:\n" + "".join(step.format(i) for i in range(20_000))).encode()
    assert 0.7 * MAX_BODY_BYTES < len(body) <= MAX_BODY_BYTES
    started = time.process_time()
    assert len(parse_source(body, YAML).value["steps"]) == 20_000
    assert time.process_time() - started < 60  # a hang guard; 2 on the machine of record


def test_a_source_without_text_has_no_positions() -> None:
    assert Source({"a": 1}).position("/a") is None


@pytest.mark.parametrize("media_type", [JSON, YAML])
def test_an_integer_may_have_thousands_of_zeros_in_front(media_type: str) -> None:
    """Where the grammar allows them, and Python's own limit on digits is never met."""
    zeros = b"0" * 10_000
    if media_type == YAML:
        assert parse_source(b"a: -" + zeros + b"12", YAML).value == {"a": -12}
    assert "64 bits" in refused(b"[" + b"9" * 10_000 + b"]", media_type).message


def test_many_directives_are_refused_before_they_are_compared_with_one_another() -> None:
    """30,000 of them took libyaml 20 s."""
    body = b"# x\n\n" + b"".join(b"%%TAG !a%d! b\n" % i for i in range(60_000)) + b"--- 1"
    started = time.process_time()
    assert refused(body, YAML).line == 4
    assert time.process_time() - started < 20


def test_a_place_below_a_long_key_costs_no_copy_of_it() -> None:
    """100,000 values below a key of 500,000 characters: their pointers written out would have 50 GB."""
    body = b'{"' + b"k" * 500_000 + b'": [' + b"1, " * 20_000 + b"1]}"
    source = parse_source(body)
    assert source.position("/" + "k" * 500_000 + "/20000") == (1, len(body) - 2)
    assert nearest_pointer("/a/" + "k" * 500_000 + "/20000") == "/a"
