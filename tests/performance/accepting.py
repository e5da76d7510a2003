"""Submissions that one gateway process accepts per second, guarded and not, against bare handlers on the same Kafka.

The orchestrator stands still meanwhile, so that the gateway has a core of its own. Blocks of all are interleaved.
"""

import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from anabranch.client import keys
from anabranch.deploy.local.ports import free_port
from anabranch.deploy.local.process import spawn
from anabranch.deploy.local.services import anabranch_services
from anabranch.deploy.local.stack import LocalStack
from anabranch.shared.runtime.settings import Settings
from tests.performance.bed import UNLIMITED
from tests.performance.processes import Processes, differences
from tests.performance.report import Report
from tests.performance.sizes import Sizes
from tests.performance.submitter import Submitter
from tests.performance.throughput import diamonds
from tests.support.one_service import OneService, eventually

_BARE, _SHARED = "a bare handler, a batch each", "a bare handler, batches shared"
_OPEN, _GUARDED = "the gateway, guards off", "the gateway, keys and limits on"
_TOPIC: Final = "bench-bare"
_ENV: Final = UNLIMITED | {"ANABRANCH_MAX_INBOX_LAG": "1000000000"}
_LIMITS: Final = {
    "ANABRANCH_AUTH": "keys",
    "ANABRANCH_RATE_LIMIT": "100000000",
    "ANABRANCH_READ_RATE_LIMIT": "100000000",
}


@dataclass(frozen=True, slots=True)
class _Target:
    """Where to submit to, the lines of a request's head that it wants, and the process that takes it."""

    url: str
    head: bytes
    pid: int


async def measure(sizes: Sizes) -> None:
    """Measure and report."""
    report = Report("accepting")
    per_s: dict[str, list[float]] = {_BARE: [], _SHARED: [], _OPEN: [], _GUARDED: []}
    cpu_ms: dict[str, list[float]] = {name: [] for name in per_s}
    refused = 0
    async with _targets() as targets:
        processes = Processes({name: target.pid for name, target in targets.items()})
        for block in range(sizes.blocks + 1):
            for name, target in targets.items():
                requests = [_with(target.head, request) for request in diamonds(sizes.pipelines)]
                async with Submitter(target.url) as submitter:  # anew: none has been idle until it was closed
                    before, started = processes.cpu_s(), time.perf_counter()
                    await submitter.submit(requests)
                    seconds, used = time.perf_counter() - started, differences(before, processes.cpu_s())
                refused += submitter.refused
                if block:  # the first one warms up
                    per_s[name].append(sizes.pipelines / seconds)
                    cpu_ms[name].append(1000 * used[name] / sizes.pipelines)
    for name, found in per_s.items():
        report.row(f"accepted/s: {name}", f"{median(found):.0f}   ({', '.join(f'{each:.0f}' for each in found)})")
    for name, found in cpu_ms.items():
        report.row(f"CPU ms per submission: {name}", f"{median(found):.3f}")
    of_bare, of_shared, of_open = (
        median(mine / other for mine, other in zip(per_s[_GUARDED], per_s[each], strict=True))
        for each in (_BARE, _SHARED, _OPEN)
    )
    report.row("guarded over bare with a batch each, median of blocks", f"{of_bare:.3f}", ">= 0.5")
    report.row("guarded over bare with batches shared", f"{of_shared:.3f}", ">= 0.5")
    report.row("guarded over guards off, median of blocks", f"{of_open:.3f}", ">= 0.85")
    report.row("sent away with 503", str(refused))
    report.note(per_s=per_s, cpu_ms=cpu_ms, of_bare=of_bare, of_shared=of_shared, of_open=of_open, refused=refused)
    report.finish()


def _with(head: bytes, request: bytes) -> bytes:
    return request.replace(b"\r\n", b"\r\n" + head, 1) if head else request


@asynccontextmanager
async def _targets() -> AsyncIterator[dict[str, _Target]]:
    """Start the three; yield each by its name."""
    data = Path(tempfile.mkdtemp(prefix="anabranch-bench-"))
    services = [service for service in anabranch_services() if service.role in ("gateway", "orchestrator", "simulate")]
    try:
        async with LocalStack(data, services=services, port=free_port(), env=_ENV) as stack, AsyncExitStack() as open_:
            settings = Settings(kafka_bootstrap_servers=stack.bootstrap, redis_url=stack.redis_url)
            text, issued = keys.new_key(tenant="bench", scopes=("submit", "read"), name="bench", days=None, now_ms=0)
            await keys.write(settings, issued)
            env = _ENV | _LIMITS | {"KAFKA_BOOTSTRAP_SERVERS": stack.bootstrap, "REDIS_URL": stack.redis_url}
            guarded = await open_.enter_async_context(OneService("gateway", data / "guarded.log", **env))
            admin = AIOKafkaAdminClient(bootstrap_servers=stack.bootstrap)
            await admin.start()
            await admin.create_topics([NewTopic(_TOPIC, num_partitions=settings.run_partitions, replication_factor=1)])
            await admin.close()
            bare = await open_.enter_async_context(_bare("own", stack.bootstrap, data))
            shared = await open_.enter_async_context(_bare("shared", stack.bootstrap, data))
            os.kill(orchestrator := stack.processes["orchestrator"], signal.SIGSTOP)
            open_.callback(os.kill, orchestrator, signal.SIGCONT)
            key = b"X-API-Key: %b\r\n" % text.encode()
            yield {
                _BARE: bare,
                _SHARED: shared,
                _OPEN: _Target(stack.gateway_url, b"", stack.processes["gateway"]),
                _GUARDED: _Target(f"http://127.0.0.1:{guarded.port}", key, guarded.pid),
            }
    finally:
        shutil.rmtree(data, ignore_errors=True)


@asynccontextmanager
async def _bare(how: str, bootstrap: str, data: Path) -> AsyncIterator[_Target]:
    port, log = free_port(), data / f"bare-{how}.log"
    command = [sys.executable, "-m", "tests.performance.bare_gateway", bootstrap, _TOPIC, str(port), how]
    process = await spawn(command, env=dict(os.environ), log=log)
    try:
        await eventually(lambda: _listens(port), words=log.read_text)
        yield _Target(f"http://127.0.0.1:{port}", b"", process.pid)
    except Exception as error:
        error.add_note(log.read_text())
        raise
    finally:
        await process.stop(20)


async def _listens(port: int) -> bool:
    try:
        async with Submitter(f"http://127.0.0.1:{port}", connections=1):
            return True
    except OSError:
        return False
