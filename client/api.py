"""A small asynchronous client of the gateway's HTTP API.

async with AnabranchClient("http://127.0.0.1:8080") as client:
    run = await client.submit(Path("audit.yaml").read_text(), inputs={"url": "https://example.org"})
    async for run in client.watch(run.id):
        print(run.status, run.counts())
"""

import asyncio
import os
import ssl
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from types import TracebackType
from typing import Any, Final, Self, TypeGuard
from urllib.parse import quote

import aiohttp
import orjson
from pydantic import ValidationError

from anabranch.client.batches import Definition, Result, Submission, requests_of, results_of
from anabranch.client.events import Event, Unfolded, events_in
from anabranch.client.model import (
    Attempt,
    Fault,
    GatewayUnreachableError,
    GatewayUntrustedError,
    Problem,
    ProblemError,
    Run,
    RunsPage,
    Statistics,
    StepType,
)
from anabranch.shared.contracts.durations import format_duration
from anabranch.shared.contracts.limits import MAX_MESSAGE_BYTES
from anabranch.shared.runtime.errors import UnusableSettings
from anabranch.shared.runtime.tls import trust

Query = str | int | bool | Sequence[str] | None

DEFAULT_URL: Final = "http://127.0.0.1:8080"

_ANSWER_WITHIN_S: Final = 30.0  # beside the time the gateway was asked to wait
_WATCH_EVERY_S: Final = 0.25  # quick enough for eyes, and the answer to the run's end comes at once anyway
_WATCH_EVERY_AT_MOST_S: Final = 5.0
_WATCH_BYTES_PER_S: Final = 1_000_000  # a run of 10,000 steps is some 3 MB; it is looked at every few seconds
_PATIENCE_S: Final = 30.0  # how long a gateway may be gone while a run is watched
_ASK_AGAIN_AFTER_S: Final = 0.5
_TRIES_WITH_KEY: Final = 4
_SILENT_S: Final = 60.0  # a stream says something every 15 s
_LINE_BYTES: Final = MAX_MESSAGE_BYTES  # an event is one line
_NO_CONTENT: Final = 204  # after the last event of a run
_HAS_NO_EVENTS: Final = (404, 429, 503)  # an older gateway, too many streams, or none keeps a record


@dataclass(frozen=True, slots=True)
class _Reply:
    status: int
    body: bytes

    def json(self) -> Any:
        return orjson.loads(self.body)


class _NothingMore(Exception):
    """The run has ended, and its last event was seen."""


class AnabranchClient:
    """Submits runs and reads them. Raises `ProblemError` when the gateway says no, `GatewayUnreachableError` when
    it says nothing, `GatewayUntrustedError` when it may be somebody else.

    `api_key` and `cafile`, a PEM file of the authorities that an `https` gateway's certificate is checked by, are those
    of `ANABRANCH_API_KEY` and `ANABRANCH_SSL_CAFILE` unless given; without a file the system's authorities are trusted.
    """

    def __init__(self, base_url: str = DEFAULT_URL, *, api_key: str | None = None, cafile: str | None = None) -> None:
        api_key = api_key or os.environ.get("ANABRANCH_API_KEY")
        self._cafile = cafile or os.environ.get("ANABRANCH_SSL_CAFILE", "")
        self.base_url = base_url.rstrip("/")
        self._headers = {"X-API-Key": api_key} if api_key else {}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(headers=self._headers, connector=aiohttp.TCPConnector(ssl=self._trust()))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _trust(self) -> ssl.SSLContext | bool:
        if not self._cafile or not self.base_url.startswith("https:"):
            return True  # what the system trusts
        try:
            return trust(self._cafile, "ANABRANCH_SSL_CAFILE")
        except UnusableSettings as error:
            raise GatewayUntrustedError(self.base_url, str(error)) from error

    @property
    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("AnabranchClient is used as `async with AnabranchClient(...) as client`")
        return self._session

    async def submit(
        self,
        definition: Definition,
        *,
        inputs: Mapping[str, Any] | None = None,
        labels: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
        wait: float | None = None,
    ) -> Run:
        """Submit a pipeline and return the accepted run, or the run as it is at its end or after `wait` seconds.

        With an idempotency key the submission is repeated while the gateway is busy or its answer is lost: the same
        key is the same run. Without one it is sent once.
        """
        body = orjson.dumps(Submission(definition, inputs or {}, labels or {}).document())
        headers = {"Content-Type": "application/json"} | (
            {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        )
        for tries_left in reversed(range(_TRIES_WITH_KEY if idempotency_key else 1)):
            try:
                reply = await self._request("POST", "/v1/runs", wait=wait, body=body, headers=headers)
                return Run.model_validate_json(reply.body)
            except (ProblemError, GatewayUnreachableError) as error:
                if not tries_left or not _is_passing(error):
                    raise
                await asyncio.sleep(_pause_s(error))
        raise AssertionError("unreachable")

    async def submit_batch(self, submissions: Iterable[Submission]) -> list[Result]:
        """Submit many runs, up to 1,000 or 2 MiB in a request, and return what became of each, in their order.

        A result is the accepted `Run`, or the `ProblemError` or `GatewayUnreachableError` that the submission would
        have raised alone, so that what is wrong with one refuses no other. Those with a key are repeated while the
        gateway is busy or its answer is lost; those without are sent once. Raises `SourceError`, before anything is
        sent, for text that cannot be read, and `GatewayUntrustedError`. Behind a request that nobody answers none is
        tried.
        """
        wanted = list(submissions)
        waiting = {number: each.in_batch() for number, each in enumerate(wanted)}
        results: dict[int, Result] = {}
        for tries_left in reversed(range(_TRIES_WITH_KEY)):
            for numbers, body in requests_of(waiting):
                found = await self._results(body, len(numbers))
                results |= zip(numbers, found, strict=True)
                if isinstance(found[0], GatewayUnreachableError):
                    results = dict.fromkeys(waiting, found[0]) | results
                    break
            passing = {number: error for number in waiting if _is_passing(error := results[number])}
            waiting = {number: waiting[number] for number in passing if wanted[number].idempotency_key}
            if not waiting or not tries_left:
                break
            await asyncio.sleep(max(_pause_s(passing[number]) for number in waiting))
        return [results[number] for number in range(len(wanted))]

    async def _results(self, body: bytes, count: int) -> list[Result]:
        """Return what became of each run of one request; what refuses the request refuses each."""
        try:
            reply = await self._request(
                "POST", "/v1/runs:batch", body=body, headers={"Content-Type": "application/json"}
            )
        except (ProblemError, GatewayUnreachableError) as error:
            return [error] * count
        return results_of(reply.body)

    async def run(self, run_id: str, *, wait: float | None = None) -> Run:
        """Return a run as it stands, or at its end if it ends within `wait` seconds."""
        reply = await self._request("GET", _run_path(run_id), wait=wait)
        return Run.model_validate_json(reply.body)

    async def runs(self, **wanted: Query) -> RunsPage:
        """Return a page of the runs that are wanted, the newest first.

        `status`, `label` and `input` (`name=value`) may be several; `pipeline`, `revision`, `since`, `until`,
        `error_type`, `text`, `limit`, `cursor` and `counts` are as in docs/http-api.md.
        """
        return RunsPage.model_validate_json((await self._request("GET", "/v1/runs", query=wanted)).body)

    async def statistics(self, **wanted: Query) -> Statistics:
        """Return how long runs took and how often they failed; `pipeline`, `since`, and `by` a `pipeline` or `step`."""
        return Statistics.model_validate_json((await self._request("GET", "/v1/statistics", query=wanted)).body)

    async def attempts(self, run_id: str, step: str) -> tuple[Attempt, ...]:
        """Return every attempt of a step, the first one first."""
        reply = await self._request("GET", f"{_run_path(run_id)}/steps/{quote(step, safe='')}/attempts")
        return tuple(Attempt.model_validate(each) for each in reply.json()["attempts"])

    async def events(self, run_id: str | None = None, *, after: str = "", follow: bool = True) -> AsyncIterator[Event]:
        """Yield the events of a run from its first to its last, or those of all runs from now on, without end.

        Those of a run that goes on and is not to be followed end with what there is by now. `after` is the `place` of
        an event that was seen before. A gateway that is gone for less than 30 s is waited for, and what it said last is
        where the next one goes on: nothing is left out and nothing comes twice.
        """
        with suppress(_NothingMore):
            async for event in self._followed(run_id, after, follow=follow):
                yield event

    async def _followed(self, run_id: str | None, after: str, *, follow: bool) -> AsyncIterator[Event]:
        path = f"{_run_path(run_id)}/events" if run_id is not None else "/v1/events"
        place, heard, has_begun = after, time.monotonic(), False
        while True:
            try:
                async for event in self._events(path, place, follow=follow):
                    place, heard, has_begun = event.place, time.monotonic(), True
                    yield event
                    if run_id is not None and event.is_last:
                        return
            except (ProblemError, GatewayUnreachableError) as error:
                if not has_begun or not _is_passing(error) or time.monotonic() - heard > _PATIENCE_S:
                    raise
                await asyncio.sleep(_pause_s(error))
            else:
                if not follow:
                    return
                # The gateway stopped.
                has_begun = True
                await asyncio.sleep(_ASK_AGAIN_AFTER_S)

    async def watch(self, run_id: str) -> AsyncIterator[Run]:
        """Yield the run whenever it has changed, and at last as it ended.

        It follows the run's events. Where the gateway has none, each look is a long poll that the end of the run cuts
        short. The larger the run, the rarer it is shown. A gateway that is gone for less than 30 s is waited for.
        """
        first = await self._request("GET", _run_path(run_id))
        run = Run.model_validate_json(first.body)
        yield run
        if run.ended:
            return
        try:
            async for run in self._unfolding(run_id):
                yield run
        except ProblemError as error:
            if error.problem.status not in _HAS_NO_EVENTS:
                raise
            async for run in self._asking(run_id, first.body):
                yield run

    async def _unfolding(self, run_id: str) -> AsyncIterator[Run]:
        unfolded, shown, interval_s = Unfolded(run_id), time.monotonic(), _WATCH_EVERY_S
        async for event in self.events(run_id):
            unfolded.add(event)
            if event.is_last or time.monotonic() - shown >= interval_s:
                run = unfolded.run()
                shown, interval_s = time.monotonic(), _interval_s(unfolded.size)
                if run is not None:
                    yield run

    async def _events(self, path: str, place: str, *, follow: bool) -> AsyncIterator[Event]:
        """Yield the events of one stream. Raises `_NothingMore` where none will ever come after the place."""
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": place} if place else {})
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_ANSWER_WITHIN_S, sock_read=_SILENT_S)
        try:
            async with self._open.get(
                self.base_url + path,
                params=None if follow else {"follow": "false"},
                headers=headers,
                timeout=timeout,
                allow_redirects=False,
                read_bufsize=_LINE_BYTES,
            ) as response:
                if response.status >= 300:
                    raise _problem(_Reply(response.status, await response.read()), response)
                if response.status == _NO_CONTENT:
                    raise _NothingMore
                async for event in events_in(response.content):
                    yield event
        except aiohttp.ClientConnectorCertificateError as error:
            raise GatewayUntrustedError(self.base_url, str(error.certificate_error)) from error
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, TimeoutError) as error:
            raise GatewayUnreachableError(self.base_url, str(error) or type(error).__name__) from error

    async def _asking(self, run_id: str, seen: bytes) -> AsyncIterator[Run]:
        interval_s, last_answer = _interval_s(len(seen)), time.monotonic()
        while True:
            asked = time.monotonic()
            try:
                reply = await self._request("GET", _run_path(run_id), wait=interval_s or None)
            except (ProblemError, GatewayUnreachableError) as error:
                if not _is_passing(error) or asked - last_answer > _PATIENCE_S:
                    raise
                await asyncio.sleep(_pause_s(error))
                continue
            last_answer = time.monotonic()
            if reply.body != seen:
                seen = reply.body
                run = Run.model_validate_json(reply.body)
                yield run
                if run.ended:
                    return
            # A gateway that answers before the time is up must not be asked in a tight loop.
            await asyncio.sleep(max(interval_s - (last_answer - asked), 0.0))
            interval_s = _interval_s(len(reply.body))

    async def cancel(self, run_id: str) -> Run:
        """Ask for a run to be stopped, and return it as it stands: it ends as `cancelled` when its workers have
        answered. Raises `ProblemError` with status 409 for a run that has ended.
        """
        reply = await self._request("POST", f"{_run_path(run_id)}/cancel")
        return Run.model_validate_json(reply.body)

    async def validate(self, definition: Definition) -> tuple[Fault, ...]:
        """Return everything that is wrong with a pipeline; nothing when a run of it would be accepted.

        Text is sent as it is, so that faults have the line and column they stand at.
        """
        is_text = isinstance(definition, str)
        body = definition.encode() if isinstance(definition, str) else orjson.dumps(definition)
        media_type = "application/yaml" if is_text else "application/json"
        try:
            reply = await self._request(
                "POST", "/v1/pipelines:validate", body=body, headers={"Content-Type": media_type}
            )
        except ProblemError as error:
            if not error.problem.errors:
                raise
            return error.problem.errors
        answer = reply.json() if reply.body else {}
        return tuple(Fault.model_validate(fault) for fault in answer.get("errors", ()))

    async def step_types(self) -> tuple[StepType, ...]:
        """Return the step types that runs may use."""
        answer = (await self._request("GET", "/v1/step-types")).json()
        listed = answer if isinstance(answer, list) else answer.get("step_types", answer.get("items", ()))
        return tuple(StepType.model_validate(one) for one in listed)

    async def _request(
        self,
        method: str,
        path: str,
        *,
        wait: float | None = None,
        query: Mapping[str, Query] | None = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> _Reply:
        try:
            async with self._open.request(
                method,
                self.base_url + path,
                params=_pairs(dict(query or {}) | ({"wait": format_duration(wait)} if wait else {})),
                data=None if body is None else BytesIO(body),  # aiohttp warns of large ones otherwise
                allow_redirects=False,  # the key is for this gateway alone
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=_ANSWER_WITHIN_S + (wait or 0.0)),
            ) as response:
                reply = _Reply(response.status, await response.read())
                if response.status >= 300:
                    raise _problem(reply, response)
                return reply
        except aiohttp.ClientConnectorCertificateError as error:
            raise GatewayUntrustedError(self.base_url, str(error.certificate_error)) from error
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, TimeoutError) as error:
            raise GatewayUnreachableError(self.base_url, str(error) or type(error).__name__) from error


def _pairs(query: Mapping[str, Query]) -> list[tuple[str, str]]:
    """Return a query as it is sent: nothing of what is None, each of several."""
    found: list[tuple[str, str]] = []
    for name, value in query.items():
        several = [value] if isinstance(value, str | int | bool) else value or ()
        found += [(name, str(one).lower() if isinstance(one, bool) else str(one)) for one in several]
    return found


def _run_path(run_id: str) -> str:
    return f"/v1/runs/{quote(run_id, safe='')}"


def _interval_s(size: int) -> float:
    return min(max(_WATCH_EVERY_S, size / _WATCH_BYTES_PER_S), _WATCH_EVERY_AT_MOST_S)


def _is_passing(result: Result) -> TypeGuard[ProblemError | GatewayUnreachableError]:
    return isinstance(result, GatewayUnreachableError) or (isinstance(result, ProblemError) and result.is_passing)


def _pause_s(error: ProblemError | GatewayUnreachableError) -> float:
    wanted = error.retry_after_s if isinstance(error, ProblemError) else None
    return min(max(wanted or 0.0, _ASK_AGAIN_AFTER_S), _WATCH_EVERY_AT_MOST_S)


def _problem(reply: _Reply, response: aiohttp.ClientResponse) -> ProblemError:
    problem = Problem(
        status=reply.status, title=response.reason or "", detail=reply.body[:200].decode(errors="replace")
    )
    if "json" in response.content_type:
        with suppress(ValidationError):  # a proxy's answer is not a problem document; its words are kept
            problem = Problem.model_validate({"status": reply.status, **_object(reply.body)})
    return ProblemError(problem, retry_after_s=_retry_after_s(response))


def _object(body: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {"detail": body[:200].decode(errors="replace")}
    return value if isinstance(value, dict) else {"detail": str(value)[:200]}


def _retry_after_s(response: aiohttp.ClientResponse) -> float | None:
    text = response.headers.get("Retry-After", "")
    return float(text) if text.isdigit() else None
