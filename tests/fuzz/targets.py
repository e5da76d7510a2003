"""What is fuzzed: for each target what is drawn, and what the real functions do with it.

A target's `check` raises when something is wrong; what it lets pass is right.
"""

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from io import BytesIO
from typing import Any, Final

import orjson
import structlog
from hypothesis import strategies as st
from pydantic import BaseModel
from pydantic_core import to_json

from anabranch.services.gateway.metrics import GatewayMetrics
from anabranch.services.gateway.step_types import StepTypeReader, StepTypes
from anabranch.services.steps.context import StepContext
from anabranch.services.steps.step_type import StepType, step_type
from anabranch.shared.contracts import messages as m
from anabranch.shared.contracts.codec import Undecodable, decode, header
from anabranch.shared.contracts.dead_letters import Origin, dead_letter
from anabranch.shared.contracts.errors import RetryableError, TerminalError
from anabranch.shared.contracts.expressions import (
    ExpressionError,
    compile_condition,
    compile_retry_condition,
    compile_template,
    context_for,
)
from anabranch.shared.contracts.limits import MAX_RECORD_BYTES
from anabranch.shared.contracts.nesting import is_too_deep
from anabranch.shared.contracts.text import writable
from anabranch.shared.runtime.metrics import new_registry
from tests.fuzz import language
from tests.fuzz.credentials import Tokens
from tests.fuzz.guard import MeteredLoop, bounded, close
from tests.fuzz.heads import Requests
from tests.fuzz.life import Life, check_documents, live, on_virtual_clock, project
from tests.fuzz.target import LONGEST_ANSWER, REFUSALS, Reader, Target, known_types
from tests.fuzz.values import TEXTS, Deep, Long, Wire, as_python, plain, scalars, values, wires
from tests.fuzz.yaml_texts import Yaml
from tests.support.builders import RUN, T0, a_run, a_step, a_submission, a_transform, started, succeeded
from tests.unit.gateway.fakes import Bench, a_gateway
from tests.unit.history.fakes import FakeRecord, run_ended, run_started, step_succeeded, steps_queued
from tests.unit.steps.fakes import Witness, a_world, cancellation, echo_type, running

# --- answers of workers, as bytes -----------------------------------------------------------------------------------

_DURATIONS = st.sampled_from((0, 5, -1, 2**63, 1.5, "x", None))
_STATED = st.fixed_dictionaries(
    {"type": st.just("AttemptSucceeded"), "output": values}, optional={"duration_ms": _DURATIONS}
)
_FAILED = st.fixed_dictionaries(
    {
        "type": st.just("AttemptFailed"),
        "error": st.fixed_dictionaries(
            {"type": st.one_of(st.just("Boom"), values), "message": values}, optional={"details": values}
        ),
    },
    optional={
        "terminal": st.booleans(),
        "timed_out": st.booleans(),
        "retry_after_s": st.one_of(st.sampled_from((0, -1, 1e308, 3)), scalars),
        "duration_ms": _DURATIONS,
    },
)
_HELD = st.fixed_dictionaries(
    {"type": st.just("AttemptStarted"), "lease_s": st.sampled_from((0, 1, 10, 1e9)), "worker": st.sampled_from(TEXTS)}
)
_OTHER = st.fixed_dictionaries(
    {"type": st.sampled_from(("AttemptCancelled", "TimerFired", "ContinueRun", "CancelRun", "SubmitRun", "x"))}
)
right_answers = st.one_of(
    st.builds(Wire, st.fixed_dictionaries({"type": st.just("AttemptSucceeded"), "output": values})),
    st.builds(
        Wire,
        st.fixed_dictionaries(
            {
                "type": st.just("AttemptFailed"),
                "error": st.fixed_dictionaries({"type": st.just("Boom"), "message": st.just("no"), "details": values}),
            }
        ),
    ),
)
answers = st.lists(st.one_of(right_answers, wires(st.one_of(_STATED, _FAILED, _HELD, _OTHER))), max_size=4)


class Bodies(Target):
    """Bodies and headers to a gateway over HTTP; what it accepts is run, restored and projected."""

    name = "bodies"
    cases = st.tuples(
        wires(language.submissions(), most=1),
        st.sampled_from(
            (
                "application/json",
                "application/json",
                "application/yaml",
                "text/yaml; charset=utf-8",
                "text/plain",
                "application/json; charset=utf-16",
            )
        ),
        st.dictionaries(
            st.sampled_from(("traceparent", "Idempotency-Key", "X-Request-Id", "Accept", "Content-Encoding", "Expect")),
            st.one_of(
                st.sampled_from(
                    (
                        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
                        "00-" + "0" * 32 + "-" + "0" * 16 + "-00",
                        "ff-x",
                        "k",
                        "x" * 300,
                        "gzip",
                        "deflate",
                        "br",
                        "identity",
                        "é",
                        "a,b",
                        "*/*;q=",
                    )
                ),
                st.text(
                    alphabet=st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=20
                ),
            ),
            max_size=2,
        ),
        st.sampled_from(
            (
                "",
                "",
                "",
                "?wait=0s",
                "?wait=x",
                "?wait=%00",
                "?wait=99999999999999999999",
                "?a=b",
                "?wait=1s&wait=2s",
                "?%ff",
            )
        ),
        answers,
        st.sampled_from((0, 1, 3)),
    )

    def open(self) -> None:
        self._loop = MeteredLoop(is_virtual=False)
        self._opened = AsyncExitStack()
        self._bench: Bench = self._loop.run_until_complete(self._opened.enter_async_context(a_gateway()))

    def close(self) -> None:
        self._loop.run_until_complete(self._opened.aclose())
        close(self._loop)

    def check(self, case: Any) -> None:
        wire, media_type, headers, query, given, restore_every = case
        self._loop.meter.begin_anew()
        with bounded("a turn of the gateway's loop") as meter:
            record = self._loop.run_until_complete(self._post(wire.raw, media_type, headers, query))
            meter.held_s = self._loop.meter.held_s
        if record is not None:
            live([record], given, restore_every, is_honest=True)

    async def _post(self, raw: bytes, media_type: str, headers: Mapping[str, str], query: str) -> bytes | None:
        accepted = len(self._bench.log.records)
        response = await self._bench.post(BytesIO(raw), media_type, query=query, headers=dict(headers))
        answer = await response.read()
        if response.status not in (200, 202):
            assert response.status in REFUSALS, f"{response.status}: {answer[:2000]!r}"
            assert len(answer) <= LONGEST_ANSWER, f"a refusal of {len(answer)} bytes"
            return None
        run_id = orjson.loads(answer)["id"]
        seen = await self._bench.client.get(f"/v1/runs/{run_id}")
        assert seen.status == 200, await seen.text()
        await seen.json()
        return self._bench.log.records[-1][2] if len(self._bench.log.records) > accepted else None


class Pipelines(Target):
    """Submissions that are read in process, then run with answers of workers, restored and projected."""

    name = "pipelines"
    cases = st.tuples(language.submissions(), answers, st.sampled_from((0, 1, 2)))

    def open(self) -> None:
        self._reader = Reader(known_types())

    def close(self) -> None:
        self._reader.close()

    def check(self, case: Any) -> None:
        body, given, restore_every = case
        read = self._reader.read(Wire(body).raw)
        if read is not None:
            submission = m.SubmitRun(
                run_id=RUN,
                tenant="t",
                definition=read.definition.canonical,
                inputs=read.inputs,
                labels=read.labels,
                keep_s=60,
            )
            live([submission.model_dump_json().encode()], given, restore_every, is_honest=True)


_WRAPPING = {
    "a": a_step(retry={"max_attempts": 2, "if": "error.details.x == 1 || attempt < 2"}),
    "b": a_transform("${{ " + "[" * 20 + "steps.a.output" + "]" * 20 + " }}", "a"),
    "c": a_transform({"x": "${{ steps.b.output }}", "t": "<${{ steps.a.output }}>"}, "b", if_="always()"),
    "d": a_step("c", if_="always()", with_={"v": "${{ steps.a.error }}", "w": "${{ steps.c.output }}"}),
    "e": a_step("d", if_="steps.d.output == steps.a.output || size(string(steps.d.status)) > 0"),
}


class Outputs(Target):
    """Outputs and errors of workers, as bytes, in a pipeline that reads, wraps and hands on all of them."""

    name = "outputs"
    cases = st.tuples(answers.filter(bool), st.sampled_from((1, 2)), st.sampled_from(((), ("a", "b", "c", "d"))))

    def check(self, case: Any) -> None:
        given, restore_every, shown = case
        steps = {**_WRAPPING}
        outputs = {name: f"${{{{ steps.{name}.output }}}}" for name in shown}
        first = a_submission(steps, outputs=outputs, keep_s=60)
        live([first.model_dump_json().encode()], given, restore_every, is_honest=True)


# --- messages on the topics -----------------------------------------------------------------------------------------

_RUNS = st.sampled_from((RUN, RUN, RUN, "r", "../x", "x" * 64, "x" * 65, "_checkpoint", "a/b", "", "\ud800"))
_STEPS = st.sampled_from(("a", "b", "c", "a", "zz", "", ".submission", "a/1", "x" * 1000))
_ATTEMPTS = st.sampled_from((1, 1, 2, 0, -1, 2**63, 2**64, 1.0, "1"))


def _to_step(kind: str, **more: Any) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries({"type": st.just(kind), "run_id": _RUNS, "step": _STEPS, "attempt": _ATTEMPTS, **more})


_LEASE = st.fixed_dictionaries({"run_id": _RUNS, "step": _STEPS, "attempt": _ATTEMPTS}, optional={"progress": values})
_LEASES = st.fixed_dictionaries(
    {
        "type": st.just("LeasesRenewed"),
        "worker": st.sampled_from(TEXTS),
        "lease_s": st.sampled_from((0, 1, 10, 1e9, -1)),
        "leases": st.lists(_LEASE, max_size=3),
    }
)
_TIMERS = st.sampled_from(
    (
        "run-timeout",
        "grace",
        "retry/a/1",
        "lease/a/1",
        "lease/a/2",
        "queue/a/1",
        "",
        "/",
        "lease/",
        "x" * 999,
        "lease/a/x",
        "retry/zz/1",
        "lease/a/-1",
    )
)
_SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        name: st.one_of(st.sampled_from((0, 1, 1e-300, 1e308, -1)), scalars)
        for name in ("window", "run_timeout_s", "step_timeout_s", "suspect_s", "cancel_grace_s", "max_losses")
    },
)
_SUBMIT = st.fixed_dictionaries(
    {
        "type": st.just("SubmitRun"),
        "run_id": _RUNS,
        "tenant": st.sampled_from(TEXTS),
        "definition": st.one_of(
            language.pipelines().map(lambda pipeline: Wire(pipeline).raw.decode("utf-8", "replace")),
            st.sampled_from(("{}", "", "[", "null")),
            st.sampled_from((64, 300, 5000)).map(
                lambda depth: '{"name":"p","steps":' + "[" * depth + "]" * depth + "}"
            ),
        ),
    },
    optional={
        "inputs": st.dictionaries(st.sampled_from(("n", "s")), values, max_size=2),
        "settings": _SETTINGS,
        "keep_s": st.sampled_from((0, 60, -1, 2**63)),
        "trace_id": st.sampled_from(TEXTS),
        "labels": plain,
        "revision": scalars,
        "body_hash": st.sampled_from(TEXTS),
    },
)
inbox_messages = st.one_of(
    _SUBMIT,
    _to_step("AttemptSucceeded", output=values, duration_ms=_DURATIONS),
    _to_step(
        "AttemptFailed",
        error=st.fixed_dictionaries({"type": values, "message": values, "details": values}),
        retry_after_s=scalars,
    ),
    _to_step("AttemptStarted", lease_s=st.sampled_from((0, 1, 1e9, -1, 10)), worker=st.sampled_from(TEXTS)),
    _to_step("AttemptCancelled", duration_ms=_DURATIONS),
    _LEASES,
    st.fixed_dictionaries({"type": st.just("TimerFired"), "run_id": _RUNS, "timer_id": _TIMERS}),
    st.fixed_dictionaries(
        {"type": st.just("ContinueRun"), "run_id": _RUNS, "number": st.one_of(st.integers(-1, 3), scalars)}
    ),
    st.fixed_dictionaries({"type": st.just("CancelRun"), "run_id": _RUNS}, optional={"reason": values}),
    plain,
)


class Inbox(Target):
    """Forged and broken records of the inbox, to a partition with a run in it."""

    name = "inbox"
    cases = st.tuples(
        st.lists(st.one_of(st.none(), wires(inbox_messages)), min_size=1, max_size=5), answers, st.sampled_from((1, 2))
    )

    def check(self, case: Any) -> None:
        given, answered, restore_every = case
        first = a_submission(
            {"a": a_step(), "b": a_step("a"), "c": a_transform("${{ steps.a.output }}", "a")}, keep_s=60
        )
        records = [None if wire is None else wire.raw for wire in given]
        live([first.model_dump_json().encode(), *records], answered, restore_every, is_honest=False)


def _a_changelog() -> dict[bytes, bytes]:
    from anabranch.services.orchestrator.core import changelog

    run = a_run({"a": a_step(), "b": a_step("a"), "c": a_transform("${{ steps.a.output }}", "a"), "d": a_step()})
    run.takes(started("a"), succeeded("a", {"x": [1, None]}), started("b"))
    over = a_run({"a": a_step()}, keep_s=3600).takes(succeeded("a"))
    live_records = dict(changelog.take_changes(run.partition, 7))
    live_records |= {
        b"over" if key == RUN.encode() else key: value for key, value in changelog.take_changes(over.partition, 7)
    }
    return {key: value for key, value in live_records.items() if value is not None}


_LIVE = _a_changelog()
_LIVE_KEYS = sorted(key for key in _LIVE if key != b"_checkpoint")
_LIVE_VALUES = [orjson.loads(_LIVE[key]) for key in _LIVE_KEYS]


class Changelogs(Target):
    """Changelogs with records that are broken, forged, missing or too many: the others of the partition must live."""

    name = "changelog"
    cases = st.lists(
        st.tuples(
            st.one_of(
                st.sampled_from(_LIVE_KEYS),
                st.sampled_from((b"x", b"x/a", b"x/.submission", b"\xff", b"", b"/", f"{RUN}/zz".encode())),
            ),
            st.one_of(
                st.none(),
                wires(st.sampled_from(_LIVE_VALUES), most=3),
                wires(plain),
            ),
        ),
        min_size=1,
        max_size=3,
    )

    def check(self, case: Any) -> None:
        records = dict(_LIVE)
        for key, wire in case:
            records.pop(key, None)
            if wire is not None:
                records[key] = wire.raw
        other = a_submission({"a": a_step()}, run_id="another", keep_s=60).model_dump_json().encode()

        async def restored() -> None:
            life = Life([Wire({"type": "AttemptSucceeded", "output": 1})], 1, is_honest=False)
            life.log.changelog = dict(records)
            for _ in range(8):
                life.log.feed(None)
            await life.run([other])
            ended = [each for each in life.log.appended if each.key == "another" and b"RunSucceeded" in each.value]
            assert ended, "another run of the partition did not succeed"
            check_documents(life.documents)

        with bounded("a turn of the orchestrator's loop") as meter:
            on_virtual_clock(restored(), meter)


commands = st.fixed_dictionaries(
    {
        "type": st.just("RunStep"),
        "run_id": _RUNS,
        "step": _STEPS,
        "attempt": _ATTEMPTS,
        "uses": st.sampled_from(("echo", "echo", "echo", "x", "")),
        "tenant": st.sampled_from(TEXTS),
        "timeout_s": st.sampled_from((300, 1, 0, -1, 1e308, 1e-9)),
        "at_ms": st.sampled_from((0, T0, 10**15, -1, 2**63, 2**80)),
        "input": st.one_of(
            st.fixed_dictionaries({"sleep_s": st.sampled_from((0, 0, 1, 400, -1)), "text": st.sampled_from(TEXTS)}),
            values,
        ),
    },
    optional={"trace_id": st.sampled_from(TEXTS)},
)
cancellations = st.fixed_dictionaries(
    {"type": st.just("CancelStep"), "run_id": _RUNS, "step": _STEPS, "attempt": _ATTEMPTS}
)


class Commands(Target):
    """Forged and broken commands and cancellations, to a worker: it goes on, and works on the next right one."""

    name = "commands"
    cases = st.tuples(
        st.lists(st.one_of(st.none(), wires(commands)), min_size=1, max_size=4),
        st.lists(wires(cancellations), max_size=3),
    )

    def check(self, case: Any) -> None:
        given, cancels = case
        with bounded("a turn of the worker's loop") as meter:
            on_virtual_clock(self._work(given, cancels), meter)

    async def _work(self, given: Any, cancels: Any) -> None:
        world = a_world(serves=echo_type(Witness()))
        async with running(world):
            for wire in cancels:
                world.control.later.append(
                    cancellation(
                        m.RunStep(run_id="r", step="a", attempt=1, uses="echo", tenant="t", timeout_s=1, at_ms=0)
                    )._replace(value=wire.raw)
                )
            for offset, wire in enumerate(given, 1):
                world.commands.deliver(None if wire is None else wire.raw, offset=offset)
            await asyncio.sleep(1000)
            right = m.RunStep(
                run_id="last",
                step="a",
                attempt=1,
                uses="echo",
                tenant="t",
                timeout_s=9,
                at_ms=10**14,
                input={"text": "here"},
            )
            world.commands.deliver(right.model_dump_json().encode(), offset=len(given) + 1)
            await asyncio.sleep(1000)
            assert ("AttemptSucceeded", {"text": "here"}) in world.results.results(), world.results.results()
            assert world.commands.commits.get(0, 0) == len(given) + 2, f"committed up to {world.commands.commits}"


class Given(BaseModel):
    """An input that says nothing."""


class Anything(BaseModel):
    """An output that may be whatever there is."""

    value: Any = None


class _Odd:
    """An object that raises whenever it is looked at."""

    def __repr__(self) -> str:
        raise ValueError("no repr")

    __str__ = __repr__


class Hostile(Exception):
    """An error whose text cannot be had."""

    def __str__(self) -> str:
        raise ValueError("no text")


_OBJECTS = st.sampled_from(
    (
        "bytes",
        "surrogates",
        "odd",
        "set",
        "generator",
        "nan",
        "cycle",
        "complex",
        "type",
        "exception",
        "keys",
        "huge",
        "deep",
        "memoryview",
    )
)
_RAISES = st.sampled_from(
    ("none", "value", "terminal", "retryable", "hostile", "stop", "key", "unicode", "recursion", "group", "assertion")
)


def _object(kind: str) -> Any:
    cycle: list[Any] = []
    cycle.append(cycle)
    return {
        "bytes": b"\x00\xff",
        "surrogates": "caf\udce9",
        "odd": _Odd(),
        "set": {1, 2},
        "generator": (x for x in (1, 2)),
        "nan": float("nan"),
        "cycle": cycle,
        "complex": 1j,
        "type": int,
        "exception": ValueError("x"),
        "keys": {1: 2, None: 3, (1,): 4, "\udce9": 5},
        "huge": 10**5000,
        "deep": as_python(Deep(300, "object", 1)),
        "memoryview": memoryview(b"ab"),
    }[kind]


class Handlers(Target):
    """Handlers that return, report and raise whatever there is: each attempt is answered, and the answer is decided."""

    name = "handlers"
    cases = st.tuples(
        st.one_of(values, _OBJECTS.map(lambda kind: ("object", kind))),
        _RAISES,
        st.one_of(values, _OBJECTS.map(lambda kind: ("object", kind))),
        st.booleans(),
    )

    def check(self, case: Any) -> None:
        output, raises, details, reports = case
        said: list[bytes] = []
        with bounded("a turn of the worker's loop") as meter:
            on_virtual_clock(self._work(_made(output), raises, _made(details), reports, said), meter)
        first = a_submission({**_WRAPPING}, run_id=RUN, keep_s=60)
        live([first.model_dump_json().encode(), *said], (), 1, is_honest=True)

    async def _work(self, output: Any, raises: str, details: Any, reports: bool, said: list[bytes]) -> None:
        world = a_world(serves=_serves(output, raises, details, reports))
        async with running(world):
            command = m.RunStep(
                run_id=RUN, step="a", attempt=1, uses="odd", tenant="t", timeout_s=9, at_ms=10**14, input={}
            )
            world.commands.deliver(command.model_dump_json().encode(), offset=1)
            await asyncio.sleep(100)
            said += [each.value for each in world.results.appended]
            answered = [
                message for message in world.results.messages() if message.type in ("AttemptSucceeded", "AttemptFailed")
            ]
            assert len(answered) == 1, f"the attempt was answered with {answered}"
            assert raises == "none" or isinstance(answered[0], m.AttemptFailed), answered


def _made(value: Any) -> Any:
    return _object(value[1]) if isinstance(value, tuple) and value[:1] == ("object",) else as_python(value)


def _serves(output: Any, raises: str, details: Any, reports: bool) -> StepType[Any, Any]:
    @step_type("odd", description="Does what is odd.")
    async def odd(given: Given, context: StepContext) -> Anything:
        if reports:
            with suppress(ValueError, TypeError):  # what is told to the handler is no harm
                context.heartbeat(details)
            await asyncio.sleep(4)
        if raises == "recursion":
            return _recursive()
        if raises != "none":
            raise _error(raises, details)
        return Anything.model_construct(value=output)

    return odd


def _recursive() -> Anything:
    return _recursive()


def _error(kind: str, details: Any) -> Exception:
    match kind:
        case "terminal":
            return TerminalError("no", details=details)
        case "retryable":
            return RetryableError("later", after=0.5, details=details)
        case "group":
            return ExceptionGroup("many", [ValueError(details), Hostile()])
        case "unicode":
            return UnicodeDecodeError("utf-8", b"\xff", 0, 1, "caf\udce9")
    kinds: dict[str, type[Exception]] = {
        "value": ValueError,
        "hostile": Hostile,
        "stop": StopAsyncIteration,
        "key": KeyError,
        "assertion": AssertionError,
    }
    return kinds[kind](details)


EVENTS = [
    orjson.loads(event.model_dump_json())
    for event in (run_started(), steps_queued(2, "a", "b"), step_succeeded(3, "a", output={"x": 1}), run_ended(4))
]


class Events(Target):
    """Forged and broken run events, to history: the rest is projected, and documents stay JSON."""

    name = "events"
    cases = st.lists(st.one_of(st.none(), wires(st.sampled_from(EVENTS), most=3), wires(plain)), min_size=1, max_size=6)

    def check(self, case: Any) -> None:
        values_ = [b"" if wire is None else wire.raw for wire in case]
        with bounded("a turn of history's loop") as meter:
            documents = on_virtual_clock(project(values_, are_honest=False), meter)
        check_documents(documents)


announcements = st.fixed_dictionaries(
    {
        "type": st.just("StepTypeAnnounced"),
        "name": st.one_of(st.sampled_from(("simulate", "transform", "x", "http")), st.sampled_from(TEXTS)),
        "version": st.sampled_from(TEXTS),
        "input_schema": st.one_of(language.schemas, plain),
        "output_schema": st.one_of(st.just({}), language.schemas),
    },
    optional={"description": values},
)


def _own_key(wire: Wire) -> bytes:
    """Return the key under which an announcement is to stand."""
    name = wire.document.get("name") if isinstance(wire.document, dict) else None
    return name.encode("utf-8", "replace") if isinstance(name, str) else b""


class Announcements(Target):
    """Forged announcements, to a gateway that then reads a submission for each of them."""

    name = "announcements"
    cases = st.tuples(
        st.lists(
            wires(
                announcements,
                most=1,
            ),
            min_size=1,
            max_size=3,
        ),
        st.sampled_from((None, None, None, b"simulate", b"x", b"", b"\xff")),
        language.instances,
    )

    def open(self) -> None:
        self._reader = Reader(known_types())

    def close(self) -> None:
        self._reader.close()

    def check(self, case: Any) -> None:
        wires_, key, instance = case
        metrics, types = GatewayMetrics(new_registry()), StepTypes()
        reader = StepTypeReader(None, "pipelines.step-types", types, metrics=metrics, log=structlog.get_logger())  # type: ignore[arg-type]

        records = [FakeRecord(value=wire.raw, key=_own_key(wire) if key is None else key) for wire in wires_]

        async def follow() -> None:
            for record in records:
                await reader.take(record)
            await reader.take(FakeRecord(value=None, key=key))

        self._reader.run(follow())
        orjson.loads(types.document())
        self._reader.knows(types)
        for name in list(types.known):
            self._reader.read(Wire({"definition": {"name": "p", "steps": {"a": {"uses": name, "with": instance}}}}).raw)


class Headers(Target):
    """Headers of records, and dead letters of them."""

    name = "headers"
    cases = st.tuples(
        st.lists(
            st.tuples(
                st.sampled_from(("ce_id", "ce_type", "traceparent", "x", "\ud800", "")),
                st.one_of(st.none(), st.binary(max_size=20), st.sampled_from((b"\xff", b"x" * 100_000, b"\x00"))),
            ),
            max_size=5,
        ),
        st.one_of(st.none(), st.binary(max_size=30), st.just(Long(5_000_000, "x"))),
        st.one_of(st.none(), st.binary(max_size=20), st.just(b"k" * 1000)),
        st.one_of(
            st.sampled_from(TEXTS),
            st.builds(Long, st.sampled_from((5000, 3_000_000)), st.sampled_from(("x", "\ud800", "💥"))),
        ),
    )

    def check(self, case: Any) -> None:
        headers, value, key, reason = case
        for name, _ in headers:
            header(headers, name)
        raw = as_python(value).encode() if isinstance(value, Long) else value
        origin = Origin("pipelines.inbox", 0, 1, T0, key, raw, tuple(headers))
        with bounded("a dead letter"):
            letter = dead_letter(
                origin, service="s", source="s", error_type="X", reason=as_python(reason), traceback=as_python(reason)
            )
        assert len(letter.value) <= MAX_RECORD_BYTES, f"a dead letter of {len(letter.value)} bytes"
        read = decode(m.DEAD_LETTERS, letter.value)
        assert not isinstance(read, Undecodable), read


def _cannot_be_sent(value: Any) -> bool:
    """Return whether a text in it has half of a surrogate pair, which no JSON that is read here has."""
    match value:
        case str():
            return writable(value) != value
        case dict():
            return any(_cannot_be_sent(each) for item in value.items() for each in item)
        case list():
            return any(map(_cannot_be_sent, value))
        case _:
            return False


class Expressions(Target):
    """Expressions and templates: compiled or refused, evaluated or failed, in little time and memory."""

    name = "expressions"
    cases = st.tuples(
        st.one_of(language.templates, language.expressions),
        st.fixed_dictionaries({"n": st.sampled_from((0, 3, 9999, -1)), "s": values, "l": values, "m": values}),
        values,
    )

    def check(self, case: Any) -> None:
        text, inputs, output = case
        given = as_python(inputs)
        written = as_python(text)
        if is_too_deep([given, as_python(output), written]) or _cannot_be_sent(written):  # no run holds it
            return
        step = {"status": "succeeded", "output": as_python(output), "error": None, "attempt": 1}
        with bounded("compiling"), suppress(ExpressionError):
            template = compile_template(written)
            with bounded("evaluating"):
                context = context_for(template.paths, given, lambda _: step, {"id": "r"})
                to_json(template.render(context))
        if isinstance(text, str):
            with bounded("compiling"), suppress(ExpressionError):
                condition = compile_condition(text)
                with bounded("evaluating"):
                    condition.evaluate(
                        context_for(condition.paths, given, lambda _: step, {"id": "r"}), {"a": "failed"}
                    )
            with bounded("compiling"), suppress(ExpressionError):
                compile_retry_condition(text)


class Schemas(Target):
    """Schemas of inputs and values for them, as a submission has them: in little time and memory."""

    name = "schemas"
    cases = st.tuples(language.schemas, language.instances)

    def open(self) -> None:
        self._reader = Reader(known_types())

    def close(self) -> None:
        self._reader.close()

    def check(self, case: Any) -> None:
        schema, instance = case
        definition = {"name": "p", "inputs": {"x": schema}, "steps": {"a": {"uses": "simulate"}}}
        try:
            raw = Wire({"definition": definition, "inputs": {"x": instance}}).raw
        except MemoryError:  # gigabytes, which nobody can send
            return
        self._reader.read(raw)


TARGETS: Final[Mapping[str, type[Target]]] = {
    each.name: each
    for each in (
        Bodies,
        Requests,
        Tokens,
        Yaml,
        Pipelines,
        Outputs,
        Inbox,
        Changelogs,
        Commands,
        Handlers,
        Events,
        Announcements,
        Headers,
        Expressions,
        Schemas,
    )
}
