"""A take-over: whatever stands in the changelog, the partition goes on, and the event loop with it."""

import asyncio
import json
from typing import Any

import pytest
import structlog

from anabranch.services.orchestrator.core import changelog
from anabranch.services.orchestrator.core.decide import Decision
from anabranch.services.orchestrator.core.effects import Channel
from anabranch.services.orchestrator.core.graph import compiled
from anabranch.services.orchestrator.core.partition import Partition
from anabranch.services.orchestrator.metrics import OrchestratorMetrics
from anabranch.services.orchestrator.partition_task import Pace, PartitionTask
from anabranch.shared.contracts import messages as m
from anabranch.shared.contracts.codec import decode
from anabranch.shared.runtime.metrics import new_registry
from tests.support.builders import a_run, a_step, a_submission, succeeded
from tests.support.scripted_log import ScriptedLog


def a_changelog(*run_ids: str, **more: Any) -> dict[bytes, bytes]:
    """Return what a checkpoint of these runs leaves."""
    run = a_run()
    run.take(succeeded("a"))
    for run_id in run_ids:
        run.takes(a_submission({"a": a_step()}, run_id=run_id, **more))
    return {key: value for key, value in changelog.take_changes(run.partition, 0) if value is not None}


class Reading(ScriptedLog):
    """Reads back what was appended to the inbox, as a broker has it read."""

    def append(self, output: Any) -> None:
        super().append(output)
        if output.channel is Channel.INBOX:
            self.feed(output.value)


def a_task(log: ScriptedLog) -> PartitionTask:
    """Return a task that checkpoints at once."""
    pace = Pace(checkpoint_s=0.001, restore_backoff_s=0.001)
    metrics = OrchestratorMetrics(new_registry())
    return PartitionTask(log, "inbox", metrics, structlog.get_logger(), pace, now_ms=lambda: 1_000)


async def until(task: PartitionTask, condition: Any) -> None:
    """Run the task until the condition holds, and stop it."""
    running = asyncio.create_task(task.run())
    async with asyncio.timeout(60):
        while not condition() and not running.done():
            await asyncio.sleep(0.001)
    task.stop()
    await asyncio.wait_for(running, 60)


def ends(log: ScriptedLog) -> dict[str, Any]:
    """Return the last events of runs, by run."""
    events = [decode(m.RUN_EVENTS, each.value) for each in log.appended if each.channel is Channel.RUN_EVENTS]
    return {event.run_id: event for event in events if isinstance(event, m.RunEnded)}


async def test_runs_that_are_not_understood_end_and_leave_the_changelog() -> None:
    """Without a message from anybody: the take-over itself has them woken."""
    log = Reading()
    log.changelog = a_changelog("bad", "good")
    del log.changelog[b"bad/.submission"]
    log.changelog[b"worse"] = b"{}"
    log.changelog[b"\xff/\xfe"] = b"\x00"
    await until(a_task(log), lambda: b"bad" not in log.changelog)
    assert {run_id: end.error.type for run_id, end in ends(log).items()} == {"bad": "EngineError"}
    assert ends(log)["bad"].seq == 2
    letters = [decode(m.DEAD_LETTERS, each.value) for each in log.appended if each.channel is Channel.DEAD_LETTERS]
    assert {letter.error_type for letter in letters} == {"ChangelogUnreadable"}  # type: ignore[union-attr]
    assert len({letter.key_base64 for letter in letters}) == 2  # type: ignore[union-attr]
    assert log.changelog.keys() == {b"_checkpoint", b"good", b"good/.submission", b"good/a"}


async def test_a_partition_whose_checkpoint_cannot_be_read_stands_until_somebody_mends_it() -> None:
    """The process goes on: it is this partition alone, and it needs no restart."""
    log = Reading()
    log.changelog = a_changelog("good")
    whole, log.changelog[b"_checkpoint"] = log.changelog[b"_checkpoint"], b"?"
    task = a_task(log)
    running = asyncio.create_task(task.run())
    async with asyncio.timeout(60):
        while log.calls.count("read_changelog") < 3:
            await asyncio.sleep(0.001)
        assert not task.is_restored
        log.changelog[b"_checkpoint"] = whole
        while not task.is_restored:
            await asyncio.sleep(0.001)
    task.stop()
    await asyncio.wait_for(running, 60)


@pytest.mark.parametrize("words", ["\ud800", "x\udcffy", "\x00"])
async def test_deciding_that_raises_whatever_it_says_harms_nothing_but_its_run(
    words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text of an exception may be one that no encoder takes, or raise itself."""

    class Odd(Exception):
        def __str__(self) -> str:
            if words == "\x00":
                raise ValueError
            return words

    decide = Partition.decide

    def raising(self: Partition, message: m.RunMessage, at: int) -> Decision:
        if message.run_id == "odd":
            raise Odd
        return decide(self, message, at)

    monkeypatch.setattr(Partition, "decide", raising)
    log = Reading()
    for run_id in ("odd", "fine"):
        log.feed(a_submission({"a": a_step()}, run_id=run_id).model_dump_json().encode())
    await until(a_task(log), lambda: b"fine" in log.changelog)
    assert ends(log)["odd"].error.type == "EngineError"


async def test_nobody_waits_while_a_definition_is_compiled() -> None:
    """A submission's or a restored run's: it is compiled in slices before its first message is decided."""
    steps = {f"s{i}": a_step(with_={"x": f"${{{{ inputs.x + {i} }}}}"}) for i in range(2000)}
    submission = a_submission(steps, run_id="large", inputs={"x": 1})
    log = Reading()
    log.feed(submission.model_dump_json().encode())
    turns = 0

    def taking_turns() -> bool:
        nonlocal turns
        turns += 1
        return b"large" in log.changelog

    assert compiled(submission.definition) is None
    task = a_task(log)
    await until(task, taking_turns)
    assert turns >= 5
    assert compiled(submission.definition) is not None
    assert len(json.loads(submission.definition)["steps"]) == len(task.partition.runs["large"].steps)
