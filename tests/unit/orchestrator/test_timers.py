"""Timers of a partition: one entry per id, the latest setting counts, a dropped one never fires."""

import random

from anabranch.services.orchestrator.timers import Due, Timers


def test_timer_fires_once_when_its_deadline_has_come() -> None:
    """Not before, and not again."""
    timers = Timers()
    timers.set("r", "t", 5_000, 5.0)
    assert timers.next_deadline() == 5.0
    assert timers.take_due(4.9) == []
    assert timers.take_due(5.0) == [Due("r", "t", 5_000)]
    assert timers.take_due(9.9) == []
    assert (len(timers), timers.next_deadline()) == (0, None)


def test_moved_timer_fires_at_its_latest_setting_only() -> None:
    """Later or earlier than it was."""
    timers = Timers()
    timers.set("r", "later", 1, 1.0)
    timers.set("r", "later", 3, 3.0)
    timers.set("r", "sooner", 9, 9.0)
    timers.set("r", "sooner", 2, 2.0)
    assert len(timers) == 2
    assert timers.next_deadline() == 2.0
    assert [due.timer_id for due in timers.take_due(2.5)] == ["sooner"]
    assert [due.due_ms for due in timers.take_due(10.0)] == [3]


def test_dropped_timer_does_not_fire_and_can_be_set_again() -> None:
    """Nor do those of a dropped run; another run's stay."""
    timers = Timers()
    for run in ("r1", "r2"):
        timers.set(run, "a", 1, 1.0)
        timers.set(run, "b", 1, 1.0)
    timers.drop("r1", "a")
    timers.drop("r1", "a")
    timers.drop("nobody", "a")
    timers.drop_run("r2")
    timers.drop_run("r2")
    assert len(timers) == 1
    timers.set("r1", "a", 2, 2.0)
    assert timers.take_due(9.0) == [Due("r1", "b", 1), Due("r1", "a", 2)]


def test_timers_with_one_deadline_fire_in_the_order_they_were_set() -> None:
    """What is appended does not depend on their names."""
    timers = Timers()
    for name in ("c", "a", "b"):
        timers.set("r", name, 1, 1.0)
    assert [due.timer_id for due in timers.take_due(1.0)] == ["c", "a", "b"]


def test_heap_follows_the_live_timers_when_leases_are_renewed_for_ever() -> None:
    """A million renewals leave no million dead entries behind."""
    timers = Timers()
    for number in range(10_000):
        timers.set("r", f"t{number % 10}", number, float(number))
    assert len(timers) == 10
    assert len(timers._heap) <= 2 * 10 + 256 + 1
    assert [due.due_ms for due in timers.take_due(1e9)] == list(range(9_990, 10_000))
    assert timers._current == {}


def test_random_operations_agree_with_a_dictionary() -> None:
    """The dictionary is what is armed; the heap only finds the next one."""
    chance = random.Random(1)
    timers, armed, now = Timers(), dict[tuple[str, str], float](), 0.0
    for _ in range(20_000):
        run, name = f"r{chance.randrange(4)}", f"t{chance.randrange(6)}"
        draw = chance.random()
        if draw < 0.6:
            armed[run, name] = deadline = now + chance.randrange(50)
            timers.set(run, name, 0, deadline)
        elif draw < 0.8:
            armed.pop((run, name), None)
            timers.drop(run, name)
        elif draw < 0.82:
            armed = {key: deadline for key, deadline in armed.items() if key[0] != run}
            timers.drop_run(run)
        else:
            now += chance.randrange(5)
            due = {(fired.run_id, fired.timer_id) for fired in timers.take_due(now)}
            assert due == {key for key, deadline in armed.items() if deadline <= now}
            armed = {key: deadline for key, deadline in armed.items() if deadline > now}
        assert len(timers) == len(armed)
        assert timers.next_deadline() == min(armed.values(), default=None)
