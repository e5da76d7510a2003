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
from collections.abc import AsyncIterator, Iterable, Mapping
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
from anabranch.client.model import (
    Fault,
    GatewayUnreachableError,
    GatewayUntrustedError,
    Problem,
    ProblemError,
    Run,
    StepType,
)
from anabranch.shared.contracts.durations import format_duration
from anabranch.shared.runtime.errors import UnusableSettings
from anabranch.shared.runtime.tls import trust

DEFAULT_URL: Final = "http://127.0.0.1:8080"

_ANSWER_WITHIN_S: Final = 30.0  # beside the time the gateway was asked to wait
_WATCH_EVERY_S: Final = 0.25  # quick enough for eyes, and the answer to the run's end comes at once anyway
_WATCH_EVERY_AT_MOST_S: Final = 5.0
_WATCH_BYTES_PER_S: Final = 1_000_000  # a run of 10,000 steps is some 3 MB; it is looked at every few seconds
_PATIENCE_S: Final = 30.0  # how long a gateway may be gone while a run is watched
_ASK_AGAIN_AFTER_S: Final = 0.5
_TRIES_WITH_KEY: Final = 4


@dataclass(frozen=True, slots=True)
class _Reply:
    status: int
    body: bytes

    def json(self) -> Any:
        return orjson.loads(self.body)


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

    async def watch(self, run_id: str) -> AsyncIterator[Run]:
        """Yield the run whenever it has changed, and at last as it ended.

        Each look is a long poll that the end of the run cuts short. The larger the run, the rarer the looks. A gateway
        that is gone for less than 30 s is waited for.
        """
        interval_s, seen, last_answer = 0.0, b"", 0.0
        while True:
            asked = time.monotonic()
            try:
                reply = await self._request("GET", _run_path(run_id), wait=interval_s or None)
            except (ProblemError, GatewayUnreachableError) as error:
                if not seen or not _is_passing(error) or asked - last_answer > _PATIENCE_S:
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
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> _Reply:
        if self._session is None:
            raise RuntimeError("AnabranchClient is used as `async with AnabranchClient(...) as client`")
        try:
            async with self._session.request(
                method,
                self.base_url + path,
                params={"wait": format_duration(wait)} if wait else None,
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
