"""What `anabranch replay` does: an operator's command, which reads Kafka and the record themselves."""

from collections.abc import Iterable
from typing import Any, Final

import asyncpg
import orjson
from aiokafka.errors import KafkaError
from sqlalchemy.exc import SQLAlchemyError

from anabranch.client.commands import FAILED, OK, WRONG, put, say, show
from anabranch.client.model import Run
from anabranch.client.rebuilt import Difference, Rebuilt, event_of, rebuild, rebuild_without_kafka
from anabranch.services.orchestrator.replay import RULES_VERSION, Cause
from anabranch.shared.contracts import messages as m
from anabranch.shared.record.settings import RecordSettings
from anabranch.shared.runtime.clients import wait_for_kafka
from anabranch.shared.runtime.deadline import Deadline
from anabranch.shared.runtime.errors import KafkaUnreachable
from anabranch.shared.runtime.snapshots import Fields, document, fields_of

UNANSWERED: Final = 3  # Kafka or the database could not be asked

_KAFKA_WITHIN_S: Final = 10.0
_SHOWN: Final = 60  # bytes of an event on either side of where it differs
_NAMED: Final = 5  # steps in one line


async def replay(settings: RecordSettings, run_id: str, *, at: int | None, as_json: bool) -> int:
    """Rebuild a run, print it as it was at an event, and say whether what is stored is the same."""
    try:
        rebuilt = await _rebuilt(settings, run_id)
    except KafkaUnreachable as error:
        say(str(error))
        return UNANSWERED
    except (KafkaError, SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
        say(f"run {run_id} cannot be rebuilt: {error!r}")
        return UNANSWERED
    if rebuilt is None:
        say(f"there is no run {run_id}: neither in the inbox nor among the events that are stored")
        return WRONG
    if at is not None and at > len(rebuilt.events):
        say(f"run {run_id} has {len(rebuilt.events)} events: there is no number {at}")
        return WRONG
    print_rebuilt(rebuilt, run_id, len(rebuilt.events) if at is None else at, as_json=as_json)
    return OK if rebuilt.is_equal else FAILED


async def _rebuilt(settings: RecordSettings, run_id: str) -> Rebuilt | None:
    """Return the run as it is decided again, or as the record has it where Kafka does not answer."""
    try:
        await wait_for_kafka(settings, Deadline.after(_KAFKA_WITHIN_S))
        return await rebuild(settings, run_id)
    except (KafkaUnreachable, KafkaError) as error:
        why = str(error) if isinstance(error, KafkaUnreachable) else repr(error)
        rebuilt = await rebuild_without_kafka(settings, run_id, f"Kafka cannot be asked ({why})")
        if rebuilt is None:
            raise
        return rebuilt


def print_rebuilt(rebuilt: Rebuilt, run_id: str, at: int, *, as_json: bool) -> None:
    """Print the events up to number `at`, the run as it was then, and whether all that is stored is the same."""
    shown = document_at(run_id, rebuilt.events[:at])
    if as_json:
        put(orjson.dumps(_described(rebuilt, at, shown)).decode())
        return
    for number, (value, cause) in enumerate(zip(rebuilt.events[:at], rebuilt.causes, strict=False), start=1):
        put(_line(number, value, cause))
    show(Run.model_validate_json(shown))
    say(_verdict(rebuilt))


def document_at(run_id: str, events: Iterable[bytes]) -> bytes:
    """Return the run document after these events."""
    fields: Fields = {}
    for value in events:
        event = event_of(value)
        if event is not None:
            fields |= fields_of(event)
    return document(run_id, fields)


def _line(number: int, value: bytes, cause: Cause | None) -> str:
    event = event_of(value)
    assert event is not None, "the core wrote it, or it was looked at"
    because = "" if cause is None else f"  < {cause.type} at {cause.offset}"
    words = " ".join(_words_of(event))
    return f"{number:>5}  {event.at}  {event.type:<13} {words}{because}".rstrip()


def _words_of(event: m.RunEventMessage) -> list[str]:
    words = []
    match event:
        case m.RunStarted():
            words = [event.pipeline, f"({len(event.steps)} steps)"]
        case m.StepChanged():
            words = [event.step, f"attempt {event.attempt}", event.status]
            words += [event.error.type] if event.error else []
        case m.RunEnded():
            words = [event.status, *([event.error.type] if event.error else [])]
    if event.queued:
        names = [f"{each.step}/{each.attempt}" for each in event.queued[:_NAMED]]
        more = len(event.queued) - len(names)
        words += ["queued:", *names, *([f"and {more} more"] if more else [])]
    return words


def _verdict(rebuilt: Rebuilt) -> str:
    rules = ""
    if rebuilt.rules != RULES_VERSION:
        rules = f"; it began under rules {rebuilt.rules}, and this version has rules {RULES_VERSION}"
    if rebuilt.difference is not None:
        return _different(rebuilt, rebuilt.difference, rules)
    if rebuilt.wrong_rows:
        return (
            f"different: the rows in {', '.join(rebuilt.wrong_rows)} of the record are not what its events say{rules}"
        )
    if not rebuilt.is_decided:
        return (
            f"not decided again, since {rebuilt.not_decided_since}: its {rebuilt.stored} events in "
            f"{rebuilt.stored_in} are whole{rules}"
        )
    how = "say what is" if rules else "are byte for byte what is"
    return f"equal: {rebuilt.stored} events, decided again from {rebuilt.source}, {how} in {rebuilt.stored_in}{rules}"


def _different(rebuilt: Rebuilt, difference: Difference, rules: str) -> str:
    where = f"different: event {difference.seq} in {rebuilt.stored_in}"
    if not rebuilt.is_decided:
        what = "is missing" if difference.stored is None else "cannot be read, or is there twice"
        return f"{where} {what}, and {rebuilt.not_decided_since}"
    may = ": where those differ, so may the events" if rules else ""
    return f"{where}{rules}{may}\n{_both(difference)}"


def _both(difference: Difference) -> str:
    rebuilt, stored = difference.rebuilt, difference.stored
    if stored is None or rebuilt is None:
        return f"  rebuilt {_beginning(rebuilt)}\n  stored  {_beginning(stored)}"
    byte = next(
        (n for n, (one, other) in enumerate(zip(rebuilt, stored, strict=False)) if one != other),
        min(len(rebuilt), len(stored)),
    )
    around = slice(max(0, byte - _SHOWN), byte + _SHOWN)
    return f"  at byte {byte}\n  rebuilt … {_text(rebuilt[around])}\n  stored  … {_text(stored[around])}"


def _beginning(value: bytes | None) -> str:
    return "no such event" if value is None else _text(value[: 2 * _SHOWN])


def _text(value: bytes) -> str:
    return value.decode(errors="backslashreplace")


def _described(rebuilt: Rebuilt, at: int, shown: bytes) -> dict[str, Any]:
    difference = rebuilt.difference
    return {
        "run": orjson.Fragment(shown),
        "at": at,
        "events": [
            {
                "event": orjson.Fragment(value),
                "cause": cause and {"offset": cause.offset, "type": cause.type, "at_ms": cause.at_ms},
            }
            for value, cause in zip(rebuilt.events[:at], rebuilt.causes, strict=False)
        ],
        "source": rebuilt.source,
        "is_decided": rebuilt.is_decided,
        "not_decided_since": None if rebuilt.is_decided else rebuilt.not_decided_since,
        "stored_in": rebuilt.stored_in,
        "stored": rebuilt.stored,
        "rules": {"run": rebuilt.rules, "here": RULES_VERSION},
        "equal": rebuilt.is_equal,
        "wrong_rows": list(rebuilt.wrong_rows),
        "difference": difference
        and {
            "seq": difference.seq,
            "rebuilt": None if difference.rebuilt is None else _text(difference.rebuilt),
            "stored": None if difference.stored is None else _text(difference.stored),
        },
    }
