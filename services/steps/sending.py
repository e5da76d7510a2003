"""What a worker appended and waits for: each record's consequence is drawn when the record is acknowledged."""

import asyncio
from collections.abc import Callable
from functools import partial

from anabranch.services.steps.ports import Results
from anabranch.shared.contracts.codec import Encoded
from anabranch.shared.contracts.errors import AnabranchError


class NothingSettles(AnabranchError):
    """Acknowledgements are no longer awaited."""


class Sending:
    """Appends at once; runs, in the order appended, what was to follow each acknowledgement.

    One future of the port serves all that was appended while the one before it was awaited, so a command costs a list
    entry, not a future. An append that fails for good comes out of `keep_settling` and ends the process.
    """

    def __init__(self, results: Results) -> None:
        self._results = results
        self._waiting: list[Callable[[], object]] = []
        self._appended = asyncio.Event()
        self._has_ended = False
        self._markers: set[asyncio.Future[None]] = set()

    def append(
        self, topic: str, partition: int, key: bytes | None, encoded: Encoded, then: Callable[[], object]
    ) -> None:
        """Append a record and have `then` called when it is acknowledged."""
        self._results.append(topic, partition, key, encoded.value, encoded.headers)
        self._waiting.append(then)
        self._appended.set()

    async def settled(self) -> None:
        """Return when everything appended so far is acknowledged and its consequences drawn.

        Raises `NothingSettles` when the worker ends before.
        """
        if self._has_ended:
            raise NothingSettles("the worker has ended")
        marker: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._markers.add(marker)
        self._waiting.append(partial(_reach, marker))
        self._appended.set()
        try:
            await marker
        finally:
            self._markers.discard(marker)

    async def keep_settling(self) -> None:
        """Wait for acknowledgements and draw their consequences, for ever."""
        try:
            while True:
                await self._appended.wait()
                self._appended.clear()
                settled, self._waiting = self._waiting, []
                await self._results.acknowledged()
                for then in settled:
                    then()
        except BaseException as error:
            self._has_ended = True
            for marker in self._markers:
                if not marker.done():
                    marker.set_exception(NothingSettles(f"the worker ends: {error!r}"))
            raise


def _reach(marker: asyncio.Future[None]) -> None:
    if not marker.done():
        marker.set_result(None)
