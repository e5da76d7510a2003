"""What goes wrong, and how long things take: every draw of the simulation, and the count of what it drew."""

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum, auto
from random import Random


class Fate(Enum):
    """What becomes of a batch of records, or of a transaction."""

    WELL = auto()
    REFUSED = auto()  # it never gets in, and the producer is told
    UNKNOWN = auto()  # it gets in, and the producer is told that it did not


@dataclass(frozen=True, slots=True)
class Climate:
    """How likely each fault is, per opportunity. The default has none."""

    slow: float = 0.0  # a message of the network that takes its time
    slow_s: float = 1.5
    slow_start: float = 0.0  # of a transactional producer: the coordinator waits for others
    refused: float = 0.0  # of an append
    unknown: float = 0.0  # of an append
    repeated: float = 0.0  # of a record
    checkpoint_refused: float = 0.0
    checkpoint_unknown: float = 0.0
    stale: float = 0.0  # of an assignment: records fetched under an older one are served first
    swallowed: float = 0.0  # of a revoke: the listener raises before it has done anything
    few: float = 0.0  # of a take: it returns less than there is
    restore_failed: float = 0.0
    lost_request: float = 0.0  # of a request on its way when its process dies


CALM = Climate()


@dataclass(slots=True)
class Weather:
    """Draws from one generator, and counts."""

    random: Random
    climate: Climate = CALM
    drew: Counter[str] = field(default_factory=Counter)

    def latency_s(self) -> float:
        """Return how long a message takes on the network."""
        if self._happens(self.climate.slow, "delays"):
            return self.random.uniform(0.1, self.climate.slow_s)
        return 0.0005 + 0.004 * self.random.random()

    def start_latency_s(self) -> float:
        """Return how much longer the start of a transactional producer takes."""
        return self.random.uniform(0.05, 0.8) if self._happens(self.climate.slow_start, "slow producer starts") else 0.0

    def redis_latency_s(self) -> float:
        """Return how long a message to Redis takes: never as long as workers take for an outage."""
        return min(self.latency_s(), 0.3)

    def batch_fate(self) -> Fate:
        """Return what becomes of a batch of appended records."""
        if self._happens(self.climate.refused, "rejected appends"):
            return Fate.REFUSED
        if self._happens(self.climate.unknown, "unknown outcomes of appends"):
            return Fate.UNKNOWN
        return Fate.WELL

    def checkpoint_fate(self) -> Fate:
        """Return what becomes of a transaction."""
        if self._happens(self.climate.checkpoint_refused, "failed transactions"):
            return Fate.REFUSED
        if self._happens(self.climate.checkpoint_unknown, "unknown outcomes of transactions"):
            return Fate.UNKNOWN
        return Fate.WELL

    def restore_fails(self) -> bool:
        """Whether a changelog cannot be read."""
        return self._happens(self.climate.restore_failed, "failed restores")

    def repeat_after_s(self) -> float | None:
        """Return when a record is appended once more, if it is."""
        if not self._happens(self.climate.repeated, "repeats"):
            return None
        return self.random.choice((0.0, 0.01, 0.3, 3.0, 12.0)) * self.random.random()

    def serves_stale(self) -> bool:
        """Whether records of an older assignment are served to a newer one."""
        return self._happens(self.climate.stale, "records of an older assignment")

    def swallows(self) -> bool:
        """Whether a rebalance listener raises, and nobody hears it."""
        return self._happens(self.climate.swallowed, "swallowed listener errors")

    def loses_request(self) -> bool:
        """Whether a request of a process that has died meanwhile does not arrive."""
        return self._happens(self.climate.lost_request, "requests lost with their process")

    def take_at_most(self) -> int:
        """Return how many records one take returns."""
        return self.random.randint(1, 3) if self._happens(self.climate.few) else 500

    def count(self, what: str, times: int = 1) -> None:
        """Count something that was not drawn here."""
        self.drew[what] += times

    def _happens(self, chance: float, name: str = "") -> bool:
        if not chance or self.random.random() >= chance:
            return False
        if name:
            self.drew[name] += 1
        return True
