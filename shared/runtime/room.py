"""Bytes that may be on their way at once; who does not fit waits in line."""

import asyncio
from collections import deque


class Room:
    """A number of bytes, taken and given back; first come, first served."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._free = capacity
        self._line: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, size: int) -> int:
        """Wait until `size` bytes are free, take them and return how many; what is larger than all takes all."""
        size = min(size, self._capacity)
        if not self._line and size <= self._free:
            self._free -= size
        else:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._line.append((size, turn))
            await self._wait(size, turn)
        return size

    async def _wait(self, size: int, turn: asyncio.Future[None]) -> None:
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():  # the next in line may fit where this one did not
                self.give_back(0)
            else:  # its turn had come before it heard of it
                self.give_back(size)
            raise

    def give_back(self, size: int) -> None:
        """Free what `take` returned."""
        self._free += size
        while self._line and (self._line[0][1].done() or self._line[0][0] <= self._free):
            waited, turn = self._line.popleft()
            if not turn.done():
                self._free -= waited
                turn.set_result(None)
