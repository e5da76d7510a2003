"""Whoever sends credentials that do not work is counted by address, and after too many is not looked at for a while.

What has worked from that address before goes on working: a neighbour behind the same proxy does not lock others out.
"""

import math
import time
from collections.abc import Callable
from typing import Final

from anabranch.services.gateway.problems import Kind, ProblemError
from anabranch.services.gateway.rate_limit import RateLimits
from anabranch.shared.contracts.bounded import BoundedMemory

_REMEMBERED: Final = 10_000  # addresses that are not looked at, and credentials that have worked


class Guesses:
    """The addresses that guess."""

    def __init__(self, limits: RateLimits, *, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._monotonic_s = monotonic_s
        self._until_s: BoundedMemory[str, float] = BoundedMemory(max_entries=_REMEMBERED)
        self._worked: BoundedMemory[int, bool] = BoundedMemory(max_entries=_REMEMBERED)

    def look(self, address: str, given: str) -> None:
        """Raises a 429 problem when nothing new of this address is looked at; what was seen is still checked."""
        until_s = self._until_s.get(address) if len(self._until_s) else None
        if until_s is None:
            return
        left_s = until_s - self._monotonic_s()
        if left_s <= 0:
            self._until_s.drop(address)
        elif self._worked.get(hash((address, given))) is None:
            raise _too_many(left_s)

    def worked(self, address: str, given: str) -> None:
        """These credentials are no guess: by a keyed hash, not by their text."""
        self._worked.put(hash((address, given)), True)

    async def failed(self, address: str) -> None:
        """Count credentials that do not work. Raises a 429 problem when they are too many."""
        standing = await self._limits.take_failure(address)
        if standing is not None and not standing.allowed:
            self._until_s.put(address, self._monotonic_s() + standing.reset_s)
            raise _too_many(standing.reset_s)


def _too_many(left_s: float) -> ProblemError:
    return ProblemError(
        Kind.TOO_MANY,
        "Too many credentials from here did not work; new ones are not looked at for a while.",
        retry_after_s=max(1, math.ceil(left_s)),
    )
