"""The attempts that were cancelled within the last hour, as the control topic told."""

from anabranch.services.steps.ports import CancelRecord
from anabranch.shared.contracts.codec import Undecodable, decode
from anabranch.shared.contracts.ids import attempt_id
from anabranch.shared.contracts.messages import CONTROL


class Cancellations:
    """Attempt ids of all step types, each forgotten after `keep_s` or when `count` others followed."""

    def __init__(self, count: int, keep_s: float) -> None:
        self._count = count
        self._keep_s = keep_s
        self._learnt: dict[str, float] = {}  # in the order learnt

    def __contains__(self, attempt: str) -> bool:
        return attempt in self._learnt

    def __len__(self) -> int:
        return len(self._learnt)

    def learn(self, record: CancelRecord, now_s: float) -> str | Undecodable:
        """Return the attempt that the record cancels, or what is wrong with the record."""
        message = decode(CONTROL, record.value)
        if isinstance(message, Undecodable):
            return message
        attempt = attempt_id(message.run_id, message.step, message.attempt)
        self._learnt[attempt] = now_s
        self._forget(now_s)
        return attempt

    def _forget(self, now_s: float) -> None:
        while self._learnt:
            eldest = next(iter(self._learnt))
            if len(self._learnt) <= self._count and now_s - self._learnt[eldest] <= self._keep_s:
                return
            del self._learnt[eldest]
