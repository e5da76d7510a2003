"""The long version of the kill tests (`make chaos`): every kind of death several times, 500 runs in flight."""

from pathlib import Path

import pytest

from tests.chaos.scenarios import (
    ENOUGH_COMMANDS,
    ENOUGH_EVENTS,
    Scenario,
    fight,
    kill_both,
    kill_broker,
    kill_orchestrators,
    kill_workers,
    pause_orchestrator,
)

LONG: list[tuple[Scenario, int]] = [
    (kill_orchestrators, 6),
    (kill_workers, 4),
    (kill_both, 3),
    (kill_broker, 2),
    (pause_orchestrator, 2),
]


@pytest.mark.parametrize(("scenario", "times"), LONG, ids=[scenario.__name__ for scenario, _ in LONG])
async def test_every_accepted_run_ends_right(
    scenario: Scenario, times: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever is killed in between, every accepted run ends, once and right."""
    figures = await fight(tmp_path, lambda battle: scenario(battle, times))  # type: ignore[call-arg]
    with capsys.disabled():
        print(f"\n{scenario.__name__} x {times}: {figures}")
    assert figures.faults == []
    if scenario is kill_orchestrators:
        assert figures.reruns == 0, "worker membership was unchanged: no handler may run again"
        assert figures.repeated_events >= ENOUGH_EVENTS
        assert figures.repeated_commands >= ENOUGH_COMMANDS
