"""A run as fields, one per fact, and the one place where the run document is made of them.

Wherever a run is read from, it is read as these fields: a hash in Redis, rows of the record, the run's events one upon
the other, or what a gateway has just accepted. History writes them one by one, so that an event costs the same in a run
of 5 steps and of 5,000; the gateway puts the document together when somebody reads it. `run`, `end` and the steps are
JSON, the others plain.

| field | written by | holds |
|---|---|---|
| `seq` | every event | the last event that is in |
| `created_at` | `RunStarted` | when the run began: with `seq` it tells one state of one run from any other |
| `status` | `RunStarted`, `RunEnded` | the run's status |
| `tenant` | `RunStarted` | whose run it is: nobody else may read it |
| `body_hash` | `RunStarted` | hash of the submission's body |
| `run` | `RunStarted` | what does not change: pipeline, inputs, labels, which steps there are |
| `end` | `RunEnded` | outputs, error, times |
| `step:<id>` | `StepChanged`, `queued` of any | the step as the run document shows it; absent while it is pending |
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson
from pydantic_core import to_json

from anabranch.shared.contracts.messages import (
    QueuedStep,
    RunEnded,
    RunEventMessage,
    RunStarted,
    StepChanged,
    StepsQueued,
)

SEQ: Final = b"seq"
STATUS: Final = b"status"
BODY_HASH: Final = b"body_hash"
TENANT: Final = b"tenant"
CREATED_AT: Final = b"created_at"
RUN: Final = b"run"
END: Final = b"end"
STEP_PREFIX: Final = b"step:"

ACCEPTED: Final = "accepted"
RUNNING: Final = "running"
ENDED_STATUSES: Final = frozenset({"succeeded", "failed", "cancelled", "timed_out"})

Fields = dict[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a run stands, without its document; `size` is what its fields take where they are kept, in bytes.

    A key that is used again long after its run has ended begins another run with the same id: `created_at` and `seq`
    together tell one state of one run from every other.
    """

    status: str
    seq: int
    created_at: str
    size: int = 0

    @property
    def has_ended(self) -> bool:
        """Whether nothing will change any more."""
        return self.status in ENDED_STATUSES


def fields_of(event: RunEventMessage) -> Fields:
    """Return what an event overwrites in its run's hash, without `seq`."""
    fields = _own_fields_of(event)
    for queued in event.queued or ():
        fields[STEP_PREFIX + queued.step.encode()] = _queued_step(queued, event.at)
    return fields


def _own_fields_of(event: RunEventMessage) -> Fields:
    match event:
        case StepChanged():
            return {STEP_PREFIX + event.step.encode(): _changed_step(event)}
        case StepsQueued():
            return {}
        case RunStarted():
            return _started_run(event)
        case RunEnded():
            return _ended_run(event)


def accepted_fields(
    *,
    pipeline: str,
    tenant: str,
    inputs: Mapping[str, Any],
    labels: Mapping[str, str],
    steps: Mapping[str, str],
    created_at: str,
) -> Fields:
    """Return the fields of a run that nobody has taken up yet; `steps` says what each of them uses."""
    header = {
        "pipeline": pipeline,
        "tenant": tenant,
        "inputs": inputs,
        "labels": labels,
        "created_at": created_at,
        "steps": steps,
    }
    return {
        SEQ: b"0",
        CREATED_AT: created_at.encode(),
        RUN: _json(header),
        STATUS: ACCEPTED.encode(),
        TENANT: tenant.encode(),
    }


def is_whole(fields: Mapping[bytes, bytes]) -> bool:
    """Return whether the fields are a run, and not only what its later events said."""
    return RUN in fields and SEQ in fields


def document(run_id: str, fields: Mapping[bytes, bytes]) -> bytes:
    """Return the run document (architecture §5) as JSON; steps stand in the order of the definition."""
    header = orjson.loads(fields[RUN]) if RUN in fields else {}
    end = orjson.loads(fields[END]) if END in fields else {}
    return orjson.dumps(
        {
            "id": run_id,
            "pipeline": header.get("pipeline"),
            "revision": header.get("revision"),
            "tenant": header.get("tenant"),
            "status": status_of(fields),
            "inputs": header.get("inputs"),
            "outputs": end.get("outputs"),
            "error": end.get("error"),
            "labels": header.get("labels", {}),
            "created_at": header.get("created_at"),
            "started_at": header.get("started_at", end.get("started_at")),
            "finished_at": end.get("finished_at"),
            "steps": _steps(header.get("steps", {}), fields),
        }
    )


def status_of(fields: Mapping[bytes, bytes]) -> str:
    """Return the run's status, `running` when only events after its start are known."""
    return fields.get(STATUS, RUNNING.encode()).decode()


def standing_of(fields: Mapping[bytes, bytes]) -> Standing:
    """Return where a whole run stands."""
    return Standing(
        status=status_of(fields),
        seq=int(fields[SEQ]),
        created_at=fields.get(CREATED_AT, b"").decode(),
        size=sum(len(name) + len(value) for name, value in fields.items()),
    )


def _started_run(event: RunStarted) -> Fields:
    header = {
        "pipeline": event.pipeline,
        "revision": event.revision,
        "tenant": event.tenant,
        "inputs": event.inputs,
        "labels": event.labels,
        "created_at": event.at,
        "started_at": event.at,
        "steps": event.steps,
    }
    return {
        CREATED_AT: event.at.encode(),
        RUN: _json(header),
        STATUS: RUNNING.encode(),
        TENANT: event.tenant.encode(),
        BODY_HASH: event.body_hash.encode(),
    }


def _ended_run(event: RunEnded) -> Fields:
    end = {
        "outputs": event.outputs,
        "error": event.error.model_dump() if event.error else None,
        "started_at": event.started_at,
        "finished_at": event.at,
    }
    return {END: _json(end), STATUS: event.status.encode()}


def _queued_step(queued: QueuedStep, at: str) -> bytes:
    return _json(_step(queued.uses, "queued", attempt=queued.attempt, queued_at=at))


def _changed_step(event: StepChanged) -> bytes:
    return _json(
        _step(
            event.uses,
            event.status,
            attempt=event.attempt,
            queued_at=event.queued_at,
            started_at=event.started_at,
            finished_at=event.finished_at,
            output=event.output,
            error=event.error.model_dump() if event.error else None,
            waiting_on=event.waiting_on,
        )
    )


def _json(value: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError:  # an integer beyond 64 bits, which a handler may return
        return to_json(value)


def _step(
    uses: str,
    status: str,
    *,
    attempt: int = 0,
    queued_at: str | None = None,
    started_at: str | None = None,
    finished_at: str | None = None,
    output: Any = None,
    error: Any = None,
    waiting_on: str | None = None,
) -> dict[str, Any]:
    return {
        "uses": uses,
        "status": status,
        "attempt": attempt,
        "queued_at": queued_at,
        "started_at": started_at,
        "finished_at": finished_at,
        "output": output,
        "error": error,
        "waiting_on": waiting_on,
        "cached": False,
    }


def _steps(uses_of: Mapping[str, str], fields: Mapping[bytes, bytes]) -> dict[str, Any]:
    """Return the steps by name; those that the definition does not name are in the order of their names.

    Fields are in another order in each place that they are read from.
    """
    steps: dict[str, Any] = {step: _step(uses, "pending") for step, uses in uses_of.items()}
    for name in sorted(name for name in fields if name.startswith(STEP_PREFIX)):
        steps[name[len(STEP_PREFIX) :].decode()] = orjson.Fragment(fields[name])
    return steps
