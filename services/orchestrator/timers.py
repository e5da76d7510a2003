"""The timers of one partition: a heap with one entry per timer id, on the monotonic clock."""

import heapq
from typing import Final, NamedTuple

_DEAD_ENTRIES_KEPT: Final = 256  # below this, sweeping costs more than it frees


class Due(NamedTuple):
    """A timer that is due: of which run, its id, and the broker time (ms) it was set to."""

    run_id: str
    timer_id: str
    due_ms: int


class _Entry(NamedTuple):
    deadline: float
    number: int  # of insertion: entries with the same deadline fire in the order they were set
    due: Due


class Timers:
    """Sets, moves and drops timers; a moved or dropped one is forgotten here, without a record."""

    def __init__(self) -> None:
        self._heap: list[_Entry] = []
        self._current: dict[str, dict[str, int]] = {}  # run id -> timer id -> number of its entry
        self._number = 0
        self._live = 0

    def __len__(self) -> int:
        return self._live

    def set(self, run_id: str, timer_id: str, due_ms: int, deadline: float) -> None:
        """Arm the timer for `deadline`, seconds of the monotonic clock; an earlier setting no longer counts."""
        self._number += 1
        timers = self._current.setdefault(run_id, {})
        self._live += timer_id not in timers
        timers[timer_id] = self._number
        heapq.heappush(self._heap, _Entry(deadline, self._number, Due(run_id, timer_id, due_ms)))
        self._sweep()

    def drop(self, run_id: str, timer_id: str) -> None:
        """Forget the timer."""
        timers = self._current.get(run_id, {})
        if timers.pop(timer_id, None) is not None:
            self._live -= 1
        if not timers:
            self._current.pop(run_id, None)
        self._sweep()

    def drop_run(self, run_id: str) -> None:
        """Forget every timer of the run."""
        self._live -= len(self._current.pop(run_id, {}))
        self._sweep()

    def next_deadline(self) -> float | None:
        """Return when the next timer is due, seconds of the monotonic clock."""
        while self._heap and not self._is_current(self._heap[0]):
            heapq.heappop(self._heap)
        return self._heap[0].deadline if self._heap else None

    def take_due(self, now: float) -> list[Due]:
        """Return the timers that are due, and forget them: what they mean is decided when they are read back."""
        due: list[Due] = []
        while (deadline := self.next_deadline()) is not None and deadline <= now:
            entry = heapq.heappop(self._heap)
            self.drop(entry.due.run_id, entry.due.timer_id)
            due.append(entry.due)
        return due

    def _is_current(self, entry: _Entry) -> bool:
        return self._current.get(entry.due.run_id, {}).get(entry.due.timer_id) == entry.number

    def _sweep(self) -> None:
        if len(self._heap) > 2 * self._live + _DEAD_ENTRIES_KEPT:
            self._heap = [entry for entry in self._heap if self._is_current(entry)]
            heapq.heapify(self._heap)
