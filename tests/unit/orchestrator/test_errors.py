"""docs/errors.md is walked: every error of the log is raised, and what follows is compared with the table."""

import asyncio
from pathlib import Path

import pytest
import structlog

from anabranch.services.orchestrator import ports
from anabranch.services.orchestrator.metrics import OrchestratorMetrics
from anabranch.services.orchestrator.partition_task import Pace, PartitionTask
from anabranch.services.orchestrator.ports import ON_ERROR, Answer, LogError
from anabranch.shared.contracts import messages as m
from anabranch.shared.runtime.metrics import new_registry
from tests.support.scripted_log import Fault, ScriptedLog

DOCUMENT = Path(__file__).parents[3] / "docs" / "errors.md"
SUBMISSION = m.SubmitRun(
    run_id="r", tenant="t", definition='{"name":"p","steps":{"a":{"uses":"x"}}}', keep_s=10
).model_dump_json()


def rows() -> list[tuple[str, type[LogError], Answer]]:
    """Return (verb, error, answer) of the orchestrator's table."""
    section = DOCUMENT.read_text().split("## Orchestrator")[1].split("What the orchestrator reads")[0]
    cells = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in section.splitlines() if line[:3] == "| `"]
    return [(verb, getattr(ports, error), Answer(answer)) for verb, error, _, answer in cells]


def test_every_error_of_the_log_stands_in_the_document() -> None:
    """The document and the table in the code name the same errors with the same answers."""
    assert {error: answer for _, error, answer in rows()} == dict(ON_ERROR)


@pytest.mark.parametrize(("verb", "error", "answer"), rows())
async def test_what_follows_an_error_is_what_the_document_says(
    verb: str, error: type[LogError], answer: Answer
) -> None:
    """The task restores, stops, or raises what ends the process; a restored one decides the record again."""
    log = ScriptedLog(Fault(verb, 1, error("told to")))
    log.feed(SUBMISSION.encode())
    pace = Pace(checkpoint_s=0.001, restore_backoff_s=0.0)
    task = PartitionTask(
        log, "inbox", OrchestratorMetrics(new_registry()), structlog.get_logger(), pace, now_ms=lambda: 0
    )
    running = asyncio.create_task(task.run())
    if answer is Answer.END_PROCESS:
        with pytest.raises(error, match="told to"):
            await asyncio.wait_for(running, 60)
    elif answer is Answer.STOP_TASK:
        await asyncio.wait_for(running, 60)
        assert b"_checkpoint" not in log.changelog
        assert task.partition.runs == {}
    else:
        async with asyncio.timeout(60):
            while b"_checkpoint" not in log.changelog:
                await asyncio.sleep(0)
        assert log.calls.count("start_producer") == 2
        assert list(task.partition.runs) == ["r"]
        task.stop()
        await asyncio.wait_for(running, 60)
    assert log.closed
