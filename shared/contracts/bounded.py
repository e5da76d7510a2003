"""A memory with a limit: what was used least lately goes first."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class BoundedMemory(Generic[K, V]):
    """Values by key, bounded in number, in weight and in age. Threads may share one. Nothing ages without a clock."""

    def __init__(
        self,
        *,
        max_entries: int,
        max_weight: int | None = None,
        max_age_s: float = float("inf"),
        now_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._max_entries = max_entries
        self._max_weight = max_weight if max_weight is not None else float("inf")
        self._max_age_s = max_age_s
        self._now_s = now_s
        self._entries: OrderedDict[K, tuple[V, int, float]] = OrderedDict()
        self._weight = 0
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: K) -> V | None:
        """Return the value, or None when it is not known or too old."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            value, weight, since_s = entry
            if self._now_s() - since_s > self._max_age_s:
                del self._entries[key]
                self._weight -= weight
                return None
            self._entries.move_to_end(key)
            return value

    def put(self, key: K, value: V, *, weight: int = 1) -> None:
        """Remember the value, young again; what is too heavy for the whole memory is not kept."""
        with self._lock:
            if (old := self._entries.pop(key, None)) is not None:
                self._weight -= old[1]
            if weight > self._max_weight:
                return
            self._entries[key] = (value, weight, self._now_s())
            self._weight += weight
            while len(self._entries) > self._max_entries or self._weight > self._max_weight:
                self._weight -= self._entries.popitem(last=False)[1][1]

    def drop(self, key: K) -> None:
        """Forget the key."""
        with self._lock:
            if (old := self._entries.pop(key, None)) is not None:
                self._weight -= old[1]

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries.clear()
            self._weight = 0
