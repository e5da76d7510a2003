"""A stack, the other client, the attackers, and what is reported of them."""

import asyncio
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import aiohttp
from aiokafka import AIOKafkaProducer

from anabranch.deploy.local.services import Service, anabranch_services
from anabranch.deploy.local.stack import LocalStack
from anabranch.deploy.local.targets import TARGETS
from anabranch.shared.contracts.limits import MIB
from tests.hostile.attacks import ATTACKS, Arena, pools
from tests.hostile.misdeeds import NICE
from tests.hostile.watch import LIMIT_BYTES, SERVERS, Watch, late_s, loop_lags
from tests.hostile.zoo import a_zoo

LANES: Final = 3  # attacks at once
RATIO: Final = 5.0  # what the other client's p99 may be, of what it is undisturbed
_QUIET_SHARE: Final = 0.1  # of the time, at least 15 s, at most 60 s
_WARM_S: Final = 5.0
_GRACE_S: Final = 120.0  # for runs to end after the last attack
_ATTACK_S: Final = 60.0
_LOOKED_AT: Final = 3000  # of the runs that were accepted: the last ones


class Diamond(NamedTuple):
    """One of the other client's: when it began, how long it took, and how often it was submitted for that."""

    at: float
    seconds: float
    tries: int


class Attack(NamedTuple):
    """One attack: what kind, and from when to when."""

    kind: str
    began: float
    ended: float


@dataclass(slots=True)
class Report:
    """What a battle showed."""

    seconds: float
    seed: int
    quiet: list[Diamond] = field(default_factory=list)
    disturbed: list[Diamond] = field(default_factory=list)
    attacks: list[Attack] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)  # of the other client
    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    findings: Counter[str] = field(default_factory=Counter)
    endless: list[tuple[str, str]] = field(default_factory=list)
    accepted: int = 0
    watch: Watch | None = None
    lags: dict[str, dict[float, float]] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """The disturbed p99 over the undisturbed one."""
        return percentile(self.disturbed, 99) / max(0.001, percentile(self.quiet, 99))

    @property
    def missed(self) -> list[str]:
        """The bars that were missed."""
        assert self.watch is not None
        missed = []
        if self.ratio > RATIO:
            missed.append(
                f"the other client's p99 is {self.ratio:.1f} times what it is undisturbed, {RATIO:g} are allowed"
            )
        if self.faults:
            missed.append(f"{len(self.faults)} diamonds of the other client went wrong, such as: {self.faults[0]}")
        missed += [
            f"{name} ended {count} times: {self.watch.last_words[name][-1500:]}"
            for name, count in self.watch.ended.items()
        ]
        missed += [
            f"{name} took {size // MIB} MiB, {LIMIT_BYTES // MIB} are allowed"
            for name, size in self.watch.too_large.items()
        ]
        missed += [f"{what} ({count} times)" for what, count in self.findings.items()]
        if self.endless:
            missed.append(f"{len(self.endless)} runs never ended: {self.endless[:5]}")
        return missed

    def __str__(self) -> str:
        assert self.watch is not None
        lines = [
            f"{self.seconds:.0f} s of attacks, seed {self.seed}",
            f"{self.accepted} hostile runs were accepted, {len(self.endless)} never ended",
            "",
        ]
        for phase, diamonds in (("undisturbed", self.quiet), ("disturbed", self.disturbed)):
            p50, p99 = percentile(diamonds, 50), percentile(diamonds, 99)
            lines.append(
                f"the other client, {phase}: {len(diamonds)} diamonds, p50 {1000 * p50:.0f} ms, p99 {1000 * p99:.0f} ms"
            )
        lines += [
            f"ratio of the p99: {self.ratio:.1f} (bar {RATIO:g})",
            f"processes that ended: {dict(self.watch.ended) or 0}",
            f"beside the slowest hundredth, more often than beside any: {self._beside_the_slowest()}",
            "",
        ]
        for name, size in sorted(self.watch.worst.items()):
            lines.append(f"  {name:<14} {size / MIB:6.0f} MiB{'' if name in SERVERS else f' of {LIMIT_BYTES // MIB}'}")
        lines.append("")
        for name, lags in sorted(self.lags.items()):
            p50, p99, worst = (f"{1000 * late_s(lags, percent):.0f}" for percent in (50, 99, 100))
            lines.append(
                f"  {name:<14} its loop late by at most {p50} ms in half of the looks, {p99} in 99 %, {worst} ever"
            )
        lines.append("")
        for kind, outcomes in sorted(self.outcomes.items()):
            said = ", ".join(f"{what} {count}" for what, count in outcomes.most_common(8))
            lines.append(f"  {kind:<20} {sum(outcomes.values()):5}  {said[:300]}")
        return "\n".join(
            [*lines, "", *(f"MISSED: {what}" for what in self.missed), "every bar is held" if not self.missed else ""]
        )

    def _beside_the_slowest(self) -> str:
        """Return the kinds of attack that were under way during slow diamonds, with how much more often than usual."""
        bar = percentile(self.disturbed, 99)
        slow, all_ = Counter[str](), Counter[str]()
        for diamond in self.disturbed:
            beside = {a.kind for a in self.attacks if a.began < diamond.at + diamond.seconds and a.ended > diamond.at}
            all_.update(beside)
            if diamond.seconds >= bar:
                slow.update(beside)
        most = sum(each.seconds >= bar for each in self.disturbed)
        shares = {
            kind: (100 * count / most, count / most / (all_[kind] / len(self.disturbed)))
            for kind, count in slow.items()
        }
        again = sum(each.tries > 1 for each in self.disturbed if each.seconds >= bar)
        worst = sorted(shares.items(), key=lambda each: -each[1][1])[:6]
        kinds = ", ".join(f"{kind} {share:.0f} % ({lift:.1f} x)" for kind, (share, lift) in worst)
        return f"{kinds}; {again} of these {most} were submitted more than once"


def percentile(diamonds: Sequence[Diamond], share: int) -> float:
    """Return the seconds below which so many per cent of them took; 0 without any."""
    ordered = sorted(each.seconds for each in diamonds)
    return ordered[min(len(ordered) - 1, len(ordered) * share // 100)] if ordered else 0.0


async def fight(data_dir: Path, minutes: float, seed: int, kinds: Sequence[str]) -> Report:
    """Start a stack, attack it, and report."""
    report, drawn = Report(60 * minutes, seed), pools(seed)
    misdeeds = Service("misdeeds", (sys.executable, "-m", "tests.hostile.misdeeds"))
    stack = LocalStack(
        data_dir,
        port=0,
        services=(*anabranch_services(), misdeeds),
        env={"ANABRANCH_LOG_LEVEL": "warning", "ANABRANCH_RATE_LIMIT": "0", "ANABRANCH_READ_RATE_LIMIT": "0"},
        ready_timeout_s=180,
    )
    async with stack, a_zoo() as zoo_url:
        report.watch = Watch(stack)
        watching = asyncio.create_task(report.watch.run(), name="watch")
        async with _other_client(stack.gateway_url, report) as phase:
            await asyncio.sleep(_WARM_S)
            phase.append(report.quiet)
            await asyncio.sleep(min(60.0, max(15.0, 60 * minutes * _QUIET_SHARE)))
            phase.append(report.disturbed)
            os.nice(NICE)
            producer = AIOKafkaProducer(bootstrap_servers=stack.bootstrap, acks=1)
            await producer.start()
            async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_ATTACK_S)) as session:
                arena = Arena(stack.gateway_url, zoo_url, session, producer, drawn)
                await _attack(arena, report, kinds, seed)
                phase.append([])
                report.accepted = len(arena.accepted)
                report.endless = await _endless(arena)
            with suppress(Exception):  # whatever became of what was forged
                await producer.stop()
        report.lags = await loop_lags(data_dir / TARGETS)
        watching.cancel()
        report.watch.look()
    return report


@asynccontextmanager
async def _other_client(url: str, report: Report) -> AsyncIterator[list[list[Diamond]]]:
    """Run the other client; its diamonds go to the last list of what is yielded."""
    phase: list[list[Diamond]] = [[]]
    command = (sys.executable, "-m", "tests.hostile.other_client", url)
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    reading = asyncio.create_task(_follow(process, phase, report), name="other client")
    try:
        yield phase
    finally:
        process.kill()
        await process.wait()
        await reading


async def _follow(process: asyncio.subprocess.Process, phase: list[list[Diamond]], report: Report) -> None:
    assert process.stdout is not None
    async for line in process.stdout:
        said: dict[str, Any] = json.loads(line)
        phase[-1].append(Diamond(said["at"], said["seconds"], said["tries"]))
        if said["fault"] is not None:
            report.faults.append(f"{said['tries']} tries: {said['fault']}")


async def _attack(arena: Arena, report: Report, kinds: Sequence[str], seed: int) -> None:
    until = time.monotonic() + report.seconds
    async with asyncio.TaskGroup() as lanes:
        for lane in range(LANES):
            lanes.create_task(
                _lane(arena, report, kinds, random.Random(f"{seed}/{lane}"), until), name=f"attacker {lane}"
            )


async def _lane(arena: Arena, report: Report, kinds: Sequence[str], chance: random.Random, until: float) -> None:
    weights = [ATTACKS[kind][1] for kind in kinds]
    while time.monotonic() < until:
        (kind,) = chance.choices(kinds, weights)
        mine = Arena(
            arena.gateway_url,
            arena.zoo_url,
            arena.session,
            arena.producer,
            arena.pools,
            arena.topics,
            arena.accepted,
            kind,
        )
        began = time.monotonic()
        try:
            outcome = await ATTACKS[kind][0](mine, random.Random(chance.random()))
        except OSError as error:
            outcome = f"no connection: {type(error).__name__}"
        report.attacks.append(Attack(kind, began, time.monotonic()))
        if outcome.startswith("5") and not outcome.startswith("503"):
            report.findings[f"{kind} was answered {outcome}"] += 1
        report.outcomes.setdefault(kind, Counter())[outcome.split(":")[0]] += 1


async def _endless(arena: Arena) -> list[tuple[str, str]]:
    """Return the runs that do not end, although each was to end within 20 s."""
    left = list(arena.accepted[-_LOOKED_AT:])
    until = time.monotonic() + _GRACE_S
    while left and time.monotonic() < until:
        left = [run for run in left if not await _has_ended(arena, run[1])]
        await asyncio.sleep(1)
    return left


async def _has_ended(arena: Arena, run_id: str) -> bool:
    with suppress(aiohttp.ClientError, OSError, ValueError):
        async with arena.session.get(f"{arena.gateway_url}/v1/runs/{run_id}") as answer:
            if answer.status == 200:
                return (await answer.json()).get("status") in {"succeeded", "failed", "cancelled", "timed_out"}
    return False
