"""Who follows events: each stream is told when the record has more for it, and looks now and then anyway."""

import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from anabranch.services.gateway.metrics import GatewayMetrics


class Follower:
    """One stream: `changed` is set when there may be more for it."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self.closed = False

    async def until_changed(self, within_s: float) -> None:
        """Return when there may be more, or the time is up."""
        try:
            async with asyncio.timeout(within_s):
                await self.changed.wait()
        except TimeoutError:
            return
        finally:
            self.changed.clear()


class Followers:
    """The streams of one gateway, by the run that they follow; those that follow all runs follow ``."""

    def __init__(self, most: int, most_of_client: int, metrics: GatewayMetrics) -> None:
        self._most = most
        self._most_of_client = most_of_client
        self._metrics = metrics
        self._of_run: dict[str, set[Follower]] = {}
        self._of_client: Counter[str] = Counter()
        self._closed = False

    @property
    def any(self) -> bool:
        """Whether anybody follows anything."""
        return bool(self._of_run)

    def full_for(self, client: str) -> bool:
        """Return whether this client may follow nothing more now."""
        return self._closed or self._of_client.total() >= self._most or self._of_client[client] >= self._most_of_client

    @contextmanager
    def following(self, run_id: str, client: str) -> Iterator[Follower]:
        """Follow a run, `` for all, as long as the context lasts."""
        follower = Follower()
        self._of_run.setdefault(run_id, set()).add(follower)
        self._of_client[client] += 1
        self._metrics.following(+1)
        try:
            yield follower
        finally:
            self._metrics.following(-1)
            self._of_client[client] -= 1
            if not self._of_client[client]:
                del self._of_client[client]
            self._of_run[run_id].discard(follower)
            if not self._of_run[run_id]:
                del self._of_run[run_id]

    def tell(self, run_ids: Iterable[str]) -> None:
        """Say that the record has more of these runs."""
        for run_id in (*run_ids, ""):
            for follower in self._of_run.get(run_id, ()):
                follower.changed.set()

    def close(self) -> None:
        """The process stops: every stream ends, and its client goes on at another gateway."""
        self._closed = True
        for followers in self._of_run.values():
            for follower in followers:
                follower.closed = True
                follower.changed.set()
