"""What metrics cost: two stacks on one Kafka, as alike as can be, but that one counts nothing; bursts by turns.

Each pair of bursts is as the one before in reverse order: what the machine does meanwhile takes from both.
"""

import sys
import time
import timeit
from collections.abc import Callable
from contextlib import AsyncExitStack
from statistics import median
from typing import Final

from prometheus_client import CollectorRegistry

from anabranch.deploy.local.services import Service, anabranch_services
from anabranch.services.gateway.metrics import GatewayMetrics
from anabranch.services.orchestrator.metrics import OrchestratorMetrics
from anabranch.services.steps.metrics import WorkerMetrics
from tests.performance.bed import Bed, bed
from tests.performance.processes import SERVERS
from tests.performance.report import Report
from tests.performance.sizes import Sizes
from tests.performance.throughput import Block, block_of, burst, diamonds

_PER_S: Final = 0.97
_CPU: Final = 1.03
_TIMES: Final = 20_000
_REPEATS: Final = 7
_ROLES: Final = ("gateway", "orchestrator", "history", "simulate")


async def measure(sizes: Sizes) -> None:
    """Measure and report."""
    report = Report("metrics_cost")
    tell_facts(report)
    services = [each for each in anabranch_services() if each.role in _ROLES]
    async with AsyncExitStack() as opened:
        counting = await opened.enter_async_context(bed(services=services))
        silent = await opened.enter_async_context(
            bed(
                services=[_without_metrics(each) for each in services],
                bootstrap=counting.stack.bootstrap,
                redis_url=counting.stack.redis_url,
                env={"ANABRANCH_TOPIC_PREFIX": "silent"},
            )
        )
        for each in (counting, silent):
            await each.run(diamonds(sizes.cost_pipelines))
        pairs: list[tuple[Block, Block]] = []
        for number in range(2 * sizes.blocks):
            first, second = (counting, silent) if number % 2 else (silent, counting)
            found = {id(first): await _block(first, sizes), id(second): await _block(second, sizes)}
            pairs.append((found[id(counting)], found[id(silent)]))
            print(f"pair {number}: CPU {_cpu(pairs[-1][0]) / _cpu(pairs[-1][1]):.3f}", flush=True)
    _tell(report, pairs)


def facts_of_a_diamond() -> dict[str, tuple[Callable[[], None], int]]:
    """Return what is told while a diamond goes through, and how often."""
    gateway, orchestrator = GatewayMetrics(CollectorRegistry()), OrchestratorMetrics(CollectorRegistry())
    worker, trace_id = WorkerMetrics("simulate", CollectorRegistry()), 32 * "0"
    return {
        "a request answered": (lambda: gateway.answered("POST", "/v1/runs", 202, 0.01, trace_id=trace_id), 1),
        "a definition read": (lambda: gateway.definition_read(cached=True), 1),
        "a run accepted": (gateway.run_accepted, 1),
        "a message decided": (lambda: orchestrator.decided("AttemptSucceeded", None), 6),
        "a run event": (lambda: orchestrator.said("StepSucceeded"), 7),
        "a run ended": (lambda: orchestrator.run_ended("RunSucceeded", seconds=0.02, trace_id=trace_id), 1),
        "a handler called": (lambda: worker.begun(0.001), 5),
        "an answer": (lambda: worker.answered("AttemptSucceeded", 0.001), 5),
    }


def tell_facts(report: Report) -> None:
    """Measure each fact alone: CPU time, which what else the machine does changes little."""
    together_us = 0.0
    for what, (tell, times) in facts_of_a_diamond().items():
        took_s = min(timeit.repeat(tell, number=_TIMES, repeat=_REPEATS, timer=time.process_time))
        each_us = 1e6 * took_s / _TIMES
        together_us += times * each_us
        report.row(f"{what}, CPU µs", f"{each_us:.2f}, {times} of a diamond")
    report.row("all of a diamond's, alone, CPU µs", f"{together_us:.1f}")
    report.note(facts_us=together_us)


def _without_metrics(service: Service) -> Service:
    *_, module = service.command
    return Service(service.role, (sys.executable, "-m", "tests.performance.without_metrics", module), service.count)


async def _block(side: Bed, sizes: Sizes) -> Block:
    return await block_of(side.processes(), sizes.cost_pipelines, lambda count: burst(side, count))


def _tell(report: Report, pairs: list[tuple[Block, Block]]) -> None:
    per_s = [counting.per_s / silent.per_s for counting, silent in pairs]
    cpu = [_cpu(counting) / _cpu(silent) for counting, silent in pairs]
    for what, number in (("with metrics", 0), ("without", 1)):
        blocks = [pair[number] for pair in pairs]
        report.row(f"pipelines/s {what}", _all([block.per_s for block in blocks], ".0f"))
        report.row(f"CPU ms per pipeline {what}, services", _all([_cpu(block) for block in blocks], ".3f"))
    report.row("pipelines/s, ratio", _all(per_s, ".3f"), f">= {_PER_S}")
    report.row("CPU, ratio", _all(cpu, ".3f"), f"<= {_CPU}")
    for role in _ROLES:
        ratio = median(counting.cpu_ms[role] / silent.cpu_ms[role] for counting, silent in pairs)
        report.row(f"CPU, ratio: {role}", f"{ratio:.3f}")
    report.note(per_s=per_s, cpu=cpu, blocks=[[(b.per_s, dict(b.cpu_ms)) for b in pair] for pair in pairs])
    report.finish()
    report.require("pipelines/s with metrics", median(per_s) >= _PER_S)
    report.require("CPU with metrics", median(cpu) <= _CPU)


def _cpu(block: Block) -> float:
    return block.cpu_of(*(name for name in block.cpu_ms if name in _ROLES and name not in SERVERS))


def _all(values: list[float], form: str) -> str:
    return f"{median(values):{form}}   ({', '.join(f'{value:{form}}' for value in values)})"
