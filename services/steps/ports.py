"""What a worker needs of the world, as ports: commands, results, memory, cancellations.

Kafka and Redis implement them for production (`kafka_ports`, `redis_memory`); in-memory ones serve the tests and the
seeded simulation, which runs the same `Worker` on a virtual clock.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from anabranch.shared.contracts.codec import Headers
from anabranch.shared.contracts.errors import AnabranchError
from anabranch.shared.contracts.secrets import SecretText
from anabranch.shared.runtime.group_reader import AssignmentListener


class CommandRecord(NamedTuple):
    """One record of the command topic, and the number of the assignment it was fetched under."""

    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    assignment: int


class Commands(Protocol):
    """The command topic, read as a member of the step type's group."""

    async def start(self, listener: AssignmentListener) -> None:
        """Join the group. From here on the listener is called."""

    async def take(self, max_records: int, wait_s: float) -> Sequence[CommandRecord]:
        """Return at least one record as soon as there is one, or none after `wait_s`. Each call counts as a poll."""

    async def commit(self, offsets: Mapping[int, int], assignment: int) -> None:
        """Commit, per partition, the offset to go on from. Raise `CommitRefused` when `assignment` is over."""

    def pause(self, partitions: Iterable[int]) -> None:
        """Serve no records of these partitions, of those that are assigned."""

    def resume(self, partitions: Iterable[int]) -> None:
        """Serve records of these partitions again, of those that are assigned."""

    async def stop(self) -> None:
        """Leave the group at once, so that its partitions go to others without waiting for the session."""


class Results(Protocol):
    """The process's one producer (`shared.runtime.kafka.Outbox`). A future that fails ends the process."""

    def append(self, topic: str, partition: int, key: bytes | None, value: bytes | None, headers: Headers) -> None:
        """Append without waiting; order is kept per partition."""

    def acknowledged(self) -> asyncio.Future[None]:
        """Return a future that is done when everything appended so far is acknowledged."""


class CancelRecord(NamedTuple):
    """One record of the control topic."""

    offset: int
    timestamp_ms: int
    value: bytes | None


class Control(Protocol):
    """The control topic, read without a group from its retention's start."""

    async def read_to_end(self) -> Sequence[CancelRecord]:
        """Return everything from the start of the topic to where its end was when this was called."""

    async def take(self, wait_s: float) -> Sequence[CancelRecord]:
        """Return what follows, as soon as there is any, or nothing after `wait_s`."""


class Asked(NamedTuple):
    """An attempt whose past is wanted. `at_ms` is its command's: a repeat has the same, so it tells where to look."""

    attempt_id: str
    at_ms: int


class Note(NamedTuple):
    """What is to be remembered of an attempt: its result, or that `holder` has it leased until `leased_until_ms`.

    An empty result says: acknowledged, nothing to send again.
    """

    attempt_id: str
    at_ms: int
    result: bytes | None = None
    holder: str = ""
    leased_until_ms: int = 0


class Take(NamedTuple):
    """An attempt that is about to be taken up again. `alone_on` is the worker that tries it alone, if one does."""

    attempt_id: str
    at_ms: int
    alone_on: str = ""


class Remembered(NamedTuple):
    """What is known of an attempt's past.

    `takes` counts how often it was taken up again, `alone` how often of these nothing else was in its worker's hand;
    `alone_on` is the last such worker. Without a result and a lease, each of these workers ended meanwhile.
    """

    result: bytes | None = None
    holder: str = ""
    leased_until_ms: int = 0
    takes: int = 0
    alone: int = 0
    alone_on: str = ""


class Memory(Protocol):
    """What workers of one step type remember across crashes and rebalances; any call may raise `MemoryUnavailable`."""

    async def recall(self, asked: Sequence[Asked]) -> Sequence[Remembered]:
        """Return what is known of each attempt, in the order asked."""

    async def count_takes(self, takes: Sequence[Take]) -> None:
        """Add one to each attempt's takes, and to those alone, atomically."""

    async def last_words(self, worker: str) -> str:
        """Return how a worker ended, as far as somebody could say."""

    async def remember(self, notes: Sequence[Note]) -> None:
        """Write the notes; each is kept for the result retention from now."""


class Secrets(Protocol):
    """The secrets that this service was given."""

    async def values(self, tenant: str, texts: Sequence[SecretText]) -> dict[str, str]:
        """Return those that the texts name, by name. Raises `TerminalError` for one that is not there."""


class MemoryUnavailable(AnabranchError):
    """The memory cannot be reached. Work goes on: what cannot be recalled runs again (at least once)."""
