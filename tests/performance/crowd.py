"""A thousand clients with a connection and an API key each: how long a submission takes while all wait for their runs.

Three ways to come. *Paced*: each submits, waits for its run's end, thinks for some seconds, and submits again, so
that arrivals are spread and the machine has room; the bar is for these. *At once*: all submit in the same instant, and
who is last waits for all others to be accepted. *Without a pause*: each submits again as soon as its run has ended,
which keeps the machine at its limit whatever that is.
"""

import asyncio
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Final, Self, cast
from urllib.parse import urlsplit

import orjson

from anabranch.client import keys
from anabranch.deploy.local.ports import free_port
from anabranch.deploy.local.services import anabranch_services
from anabranch.deploy.local.stack import LocalStack
from anabranch.shared.contracts.messages import API_KEYS
from anabranch.shared.runtime.clients import new_producer
from anabranch.shared.runtime.descriptors import allow_descriptors
from anabranch.shared.runtime.settings import Settings
from tests.performance.processes import Processes, differences
from tests.performance.report import Report, percentile
from tests.performance.sizes import Sizes
from tests.performance.submitter import request
from tests.performance.throughput import DIAMOND
from tests.support.diamond import right_outputs
from tests.support.one_service import eventually

_SUBMIT_MS: Final = 200.0  # p95, the bar
_WITHIN_S: Final = 120.0  # a run that takes longer does not end
_OTHER_DESCRIPTORS: Final = 256  # of this process
_AGAIN: Final = frozenset({429, 503})
_OPENED_AT_ONCE: Final = 50  # connections: how they are opened is not what is measured

# A hundred times what a client may do by default, and counted all the same.
_ENV: Final = {
    "ANABRANCH_AUTH": "keys",
    "ANABRANCH_RATE_LIMIT": "6000",
    "ANABRANCH_READ_RATE_LIMIT": "60000",
    "ANABRANCH_MAX_CONNECTIONS_OF_CLIENT": "15000",  # all come from one address
}


class ConnectionLost(Exception):
    """The gateway closed a connection on which it owed an answer."""


@dataclass(slots=True)
class Tally:
    """What the clients saw: milliseconds of accepted submissions and of whole runs, and every status."""

    submit_ms: list[float] = field(default_factory=list)
    whole_ms: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    later: Counter[str] = field(default_factory=Counter)  # why a client was told to come back
    right: int = 0  # runs that ended as they must
    wrong: list[str] = field(default_factory=list)

    @property
    def errors(self) -> int:
        """Answers that are neither what was asked for nor an invitation to come back later."""
        right = {"submit 202", "wait 200", *(f"{what} {status}" for what in ("submit", "wait") for status in _AGAIN)}
        return sum(number for status, number in self.statuses.items() if status not in right)


class Client(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self, key: str) -> None:
        self._head = b"X-API-Key: %b\r\n" % key.encode()
        self._transport: asyncio.Transport | None = None
        self._received = b""
        self._answered: asyncio.Future[tuple[int, bytes, bytes]] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none of asyncio's

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(ConnectionLost(repr(exc)))

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found or len(body) < int(_header(head, b"content-length")):
            return
        self._received = b""
        if self._answered is not None and not self._answered.done():
            self._answered.set_result((int(head[9:12]), head, body))

    async def ask(self, given: bytes) -> tuple[int, bytes, bytes]:
        """Return the status, the head and the body of the answer to a request."""
        if self._transport is None:
            raise ConnectionLost("before a request")
        self._answered = asyncio.get_running_loop().create_future()
        self._transport.write(given.replace(b"\r\n", b"\r\n" + self._head, 1))
        return await self._answered

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.close()


class Crowd:
    """The clients, all connected."""

    def __init__(self, url: str, texts: list[str]) -> None:
        self._url = urlsplit(url)
        self._clients = [Client(text) for text in texts]
        self._numbers = count(1)

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        for start in range(0, len(self._clients), _OPENED_AT_ONCE):
            opened = self._clients[start : start + _OPENED_AT_ONCE]
            connect = (
                loop.create_connection(lambda client=client: client, self._url.hostname, self._url.port)  # type: ignore[misc]
                for client in opened
            )
            await asyncio.gather(*connect)
        return self

    async def __aexit__(self, *_: object) -> None:
        for client in self._clients:
            client.close()

    async def works(self) -> bool:
        """Return whether the gateway knows the key that was written last."""
        status, _, _ = await self._clients[-1].ask(b"GET /v1/step-types HTTP/1.1\r\nHost: anabranch\r\n\r\n")
        return status == 200

    async def come(self, rounds: int, pause: Callable[[], float]) -> Tally:
        """Have every client submit and wait so many times, each with a pause before."""
        tally = Tally()
        async with asyncio.TaskGroup() as clients:
            for client in self._clients:
                clients.create_task(self._rounds(client, rounds, pause, tally), name="client")
        return tally

    async def _rounds(self, client: Client, rounds: int, pause: Callable[[], float], tally: Tally) -> None:
        try:
            for _ in range(rounds):
                if seconds := pause():
                    await asyncio.sleep(seconds)
                await _run(client, next(self._numbers), tally)
        except ConnectionLost as error:
            tally.statuses["connection lost"] += 1
            tally.wrong.append(repr(error))


async def _run(client: Client, number: int, tally: Tally) -> None:
    """Submit one diamond and wait for its end."""
    submission = request(DIAMOND, b'{"n":%d}' % number)
    began_s = time.perf_counter()
    body = await _asked(client, "submit", submission, 202, tally, tally.submit_ms)
    if body is None:
        return
    run_id = orjson.loads(body)["id"]
    get = b"GET /v1/runs/%b?wait=60s HTTP/1.1\r\nHost: anabranch\r\n\r\n" % run_id.encode()
    document: dict[str, Any] = {}
    while not document.get("finished_at") and time.perf_counter() - began_s < _WITHIN_S:
        body = await _asked(client, "wait", get, 200, tally, [])
        if body is None:
            return
        document = orjson.loads(body)
    tally.whole_ms.append(1000 * (time.perf_counter() - began_s))
    if document.get("status") == "succeeded" and document.get("outputs") == right_outputs(number):
        tally.right += 1
    else:
        tally.wrong.append(f"{run_id}: {document.get('status')} with {document.get('outputs')}")


async def _asked(
    client: Client, what: str, given: bytes, expected: int, tally: Tally, took_ms: list[float]
) -> bytes | None:
    """Return the body of the answer that is meant, None when another one came; wait when told to come back later."""
    while True:
        sent_s = time.perf_counter()
        status, head, body = await client.ask(given)
        tally.statuses[f"{what} {status}"] += 1
        if status == expected:
            took_ms.append(1000 * (time.perf_counter() - sent_s))
            return body
        if status not in _AGAIN:
            tally.wrong.append(f"{what}: {status} {body[:500]!r}")
            return None
        tally.later[str(orjson.loads(body)["detail"])] += 1
        await asyncio.sleep(int(_header(head, b"retry-after")))


def _header(head: bytes, name: bytes) -> bytes:
    begin = head.lower().find(b"\r\n" + name + b":")
    return b"0" if begin < 0 else head[begin + len(name) + 3 :].partition(b"\r\n")[0].strip()


async def measure(sizes: Sizes) -> None:
    """Measure and report. Raises `BarMissed`."""
    report = Report("crowd")
    chance = random.Random(0)
    async with _bed(sizes.clients) as (crowd, processes):
        await crowd.come(2, lambda: chance.uniform(0, 1))  # warms up
        before, began_s = processes.cpu_s(), time.perf_counter()
        paced = await crowd.come(sizes.rounds, lambda: chance.uniform(0.5, 1.5) * sizes.think_s)
        seconds, used = time.perf_counter() - began_s, differences(before, processes.cpu_s())
        at_once = [await _settled(crowd, processes) for _ in range(sizes.blocks)]
        busy_s = time.perf_counter()
        busy = await crowd.come(sizes.rounds, lambda: 0.0)
        busy_s = time.perf_counter() - busy_s
    report.row("clients, a connection and a key each", str(sizes.clients))
    _tell(report, f"paced, {sizes.rounds} runs each, {len(paced.submit_ms) / seconds:.0f}/s", paced, bar=True)
    for name, cpu_s in used.items():
        report.row(f"paced: share of a core, {name}", f"{cpu_s / seconds:.2f}")
    for each in at_once:
        _tell(report, "all at once", each)
    _tell(report, f"without a pause, {len(busy.submit_ms) / busy_s:.0f}/s", busy)
    everyone = (paced, *at_once, busy)
    for tally in everyone:
        for words in tally.wrong[:1]:
            report.row("first of what went wrong", words)
    report.finish()
    report.require("no errors outside 429 and 503", not any(tally.errors for tally in everyone))
    report.require("every accepted run ends right", all(len(each.submit_ms) == each.right > 0 for each in everyone))
    report.require("p95 of the paced submissions", percentile(paced.submit_ms, 95) < _SUBMIT_MS)


async def _settled(crowd: Crowd, processes: Processes) -> Tally:
    await processes.until_quiet()
    return await crowd.come(1, lambda: 0.0)


def _tell(report: Report, how: str, tally: Tally, *, bar: bool = False) -> None:
    report.row(f"{how}: submit, ms p50, p95, p99, most", _percentiles(tally.submit_ms), "p95 < 200" if bar else "")
    report.row("until the run's end is known, ms", _percentiles(tally.whole_ms))
    report.row("answers", ", ".join(f"{name}: {number}" for name, number in sorted(tally.statuses.items())))
    for words, number in tally.later.most_common(3):
        report.row("told to come back later", f"{number}: {words}")
    report.row("accepted, ended right", f"{len(tally.submit_ms)}, {tally.right}", "all")
    figures = {"submit_ms": tally.submit_ms, "whole_ms": tally.whole_ms}
    said = {name: [percentile(values, p) for p in (50, 95, 99, 100)] for name, values in figures.items() if values}
    report.figures.setdefault("ways", []).append(
        {"how": how, **said, "statuses": dict(tally.statuses), "wrong": tally.wrong[:10]}
    )


def _percentiles(values: list[float]) -> str:
    return ", ".join(f"{percentile(values, percent):.0f}" for percent in (50, 95, 99, 100)) if values else "none"


@asynccontextmanager
async def _bed(clients: int) -> AsyncIterator[tuple[Crowd, Processes]]:
    allow_descriptors(clients + _OTHER_DESCRIPTORS)
    data = Path(tempfile.mkdtemp(prefix="anabranch-bench-"))
    try:
        async with AsyncExitStack() as open_:
            stack = LocalStack(data, services=anabranch_services(), port=free_port(), role_env={"gateway": _ENV})
            await open_.enter_async_context(stack)
            settings = Settings(kafka_bootstrap_servers=stack.bootstrap, redis_url=stack.redis_url)
            texts = await _issued(settings, clients)
            crowd = await open_.enter_async_context(Crowd(stack.gateway_url, texts))
            await eventually(crowd.works)
            yield crowd, Processes(stack.processes)
    finally:
        shutil.rmtree(data, ignore_errors=True)


async def _issued(settings: Settings, clients: int) -> list[str]:
    """Return new keys of ten tenants, all written."""
    producer = new_producer(settings)
    await producer.start()
    try:
        texts = []
        for number in range(clients):
            text, issued = keys.new_key(
                tenant=f"tenant-{number % 10}", scopes=("submit", "read"), name="bench", days=None, now_ms=0
            )
            texts.append(text)
            topic, value = settings.topics.api_keys, API_KEYS.dump_json(issued)
            await producer.send(topic, value, key=issued.id.encode(), partition=0)
        await producer.flush()
        return texts
    finally:
        await producer.stop()
