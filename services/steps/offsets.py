"""Which offset of a command partition may be committed: everything before it is answered for."""


class PartitionInHand:
    """One assigned partition: the offsets taken from it and not yet released, under one assignment."""

    __slots__ = ("_committed", "_next", "_open", "assigned_at_ms", "assignment", "partition")

    def __init__(self, partition: int, assignment: int, assigned_at_ms: int) -> None:
        self.partition = partition
        self.assignment = assignment
        self.assigned_at_ms = assigned_at_ms
        self._open: dict[int, None] = {}  # in the order taken, which is the order of the log
        self._next: int | None = None
        self._committed: int | None = None

    def take(self, offset: int) -> None:
        """Note that the record at `offset` was taken; offsets come in the order of the log."""
        self._open[offset] = None
        self._next = offset + 1

    def release(self, offset: int) -> None:
        """Note that the record at `offset` is answered for: its result or its lease is acknowledged."""
        self._open.pop(offset, None)

    def to_commit(self) -> int | None:
        """Return the offset to go on from, if it moved since it was last committed."""
        position = next(iter(self._open), self._next)
        return None if position == self._committed else position

    def committed(self, position: int) -> None:
        """Note that `position` was committed."""
        self._committed = position
