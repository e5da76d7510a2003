"""Every alert fires by the fault that it is for, on a real stack and in a real Prometheus, and falls silent again.

The rules are ours with all their times divided by `TIMES`, so that minutes take seconds.
"""

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import aiohttp
import pytest

from anabranch.deploy.local.prometheus import LocalPrometheus
from anabranch.deploy.local.services import anabranch_services
from anabranch.deploy.local.stack import LocalStack
from tests.chaos.faults import ACTS, MISBEHAVING, ROLE_ENV, WITNESS, Case, Field, load
from tests.support.databases import KillablePostgres
from tests.support.faster_rules import write_faster_rules
from tests.support.prometheus import ask, firing, needs_prometheus

TIMES: Final = 30  # as much faster: the shortest window then has four scrapes of a second each
_HEALTHY_S: Final = 25.0  # longer than any alert's `for`
_FIRES_WITHIN_S: Final = 90.0
_SILENT_WITHIN_S: Final = 120.0
_LOOK_EVERY_S: Final = 0.5


class Alerts:
    """What fires, and when it began to."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url
        self._began_s = time.monotonic()
        self.lines: list[str] = []

    async def now(self) -> set[str]:
        """Return the alerts that fire."""
        return await firing(self._session, self._url)

    async def until_fires(self, name: str, what: str) -> None:
        """Wait for an alert, and note how long it took."""
        began_s = time.monotonic()
        while name not in (found := await self.now()):
            if time.monotonic() > began_s + _FIRES_WITHIN_S:
                pytest.fail(f"{name} does not fire although {what}; these do: {sorted(found)}\n{self}")
            await asyncio.sleep(_LOOK_EVERY_S)
        now_s = time.monotonic()
        self.lines.append(f"{now_s - self._began_s:5.0f} s  {name} fires, {now_s - began_s:.0f} s after: {what}")

    async def until_silent(self) -> None:
        """Wait until nothing fires."""
        began_s = time.monotonic()
        while found := await self.now():
            if time.monotonic() > began_s + _SILENT_WITHIN_S:
                pytest.fail(f"still firing: {sorted(found)}\n{self}")
            await asyncio.sleep(_LOOK_EVERY_S)
        now_s = time.monotonic()
        self.lines.append(f"{now_s - self._began_s:5.0f} s  all are silent, {now_s - began_s:.0f} s after the last")

    def __str__(self) -> str:
        return "\n".join(self.lines)


@needs_prometheus
async def test_every_alert_fires_by_its_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On a healthy stack none does; each is silent until its own fault; when all are undone none fires any more."""
    rules = tmp_path / "rules"
    write_faster_rules(rules, TIMES)
    async with AsyncExitStack() as opened:
        database = await opened.enter_async_context(KillablePostgres())
        stack = LocalStack(
            tmp_path, port=0, services=(*anabranch_services(), MISBEHAVING, WITNESS), database_url=database.url,
            role_env=ROLE_ENV, restart=False, ready_timeout_s=120,
        )  # fmt: skip
        await opened.enter_async_context(stack)
        http = await opened.enter_async_context(
            aiohttp.ClientSession(stack.gateway_url, timeout=aiohttp.ClientTimeout(total=15))
        )
        field = Field(stack, database, http)
        await field.warm_up()
        prometheus = await opened.enter_async_context(LocalPrometheus(tmp_path, interval_s=1.0, rules=rules))
        session = await opened.enter_async_context(aiohttp.ClientSession())
        alerts = Alerts(session, prometheus.url)
        await opened.enter_async_context(load(field))
        await asyncio.sleep(_HEALTHY_S)  # what is tested is that nothing happens in it
        ever = await ask(session, prometheus.url, 'count_over_time(ALERTS{alertstate="firing"}[5m])')
        assert ever == [], "an alert fires on a healthy stack"
        try:
            for act in ACTS:
                await asyncio.gather(*(_do(row, field, alerts) for row in act))
            await alerts.until_silent()
        finally:
            with capsys.disabled():
                print(f"\n{alerts}")


async def _do(row: Sequence[Case], field: Field, alerts: Alerts) -> None:
    for fault, names in row:
        assert not set(names) & await alerts.now(), f"{names}: fire before {fault.__name__}"
        async with fault(field):
            what = fault.__name__.replace("_", " ")
            await asyncio.gather(*(alerts.until_fires(name, what) for name in names))
