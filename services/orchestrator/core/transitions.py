"""The transition table: for every (step status, fact about its attempt) the statuses that may follow, or why none.

Under at-least-once delivery, repeats, late results and answers to questions that nobody asks any more are normal input:
the table answers `Ignore(reason)`, which is counted, and nothing changes.
"""

from enum import StrEnum
from typing import Final

from anabranch.services.orchestrator.core.status import StepStatus as S


class Fact(StrEnum):
    """What a message says about a step's current attempt."""

    STARTED = "started"  # a worker took a lease
    RENEWED = "renewed"  # a worker still holds it, or gives it back
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"  # the worker stopped it
    REFUSED = "refused"  # its command topic did not take it
    RETRY_DUE = "retry_due"
    SEND_DUE = "send_due"  # the command that was refused is sent again
    LEASE_DUE = "lease_due"


class Ignore(StrEnum):
    """Why a message changes nothing."""

    NOT_DISPATCHED = "not_dispatched"  # no attempt of this step was ever sent out
    ALREADY_STARTED = "already_started"
    ALREADY_ANSWERED = "already_answered"  # this attempt has its result; the step waits for the next
    ALREADY_HELD_BACK = "already_held_back"  # a repeat of a refusal
    FINISHED = "finished"  # the step is terminal
    NOT_WAITING = "not_waiting"  # a retry that is no longer awaited
    NO_LEASE = "no_lease"  # a lease that no longer stands
    STALE_ATTEMPT = "stale_attempt"
    STALE_TIMER = "stale_timer"
    EARLY_TIMER = "early_timer"  # armed again for what remains
    STALE_CONTINUE = "stale_continue"
    UNKNOWN_STEP = "unknown_step"
    UNKNOWN_RUN = "unknown_run"
    ALREADY_STOPPING = "already_stopping"
    DUPLICATE_SUBMISSION = "duplicate_submission"
    CONFLICTING_SUBMISSION = "conflicting_submission"  # the same id with another body
    FINISHED_RUN = "finished_run"  # a repeat of a start that is still remembered
    QUARANTINED = "quarantined"


Next = frozenset[S]
_ANSWERED: Final[Next] = frozenset({S.WAITING, S.FAILED, S.TIMED_OUT})
_LOST: Final[Next] = frozenset({S.QUEUED, S.CANCELLED, S.FAILED})
_FINISHED: Final[dict[Fact, Next | Ignore]] = dict.fromkeys(Fact, Ignore.FINISHED)

TABLE: Final[dict[S, dict[Fact, Next | Ignore]]] = {
    S.PENDING: dict.fromkeys(Fact, Ignore.NOT_DISPATCHED),
    S.QUEUED: {
        Fact.STARTED: frozenset({S.RUNNING}),
        Fact.RENEWED: frozenset({S.RUNNING}) | _LOST,
        Fact.SUCCEEDED: frozenset({S.SUCCEEDED, S.FAILED}),  # failed: its output is too large to hand on
        Fact.FAILED: _ANSWERED,
        Fact.CANCELLED: _LOST,
        Fact.REFUSED: _LOST,  # failed: it is too large for its topic
        Fact.RETRY_DUE: Ignore.NOT_WAITING,
        Fact.SEND_DUE: frozenset({S.QUEUED, S.FAILED, S.CANCELLED}),  # failed: its input cannot be rendered
        Fact.LEASE_DUE: Ignore.NO_LEASE,
    },
    S.RUNNING: {
        Fact.STARTED: Ignore.ALREADY_STARTED,
        Fact.RENEWED: frozenset({S.RUNNING}) | _LOST,
        Fact.SUCCEEDED: frozenset({S.SUCCEEDED, S.FAILED}),
        Fact.FAILED: _ANSWERED,
        Fact.CANCELLED: _LOST,
        Fact.REFUSED: Ignore.ALREADY_STARTED,
        Fact.RETRY_DUE: Ignore.NOT_WAITING,
        Fact.SEND_DUE: Ignore.NOT_WAITING,
        Fact.LEASE_DUE: frozenset({S.RUNNING}) | _LOST,  # running: suspected first
    },
    S.WAITING: {
        Fact.STARTED: Ignore.ALREADY_ANSWERED,
        Fact.RENEWED: Ignore.ALREADY_ANSWERED,
        Fact.SUCCEEDED: Ignore.ALREADY_ANSWERED,
        Fact.FAILED: Ignore.ALREADY_ANSWERED,
        Fact.CANCELLED: Ignore.ALREADY_ANSWERED,
        Fact.REFUSED: Ignore.ALREADY_ANSWERED,
        Fact.RETRY_DUE: frozenset({S.QUEUED, S.FAILED, S.CANCELLED}),  # failed: its input cannot be rendered
        Fact.SEND_DUE: Ignore.NOT_WAITING,
        Fact.LEASE_DUE: Ignore.NO_LEASE,
    },
    S.SUCCEEDED: _FINISHED,
    S.FAILED: _FINISHED,
    S.TIMED_OUT: _FINISHED,
    S.CANCELLED: _FINISHED,
    S.SKIPPED: _FINISHED,
}
