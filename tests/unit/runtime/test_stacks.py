"""The stacks of tasks say where each of them waits, and how many wait there."""

import asyncio
import tempfile

import pytest

from anabranch.shared.runtime import stacks


async def _waits(event: asyncio.Event) -> None:
    await event.wait()


async def _waits_within(event: asyncio.Event) -> None:
    await _waits(event)


async def _sleeps() -> None:
    await asyncio.sleep(3600)


async def written(*tasks: "asyncio.Task[None]") -> str:
    """Return what is written of tasks that have begun."""
    await asyncio.sleep(0)
    with tempfile.TemporaryFile("w+", encoding="utf-8") as file:
        assert stacks.write_stacks(tasks, file) == len(tasks)
        file.seek(0)
        return file.read()


async def test_tasks_that_wait_at_the_same_place_are_one_stack() -> None:
    """With every frame down to the place, and the names of some."""
    event = asyncio.Event()
    alike = [asyncio.create_task(_waits_within(event), name=f"waiter {number % 7}") for number in range(100)]
    other = asyncio.create_task(_sleeps(), name="sleeper")
    text = await written(*alike, other)
    event.set()
    other.cancel()
    await asyncio.gather(*alike, other, return_exceptions=True)
    assert text.startswith("101 tasks, 2 different stacks\n")
    first, second = text.split("threads:")[0].split(" times ")[1:]
    assert "100 times waiter 0, waiter 1, waiter 2, waiter 3, waiter 4\n" in text
    assert [first.count(f"in {name}\n") for name in ("_waits_within", "_waits", "wait")] == [1, 1, 1]
    assert first.index("in _waits_within") < first.index("in _waits\n") < first.index("in wait\n")
    assert [second.count(f"in {name}\n") for name in ("_sleeps", "sleep")] == [1, 1]
    assert "Current thread" in text


async def test_the_list_of_stacks_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rarest ones are counted."""
    monkeypatch.setattr(stacks, "_MAX_STACKS", 1)
    event = asyncio.Event()
    tasks = [asyncio.create_task(each(event)) for each in (_waits, _waits, _waits_within)]
    text = await written(*tasks)
    event.set()
    await asyncio.gather(*tasks)
    assert "2 times" in text
    assert "1 times" not in text
    assert "and 1 more" in text
