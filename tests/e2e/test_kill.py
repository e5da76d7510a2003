"""One death of each kind under load: 500 five-step runs in flight, two orchestrators, two workers of each type.

The long version is `make chaos`.
"""

from pathlib import Path

import pytest

from tests.chaos.scenarios import (
    battle,
    figures_of,
    kill_both,
    kill_broker,
    kill_orchestrators,
    kill_workers,
    pause_orchestrator,
    repeated_enough,
    reruns_of,
)


async def test_every_accepted_run_ends_right_whatever_is_killed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Orchestrators, workers, both, the broker, a paused orchestrator: every run ends, once and right."""
    async with battle(tmp_path) as field:
        await pause_orchestrator(field, 1)
        await kill_orchestrators(field, 1)
        assert repeated_enough(field.seen), "nothing was decided again: the proof would be vacuous"
        _, reruns = await reruns_of(field)
        assert reruns == 0, "worker membership was unchanged: no handler may run again"
        await kill_workers(field, 1)
        await kill_both(field, 1)
        await kill_broker(field, 1)
        figures = await figures_of(field)
    with capsys.disabled():
        print(f"\n{figures}")
    assert figures.faults == []
