"""Lines of the partition task that are about a run name it and its trace, and of an attempt its step."""

from typing import Any

import pytest
from structlog.testing import capture_logs

from anabranch.services.orchestrator.core.partition import Partition
from anabranch.shared.contracts import messages as m

from .test_figures import SUBMISSION, TRACE, Figures


async def said(event: str) -> dict[str, Any]:
    """Return the line of this event about the result of an attempt."""
    with capture_logs() as lines:
        async with Figures() as here:
            await here.decided(SUBMISSION)
            await here.decided(m.AttemptSucceeded(run_id="r", step="a", attempt=1, output={}))
    return next(line for line in lines if line["event"] == event and line["type"] == "AttemptSucceeded")


async def test_a_decision_names_its_run_step_attempt_and_trace() -> None:
    line = await said("decided")
    assert (line["run_id"], line["step"], line["attempt"], line["trace_id"]) == ("r", "a", 1, TRACE)


async def test_so_does_one_that_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    decide = Partition.decide

    def broken(self: Partition, message: m.RunMessage, at: int) -> Any:
        if isinstance(message, m.AttemptSucceeded):
            raise ZeroDivisionError
        return decide(self, message, at)

    monkeypatch.setattr(Partition, "decide", broken)
    line = await said("deciding raised")
    assert (line["run_id"], line["step"], line["attempt"], line["trace_id"]) == ("r", "a", 1, TRACE)
