"""Exceptions whose causes and members are shared: few of them, and very many ways to them."""

import logging
from collections.abc import Callable

import orjson
import pytest

from anabranch.services.steps.guard import failure_of
from anabranch.shared.runtime.log import configure_logging, get_logger
from anabranch.shared.runtime.settings import Settings
from anabranch.shared.runtime.tracebacks import MAX_RENDERED, is_modest, leaves_of


def doubled() -> Exception:
    error: Exception = ValueError("at the bottom")
    for _ in range(25):
        error = ExceptionGroup("group", [error, error])
    return error


def doubled_under_a_cause() -> Exception:
    error = RuntimeError("above")
    error.__cause__ = doubled()
    return error


def doubled_by_cause_and_member() -> Exception:
    error: Exception = ValueError("at the bottom")
    for _ in range(25):
        inner, error = error, ExceptionGroup("group", [error, error])
        error.__cause__, error.__context__ = inner, inner
    return error


def wide() -> Exception:
    return ExceptionGroup("group", [ValueError(str(number)) for number in range(100_000)])


def wide_in_wide() -> Exception:
    inner = ExceptionGroup("group", [ValueError("one")] * 1000)
    return ExceptionGroup("group", [ExceptionGroup("group", [inner] * 1000)] * 1000)


def deep() -> Exception:
    error: Exception = ValueError("at the bottom")
    for _ in range(100_000):
        error = ExceptionGroup("group", [error])
    return error


def caused_in_a_circle() -> Exception:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    return ExceptionGroup("group", [first, second] * 1000)


MONSTERS = [
    doubled,
    doubled_under_a_cause,
    doubled_by_cause_and_member,
    wide,
    wide_in_wide,
    deep,
    caused_in_a_circle,
]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("made", MONSTERS)
def test_an_exception_of_very_many_parts_is_a_failure_at_once(made: Callable[[], Exception]) -> None:
    """A handler that raises it fails its attempt, and the failure has a type and a text."""
    failure = failure_of(made())
    assert failure.error_type in ("ExceptionGroup", "RuntimeError")
    assert failure.message.startswith(("group", "above"))
    assert failure.error_type in failure.details["traceback"]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("made", MONSTERS)
def test_an_exception_of_very_many_parts_is_logged_at_once(
    made: Callable[[], Exception], capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """Its line has its own traceback, whether we log it or a library does."""
    configure_logging("simulate", Settings())
    error = made()
    try:
        raise error  # noqa: TRY301  it is to have a traceback
    except Exception as raised:
        get_logger().error("failed", exc_info=raised)
        logging.getLogger("asyncio").exception("failed")
    lines = [orjson.loads(line) for line in capfdbinary.readouterr().out.splitlines()]
    assert len(lines) == 2
    assert all("raise error" in line["exception"] and type(error).__name__ in line["exception"] for line in lines)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("made", MONSTERS)
def test_leaves_are_few(made: Callable[[], Exception]) -> None:
    """What ended a process is said of the first exceptions in its groups."""
    assert 1 <= len(leaves_of(made())) <= MAX_RENDERED


def test_what_people_raise_is_modest() -> None:
    """A chain of causes, and a group of a few, are rendered whole."""
    error: Exception = ValueError("at the bottom")
    for _ in range(MAX_RENDERED - 1):
        inner, error = error, RuntimeError("above")
        error.__cause__, error.__context__ = inner, inner
    assert is_modest(error)
    assert is_modest(ExceptionGroup("group", [ValueError("one"), TypeError("two")]))
    assert leaves_of(ExceptionGroup("group", [ValueError("one"), OSError("two")]))[0].args == ("one",)
