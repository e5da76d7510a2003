"""What benchmarks measure on: a local stack with fresh data, runs submitted over HTTP, ends read from Kafka."""

import shutil
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from anabranch.deploy.local.ports import free_port
from anabranch.deploy.local.services import Service, anabranch_services
from anabranch.deploy.local.stack import LocalStack
from anabranch.shared.contracts.topics import DEFAULT_PREFIX
from anabranch.shared.runtime.settings import Settings
from tests.performance.ends import Ends
from tests.performance.processes import Processes
from tests.performance.submitter import Submitter

UNLIMITED: Final = {"ANABRANCH_RATE_LIMIT": "0", "ANABRANCH_READ_RATE_LIMIT": "0"}
"""How a client is held back is not what is measured."""


@dataclass(frozen=True, slots=True)
class Bed:
    """A running stack, the way in, and the way out."""

    stack: LocalStack
    settings: Settings
    submitter: Submitter
    ends: Ends

    def processes(self, others: Mapping[str, int] | None = None) -> Processes:
        """Return every process of the stack, and others."""
        return Processes({**self.stack.processes, **(others or {})})

    async def run(self, requests: list[bytes], timeout_s: float = 300.0) -> None:
        """Submit all and wait until all have succeeded. What is known of ended runs is forgotten."""
        run_ids = await self.submitter.submit(requests)
        await self.ends.until(run_ids, timeout_s)
        self.ends.ended.clear()


@asynccontextmanager
async def bed(
    *,
    orchestrators: int = 1,
    restart: bool = True,
    role_env: Mapping[str, Mapping[str, str]] | None = None,
    database_url: str | None = None,
    services: Sequence[Service] | None = None,
    bootstrap: str | None = None,
    redis_url: str | None = None,
    env: Mapping[str, str] | None = None,
) -> AsyncIterator[Bed]:
    """Start a stack with fresh data in a directory of its own, and delete it at the end."""
    data = Path(tempfile.mkdtemp(prefix="anabranch-bench-"))
    try:
        services = services or anabranch_services(orchestrators=orchestrators)
        stack = LocalStack(
            data, services=services, restart=restart, port=free_port(), env={**UNLIMITED, **(env or {})},
            role_env=role_env, database_url=database_url, bootstrap=bootstrap, redis_url=redis_url,
        )  # fmt: skip
        async with stack:
            settings = Settings(
                kafka_bootstrap_servers=stack.bootstrap, redis_url=stack.redis_url,
                topic_prefix=(env or {}).get("ANABRANCH_TOPIC_PREFIX", DEFAULT_PREFIX),
            )  # fmt: skip
            async with Submitter(stack.gateway_url) as submitter, Ends(settings) as ends:
                yield Bed(stack, settings, submitter, ends)
    finally:
        shutil.rmtree(data, ignore_errors=True)
