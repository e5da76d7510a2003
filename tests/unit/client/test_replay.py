"""What `anabranch replay` says of a run: its events, how it was at one of them, and what differs."""

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest

from anabranch.client import replay as of_replay
from anabranch.client.rebuilt import Difference, Rebuilt, as_stored, first_difference
from anabranch.client.stored_events import Stored, add
from anabranch.services.orchestrator.core.effects import Channel
from anabranch.services.orchestrator.replay import RULES_VERSION, Cause
from tests.support.builders import RETRIES, RUN, a_run, a_step, a_transform, failed, retry_due, succeeded


def a_life() -> list[bytes]:
    """Return the events of a run with a retry, a transform, a skipped step and outputs."""
    run = a_run(
        {
            "a": a_step(retry=RETRIES),
            "b": a_transform("${{ steps.a.output }}", "a"),
            "c": a_step("a", if_="false"),
        }
    )
    run.take(failed("a"))
    run.take(retry_due("a"), 5000)
    run.take(succeeded("a", {"n": 1}, attempt=2))
    return [record.value for record in run.outputs if record.channel is Channel.RUN_EVENTS]


EVENTS = a_life()


def stored(*events: bytes) -> Stored:
    """Return these events as they are stored."""
    return {seq: (value,) for seq, value in enumerate(events, start=1)}


def rebuilt(difference: Difference | None = None, *, rules: int = RULES_VERSION, is_decided: bool = True) -> Rebuilt:
    """Return the life as it was decided again."""
    causes = [Cause(10 + seq, "AttemptSucceeded", 0) if is_decided else None for seq in range(len(EVENTS))]
    return Rebuilt(EVENTS, causes, "partition 3 of the inbox", "the record", len(EVENTS), rules, difference)


def flipped(value: bytes, byte: int) -> bytes:
    """Return the value with one bit of one byte turned round."""
    return value[:byte] + bytes([value[byte] ^ 1]) + value[byte + 1 :]


def test_any_flipped_byte_is_found() -> None:
    """In whichever event and wherever in it."""
    assert first_difference(EVENTS, stored(*EVENTS), same_rules=True) is None
    for seq, value in enumerate(EVENTS, start=1):
        for byte in range(len(value)):
            other = flipped(value, byte)
            spoilt = {**stored(*EVENTS), seq: (other,)}
            assert first_difference(EVENTS, spoilt, same_rules=True) == Difference(seq, value, other)


@pytest.mark.parametrize("same_rules", [True, False])
def test_an_event_too_few_or_too_many_is_a_difference(same_rules: bool) -> None:
    """At the end, in the middle, and one that is stored twice with different bytes."""
    last = len(EVENTS)
    assert first_difference(EVENTS, stored(*EVENTS[:-1]), same_rules=same_rules) == Difference(last, EVENTS[-1], None)
    assert first_difference(EVENTS[:-1], stored(*EVENTS), same_rules=same_rules) == Difference(last, None, EVENTS[-1])
    gap = {seq: values for seq, values in stored(*EVENTS).items() if seq != 2}
    assert first_difference(EVENTS, gap, same_rules=same_rules) == Difference(2, EVENTS[1], None)
    twice = {**stored(*EVENTS), 2: (EVENTS[1], EVENTS[2])}
    assert first_difference(EVENTS, twice, same_rules=same_rules) == Difference(2, EVENTS[1], EVENTS[2])


def test_of_other_rules_only_what_the_events_say_is_compared() -> None:
    """A version may write the same otherwise; what it says otherwise is a difference still."""
    start = json.loads(EVENTS[0])
    written = json.dumps({**start, "rules": 1}).encode()
    assert first_difference(EVENTS, stored(written, *EVENTS[1:]), same_rules=False) is None
    assert first_difference(EVENTS, stored(written, *EVENTS[1:]), same_rules=True) is not None
    said = json.dumps({**start, "rules": 1, "pipeline": "q"}).encode()
    assert first_difference(EVENTS, stored(said, *EVENTS[1:]), same_rules=False) == Difference(1, EVENTS[0], said)


def test_what_the_inbox_no_longer_holds_is_read_from_its_events() -> None:
    """They are taken as they are, unless one is missing, cannot be read, or is there twice."""
    whole = as_stored("the record", stored(*EVENTS))
    assert (list(whole.events), whole.difference, whole.is_decided) == (EVENTS, None, False)
    for spoilt, kept in ((None, 2), (b"{", 2)):
        held = {seq: values for seq, values in stored(*EVENTS).items() if seq != 3}
        told = as_stored("the record", {**held, 3: (spoilt,)} if spoilt else held)
        assert told.difference == Difference(3, None, spoilt)
        assert len(told.events) == kept


def test_events_that_were_written_twice_count_once_and_a_second_run_begins_anew() -> None:
    found: dict[int, tuple[bytes, ...]] = {}
    written: tuple[tuple[int | None, bytes], ...] = (
        (1, b"a"),
        (2, b"b"),
        (1, b"a"),
        (2, b"b"),
        (2, b"c"),
        (None, b"?"),
    )
    for seq, value in written:
        add(found, seq, value)
    assert found == {1: (b"a",), 2: (b"b", b"c")}
    add(found, 1, b"z")
    assert found == {1: (b"z",)}


def printed(capsys: pytest.CaptureFixture[str], shown: Rebuilt, at: int, *, as_json: bool = False) -> tuple[str, str]:
    """Return what is printed on both outputs."""
    of_replay.print_rebuilt(shown, RUN, at, as_json=as_json)
    out, err = capsys.readouterr()
    return out, err


def test_the_run_is_shown_as_it_was_at_an_event(capsys: pytest.CaptureFixture[str]) -> None:
    """One line for each event up to there, with the record that led to it; then the run."""
    lines = {at: printed(capsys, rebuilt(), at)[0].splitlines() for at in (2, len(EVENTS))}
    assert lines[2][0].split()[2:] == [
        "RunStarted",
        "p",
        "(3",
        "steps)",
        "queued:",
        "a/1",
        "<",
        "AttemptSucceeded",
        "at",
        "10",
    ]
    assert lines[2][1].split()[2:7] == ["StepRetrying", "a", "attempt", "1", "waiting"]
    assert any(line.split()[:3] == ["a", "simulate", "waiting"] for line in lines[2][2:])
    assert any(line.split()[:3] == ["b", "transform", "succeeded"] for line in lines[len(EVENTS)])
    assert any(line.split()[:3] == ["c", "simulate", "skipped"] for line in lines[len(EVENTS)])


def test_as_json_it_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    out, err = printed(capsys, rebuilt(Difference(2, EVENTS[1], b"\xff")), 2, as_json=True)
    told = json.loads(out)
    assert not err
    assert told["run"]["steps"]["a"]["status"] == "waiting"
    assert [each["event"] for each in told["events"]] == [json.loads(value) for value in EVENTS[:2]]
    assert told["events"][1]["cause"] == {"offset": 11, "type": "AttemptSucceeded", "at_ms": 0}
    assert (told["equal"], told["difference"]["seq"], told["difference"]["stored"]) == (False, 2, "\\xff")
    assert (told["at"], told["is_decided"], told["stored"]) == (2, True, len(EVENTS))


def verdicts() -> Sequence[tuple[Rebuilt, str]]:
    """Return what can be found, each with the words for it."""
    other = flipped(EVENTS[1], 20)
    return [
        (
            rebuilt(),
            "equal: 7 events, decided again from partition 3 of the inbox, are byte for byte what is in the record",
        ),
        (rebuilt(rules=1), f"it began under rules 1, and this version has rules {RULES_VERSION}"),
        (rebuilt(is_decided=False), "not decided again, since the inbox no longer holds the run's beginning"),
        (rebuilt(Difference(2, EVENTS[1], other)), "different: event 2 in the record\n  at byte 20\n  rebuilt … {"),
        (rebuilt(Difference(2, EVENTS[1], None)), "  stored  no such event"),
        (rebuilt(Difference(2, EVENTS[1], other), rules=1), "where those differ, so may the events"),
        (replace(rebuilt(), wrong_rows=["steps"]), "different: the rows in steps of the record are not what"),
        (rebuilt(Difference(2, None, None), is_decided=False), "event 2 in the record is missing"),
        (rebuilt(Difference(2, None, b"{"), is_decided=False), "event 2 in the record cannot be read"),
    ]


@pytest.mark.parametrize(("found", "words"), verdicts())
def test_what_was_found_is_said_in_words(found: Rebuilt, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert words in printed(capsys, found, len(EVENTS))[1]
