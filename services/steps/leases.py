"""Which attempts are leased, and when: after the grace, renewed every third of a lease, given up when that fails."""

import asyncio
from collections.abc import Callable, Mapping

from anabranch.services.steps.attempt import Attempt
from anabranch.services.steps.settings import WorkerSettings


class Leases:
    """The leases of one worker. What leasing, renewing and lapsing mean is told by who owns the attempts."""

    def __init__(
        self,
        attempts: Mapping[str, Attempt],
        settings: WorkerSettings,
        *,
        lease: Callable[[Attempt], None],
        renew: Callable[[list[Attempt]], None],
        lapse: Callable[[Attempt], None],
    ) -> None:
        self._attempts = attempts
        self._settings = settings
        self._lease = lease
        self._renew = renew
        self._lapse = lapse
        self._held: dict[str, Attempt] = {}
        self._is_watching = asyncio.Event()
        self._is_holding = asyncio.Event()

    def holds(self, attempt: Attempt) -> bool:
        """Whether the attempt is leased and its handler runs."""
        return attempt.id in self._held

    def watch(self) -> None:
        """Look after a handler that was started: it may outlast the grace."""
        self._is_watching.set()

    def lease(self, attempt: Attempt) -> None:
        """Lease an attempt now, if it is not."""
        if not self._is_young(attempt) or attempt.started_at is None:
            return
        loop = asyncio.get_running_loop()
        attempt.lease_until = loop.time() + self._settings.lease_s
        self._held[attempt.id] = attempt
        self._is_holding.set()
        self._lease(attempt)
        loop.call_at(attempt.lease_until, self._check, attempt)

    def forget(self, attempt: Attempt) -> None:
        """Hold an attempt no longer: its handler has ended."""
        self._held.pop(attempt.id, None)

    async def keep_leasing(self) -> None:
        """Lease every handler that outlasts the grace. A look costs little, short steps pay nothing."""
        loop = asyncio.get_running_loop()
        while True:
            await self._is_watching.wait()
            await asyncio.sleep(self._settings.grace_s / 4)
            young = [attempt for attempt in self._attempts.values() if self._is_young(attempt)]
            if not young:
                self._is_watching.clear()
            for attempt in young:
                if attempt.started_at is not None and loop.time() - attempt.started_at >= self._settings.grace_s:
                    self.lease(attempt)

    async def keep_renewing(self) -> None:
        """Renew what is held, every third of a lease."""
        loop = asyncio.get_running_loop()
        while True:
            await self._is_holding.wait()
            await asyncio.sleep(self._settings.lease_s / 3)
            held = [a for a in self._held.values() if a.ending is None and (a.lease_until or 0) > loop.time()]
            if held:
                self._renew(held)
            if not self._held:
                self._is_holding.clear()

    def _is_young(self, attempt: Attempt) -> bool:
        return attempt.lease_until is None and not attempt.is_over

    def _check(self, attempt: Attempt) -> None:
        """At the end of a lease: it was renewed meanwhile, or it has lapsed."""
        if attempt.id not in self._held or attempt.lease_until is None:
            return
        loop = asyncio.get_running_loop()
        if attempt.lease_until > loop.time():
            loop.call_at(attempt.lease_until, self._check, attempt)
        else:
            self._lapse(attempt)
