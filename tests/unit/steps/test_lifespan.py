"""A lifespan that raises anything is named, and no exception of its own passes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from anabranch.services.steps.context import StepContext
from anabranch.services.steps.serve import LifespanFailed, _resource_of
from anabranch.services.steps.step_type import Lifespan, StepType, step_type
from tests.support.oddities import ERRORS

from .fakes import Echo, Order


class FakeService:
    """Notes why it was to end."""

    is_failing = False

    def __init__(self) -> None:
        self.ends: list[BaseException] = []

    def end_within(self, timeout_s: float, error: BaseException) -> None:
        """Note it."""
        self.ends.append(error)


def a_type(lifespan: Lifespan | None) -> StepType[Order, Echo]:
    """A step type with this lifespan."""

    @step_type("echo", lifespan=lifespan)
    async def echo(order: Order, context: StepContext) -> Echo:
        raise NotImplementedError

    return echo


@pytest.mark.parametrize("when", ["before it is one", "at the start", "at the end"])
async def test_whatever_a_lifespan_raises_is_a_lifespan_that_failed(when: str) -> None:
    """Before, at its start, and at its end: every error is one cell of the table."""
    wrong = {odd: said for odd in sorted(ERRORS) if (said := await what_comes_of(odd, when)) != "named"}
    assert wrong == {}


async def what_comes_of(odd: str, when: str) -> str:
    """Open and close a lifespan that raises, and return what that came to."""

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[str]:
        if when == "at the start":
            raise ERRORS[odd]()
        yield "resource"
        if when == "at the end":
            raise ERRORS[odd]()

    def broken() -> Any:
        raise ERRORS[odd]()

    service: Any = FakeService()
    try:
        async with _resource_of(a_type(broken if when == "before it is one" else lifespan), service):
            pass
    except LifespanFailed as failed:
        is_named = str(failed).startswith("the lifespan of echo raised ") and service.ends == [failed]
        return "named" if is_named else "not named"
    except BaseException as error:  # noqa: BLE001  what must not pass
        return f"{type(error).__name__} passed"
    return "nothing was raised"


async def test_a_lifespan_hears_of_the_error_that_ends_its_service() -> None:
    """And its resource is closed once."""
    heard: list[str] = []

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[str]:
        try:
            yield "resource"
        except OSError as error:
            heard.append(str(error))
            raise

    service: Any = FakeService()
    with pytest.raises((OSError, LifespanFailed)):
        async with _resource_of(a_type(lifespan), service) as resource:
            assert resource == "resource"
            raise OSError("over")
    assert heard == ["over"]


async def test_the_cancellation_of_a_service_that_fails_passes_its_lifespan() -> None:
    """It is why the lifespan ends, not what it did."""

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        await asyncio.sleep(60)
        yield

    service: Any = FakeService()
    service.is_failing = True

    async def open_it() -> None:
        async with _resource_of(a_type(lifespan), service):
            pass

    task = asyncio.create_task(open_it())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert service.ends == []
