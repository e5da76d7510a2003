"""What a worker does with commands, by consequence."""

import asyncio
from functools import partial
from typing import Any

import pytest
import structlog
from pydantic import BaseModel
from structlog.testing import capture_logs

from anabranch.services.steps.attempt import Attempt
from anabranch.services.steps.context import StepContext
from anabranch.services.steps.ports import Remembered
from anabranch.services.steps.step_type import step_type
from anabranch.services.steps.worker import Worker
from anabranch.shared.contracts.errors import RetryableError, TerminalError
from anabranch.shared.contracts.messages import (
    AttemptCancelled,
    AttemptFailed,
    AttemptStarted,
    AttemptSucceeded,
    LeasesRenewed,
)

from .fakes import (
    RUN,
    Echo,
    FakeMemory,
    Order,
    World,
    a_command,
    a_world,
    an_old_command,
    cancellation,
    now_ms,
    running,
)
from .virtual import run


def test_a_short_step_is_answered_and_pays_for_no_lease_and_no_lookup() -> None:
    """One record in, one record out; the offset follows in the background."""

    async def main() -> World:
        async with running(a_world()) as world:
            world.send(a_command("a", text="yo"))
            await asyncio.sleep(1)
        return world

    world = run(main())
    assert world.results.messages() == [
        AttemptSucceeded(run_id=RUN, step="a", attempt=1, output={"text": "yo"}, duration_ms=0)
    ]
    assert world.commands.commits == {0: 2}
    assert world.memory.recalls == 0


def test_an_answer_carries_the_time_and_id_of_its_command() -> None:
    """Nothing in a result comes from the host that sent it."""

    async def main() -> Any:
        async with running(a_world()) as world:
            world.send(a_command("a", at_ms=1_900_000_000_123))
            await asyncio.sleep(1)
        return world.results.appended

    (record,) = run(main())
    headers = dict(record.headers)
    assert headers["ce_id"] == f"{RUN}/a/1/AttemptSucceeded".encode()
    assert headers["ce_time"] == b"2030-03-17T17:46:40.123000Z"
    assert headers["ce_source"] == b"anabranch/steps/echo"
    assert record.key == RUN.encode()


def test_the_offset_is_not_committed_before_the_answer_is_acknowledged() -> None:
    """A crash between the two would lose the step."""

    async def main() -> list[dict[int, int]]:
        async with running(a_world()) as world:
            world.results.go_mute()
            world.send(a_command())
            await asyncio.sleep(2)
            before = dict(world.commands.commits)
            world.results.speak()
            await asyncio.sleep(1)
            return [before, world.commands.commits]

    assert run(main()) == [{}, {0: 2}]


def test_offsets_are_committed_up_to_the_first_open_command_only() -> None:
    """A later command that is done first does not take the earlier one's offset with it."""

    async def main() -> list[dict[int, int]]:
        async with running(a_world(grace_s=60)) as world:
            world.send(a_command("slow", sleep_s=10))
            world.send(a_command("quick"))
            await asyncio.sleep(5)
            before = dict(world.commands.commits)
            await asyncio.sleep(6)
            return [before, world.commands.commits]

    assert run(main()) == [{0: 1}, {0: 3}]


def test_a_long_step_is_leased_after_the_grace_and_its_partition_moves_on() -> None:
    """Its offset is released when `AttemptStarted` is acknowledged; the lease is renewed until it ends."""

    async def main() -> World:
        async with running(a_world(lease_s=30, grace_s=1)) as world:
            world.send(a_command("long", sleep_s=60))
            await asyncio.sleep(3)
            assert world.commands.commits == {0: 2}
            assert world.results.messages() == [
                AttemptStarted(run_id=RUN, step="long", attempt=1, lease_s=30, worker="worker-1")
            ]
            await asyncio.sleep(60)
        return world

    world = run(main())
    assert len(world.results.messages(LeasesRenewed)) == 5
    assert world.results.results() == [("AttemptSucceeded", {"text": "hi"})]


def test_a_start_that_is_not_acknowledged_releases_no_offset() -> None:
    """Else a crash would lose the step: nobody watches a lease that was never told."""

    async def main() -> dict[int, int]:
        async with running(a_world()) as world:
            world.results.go_mute()
            world.send(a_command("long", sleep_s=20))
            await asyncio.sleep(10)
            return world.commands.commits

    assert run(main()) == {}


def test_one_record_renews_all_leases_of_an_inbox_partition_and_carries_progress() -> None:
    """Heartbeats ride on the renewal; before the grace they cause nothing."""

    @step_type("echo")
    async def chatty(order: Order, context: StepContext) -> Echo:
        for done in range(5):
            context.heartbeat({"done": done})
            await asyncio.sleep(2.5)
        return Echo(text="")

    async def main() -> list[LeasesRenewed]:
        async with running(a_world(serves=chatty, lease_s=30)) as world:
            for step in ("a", "b", "c"):
                world.send(a_command(step))
            await asyncio.sleep(12)
            assert len(world.results.messages(AttemptStarted)) == 3
            return world.results.messages(LeasesRenewed)

    (renewal,) = run(main())
    assert [(lease.step, lease.progress) for lease in renewal.leases] == [(s, {"done": 4}) for s in ("a", "b", "c")]


def test_a_lease_that_cannot_be_renewed_ends_the_handler_and_answers_nothing() -> None:
    """The orchestrator gives the step to another: two handlers must not run."""

    async def main() -> World:
        async with running(a_world(lease_s=30)) as world:
            world.send(a_command("long", sleep_s=100))
            await asyncio.sleep(5)
            world.results.go_mute()
            await asyncio.sleep(24)
            assert world.witness.finished == []
            await asyncio.sleep(20)
            world.results.speak()
            await asyncio.sleep(100)
        return world

    world = run(main())
    assert world.witness.finished == []
    assert world.results.results() == []


def test_an_outage_shorter_than_the_lease_ends_nothing() -> None:
    """Three renewals fit into a lease."""

    async def main() -> World:
        async with running(a_world(lease_s=30)) as world:
            world.send(a_command("long", sleep_s=100))
            await asyncio.sleep(15)
            world.results.go_mute()
            await asyncio.sleep(20)
            world.results.speak()
            await asyncio.sleep(100)
        return world

    assert run(main()).results.results() == [("AttemptSucceeded", {"text": "hi"})]


def test_a_repeat_of_a_command_in_hand_is_dropped_and_released_with_the_original() -> None:
    """Not before: the original may still be lost."""

    async def main() -> World:
        async with running(a_world(grace_s=60)) as world:
            command = a_command("a", sleep_s=10)
            world.send(command)
            world.send(command)
            await asyncio.sleep(5)
            assert world.commands.commits == {}
            await asyncio.sleep(6)
        return world

    world = run(main())
    assert world.witness.started == ["a"]
    assert world.commands.commits == {0: 3}


def test_a_repeat_of_a_command_finished_lately_is_dropped() -> None:
    """Its answer is in the log already."""

    async def main() -> World:
        async with running(a_world()) as world:
            command = a_command()
            world.send(command)
            await asyncio.sleep(100)
            world.send(command)
            await asyncio.sleep(1)
        return world

    world = run(main())
    assert world.witness.started == ["a"]
    assert len(world.results.appended) == 1
    assert world.commands.commits == {0: 3}


def test_what_lately_forgot_is_looked_up() -> None:
    """A bounded memory is backed by the shared one: the stored answer is sent again, byte for byte."""

    async def main() -> World:
        async with running(a_world(lately_count=4)) as world:
            commands = [a_command(f"s{n}", at_ms=now_ms() + 600_000 + n) for n in range(10)]
            for command in commands:
                world.send(command)
            await asyncio.sleep(1)
            world.send(commands[0])
            await asyncio.sleep(1)
        return world

    world = run(main())
    assert len(world.witness.started) == 10
    first, again = (r for r in world.results.appended if b'"s0"' in r.value)
    assert first == again


def test_after_a_crash_the_answer_is_sent_again_instead_of_running_the_handler() -> None:
    """The memory outlives the worker; the repeat is byte-identical."""

    async def main() -> tuple[World, World]:
        memory = FakeMemory()
        async with running(a_world(memory=memory)) as first:
            command = an_old_command()
            first.send(command)
            await asyncio.sleep(1)
        async with running(a_world(memory=memory)) as second:
            second.send(command)
            await asyncio.sleep(1)
        return first, second

    first, second = run(main())
    assert second.witness.started == []
    assert second.results.appended == first.results.appended
    assert second.commands.commits == {0: 2}


def test_an_attempt_that_another_worker_holds_is_left_to_it() -> None:
    """The lease was written after its start was acknowledged, so the orchestrator watches it."""

    async def main() -> World:
        memory = FakeMemory()
        async with running(a_world(memory=memory)) as first:
            command = an_old_command("long", sleep_s=50)
            first.send(command)
            await asyncio.sleep(3)
            async with running(a_world(memory=memory)) as second:
                second.send(command)
                await asyncio.sleep(3)
            await asyncio.sleep(60)
            assert first.results.results() == [("AttemptSucceeded", {"text": "hi"})]
        return second

    second = run(main())
    assert second.witness.started == []
    assert second.commands.commits == {0: 2}


def test_an_attempt_whose_lease_is_over_is_run() -> None:
    """Its holder is gone."""

    async def main() -> World:
        memory = FakeMemory()
        memory.known[f"{RUN}/a/1"] = Remembered(holder="worker-0", leased_until_ms=now_ms() - 1)
        async with running(a_world(memory=memory)) as world:
            world.send(an_old_command())
            await asyncio.sleep(1)
        return world

    assert run(main()).witness.started == ["a"]


def test_a_start_that_was_not_acknowledged_is_not_remembered_as_a_lease() -> None:
    """Whoever finds a lease drops the command: it must be one that the orchestrator knows of."""

    async def main() -> FakeMemory:
        async with running(a_world()) as world:
            world.results.go_mute()
            world.send(an_old_command("long", sleep_s=50))
            await asyncio.sleep(10)
        return world.memory

    assert [known.leased_until_ms for known in run(main()).known.values()] == [0]


def test_lookups_of_commands_that_come_together_share_a_round_trip() -> None:
    """A rebalance makes a burst of them."""

    async def main() -> World:
        async with running(a_world()) as world:
            for step in range(40):
                world.send(an_old_command(f"s{step}"))
            await asyncio.sleep(1)
        return world

    world = run(main())
    assert len(world.witness.started) == 40
    assert world.memory.recalls == 1
    assert world.memory.writes == 1


@pytest.mark.parametrize("trouble", ["is_down", "hangs"])
def test_without_its_memory_a_worker_works_on(trouble: str) -> None:
    """At least once, as documented, and never waiting for longer than a second."""

    async def main() -> World:
        async with running(a_world()) as world:
            setattr(world.memory, trouble, True)
            world.send(an_old_command("a"))
            await asyncio.sleep(2.5)
            world.send(an_old_command("b"))
            await asyncio.sleep(0.1)
        return world

    world = run(main())
    assert world.witness.started == ["a", "b"]
    assert len(world.results.results()) == 2


def test_a_command_that_takes_its_worker_down_each_time_fails_at_last() -> None:
    """Bounded: a dead letter tells the operator, WorkerLost tells the run."""

    async def main() -> World:
        memory = FakeMemory()
        command = an_old_command("bomb", sleep_s=0.5)
        for _ in range(4):  # once beside others, for all it knows, then three times alone
            async with running(a_world(memory=memory)) as world:
                world.send(command)
                await asyncio.sleep(0.2)
                assert world.witness.started == ["bomb"]
                await world.crash()
        async with running(a_world(memory=memory)) as world:
            world.send(command)
            await asyncio.sleep(1)
        return world

    world = run(main())
    assert world.witness.started == []
    assert world.results.results() == [("AttemptFailed", "WorkerLost")]
    assert [message.terminal for message in world.results.messages()] == [True]
    assert [letter.error_type for letter in world.results.letters()] == ["WorkerLost"]


def test_suspects_are_tried_one_at_a_time() -> None:
    """So that the blame falls on the one that does it, not on those that were near."""

    async def main() -> World:
        memory = FakeMemory()
        for step in ("a", "b"):
            memory.known[f"{RUN}/{step}/1"] = Remembered(takes=1)
        async with running(a_world(memory=memory)) as world:
            world.send(an_old_command("a", sleep_s=0.5))
            world.send(an_old_command("b", sleep_s=0.5))
            await asyncio.sleep(0.3)
            assert world.witness.started == ["a"]
            assert memory.known[f"{RUN}/b/1"].takes == 1
            await asyncio.sleep(1)
        return world

    assert run(main()).witness.finished == ["a", "b"]


def test_an_attempt_cancelled_before_its_command_comes_is_never_started() -> None:
    """The control topic is read from its start before commands are taken."""

    async def main() -> World:
        world = a_world()
        command = a_command()
        world.control.before.append(cancellation(command))
        async with running(world):
            world.send(command)
            await asyncio.sleep(1)
        return world

    world = run(main())
    assert world.witness.started == []
    assert world.results.messages() == [AttemptCancelled(run_id=RUN, step="a", attempt=1)]
    assert world.commands.commits == {0: 2}


def test_a_cancellation_ends_the_handler_and_is_answered() -> None:
    """With how long it ran."""

    async def main() -> World:
        async with running(a_world()) as world:
            command = a_command(sleep_s=100)
            world.send(command)
            await asyncio.sleep(5)
            world.control.cancel(command)
            await asyncio.sleep(1)
        return world

    world = run(main())
    assert world.witness.finished == []
    (answer,) = world.results.messages(AttemptCancelled)
    assert answer.duration_ms == 5000


def test_an_unreadable_cancellation_stops_nothing() -> None:
    """A bad message never stops a worker."""

    async def main() -> World:
        world = a_world()
        world.control.before.append(cancellation(a_command())._replace(value=b"\xff"))
        async with running(world):
            world.send(a_command())
            await asyncio.sleep(1)
        return world

    assert run(main()).results.results() == [("AttemptSucceeded", {"text": "hi"})]


@pytest.mark.parametrize("timeout_s", [0.2, 1.5, 40])
def test_an_attempt_over_its_time_fails_as_timed_out(timeout_s: float) -> None:
    """The limit is the attempt's, short or long."""

    async def main() -> World:
        async with running(a_world()) as world:
            world.send(a_command(sleep_s=1000, timeout_s=timeout_s))
            await asyncio.sleep(timeout_s + 1)
        return world

    (failure,) = run(main()).results.messages(AttemptFailed)
    assert (failure.error.type, failure.timed_out, failure.terminal) == ("AttemptTimeout", True, False)
    assert failure.duration_ms == pytest.approx(timeout_s * 1000, abs=1)


class Refusal(Exception):
    """An error of somebody's own."""


@pytest.mark.parametrize(
    ("raised", "error_type", "terminal", "after"),
    [
        (TerminalError("no"), "TerminalError", True, None),
        (TerminalError("no", error_type="NotFound", details={"id": 1}), "NotFound", True, None),
        (RetryableError("later", after=7), "RetryableError", False, 7),
        (Refusal("no"), "Refusal", False, None),
        (asyncio.CancelledError(), "CancelledError", False, None),
        (TimeoutError("slow"), "TimeoutError", False, None),
    ],
)
def test_what_a_handler_raises_is_its_failure(
    raised: BaseException, error_type: str, terminal: bool, after: float | None
) -> None:
    """Terminal, to be retried later, or anything else."""

    @step_type("echo")
    async def fails(order: Order, context: StepContext) -> Echo:
        raise raised

    async def main() -> World:
        async with running(a_world(serves=fails)) as world:
            world.send(a_command())
            await asyncio.sleep(1)
        return world

    (failure,) = run(main()).results.messages()
    assert (failure.error.type, failure.terminal, failure.retry_after_s) == (error_type, terminal, after)
    assert failure.error.message == str(raised)


def test_an_unexpected_error_tells_where_it_was_raised() -> None:
    """The tail of the traceback is in the details."""

    @step_type("echo")
    async def fails(order: Order, context: StepContext) -> Echo:
        raise Refusal("no")

    async def main() -> World:
        async with running(a_world(serves=fails)) as world:
            world.send(a_command())
            await asyncio.sleep(1)
        return world

    (failure,) = run(main()).results.messages()
    assert failure.error.details["traceback"].endswith("Refusal: no\n")
    assert "in fails" in failure.error.details["traceback"]


def test_an_input_the_type_does_not_take_fails_for_good_with_every_fault() -> None:
    """Retrying would not help."""

    async def main() -> World:
        async with running(a_world()) as world:
            world.send(a_command(sleep_s="long", text=3))
            await asyncio.sleep(1)
        return world

    (failure,) = run(main()).results.messages()
    assert (failure.error.type, failure.terminal) == ("InputInvalid", True)
    assert "sleep_s: " in failure.error.message
    assert "text: " in failure.error.message


class Anything(BaseModel):
    value: Any = None


@pytest.mark.parametrize(
    ("output", "error_type"),
    [
        (Anything(value="x" * (1024 * 1024)), "PayloadTooLarge"),
        (Anything(value=object()), "OutputInvalid"),
        ({"value": 1, "valu": 2}, None),
        (17, "OutputInvalid"),
        (Anything(value={"null": None, "list": [None]}), None),
    ],
)
def test_an_output_is_checked_and_kept_whole(output: Any, error_type: str | None) -> None:
    """What is too large or is not JSON fails for good; nulls survive."""

    @step_type("echo")
    async def gives(order: Order, context: StepContext) -> Anything:
        return output  # type: ignore[no-any-return]

    async def main() -> World:
        async with running(a_world(serves=gives)) as world:
            world.send(a_command())
            await asyncio.sleep(1)
        return world

    (answer,) = run(main()).results.messages()
    if error_type is None:
        value = output["value"] if isinstance(output, dict) else output.value
        assert answer.output == {"value": value}
    else:
        assert (answer.error.type, answer.terminal) == (error_type, True)


def test_a_record_that_is_no_command_becomes_a_dead_letter_and_stops_nothing() -> None:
    """Its bytes are kept, its offset is released when the letter is acknowledged."""

    async def main() -> World:
        async with running(a_world()) as world:
            world.offset += 1
            world.commands.deliver(b"{not json", offset=1)
            world.send(a_command())
            await asyncio.sleep(1)
        return world

    world = run(main())
    (letter,) = world.results.letters()
    assert (letter.topic, letter.partition, letter.offset) == ("pipelines.steps.echo", 0, 1)
    assert letter.value_base64 == "e25vdCBqc29u"
    assert world.results.results() == [("AttemptSucceeded", {"text": "hi"})]
    assert world.commands.commits == {0: 3}


def test_a_command_of_another_type_becomes_a_dead_letter() -> None:
    """Somebody wrote to the wrong topic."""

    async def main() -> World:
        async with running(a_world()) as world:
            world.send(a_command().model_copy(update={"uses": "other"}))
            await asyncio.sleep(1)
        return world

    world = run(main())
    assert len(world.results.letters()) == 1
    assert world.witness.started == []


def test_records_of_an_older_assignment_are_dropped() -> None:
    """The client serves them before its listeners return."""

    async def main() -> World:
        async with running(a_world()) as world:
            world.commands.assign([0, 1])
            world.send(a_command("old"), assignment=1)
            world.send(a_command("new"))
            await asyncio.sleep(1)
        return world

    world = run(main())
    assert world.witness.started == ["new"]


def test_when_all_slots_are_taken_partitions_pause_and_polling_goes_on() -> None:
    """So that the group does not take the worker for dead."""

    async def main() -> World:
        async with running(a_world(concurrency=2)) as world:
            for step in range(4):
                world.send(a_command(f"s{step}", sleep_s=30), partition=step % 2)
            await asyncio.sleep(1)
            assert world.commands.paused == {0, 1}
            polls = world.commands.polls
            await asyncio.sleep(10)
            assert world.commands.polls - polls >= 8
            assert world.witness.started == ["s0", "s1"]
            await asyncio.sleep(60)
            assert world.commands.paused == set()
        return world

    assert sorted(run(main()).witness.finished) == ["s0", "s1", "s2", "s3"]


def test_when_answers_are_not_acknowledged_no_more_is_taken() -> None:
    """Memory is bounded while the broker is away."""

    async def main() -> World:
        async with running(a_world(max_unanswered=5)) as world:
            world.results.go_mute()
            for step in range(20):
                world.send(a_command(f"s{step}"))
            await asyncio.sleep(5)
            assert len(world.witness.started) == 5
            world.results.speak()
            await asyncio.sleep(5)
        return world

    assert len(run(main()).witness.started) == 20


def test_no_more_bytes_are_taken_than_may_be_unanswered() -> None:
    """A few large commands are as much as thousands of small ones."""

    async def main() -> World:
        weight = len(a_command("s10").model_dump_json(exclude_none=True))
        async with running(a_world(max_in_hand_bytes=5 * weight, concurrency=2)) as world:
            world.results.go_mute()
            for step in range(20):
                world.send(a_command(f"s{step}"))
            await asyncio.sleep(5)
            assert len(world.witness.started) <= 8
            world.results.speak()
            await asyncio.sleep(60)
            assert world.worker._bytes == 0
        return world

    assert len(run(main()).witness.started) == 20


def test_before_a_partition_goes_its_commands_are_leased_acknowledged_and_committed() -> None:
    """The next owner starts behind them, and nothing runs twice."""

    async def main() -> World:
        async with running(a_world()) as world:
            world.send(a_command("busy", sleep_s=0.7), partition=0)
            world.send(a_command("other", sleep_s=0.7), partition=1)
            await asyncio.sleep(0.1)
            assert world.commands.commits == {}
            await world.worker.on_revoked([0])
            assert world.commands.commits == {0: 2}
            assert [started.step for started in world.results.messages(AttemptStarted)] == ["busy"]
            assert world.memory.known[f"{RUN}/busy/1"].leased_until_ms > now_ms()
            await asyncio.sleep(5)
        return world

    world = run(main())
    assert sorted(world.witness.finished) == ["busy", "other"]
    assert len(world.results.results()) == 2


def test_a_command_whose_handler_was_not_started_is_handed_back() -> None:
    """It is not released: the next owner is served it again, which may be the same worker."""

    async def main() -> World:
        async with running(a_world()) as world:
            world.memory.hangs = True
            command = an_old_command()
            world.send(command)
            await asyncio.sleep(0.1)
            await world.worker.on_revoked([0, 1])
            assert world.commands.commits == {0: 1}
            world.commands.assign([0, 1])
            world.offset = 0
            world.send(command)
            await asyncio.sleep(3)
        return world

    world = run(main())
    assert world.witness.started == ["a"]
    assert world.commands.commits == {0: 2}


def test_a_revoke_that_cannot_be_acknowledged_returns_in_time() -> None:
    """The group would go on without us."""

    async def main() -> float:
        async with running(a_world(revoke_timeout_s=8)) as world:
            world.results.go_mute()
            world.send(a_command(sleep_s=30))
            await asyncio.sleep(0.5)
            begun = asyncio.get_running_loop().time()
            await world.worker.on_revoked([0])
            return asyncio.get_running_loop().time() - begun

    assert run(main()) == pytest.approx(8, abs=0.1)


def test_a_zombie_that_is_refused_its_commit_goes_on() -> None:
    """Its partitions are another's; it is not an error."""

    async def main() -> World:
        async with running(a_world()) as world:
            world.commands.refuses_commits = True
            world.send(a_command("a"))
            await asyncio.sleep(1)
            await world.worker.on_revoked([0, 1])
            world.commands.refuses_commits = False
            world.commands.assign([0])
            world.send(a_command("b"))
            await asyncio.sleep(1)
        return world

    world = run(main())
    assert world.witness.finished == ["a", "b"]
    assert world.commands.commits == {0: 3}


def test_a_worker_whose_append_fails_for_good_ends() -> None:
    """It starts again, and is served what it had not released."""

    async def main() -> None:
        async with running(a_world()) as world:
            world.results.failure = OSError("record refused")
            world.send(a_command())
            await asyncio.sleep(1)

    with pytest.raises(ExceptionGroup, match="TaskGroup"):
        run(main())


def test_a_stopping_worker_leaves_its_group_at_once_and_finishes_what_it_leased() -> None:
    """Others take over the partitions while the long step ends here."""

    async def main() -> World:
        async with running(a_world()) as world:
            world.send(a_command("long", sleep_s=10))
            await asyncio.sleep(2)
            stopped = asyncio.create_task(world.stop())
            await asyncio.sleep(0.5)
            assert world.commands.has_left
            assert world.commands.commits == {0: 2}
            await stopped
        return world

    world = run(main())
    assert world.witness.finished == ["long"]
    assert world.results.results() == [("AttemptSucceeded", {"text": "hi"})]


def test_a_worker_that_must_stop_gives_its_leases_back() -> None:
    """The orchestrator need not wait for them to lapse."""

    async def main() -> tuple[World, float]:
        async with running(a_world(stop_timeout_s=17)) as world:
            world.send(a_command("endless", sleep_s=1000))
            await asyncio.sleep(2)
            begun = asyncio.get_running_loop().time()
            await world.stop()
            return world, asyncio.get_running_loop().time() - begun

    world, took = run(main())
    assert took < 17
    assert world.witness.finished == []
    assert world.results.results() == []
    last = world.results.messages()[-1]
    assert (last.type, last.lease_s, [lease.step for lease in last.leases]) == ("LeasesRenewed", 0, ["endless"])


def test_a_repeat_of_what_was_given_back_runs_nowhere_again() -> None:
    """The orchestrator gives the step another attempt: a late repeat, served after the lease, is for nobody."""

    async def main() -> tuple[World, World]:
        memory, command = FakeMemory(), an_old_command("endless", sleep_s=1000)
        async with running(a_world(stop_timeout_s=17, lease_s=10, memory=memory)) as first:
            first.send(command)
            await asyncio.sleep(2)
            await first.stop()
        await asyncio.sleep(20)
        async with running(a_world(memory=memory)) as second:
            second.send(command)
            await asyncio.sleep(2)
            await second.crash()
        return first, second

    first, second = run(main())
    assert first.witness.started == ["endless"]
    assert second.witness.started == []
    assert second.results.appended == []
    assert second.commands.commits == {0: 2}


def test_a_repeat_of_what_lapsed_runs_nowhere_again() -> None:
    """The orchestrator gives the step another attempt, as it does for what was given back."""

    async def main() -> tuple[World, World]:
        memory, command = FakeMemory(), an_old_command("endless", sleep_s=1000)
        async with running(a_world(lease_s=10, memory=memory)) as first:
            first.send(command)
            await asyncio.sleep(2)
            first.results.go_mute()  # no renewal is acknowledged from here on
            await asyncio.sleep(20)
            await first.crash()
        await asyncio.sleep(20)
        async with running(a_world(memory=memory)) as second:
            second.send(command)
            await asyncio.sleep(2)
            await second.crash()
        return first, second

    first, second = run(main())
    assert first.witness.started == ["endless"]
    assert second.witness.started == []
    assert second.results.appended == []


def test_a_crash_says_nothing_on_its_way_out() -> None:
    """Killed is killed: no answer is made up for what was in hand."""

    async def main() -> World:
        async with running(a_world()) as world:
            world.send(a_command("long", sleep_s=100))
            await asyncio.sleep(0.5)
            await world.crash()
        return world

    world = run(main())
    assert world.results.appended == []
    assert world.commands.commits == {}


def test_a_lapsed_attempt_whose_start_was_never_acknowledged_is_not_forgotten() -> None:
    """Until it is, a repeat waits with it: the record may be all that is left of the step."""

    async def main() -> list[dict[int, int]]:
        async with running(a_world(lease_s=10)) as world:
            command = a_command("long", sleep_s=100)
            world.send(command)
            await asyncio.sleep(0.5)
            world.results.go_mute()
            await asyncio.sleep(20)
            world.send(command)
            await asyncio.sleep(1)
            before = dict(world.commands.commits)
            world.results.speak()
            await asyncio.sleep(1)
            return [before, world.commands.commits]

    assert run(main()) == [{}, {0: 3}]


def test_every_line_about_an_attempt_names_run_step_attempt_and_trace() -> None:
    """Of a lease that lapses, and of answers; also what a handler writes itself."""
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"

    async def main() -> None:
        async with running(a_world(lease_s=10)) as world:
            world.send(a_command("short").model_copy(update={"trace_id": trace}))
            await asyncio.sleep(0.5)
            world.send(a_command("long", sleep_s=100).model_copy(update={"trace_id": trace}))
            await asyncio.sleep(2)
            world.results.go_mute()
            await asyncio.sleep(20)
            world.results.speak()

    with capture_logs() as lines:
        run(main())
    for event, step in (("attempt answered", "short"), ("lease could not be renewed: handler is cancelled", "long")):
        (line,) = (line for line in lines if line["event"] == event)
        assert {name: line[name] for name in ("run_id", "step", "attempt", "trace_id")} == {
            "run_id": RUN, "step": step, "attempt": 1, "trace_id": trace,
        }  # fmt: skip
    context = StepContext(
        run_id="r-1", step="s", attempt=2, tenant="t", deadline=0, clock=lambda: 0, log=structlog.get_logger()
    )
    with capture_logs() as lines:
        context.log.info("said by a handler")
    assert lines[0] | {"event": "", "log_level": ""} == {
        "event": "", "log_level": "", "run_id": "r-1", "step": "s", "attempt": 2, "trace_id": "r1",
    }  # fmt: skip


def test_an_idle_worker_wakes_only_to_poll() -> None:
    """Nothing ticks while nothing is in hand."""

    async def main() -> tuple[int, int]:
        async with running(a_world()) as world:
            world.send(a_command())
            await asyncio.sleep(10)
            polls, commits = world.commands.polls, world.commands.commit_calls
            await asyncio.sleep(60)
            return world.commands.polls - polls, world.commands.commit_calls - commits

    polls, commits = run(main())
    assert polls <= 61
    assert commits == 0


class _ForgetsRepeats(Worker[Any, Any]):
    def _is_repeat(self, attempt: str) -> bool:
        return False


class _ReleasesAtStart(Worker[Any, Any]):
    def _lease(self, attempt: Attempt) -> None:
        super()._lease(attempt)
        self._release(attempt)


class _KeepsLapsed(Worker[Any, Any]):
    def _lapse(self, attempt: Attempt) -> None:
        pass


@pytest.mark.parametrize(
    ("worker_class", "proof"),
    [
        (_ForgetsRepeats, test_a_repeat_of_a_command_finished_lately_is_dropped),
        (_ReleasesAtStart, test_a_start_that_is_not_acknowledged_releases_no_offset),
        (_KeepsLapsed, test_a_lease_that_cannot_be_renewed_ends_the_handler_and_answers_nothing),
    ],
)
def test_a_rule_that_is_switched_off_is_missed(
    worker_class: type[Worker[Any, Any]], proof: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rules are small methods, so that a test can do without one; then its proof fails."""
    monkeypatch.setitem(proof.__globals__, "a_world", partial(a_world, worker_class=worker_class))
    with pytest.raises(AssertionError):
        proof()
