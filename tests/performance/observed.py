"""Ten minutes of load of many pipelines and tenants while a real Prometheus scrapes every process, with our own rules.

No alert may fire, no metric may have more series than is declared for it or than it had early on, and then, when what a
healthy stack never has was done to it too, every panel of every dashboard must have data. What the panels had is
written to `samples.json` beside the other results: `python -m anabranch.deploy.grafana.generate` takes it.
"""

import asyncio
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import aiohttp
import orjson
from prometheus_client.parser import text_string_to_metric_families

from anabranch.client.keys import new_key, write
from anabranch.deploy.grafana.panels import ALL
from anabranch.deploy.local.prometheus import LocalPrometheus
from anabranch.shared.contracts.api_keys import Scope
from tests.performance.bed import Bed, bed
from tests.performance.report import Report, results_dir
from tests.performance.sizes import Sizes
from tests.performance.submitter import definition_bytes, request
from tests.performance.uncommon import uncommon_things
from tests.support.diamond import diamond
from tests.support.prometheus import ask, asked_as_of_grafana, points
from tests.support.queries import declared

_INTERVAL_S: Final = 5.0
_EARLY: Final = 0.25  # of the time: every pipeline and tenant has been there by then
_MORE_SERIES: Final = 1.1  # than early on: a bucket's or a status's first time may come late
_UNCOMMON_S: Final = 60.0
_FAILING_SHARE: Final = 200  # one of so many runs fails, which its objective allows
_READS: Final = 10  # runs read for those of each second
_OWNER: Final = "anabranch"


class Series(NamedTuple):
    """Of one metric in one process: its series, its label sets, and how many of those it may have."""

    count: int
    sets: int
    bound: int


_NONE: Final = Series(0, 0, 0)


@dataclass(slots=True)
class Load:
    """Submits at a steady pace as every tenant in turn, waits for some, reads others, follows one."""

    bed: Bed
    keys: Mapping[str, str]
    sizes: Sizes
    runs: int = 0
    refused: int = 0
    used: set[tuple[str, str]] = field(default_factory=set)

    async def run(self) -> None:
        """Go on for ever."""
        definitions = [
            definition_bytes({**diamond("simulate"), "name": f"pipeline-{number}"})
            for number in range(self.sizes.observed_pipelines)
        ]
        failing = definition_bytes(
            {"name": "failing", "steps": {"f": {"uses": "simulate", "with": {"error": "Broken", "terminal": True}}}}
        )
        tenants = [*self.keys]
        async with aiohttp.ClientSession(self.bed.stack.gateway_url) as http:
            while True:
                due_s = time.monotonic() + 1.0
                requests = []
                for _ in range(self.sizes.observed_per_s):
                    self.runs += 1
                    # Each round of the tenants begins at another pipeline: all pairs come.
                    number = (self.runs + self.runs // len(definitions)) % len(definitions)
                    tenant = tenants[self.runs % len(tenants)]
                    fails = self.runs % _FAILING_SHARE == 0
                    self.used.add((tenant, "failing" if fails else f"pipeline-{number}"))
                    query = b"?wait=30s" if self.runs % 3 == 0 else b""
                    given = b"{}" if fails else b'{"n":%d}' % self.runs
                    requests.append(
                        request(failing if fails else definitions[number], given, None, query, self.keys[tenant])
                    )
                accepted = await self.bed.submitter.submit(requests)
                await self._read(http, accepted[-_READS:])
                await asyncio.sleep(max(0.0, due_s - time.monotonic()))

    async def _read(self, http: aiohttp.ClientSession, run_ids: Sequence[str]) -> None:
        headers = {"Authorization": f"Bearer {self.keys[_OWNER]}"}
        for path in (*(f"/v1/runs/{run_id}" for run_id in run_ids), "/v1/runs?limit=5", "/v1/statistics"):
            async with http.get(path, headers=headers) as answer:
                await answer.read()


async def measure(sizes: Sizes) -> None:
    """Measure and report."""
    report = Report("observed")
    async with observed(sizes) as (ours, load, url, http):
        await asyncio.sleep(_EARLY * sizes.observed_s)
        early, early_runs = await series_of(ours), load.runs
        await asyncio.sleep((1 - _EARLY) * sizes.observed_s)
        late, late_runs, late_pairs = await series_of(ours), load.runs, len(load.used)
        fired = await ask(http, url, f'count_over_time(ALERTS{{alertstate="firing"}}[{round(sizes.observed_s)}s])')
        pending = await ask(http, url, f'count_over_time(ALERTS{{alertstate="pending"}}[{round(sizes.observed_s)}s])')
        stored = await ask(http, url, "sum(scrape_samples_scraped)")
        leaks = await names_of_clients(ours, load)
        async with uncommon_things(ours, load.keys[_OWNER]):
            await asyncio.sleep(_UNCOMMON_S)
        shown = await samples_of_panels(http, url, sizes.observed_s + 2 * _UNCOMMON_S)
    empty = sorted({query for query, count in shown.items() if not count})
    report.row("runs, pipelines and tenants of them", f"{late_runs}, {late_pairs} pairs")
    report.row(f"alerts that fired in {sizes.observed_s:.0f} s", _names(fired), "none")
    report.row("alerts that were pending in it", _names(pending))
    report.row("series of the whole stack", stored[0]["value"][1])
    for (service, metric), now in sorted(late.items()):
        before = early.get((service, metric), _NONE)
        what = f"{now.sets} label sets; series: {before.count} after {early_runs} runs, {now.count} after {late_runs}"
        report.row(f"{service}: {metric}", what, f"<= {now.bound}" if now.bound else "")
    report.row("names of tenants, pipelines and runs in /metrics", ", ".join(leaks) or "none", "none")
    report.row("queries of panels, without data", f"{len(shown)}, {len(empty)}", "0")
    report.note(
        series={" ".join(name): now._asdict() for name, now in late.items()},
        early={" ".join(name): now.count for name, now in early.items()},
        fired=_names(fired), pending=_names(pending), empty=empty, runs=late_runs,
    )  # fmt: skip
    told = {"seconds": sizes.observed_s, "runs": late_runs, "samples": shown}
    (results_dir() / "samples.json").write_bytes(orjson.dumps(told, option=orjson.OPT_INDENT_2))
    report.finish()
    report.require("no alert fires on a healthy stack", not fired)
    report.require("no metric has more series than declared", all(each.sets <= each.bound for each in late.values()))
    together, together_early = (sum(each.count for each in found.values()) for found in (late, early))
    report.require("series do not grow with runs", together <= _MORE_SERIES * together_early)
    report.require("nobody's name is in a metric", not leaks)
    report.require(f"every query has data: {empty}", not empty)


@asynccontextmanager
async def observed(sizes: Sizes) -> AsyncIterator[tuple[Bed, Load, str, aiohttp.ClientSession]]:
    """A stack under load, and the Prometheus that scrapes it."""
    async with bed(role_env={"gateway": {"ANABRANCH_AUTH": "keys"}}) as ours:
        keys = await tenants_of(ours, sizes.observed_tenants)
        load = Load(ours, keys, sizes)
        working = asyncio.create_task(load.run(), name="load")
        try:
            await asyncio.sleep(_INTERVAL_S)  # the alerts are of a stack that has started
            async with (
                LocalPrometheus(ours.stack.home.path, interval_s=_INTERVAL_S) as prometheus,
                aiohttp.ClientSession() as http,
            ):
                yield ours, load, prometheus.url, http
                if working.done():
                    working.result()
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)


async def tenants_of(ours: Bed, count: int) -> dict[str, str]:
    """Make a key for each tenant; return them when the gateway knows them all."""
    keys = {}
    for name in (_OWNER, *(f"tenant-{number}" for number in range(count - 1))):
        text, issued = new_key(
            tenant=name, scopes=tuple(scope.value for scope in Scope), name=name, days=None,
            now_ms=time.time_ns() // 1_000_000,
        )  # fmt: skip
        await write(ours.settings, issued)
        keys[name] = text
    async with asyncio.timeout(60), aiohttp.ClientSession(ours.stack.gateway_url) as http:
        while True:
            async with http.get("/v1/runs", headers={"Authorization": f"Bearer {text}"}) as answer:
                if answer.status == 200:
                    return keys
            await asyncio.sleep(0.1)


async def texts_of(ours: Bed) -> dict[str, str]:
    """Return `/metrics` of every process, by its name."""
    async with aiohttp.ClientSession() as http:
        found = {}
        for name in ours.stack.processes:
            if name not in ("kafka", "redis"):
                async with http.get(f"{ours.stack.service(name).url}/metrics") as answer:
                    found[name] = await answer.text()
        return found


async def series_of(ours: Bed) -> dict[tuple[str, str], Series]:
    """Return what each service's metrics have; those of prometheus-client itself together."""
    bounds = {metric.name.removesuffix("_total"): metric.bound for metric in declared()}
    found: dict[tuple[str, str], Series] = {}
    for service, text in (await texts_of(ours)).items():
        of_others = 0
        for family in text_string_to_metric_families(text):
            if family.name not in bounds:
                of_others += len(family.samples)
                continue
            sets = {frozenset(set(each.labels.items()) - {("le", each.labels.get("le"))}) for each in family.samples}
            found[service, family.name] = Series(len(family.samples), len(sets), bounds[family.name])
        found[service, "of prometheus-client itself"] = Series(of_others, 0, 0)
    return found


async def names_of_clients(ours: Bed, load: Load) -> list[str]:
    """Return which of the names that clients made stand in metrics: none should."""
    together = "\n".join((await texts_of(ours)).values())
    made = {name for pair in load.used for name in pair} | set(ours.submitter.accepted)
    return sorted(name for name in made - {_OWNER} if f'"{name}"' in together)


async def samples_of_panels(http: aiohttp.ClientSession, url: str, last_s: float) -> dict[str, int]:
    """Return how many points each query of a panel has that are numbers."""
    queries = [query.expr for shown in ALL for row in shown.rows.values() for panel in row for query in panel.queries]
    found: Counter[str] = Counter()
    for query in queries:
        values = await points(http, url, asked_as_of_grafana(query), last_s=last_s, step_s=_INTERVAL_S)
        found[query] = sum(not math.isnan(value) for value in values)
    return dict(found)


def _names(samples: Sequence[Any]) -> str:
    return ", ".join(sorted({sample["metric"]["alertname"] for sample in samples})) or "none"
