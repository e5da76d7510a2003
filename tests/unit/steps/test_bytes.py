"""What a worker keeps on its way from and to others is bounded in bytes."""

from collections import deque

import structlog

from anabranch.services.steps.notes import Notes
from anabranch.services.steps.ports import CommandRecord, Note
from anabranch.services.steps.settings import WorkerSettings
from anabranch.shared.contracts.limits import MIB
from anabranch.shared.runtime.group_reader import some_of


def test_a_take_of_large_commands_returns_a_few() -> None:
    """What is taken is parsed at once, and takes many times the space."""
    fetched = deque(CommandRecord(0, number, 0, b"k", b"x" * MIB, 1) for number in range(64))
    taken = some_of(fetched, 64)
    assert [record.offset for record in taken] == [0, 1, 2, 3]
    assert len(fetched) == 60
    assert [record.offset for record in some_of(fetched, 2)] == [4, 5]


async def test_of_notes_that_wait_the_eldest_are_dropped_when_they_are_too_large() -> None:
    """A memory that is slow costs repeats, not the worker."""
    notes = Notes(None, WorkerSettings(memory_notes_bytes=1000), structlog.get_logger())  # type: ignore[arg-type]
    for number in range(20):
        notes.note(Note(f"r/a/{number}", 0, result=b"x" * 100))
    assert list(notes._waiting) == [f"r/a/{number}" for number in range(10, 20)]
    notes.note(Note("r/a/19", 0, result=b""))
    assert notes._waiting_bytes == 900
