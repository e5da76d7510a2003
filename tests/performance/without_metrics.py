"""`python -m tests.performance.without_metrics MODULE`: run a service whose metrics count nothing.

Every fact that a service tells its metrics is a method of one of five classes: here each does nothing. So what differs
from the service as it is, is all that counting costs.
"""

import asyncio
import runpy
import sys
from typing import Any, Final

from anabranch.services.gateway.metrics import GatewayMetrics
from anabranch.services.history.metrics import HistoryMetrics
from anabranch.services.orchestrator.metrics import OrchestratorMetrics
from anabranch.services.steps.metrics import WorkerMetrics
from anabranch.shared.runtime.metrics import Tally
from anabranch.shared.runtime.process_metrics import ProcessMetrics

_CLASSES: Final = (GatewayMetrics, HistoryMetrics, OrchestratorMetrics, WorkerMetrics, ProcessMetrics, Tally)


def count_nothing() -> int:
    """Make every fact of every service one that nobody takes note of; return how many there are."""
    silenced = 0
    for kind in _CLASSES:
        for name, member in list(vars(kind).items()):
            if callable(member) and not name.startswith("_") and name != "collect":
                setattr(kind, name, _for_ever if asyncio.iscoroutinefunction(member) else _nothing)
                silenced += 1
    return silenced


def _nothing(*_: Any, **__: Any) -> None:
    pass


async def _for_ever(*_: Any) -> None:
    await asyncio.Event().wait()


if __name__ == "__main__":
    count_nothing()
    module = sys.argv[1]
    sys.argv[1:] = []
    runpy.run_module(module, run_name="__main__", alter_sys=True)
