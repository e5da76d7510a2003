"""What a handler is told of the attempt it runs, and how it reports back."""

from collections.abc import Callable
from typing import Any

import orjson
from pydantic_core import to_json
from structlog.typing import FilteringBoundLogger

from anabranch.shared.contracts.codec import trace_id_or
from anabranch.shared.contracts.hiding import NOTHING_HIDDEN
from anabranch.shared.contracts.ids import idempotency_key
from anabranch.shared.contracts.limits import MAX_NESTING, MAX_PROGRESS_BYTES
from anabranch.shared.contracts.nesting import is_too_deep


class StepContext:
    """One attempt, as its handler sees it.

    `run_id`, `step`, `attempt`, `tenant` name it; `deadline` is when it times out, on the event loop's clock;
    `resource` is what the step type's lifespan opened; `trace_id` is the trace that its run is in, and `is_sampled`
    whether spans of that are written; `caused_at_ms` is the broker time of the record that caused it.
    """

    __slots__ = (
        "_clock", "_log", "_progress", "attempt", "caused_at_ms", "deadline", "hiding", "is_sampled", "resource",
        "run_id", "step", "tenant", "trace_id",
    )  # fmt: skip

    def __init__(
        self,
        *,
        run_id: str,
        step: str,
        attempt: int,
        tenant: str,
        deadline: float,
        clock: Callable[[], float],
        log: FilteringBoundLogger,
        resource: Any = None,
        trace_id: str = "",
        is_sampled: bool = True,
        caused_at_ms: int = 0,
    ) -> None:
        self.run_id = run_id
        self.step = step
        self.attempt = attempt
        self.tenant = tenant
        self.deadline = deadline
        self.resource = resource
        self.trace_id = trace_id
        self.is_sampled = is_sampled
        self.caused_at_ms = caused_at_ms
        self.hiding = NOTHING_HIDDEN  # the secrets in its input
        self._progress: Any = None
        self._clock = clock
        self._log = log

    @property
    def progress(self) -> Any:
        """What `heartbeat` was last told, as JSON values."""
        return self._progress

    @property
    def idempotency_key(self) -> str:
        """The key to hand on to other systems: the same for every attempt of this step."""
        return idempotency_key(self.run_id, self.step)

    @property
    def log(self) -> FilteringBoundLogger:
        """A logger whose lines name the run, the step, the attempt and the trace."""
        bound: FilteringBoundLogger = self._log.bind(
            run_id=self.run_id, step=self.step, attempt=self.attempt, trace_id=trace_id_or(self.trace_id, self.run_id)
        )
        return bound

    def remaining_s(self) -> float:
        """Return the seconds left until the attempt times out, never below 0."""
        return max(0.0, self.deadline - self._clock())

    def heartbeat(self, progress: Any = None) -> None:
        """Say how far the work is: any JSON of at most 4 KiB. It travels with the next renewal of the lease.

        Costs nothing before an attempt is leased, and needs not be called to keep the lease. May be called from a
        thread. Raises `ValueError` when the progress is too large, too deep or not JSON.
        """
        encoded = to_json(progress, inf_nan_mode="null")
        if len(encoded) > MAX_PROGRESS_BYTES:
            size = len(encoded)
            raise ValueError(f"progress of {self.step} is {size} bytes as JSON, at most {MAX_PROGRESS_BYTES} travel")
        plain = orjson.loads(encoded)
        if is_too_deep(plain):
            raise ValueError(f"progress of {self.step} is nested deeper than {MAX_NESTING} levels")
        self._progress = self.hiding.told(plain)
