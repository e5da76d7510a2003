"""What a decision wants done: records to append and timers to set. Data; the partition task acts on it."""

from enum import StrEnum
from typing import NamedTuple

from anabranch.shared.contracts.codec import Headers


class Channel(StrEnum):
    """Where a record goes."""

    INBOX = "inbox"
    COMMANDS = "commands"
    CONTROL = "control"
    RUN_EVENTS = "run_events"
    DEAD_LETTERS = "dead_letters"


class Append(NamedTuple):
    """Append this record. `step_type` tells which command topic."""

    channel: Channel
    key: str
    value: bytes
    headers: Headers
    step_type: str = ""


class SetTimer(NamedTuple):
    """Arm the run's timer, or move it: it is due at `due_ms`, milliseconds of broker time."""

    timer_id: str
    due_ms: int


class DropTimer(NamedTuple):
    """Forget the run's timer."""

    timer_id: str


Effect = Append | SetTimer | DropTimer
