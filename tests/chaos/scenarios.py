"""What is done to a stack under load, and the figures that come of it."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from redis.asyncio import Redis

from anabranch.deploy.local.services import Service, anabranch_services
from anabranch.deploy.local.stack import LocalStack
from anabranch.shared.runtime.settings import Settings
from tests.support.flood import Flood, Observer, Seen, default_definition, faults_of
from tests.support.witness import starts

SESSION_S: Final = 3.0
IN_FLIGHT: Final = 500
ENOUGH_EVENTS: Final = 100
ENOUGH_COMMANDS: Final = 20
_KILLS_AT_MOST: Final = 10
_SETTLE_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class Figures:
    """What one scenario showed."""

    accepted: int
    faults: list[str]
    kills: int
    repeated_events: int
    repeated_commands: int
    starts: int
    reruns: int  # attempts whose handler was started more than once

    def __str__(self) -> str:
        return (
            f"{self.accepted} runs, {self.kills} kills, {self.repeated_events} repeated events, "
            f"{self.repeated_commands} repeated commands, {self.starts} handler starts, {self.reruns} reruns, "
            f"{len(self.faults)} faults"
        )


@dataclass(slots=True)
class Battle:
    """A stack under load that something is done to."""

    stack: LocalStack
    flood: Flood
    observer: Observer
    kills: int = 0

    @property
    def seen(self) -> Seen:
        """What the topics say so far."""
        return self.observer.seen

    async def more_ends(self, count: int, timeout_s: float = 90.0) -> None:
        """Wait until so many more runs have ended: the system moves."""
        goal = len(self.seen.ended) + count
        await self.observer.until(
            lambda seen: len(seen.ended) >= goal, f"fewer than {count} more runs ended", timeout_s
        )

    async def kill(self, role: str, number: int = 0) -> None:
        """SIGKILL one process of a role, and wait until it has come back and is ready."""
        name = self.stack.names(role)[number]
        pid = self.stack.service(name).pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        self.kills += 1
        await self.until_back(name, pid)

    async def until_back(self, name: str, old_pid: int) -> None:
        """Wait until the process runs again and is ready."""
        service = self.stack.service(name)
        async with asyncio.timeout(60):
            while service.pid in (None, old_pid):
                await self.observer.changed()
            await service.until_ready()


def repeated_enough(seen: Seen) -> bool:
    """Whether enough was appended again that the proof is not vacuous."""
    return seen.repeated_events >= ENOUGH_EVENTS and seen.repeated_commands >= ENOUGH_COMMANDS


Scenario = Callable[[Battle], Awaitable[None]]


async def kill_orchestrators(battle: Battle, times: int = 2) -> None:
    """`kill -9` of one orchestrator, then of the other; more of them until enough was repeated to mean something."""
    number = -1
    while (number := number + 1) < times or (not repeated_enough(battle.seen) and number < _KILLS_AT_MOST):
        await battle.flood.until_in_flight(IN_FLIGHT * 9 // 10)
        await battle.kill("orchestrator", number % 2)
        await battle.more_ends(IN_FLIGHT)


async def kill_workers(battle: Battle, times: int = 2) -> None:
    """`kill -9` of one step service, then of the other."""
    for number in range(times):
        await battle.flood.until_in_flight(IN_FLIGHT * 9 // 10)
        await battle.kill("witness", number % 2)
        await battle.more_ends(IN_FLIGHT)


async def kill_both(battle: Battle, times: int = 1) -> None:
    """`kill -9` of an orchestrator and a step service at once."""
    for number in range(times):
        await battle.flood.until_in_flight(IN_FLIGHT * 9 // 10)
        await asyncio.gather(battle.kill("orchestrator", number % 2), battle.kill("witness", number % 2))
        await battle.more_ends(IN_FLIGHT)


async def kill_broker(battle: Battle, times: int = 1) -> None:
    """`kill -9` and restart of the broker."""
    assert battle.stack.kafka is not None
    for _ in range(times):
        await battle.flood.until_in_flight(IN_FLIGHT * 9 // 10)
        await battle.stack.kafka.kill()
        await battle.stack.kafka.start()
        battle.kills += 1
        await battle.more_ends(IN_FLIGHT, timeout_s=180)


async def pause_orchestrator(battle: Battle, times: int = 1) -> None:
    """`SIGSTOP` past the session, then `SIGCONT`: a zombie goes on where it was."""
    for number in range(times):
        await battle.flood.until_in_flight(IN_FLIGHT * 9 // 10)
        name = battle.stack.names("orchestrator")[number % 2]
        pid = battle.stack.service(name).pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        battle.kills += 1
        # Its session is over, and the other one has its partitions, when every run of before has ended.
        before = set(battle.flood.accepted)
        await battle.observer.until(lambda seen: before <= seen.ended.keys(), "nobody took over", 90)  # noqa: B023
        os.kill(pid, signal.SIGCONT)
        await battle.more_ends(IN_FLIGHT)


@asynccontextmanager
async def battle(data_dir: Path) -> AsyncIterator[Battle]:
    """Start two orchestrators, two workers of each type, and 500 five-step runs in flight."""
    witness = Service("witness", (sys.executable, "-m", "tests.support.witness"), 2)
    stack = LocalStack(
        data_dir,
        port=0,
        services=(*anabranch_services(orchestrators=2, workers=2), witness),
        env={"ANABRANCH_SESSION_TIMEOUT_S": str(SESSION_S)},
        ready_timeout_s=120,
    )
    async with stack:
        settings = Settings(kafka_bootstrap_servers=stack.bootstrap, redis_url=stack.redis_url)
        async with Observer(settings, "witness") as observer:
            flood = Flood(stack.gateway_url, observer, in_flight=IN_FLIGHT, definition=default_definition())
            async with flood:
                yield Battle(stack, flood, observer)


async def fight(data_dir: Path, scenario: Scenario) -> Figures:
    """Run one scenario on a stack of its own and return its figures."""
    async with battle(data_dir) as field:
        await scenario(field)
        return await figures_of(field)


async def reruns_of(field: Battle) -> tuple[int, int]:
    """Return how many handlers the witness saw start, and how many attempts it saw started more than once."""
    redis = Redis.from_url(field.stack.redis_url)
    try:
        counts = await starts(redis)
    finally:
        await redis.aclose()
    return sum(counts.values()), sum(count > 1 for count in counts.values())


async def figures_of(field: Battle) -> Figures:
    """Let every accepted run end, and count."""
    accepted = await field.flood.drained(_SETTLE_S)
    started, reruns = await reruns_of(field)
    return Figures(
        accepted=len(accepted),
        faults=faults_of(field.seen, accepted),
        kills=field.kills,
        repeated_events=field.seen.repeated_events,
        repeated_commands=field.seen.repeated_commands,
        starts=started,
        reruns=reruns,
    )
