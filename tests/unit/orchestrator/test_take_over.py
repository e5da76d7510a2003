"""What a partition's timers do when it changes hands."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from anabranch.services.orchestrator.core.effects import Channel
from anabranch.services.orchestrator.metrics import OrchestratorMetrics
from anabranch.services.orchestrator.partition_task import Pace, PartitionTask
from anabranch.shared.contracts import messages as m
from anabranch.shared.runtime.metrics import new_registry
from tests.support.scripted_log import ScriptedLog

T0 = 1_770_000_000_000
LIMIT_S = 3
SUBMISSION = m.SubmitRun(
    run_id="r", tenant="t", definition=f'{{"name":"p","timeout":{LIMIT_S},"steps":{{"a":{{"uses":"x"}}}}}}'
).model_dump_json()


@asynccontextmanager
async def an_owner(log: ScriptedLog, now_ms: int) -> AsyncIterator[PartitionTask]:
    """Own the partition for a while, on a host whose clock stands at `now_ms`; hand over gracefully."""
    pace = Pace(checkpoint_s=0.001, restore_backoff_s=0.0)
    task = PartitionTask(
        log, "inbox", OrchestratorMetrics(new_registry()), structlog.get_logger(), pace, now_ms=lambda: now_ms
    )
    running = asyncio.create_task(task.run())
    yield task
    task.stop()
    await asyncio.wait_for(running, 60)


async def _until_fired(log: ScriptedLog, task: PartitionTask) -> None:
    async with asyncio.timeout(60):
        while not [output for output in log.appended if output.channel is Channel.INBOX]:
            await asyncio.sleep(0)
            if task.is_restored and len(task._timers):
                deadline = task._timers.next_deadline()
                assert deadline is not None
                assert deadline - asyncio.get_running_loop().time() < 1, "the timer has started anew"


async def _a_run_begins(log: ScriptedLog) -> None:
    log.feed(SUBMISSION.encode(), at_ms=T0)
    async with an_owner(log, T0) as task, asyncio.timeout(60):
        while task.offset != 1:
            await asyncio.sleep(0)


async def test_a_timer_goes_on_where_the_last_owner_left_it() -> None:
    """A hand-over every two seconds does not keep a run with a limit of three seconds alive."""
    log = ScriptedLog()
    await _a_run_begins(log)
    async with an_owner(log, T0 + 2_000) as task:
        async with asyncio.timeout(60):
            while not task.is_restored:
                await asyncio.sleep(0)
        remains_s = task._timers.next_deadline() - asyncio.get_running_loop().time()  # type: ignore[operator]
    assert 0 < remains_s <= 1
    async with an_owner(log, T0 + 4_000) as task:
        await _until_fired(log, task)


async def test_a_record_that_is_decided_again_sets_its_timer_for_what_remains() -> None:
    """So does one that has waited: what counts is when it was appended."""
    log = ScriptedLog()
    log.feed(SUBMISSION.encode(), at_ms=T0)
    async with an_owner(log, T0 + 1000 * LIMIT_S) as task:
        await _until_fired(log, task)


async def test_a_clock_that_is_ahead_costs_one_early_timer() -> None:
    """It is armed again by the brokers' time, so that it does not fire again and again until it is due."""
    log = ScriptedLog()
    await _a_run_begins(log)
    async with an_owner(log, T0 + 3_600_000) as task:
        await _until_fired(log, task)
        log.feed(log.appended[-1].value, at_ms=T0 + 500)
        async with asyncio.timeout(60):
            while task.offset != 2:
                await asyncio.sleep(0)
        deadline = task._timers.next_deadline()
        assert deadline is not None
        assert 1.5 < deadline - asyncio.get_running_loop().time() <= 2.5
    assert len([output for output in log.appended if output.channel is Channel.INBOX]) == 1


async def test_a_clock_that_is_behind_goes_by_the_latest_record() -> None:
    """It delays a timer, by no more than before."""
    log = ScriptedLog()
    await _a_run_begins(log)
    async with an_owner(log, 0) as task:
        async with asyncio.timeout(60):
            while not task.is_restored:
                await asyncio.sleep(0)
        deadline = task._timers.next_deadline()
        assert deadline is not None
        assert deadline - asyncio.get_running_loop().time() <= LIMIT_S
