"""Ids: each is derived from what it names, so that a repeat is recognisable by anyone."""

import hashlib
import re
from typing import Final
from uuid import UUID, uuid5

import uuid_utils

from anabranch.shared.contracts.limits import MAX_IDEMPOTENCY_KEY_CHARS

RUN_NAMESPACE: Final = UUID("6a6ca2b6-8d6f-5d0c-9a2c-2b6f5f0f7a11")
"""Namespace of run ids that are derived from an idempotency key (UUIDv5, RFC 9562 §5.5)."""

_IDEMPOTENCY_KEY: Final = re.compile(rf"[\x21-\x7e]{{1,{MAX_IDEMPOTENCY_KEY_CHARS}}}")

_SPAN: Final = hashlib.blake2b(digest_size=8)
"""The empty hash of a span id; a copy of it costs less than the arguments of a new one."""


def new_run_id() -> str:
    """Return a time-ordered UUIDv7 (RFC 9562 §5.7), as text of 36 characters."""
    return str(uuid_utils.uuid7())


def is_idempotency_key(text: str) -> bool:
    """Return whether a client may name a submission so: visible ASCII characters, not too many."""
    return _IDEMPOTENCY_KEY.fullmatch(text) is not None


def run_id_for_key(tenant: str, key: str) -> str:
    """Return the run id that every submission of `tenant` with this idempotency key has."""
    return str(uuid5(RUN_NAMESPACE, f"{len(tenant)}:{tenant}:{key}"))


def attempt_id(run_id: str, step: str, attempt: int) -> str:
    """Return the id of one try of a step: of its command, and of its result behind a suffix."""
    return f"{run_id}/{step}/{attempt}"


def cancel_id(run_id: str) -> str:
    """Return the id of the wish to cancel a run."""
    return f"{run_id}/cancel"


def event_id(run_id: str, seq: int) -> str:
    """Return the id of a run's event number `seq`, which counts from 1 without gap."""
    return f"{run_id}/{seq}"


def timer_id(kind: str, step: str, number: int) -> str:
    """Return the id of a timer within its run; `number` tells apart the timers of a kind that follow one another."""
    return f"{kind}/{step}/{number}"


def idempotency_key(run_id: str, step: str) -> str:
    """Return the key a handler may hand on to other systems: the same for every attempt of the step."""
    return f"{run_id}/{step}"


def span_id(name: str) -> str:
    """Return the id (16 hex digits) of the span that stands for what is named: a run, an attempt, a message."""
    span = _SPAN.copy()
    span.update(name.encode())
    return span.hexdigest()


def traceparent(trace_id: str, message_id: str, *, is_sampled: bool = True) -> str:
    """Return the W3C `traceparent` of a message: the run's trace, and a span id derived from the message's id."""
    span = _SPAN.copy()  # `span_id`, written out: every record has one
    span.update(message_id.encode())
    return f"00-{trace_id}-{span.hexdigest()}-{'01' if is_sampled else '00'}"


def trace_id_of_run(run_id: str) -> str:
    """Return the trace id (32 hex digits) of a run whose client sent none."""
    return run_id.replace("-", "")
