"""Questions that go together: each has its own answer, whatever becomes of the others."""

import asyncio
from collections.abc import Sequence

import pytest

from anabranch.services.gateway.together import Together
from anabranch.shared.record.errors import RecordUnavailable

HANG_S = 60.0


class Record:
    """Doubles numbers, some statements at a time; refuses 13 and is away for 99."""

    def __init__(self) -> None:
        self.statements: list[list[int]] = []

    async def __call__(self, questions: Sequence[int]) -> list[int | None]:
        self.statements.append(list(questions))
        await asyncio.sleep(0)
        if 13 in questions:
            raise ValueError("unlucky")
        if 99 in questions:
            raise RecordUnavailable("away")
        return [None if each == 7 and len(questions) > 1 else 2 * each for each in questions]


async def answers(*questions: int, most: int = 4) -> tuple[list[int | BaseException], Record]:
    """Return the answers to what is asked at once, in any order of statements."""
    record = Record()
    together = Together[int, int]("test", record, most)
    async with asyncio.timeout(HANG_S):
        found = await asyncio.gather(*(together.ask(each) for each in questions), return_exceptions=True)
    assert (together._waiting, together._asking) == ([], None)
    return found, record


async def test_what_is_asked_at_once_is_one_statement() -> None:
    """As many as are allowed, and each gets its own."""
    found, record = await answers(1, 2, 3, 4, 5)
    assert (found, record.statements) == ([2, 4, 6, 8, 10], [[1, 2, 3, 4], [5]])


async def test_what_has_no_room_is_asked_again() -> None:
    """Before those who came later."""
    found, record = await answers(7, 1, 2, most=2)
    assert found == [14, 2, 4]
    assert record.statements[0] == [7, 1]


@pytest.mark.parametrize("odd", [13, 99])
async def test_nobody_waits_for_ever_for_an_answer_that_failed(odd: int) -> None:
    """A fault is told to those whose statement it was, an absent record to all."""
    found, _ = await answers(odd, 1, 2, 3, 4, 5)
    failed = [isinstance(each, ValueError | RecordUnavailable) for each in found]
    assert failed == ([True] * 4 + [False] * 2 if odd == 13 else [True] * 6)
