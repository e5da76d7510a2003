"""What was answered a moment ago is answered again, to whom it was answered, and never for longer."""

import asyncio

import pytest
from prometheus_client import CollectorRegistry

from anabranch.services.gateway import recent
from anabranch.services.gateway.metrics import GatewayMetrics
from anabranch.services.gateway.recent import RecentAnswers

QUESTION = ("acme", "/v1/runs", "status=failed")


class Record:
    """Answers with the number of the question, and waits where it is told to."""

    def __init__(self) -> None:
        self.asked = 0
        self.through = asyncio.Event()
        self.through.set()

    async def __call__(self) -> bytes:
        self.asked += 1
        number = self.asked
        await self.through.wait()
        if number == 2:
            raise LookupError("the second")
        return b"%d" % number


def an_empty_memory() -> tuple[RecentAnswers, CollectorRegistry]:
    """Return a memory and what it counts in."""
    registry = CollectorRegistry()
    return RecentAnswers(GatewayMetrics(registry)), registry


async def test_an_answer_is_kept_for_its_tenant_and_its_question_alone() -> None:
    """Any other is asked for."""
    (memory, registry), record = an_empty_memory(), Record()
    assert [await memory.answer(QUESTION, record) for _ in range(3)] == [b"1"] * 3
    record.asked = 2
    assert await memory.answer(("other", *QUESTION[1:]), record) == b"3"
    assert await memory.answer((*QUESTION[:2], "status=running"), record) == b"4"
    counted = [registry.get_sample_value(f"cache_{each}_total", {"cache": "questions"}) for each in ("misses", "hits")]
    assert counted == [3, 2]


async def test_an_answer_is_kept_for_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """What happened since is seen then."""
    (memory, _), record = an_empty_memory(), Record()
    monkeypatch.setattr(recent, "_KEPT_S", 0.0)
    forgetful = RecentAnswers(GatewayMetrics(CollectorRegistry()))
    assert recent.RecentAnswers is type(memory)
    assert memory._answers.ttl == 1.0
    record.asked = 2
    assert [await forgetful.answer(QUESTION, record) for _ in range(2)] == [b"3", b"4"]


async def test_many_who_ask_at_once_cost_one_question() -> None:
    """All others find what it brought."""
    (memory, _), record = an_empty_memory(), Record()
    record.through.clear()
    asking = [asyncio.create_task(memory.answer(QUESTION, record)) for _ in range(50)]
    await asyncio.sleep(0)
    record.through.set()
    assert (set(await asyncio.gather(*asking)), record.asked) == ({b"1"}, 1)


async def test_a_failure_is_not_kept() -> None:
    """The next one asks anew."""
    (memory, _), record = an_empty_memory(), Record()
    record.asked = 1
    with pytest.raises(LookupError):
        await memory.answer(QUESTION, record)
    assert await memory.answer(QUESTION, record) == b"3"


async def test_what_is_kept_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """A larger answer is given and not kept; the oldest make room."""
    monkeypatch.setattr(recent, "MAX_RECENT_ANSWERS_BYTES", 10)
    memory = RecentAnswers(GatewayMetrics(CollectorRegistry()))

    async def large() -> bytes:
        return b"x" * 11

    async def small() -> bytes:
        return b"x" * 4

    assert len(await memory.answer(QUESTION, large)) == 11
    for number in range(5):
        await memory.answer(("acme", "/v1/runs", str(number)), small)
    assert memory._answers.currsize == 8
