"""Depth: what is decided is written, and what is written is read back, however deep a value is that somebody sends."""

from functools import reduce
from typing import Any

import orjson
import pytest

from anabranch.services.orchestrator.core.changelog import restore, take_changes
from anabranch.shared.contracts import messages as m
from anabranch.shared.contracts.codec import Undecodable, decode, encode
from anabranch.shared.contracts.errors import ErrorType
from anabranch.shared.contracts.limits import MAX_NESTING
from tests.support.builders import (
    ARun,
    a_run,
    a_step,
    a_submission,
    a_transform,
    failed,
    renewed,
    started,
    succeeded,
)

TOO_DEEP = (MAX_NESTING + 1, 130, 199, 201, 253, 254, 260, 900)
"""Levels on both sides of what JSON parsers and writers stop at."""


def nested(levels: int, kind: str = "list") -> Any:
    """Return a value of so many levels: lists, maps or both in turn."""
    value: Any = 1
    for level in range(levels):
        is_list = kind == "list" or (kind == "both" and level % 2)
        value = [value] if is_list else {"x": value}
    return value


def restored(run: ARun) -> ARun:
    """Return the run as another process takes it over."""
    records = {key: value for key, value in take_changes(run.partition, 1) if value is not None}
    partition, _ = restore(records)
    return ARun(partition=partition, at=run.at)


def wrapped(name: str, levels: int) -> str:
    """Return a template that wraps the output of a step in so many lists."""
    return reduce(lambda value, _: [value], range(levels), f"${{{{ steps.{name}.output }}}}")  # type: ignore[return-value,arg-type]


@pytest.mark.parametrize("kind", ["list", "map", "both"])
@pytest.mark.parametrize("levels", TOO_DEEP)
def test_step_whose_output_is_too_deep_fails_and_the_run_is_restored(levels: int, kind: str) -> None:
    """It says what, where and the limit."""
    run = a_run({"a": a_step(continue_on_error=True), "b": a_step("a")}).takes(succeeded("a", nested(levels, kind)))
    error = run.step("a").error
    assert error is not None
    assert error.type == ErrorType.PAYLOAD_TOO_LARGE
    assert "its output" in error.message
    assert str(MAX_NESTING) in error.message
    assert restored(run).takes(succeeded("b")).end.status == "succeeded"


@pytest.mark.parametrize("kind", ["list", "map", "both"])
def test_output_at_the_limit_is_kept_and_handed_on(kind: str) -> None:
    """The limit itself is within."""
    run = a_run({"a": a_step(), "b": a_step("a", with_="${{ steps.a.output }}")})
    run.takes(succeeded("a", nested(MAX_NESTING, kind)))
    again = restored(run)
    assert orjson.loads(again.step("a").output or b"") == nested(MAX_NESTING, kind)
    assert again.takes(succeeded("b", nested(MAX_NESTING, kind))).end.status == "succeeded"


def test_transforms_that_wrap_one_another_fail_at_the_limit() -> None:
    """Each of them stands within the limits of a body."""
    run = a_run({"a": a_step(), "b": a_transform(wrapped("a", 50), "a"), "c": a_transform(wrapped("b", 50), "b"),
                 "d": a_transform(wrapped("c", 50), "c")}).takes(succeeded("a", [1]))  # fmt: skip
    assert run.end.status == "failed"
    assert run.end.error is not None
    assert run.end.error.message.startswith("step c: its output is nested deeper")


def test_step_whose_input_is_too_deep_fails() -> None:
    """The template and what is put in are each within the limit."""
    run = a_run({"a": a_step(), "b": a_step("a", with_={"x": wrapped("a", 30)})}).takes(succeeded("a", nested(60)))
    assert run.end.error is not None
    assert run.end.error.type == ErrorType.PAYLOAD_TOO_LARGE
    assert run.end.error.message.startswith("step b: its input is nested deeper")


def test_run_whose_outputs_are_too_deep_fails() -> None:
    """Its last event is read by everybody."""
    run = a_run(outputs={"x": wrapped("a", 30)}).takes(succeeded("a", nested(60)))
    assert run.end.error is not None
    assert run.end.error.type == ErrorType.PAYLOAD_TOO_LARGE
    assert run.end.error.message.startswith("`outputs` is nested deeper")


@pytest.mark.parametrize("levels", TOO_DEEP)
def test_details_of_an_error_that_are_too_deep_are_replaced(levels: int) -> None:
    """As heavy ones are."""
    run = a_run({"a": a_step(continue_on_error=True), "b": a_step("a")}).takes(failed("a", details=nested(levels)))
    error = restored(run).step("a").error
    assert error is not None
    assert error.details == {"omitted": f"is nested deeper than {MAX_NESTING} levels"}


@pytest.mark.parametrize("levels", TOO_DEEP)
def test_progress_that_is_too_deep_is_not_kept(levels: int) -> None:
    """The last progress stays."""
    run = a_run().takes(started("a"), renewed("a", progress=1), renewed("a", progress=nested(levels)))
    assert restored(run).step("a").progress == 1


def test_everything_at_its_limit_is_read_back_from_every_topic() -> None:
    """Writers and readers have more room than what may enter."""
    deep = nested(MAX_NESTING)
    run = a_run(
        {"a": a_step(), "b": a_step(with_=nested(MAX_NESTING - 4)), "c": a_step(continue_on_error=True)},
        inputs={"x": deep[0]},
    )
    run.takes(started("a"), renewed("a", progress=deep), failed("c", details=deep), succeeded("b", deep))
    run = restored(run)
    assert run.step("a").progress == deep
    run.takes(succeeded("a", deep))
    for record in run.outputs:
        assert record.value
    assert run.end.status == "succeeded"


@pytest.mark.parametrize("levels", [MAX_NESTING + 3, *TOO_DEEP[1:]])
def test_message_that_is_too_deep_elsewhere_is_no_message(levels: int) -> None:
    """Results go through to the core, which fails their steps; nothing else does."""
    deep = '{"x":' * levels + "1" + "}" * levels
    submission = a_submission({"a": a_step()}).model_dump_json().replace('"inputs":{}', f'"inputs":{deep}')
    event = (
        '{"type":"StepSucceeded","run_id":"r","seq":2,"at":"x","step":"a","uses":"u","attempt":1,"status":"succeeded",'
        f'"output":{deep}}}'
    )
    result = f'{{"type":"AttemptSucceeded","run_id":"r","step":"a","attempt":1,"output":{deep}}}'
    assert isinstance(decode(m.INBOX, submission.encode()), Undecodable)
    assert isinstance(decode(m.RUN_EVENTS, event.encode()), Undecodable)
    assert isinstance(decode(m.INBOX, result.encode()), m.AttemptSucceeded)


def test_lone_surrogates_are_no_message() -> None:
    """Neither in a value, nor in a key, nor in a field of ours."""
    for words in ('"output":"\\ud800"', '"output":{"\\udcff":1}', '"output":1,"worker":"\\ud800\\ud800"'):
        raw = '{"type":"AttemptSucceeded","run_id":"r","step":"a","attempt":1,' + words + "}"
        assert isinstance(decode(m.INBOX, raw.encode()), Undecodable)


def test_message_at_the_limit_travels() -> None:
    """The envelope of every message has room."""
    deep = nested(MAX_NESTING)
    message = m.LeasesRenewed(worker="w", lease_s=1, leases=(m.Lease(run_id="r", step="a", attempt=1, progress=deep),))
    record = encode(message, message_id="x", source="y", at_ms=0, trace_id="0" * 32)
    assert decode(m.INBOX, record.value) == message
