"""Who holds which partition, and when: what lateness is measured against."""

from typing import TYPE_CHECKING

from .broker import EPOCH_MS
from .processes import OrchestratorProcess

if TYPE_CHECKING:
    from .simulation import World

_EVERY_S = 0.25


class Holding:
    """Looks, from outside, whether somebody holds a partition, decides, and can append to its inbox."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._held_s: list[list[float]] = [[0.0] for _ in range(world.broker.topics.runs)]  # since the start, by look

    def look(self) -> None:
        """Look now, and again, for ever."""
        holders = self._holders()
        for number, held_s in enumerate(self._held_s):
            held_s.append(held_s[-1] + _EVERY_S * (number in holders))
        self._world.loop.later(_EVERY_S, self.look)

    def _holders(self) -> set[int]:
        broker, now = self._world.broker, self._world.loop.now
        return {
            number
            for slot in self._world.slots
            if isinstance(slot.process, OrchestratorProcess) and _is_well(slot.process)
            for number, task in slot.process.owner.tasks.items()
            if task.is_restored and not task.stopping
            and broker.leaderless.get((broker.topics.inbox, number), 0.0) <= now
        }  # fmt: skip

    def between(self, partition: int, from_ms: int, to_ms: int) -> float:
        """Return how many seconds somebody held the partition between two broker times."""
        held_s = self._held_s[partition]
        return self._at(held_s, to_ms) - self._at(held_s, from_ms)

    def _at(self, held_s: list[float], at_ms: int) -> float:
        look = int((at_ms - EPOCH_MS) / 1000 / _EVERY_S)
        return held_s[max(0, min(look, len(held_s) - 1))]


def _is_well(process: OrchestratorProcess) -> bool:
    host = process.host
    return host.is_alive and not host.is_frozen and not host.is_deaf and process.why is None
