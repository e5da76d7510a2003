"""A task that an owner cannot do without does not end in silence."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from anabranch.shared.runtime.owned import EndedUnasked, OwnedTask

Work = Callable[[], Coroutine[Any, Any, None]]


class Owner:
    """Notes why it was to end."""

    def __init__(self) -> None:
        self.told: list[BaseException] = []

    async def fail(self, error: BaseException) -> None:
        """Note it."""
        self.told.append(error)


async def returns() -> None:
    """Do nothing."""


async def raises() -> None:
    """Have a bug."""
    raise KeyError("bug")


async def is_cancelled() -> None:
    """Be cancelled by what runs in it."""
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(60)


@pytest.mark.parametrize(("work", "why"), [(returns, EndedUnasked), (raises, KeyError), (is_cancelled, EndedUnasked)])
async def test_whatever_ends_the_task_is_told(work: Work, why: type) -> None:
    """A return, a bug and a cancellation by a stranger alike."""
    owner = Owner()
    owned = OwnedTask(work(), name="vital", fail=owner.fail)
    await asyncio.wait([owned.task])
    await asyncio.sleep(0.01)
    assert [type(error) for error in owner.told] == [why]


async def test_task_that_is_cancelled_before_it_began_is_told() -> None:
    """Its coroutine has seen nothing of that."""
    owner = Owner()
    owned = OwnedTask(asyncio.sleep(60, None), name="vital", fail=owner.fail)
    owned.task.cancel()
    await asyncio.wait([owned.task])
    await asyncio.sleep(0.01)
    assert [str(error) for error in owner.told] == ["vital: it was cancelled"]


@pytest.mark.parametrize("work", [returns, raises, is_cancelled])
async def test_task_that_was_let_go_may_end_as_it_likes(work: Work) -> None:
    """Its owner does not need it any more."""
    owner = Owner()
    owned = OwnedTask(work(), name="vital", fail=owner.fail)
    await owned.stop()
    await asyncio.sleep(0.01)
    assert owner.told == []


async def test_task_that_may_return_tells_of_the_rest_only() -> None:
    """What is done once is over when it is done."""
    owner = Owner()
    owned = [OwnedTask(work(), name="once", fail=owner.fail, may_return=True) for work in (returns, raises)]
    await asyncio.wait([each.task for each in owned])
    await asyncio.sleep(0.01)
    assert [type(error) for error in owner.told] == [KeyError]
