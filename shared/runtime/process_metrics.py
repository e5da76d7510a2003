"""What every service tells of its process beside CPU, memory and descriptors: its version, and how late its loop is."""

import asyncio
import platform
from typing import Final

from prometheus_client import CollectorRegistry

from anabranch import __version__
from anabranch.shared.runtime.metrics import OneOf, ServiceMetrics
from anabranch.shared.runtime.tracing import Sent

_LOOK_EVERY_S: Final = 1.0


class ProcessMetrics(ServiceMetrics, Sent):
    """Made once for each process, by whoever runs the service."""

    def __init__(self, service: str, registry: CollectorRegistry) -> None:
        super().__init__("process", registry)
        version, python = __version__, platform.python_version()
        self.info = self.gauge(
            "build_info",
            "Always 1: which service this is, its version and its Python.",
            {"service": OneOf(service), "version": OneOf(version), "python": OneOf(python)},
        )
        self.info.labels(service, version, python).set(1)
        self._loop_lag = self.histogram(
            "event_loop_lag_seconds", "How late the event loop ran a timer that was due; looked at once a second."
        )
        self._spans = self.counter(
            "spans", "Spans of traces, by what became of them; none while tracing is off.",
            {"outcome": OneOf("sent", "dropped")},
        )  # fmt: skip

    def spans_sent(self, count: int) -> None:
        self._spans.labels("sent").inc(count)

    def spans_dropped(self, count: int) -> None:
        self._spans.labels("dropped").inc(count)

    async def keep_looking(self) -> None:
        """Look how late the loop is, for ever. A sleep is the look: what it took too long was the others' turn."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _LOOK_EVERY_S
            await asyncio.sleep(_LOOK_EVERY_S)
            self._loop_lag.observe(max(0.0, loop.time() - due))
