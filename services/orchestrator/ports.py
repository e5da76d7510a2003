"""What a partition task needs of the log, as a port with three verbs: take, append, checkpoint.

Kafka implements it (`kafka_log.py`); an in-memory log implements it for the simulation (`tests/simulation`). What
happens on each error of each verb stands in docs/errors.md, which a test compares with `ON_ERROR`.
"""

import asyncio
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Final, NamedTuple, Protocol

from anabranch.services.orchestrator.core.changelog import Change
from anabranch.services.orchestrator.core.effects import Append
from anabranch.shared.contracts.codec import Headers
from anabranch.shared.contracts.errors import AnabranchError


class InboxRecord(NamedTuple):
    """One record of the inbox, its broker time, and the number of the assignment it was fetched under."""

    offset: int
    at_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    assignment: int


class LogError(AnabranchError):
    """Base of what the port raises. A driver's error is its `__cause__`."""


class Fenced(LogError):
    """Another process has taken this partition over; nothing of ours can be written to its changelog any more."""


class CheckpointFailed(LogError):
    """The transaction did not commit, or nobody knows whether it did."""


class RestoreFailed(LogError):
    """The changelog could not be read."""


class InboxGone(LogError):
    """The inbox no longer holds the offset that is to be read next: records are lost."""


class TakeFailed(LogError):
    """The inbox could not be read although the client retried."""


class AppendLost(LogError):
    """An append failed for good: what was decided did not get out."""


class Answer(StrEnum):
    """What is done about an error."""

    RESTORE = "restore the partition"
    STOP_TASK = "stop the task, drop its memory"
    END_PROCESS = "end the process"
    DEAD_LETTER = "dead-letter the record"


ON_ERROR: Final[Mapping[type[Exception], Answer]] = {
    Fenced: Answer.STOP_TASK,
    CheckpointFailed: Answer.RESTORE,
    RestoreFailed: Answer.RESTORE,
    InboxGone: Answer.END_PROCESS,
    TakeFailed: Answer.END_PROCESS,
    AppendLost: Answer.END_PROCESS,
}
"""What the partition task does about each error of the port; anything else ends the process, too."""


class PartitionLog(Protocol):
    """One partition of the inbox, its changelog, and the way out, for one assignment."""

    @property
    def partition(self) -> int:
        """The partition's number."""

    @property
    def assignment(self) -> int:
        """The number of the assignment this log serves."""

    async def start_producer(self) -> None:
        """Start the partition's transactional producer: from here on its predecessor is fenced. Raises `Fenced`."""

    async def read_changelog(self) -> Mapping[bytes, bytes]:
        """Return the live records of the changelog, committed ones only, to its end. Raises `RestoreFailed`.

        Starting the producer has ended every transaction of before; one that was committed since may not be in it yet.
        """

    async def seek(self, offset: int | None) -> None:
        """Take from this offset on, or from the first record there ever was."""

    async def take(self, wait_s: float) -> Sequence[InboxRecord]:
        """Return what has arrived, as soon as there is any; nothing after `wait_s` or an `interrupt`.

        Raises `InboxGone`, `TakeFailed`.
        """

    def interrupt(self) -> None:
        """Make the `take` under way, or the next, return at once."""

    def append(self, output: Append) -> None:
        """Append without waiting; the order within a topic's partition is the order of calls. Raises `AppendLost`.

        A command that its topic does not take comes back in the inbox, as `CommandRefused`; it harms no other record.
        """

    def acknowledged(self) -> "asyncio.Future[None]":
        """Return a future that is done when everything appended so far is acknowledged, or fails with `AppendLost`.

        Of a command that was refused, its refusal is.
        """

    @property
    def unacknowledged(self) -> int:
        """How many records are appended and not yet acknowledged."""

    @property
    def unacknowledged_bytes(self) -> int:
        """How large their values are."""

    async def checkpoint(self, changes: Sequence[Change]) -> None:
        """Write the changes in one transaction. Raises `Fenced`, `CheckpointFailed`."""

    async def close(self) -> None:
        """Stop the producer and take no more."""
