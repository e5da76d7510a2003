"""What Prometheus reads of the partition tasks: each fact of a run is counted once, and nothing of one that is over."""

import asyncio

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.exposition import generate_latest

from anabranch.services.orchestrator.metrics import OrchestratorMetrics
from anabranch.services.orchestrator.partition_task import Pace, PartitionTask
from anabranch.shared.contracts import messages as m
from anabranch.shared.runtime.metrics import new_registry
from tests.support.scripted_log import ScriptedLog

T0 = 1_770_000_000_000
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SUBMISSION = m.SubmitRun(run_id="r", tenant="t", definition='{"name":"p","steps":{"a":{"uses":"x"}}}', trace_id=TRACE)
LEASE = m.AttemptStarted(run_id="r", step="a", attempt=1, lease_s=1, worker="w")


class Figures:
    """One partition, and what is read of it on a host whose clock is two seconds after the run's start."""

    def __init__(self) -> None:
        self.registry: CollectorRegistry = new_registry()
        self.log = ScriptedLog()
        metrics = OrchestratorMetrics(self.registry)
        pace = Pace(checkpoint_s=0.001, restore_backoff_s=0.0)
        self.task = PartitionTask(self.log, "inbox", metrics, structlog.get_logger(), pace, now_ms=lambda: T0 + 2_000)
        metrics.watch(lambda: {0: self.task})

    def read(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)

    async def decided(self, *messages: m.Message, at_ms: int = T0) -> None:
        for message in messages:
            self.log.feed(message.model_dump_json().encode(), at_ms=at_ms)
        until = (self.task.offset or 0) + len(messages)
        async with asyncio.timeout(60):
            while self.task.offset != until:
                await asyncio.sleep(0)

    async def __aenter__(self) -> "Figures":
        self._running = asyncio.create_task(self.task.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.task.stop()
        await asyncio.wait_for(self._running, 60)


async def test_a_run_is_active_until_it_ends_and_its_duration_is_the_brokers() -> None:
    async with Figures() as here:
        await here.decided(SUBMISSION)
        assert (here.read("active_pipelines"), here.read("anabranch_orchestrator_partitions")) == (1, 1)
        assert here.read("anabranch_orchestrator_quiet_run_seconds") == 2
        done = m.AttemptSucceeded(run_id="r", step="a", attempt=1, output={}, duration_ms=1)
        await here.decided(done, at_ms=T0 + 1_500)
        assert here.read("active_pipelines") == 0
        assert here.read("anabranch_orchestrator_quiet_run_seconds") == 0
    assert here.read("pipeline_duration_seconds_count", status="succeeded") == 1
    assert here.read("pipeline_duration_seconds_sum", status="succeeded") == 1.5
    assert here.read("pipeline_duration_seconds_count", status="failed") == 0
    assert here.read("anabranch_orchestrator_run_events_total", type="RunSucceeded") == 1
    assert here.read("anabranch_orchestrator_run_events_total", type="StepSucceeded") == 1
    assert here.read("anabranch_orchestrator_checkpoint_bytes_sum") > 0  # type: ignore[operator]
    assert f'# {{trace_id="{TRACE}"}} 1.5' in generate_latest(here.registry).decode()  # type: ignore[no-untyped-call]


async def test_what_is_decided_is_unwritten_until_its_checkpoint() -> None:
    async with Figures() as here:
        acknowledged = asyncio.get_running_loop().create_future()
        here.log.acknowledged = lambda: acknowledged  # type: ignore[method-assign]
        await here.decided(SUBMISSION)
        async with asyncio.timeout(60):
            while not here.read("anabranch_orchestrator_unwritten_seconds"):
                await asyncio.sleep(0)
        acknowledged.set_result(None)
        async with asyncio.timeout(60):
            while here.read("anabranch_orchestrator_unwritten_seconds"):
                await asyncio.sleep(0)


async def test_a_lost_worker_is_counted_when_its_lease_is_given_up() -> None:
    """Not when it is only suspected."""
    lost = "anabranch_orchestrator_lost_workers_total"
    async with Figures() as here:
        await here.decided(SUBMISSION, LEASE)
        for seconds, expected in ((60, 0), (120, 1)):
            timers = here.task.partition.runs["r"].timers()
            (lease,) = [each for each, due_ms in timers.items() if due_ms < T0 + 1000 * seconds]
            await here.decided(m.TimerFired(run_id="r", timer_id=lease), at_ms=T0 + 1000 * seconds)
            assert here.read(lost) == expected
