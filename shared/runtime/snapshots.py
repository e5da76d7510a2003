"""A run's snapshot in Redis: one hash per run, one field per fact, and the run document that is made of them.

History writes it field by field, so that an event costs the same in a run of 5 steps and of 5,000; the gateway puts the
document together when somebody reads it. Every field but `seq`, `status`, `tenant` and `body_hash` is JSON.

| field | written by | holds |
|---|---|---|
| `seq` | every event | the last event that is in the snapshot |
| `status` | `RunStarted`, `RunEnded` | the run's status |
| `tenant` | `RunStarted` | whose run it is: nobody else may read it |
| `body_hash` | `RunStarted` | hash of the submission's body |
| `run` | `RunStarted` | what does not change: pipeline, inputs, labels, which steps there are |
| `end` | `RunEnded` | outputs, error, times |
| `step:<id>` | `StepChanged`, `queued` of any | the step as the run document shows it; absent while it is pending |
"""

from collections.abc import Mapping
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
RUN: Final = b"run"
END: Final = b"end"
STEP_PREFIX: Final = b"step:"

ACCEPTED: Final = "accepted"
RUNNING: Final = "running"
ENDED_STATUSES: Final = frozenset({"succeeded", "failed", "cancelled", "timed_out"})

Fields = dict[bytes, bytes]


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


def document(run_id: str, fields: Mapping[bytes, bytes]) -> bytes:
    """Return the run document (architecture §5) as JSON; steps stand in the order of the definition."""
    header = orjson.loads(fields[RUN]) if RUN in fields else {}
    end = orjson.loads(fields[END]) if END in fields else {}
    status = fields[STATUS].decode() if STATUS in fields else RUNNING
    return _document(run_id, header, status=status, end=end, steps=_steps(header.get("steps", {}), fields))


def accepted_document(
    run_id: str,
    *,
    pipeline: str,
    tenant: str,
    inputs: Mapping[str, Any],
    labels: Mapping[str, str],
    steps: Mapping[str, str],
    created_at: str,
) -> bytes:
    """Return the run document of a run that nobody has taken up yet; `steps` says what each of them uses."""
    header = {"pipeline": pipeline, "tenant": tenant, "inputs": inputs, "labels": labels, "created_at": created_at}
    return _document(run_id, header, status=ACCEPTED, end={}, steps=_steps(steps, {}))


def status_of(fields: Mapping[bytes, bytes]) -> str:
    """Return the run's status, `running` when only events after its start are known."""
    return fields.get(STATUS, RUNNING.encode()).decode()


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
    pending = {step: _step(uses, "pending") for step, uses in uses_of.items()}
    changed = {
        name[len(STEP_PREFIX) :].decode(): orjson.Fragment(value)
        for name, value in fields.items()
        if name.startswith(STEP_PREFIX)
    }
    return pending | changed


def _document(
    run_id: str, header: Mapping[str, Any], *, status: str, end: Mapping[str, Any], steps: Mapping[str, Any]
) -> bytes:
    return orjson.dumps(
        {
            "id": run_id,
            "pipeline": header.get("pipeline"),
            "revision": header.get("revision"),
            "tenant": header.get("tenant"),
            "status": status,
            "inputs": header.get("inputs"),
            "outputs": end.get("outputs"),
            "error": end.get("error"),
            "labels": header.get("labels", {}),
            "created_at": header.get("created_at"),
            "started_at": header.get("started_at", end.get("started_at")),
            "finished_at": end.get("finished_at"),
            "steps": steps,
        }
    )
