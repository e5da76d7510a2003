"""The attempts that were finished lately: a bounded memory, and the time up to which it may have forgotten."""

from typing import Final

_NEVER: Final = -1


class Lately:
    """Attempt ids in two generations: the younger is filled, and when it is full or old the elder is forgotten.

    So between half of and all of `count` attempts and `keep_s` seconds are remembered, at about 200 bytes each
    (20 MB for 100,000), without a clock or a list entry per attempt.
    """

    __slots__ = (
        "_count",
        "_elder",
        "_elder_latest_ms",
        "_keep_s",
        "_since",
        "_young",
        "_young_latest_ms",
        "forgotten_ms",
    )

    def __init__(self, count: int, keep_s: float) -> None:
        self._count = count // 2
        self._keep_s = keep_s / 2
        self._young: set[str] = set()
        self._elder: set[str] = set()
        self._young_latest_ms = _NEVER
        self._elder_latest_ms = _NEVER
        self._since = 0.0
        self.forgotten_ms = _NEVER
        """A command whose `at_ms` is not after this may be one that was forgotten here."""

    def __contains__(self, attempt_id: str) -> bool:
        return attempt_id in self._young or attempt_id in self._elder

    def __len__(self) -> int:
        return len(self._young) + len(self._elder)

    def add(self, attempt_id: str, at_ms: int, now_s: float) -> None:
        """Remember an attempt whose command was caused at `at_ms`."""
        if len(self._young) >= self._count or now_s - self._since >= self._keep_s:
            self._forget_elder(now_s)
        self._young.add(attempt_id)
        self._young_latest_ms = max(self._young_latest_ms, at_ms)

    def _forget_elder(self, now_s: float) -> None:
        self.forgotten_ms = max(self.forgotten_ms, self._elder_latest_ms)
        self._elder, self._elder_latest_ms = self._young, self._young_latest_ms
        self._young, self._young_latest_ms, self._since = set(), _NEVER, now_s
