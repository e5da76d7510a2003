"""`anabranch replay` shows a run of its recorded events while Kafka cannot be asked, and says that this is all."""

from pathlib import Path

import orjson
import pytest
from aiokafka.errors import KafkaError
from sqlalchemy import delete, update
from sqlalchemy.ext.asyncio import AsyncEngine

from anabranch.client import replay as of_replay
from anabranch.deploy.local.ports import free_port
from anabranch.shared.contracts.messages import RunEventMessage
from anabranch.shared.record.settings import RecordSettings
from anabranch.shared.record.tables import EVENTS, STEPS
from tests.support.record_rows import record
from tests.unit.history.fakes import run_ended, run_started, step_succeeded

RUN: list[RunEventMessage] = [run_started(), step_succeeded(2, "a"), run_ended(3)]


@pytest.fixture
def settings(database_url: str, monkeypatch: pytest.MonkeyPatch) -> RecordSettings:
    """Return settings with the record, and with a Kafka that is not there and is not waited for."""
    monkeypatch.setattr(of_replay, "_KAFKA_WITHIN_S", 0.0)
    return RecordSettings(database_url=database_url, kafka_bootstrap_servers=f"127.0.0.1:{free_port()}")


async def replayed(
    settings: RecordSettings, capsys: pytest.CaptureFixture[str], *, at: int | None = None, as_json: bool = False
) -> tuple[int, str, str]:
    """Return the exit code and what was said where."""
    code = await of_replay.replay(settings, "r", at=at, as_json=as_json)
    said = capsys.readouterr()
    return code, said.out, said.err


async def test_the_recorded_events_are_shown(
    database: AsyncEngine, settings: RecordSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    """At any event, with the reason why nothing was decided again."""
    await record(database, RUN)
    code, out, err = await replayed(settings, capsys)
    assert code == 0
    assert [line.split()[2] for line in out.splitlines()[:3]] == ["RunStarted", "StepSucceeded", "RunSucceeded"]
    assert "not decided again, since Kafka cannot be asked (no broker of 127.0.0.1:" in err
    assert "its 3 events in the record are whole" in err
    code, out, _ = await replayed(settings, capsys, at=2, as_json=True)
    said = orjson.loads(out)
    assert (code, said["run"]["status"], said["is_decided"], said["equal"]) == (0, "running", False, True)
    assert said["not_decided_since"].startswith("Kafka cannot be asked")


async def test_a_topic_that_cannot_be_read_is_no_reason_either(
    database: AsyncEngine, settings: RecordSettings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker answers, but not with the run's records."""

    async def answers(*_: object) -> None:
        return None

    async def fails(*_: object) -> None:
        raise KafkaError("no such topic")

    monkeypatch.setattr(of_replay, "wait_for_kafka", answers)
    monkeypatch.setattr(of_replay, "rebuild", fails)
    await record(database, RUN)
    code, _, err = await replayed(settings, capsys)
    assert (code, "no such topic" in err) == (0, True)


async def test_an_event_that_is_missing_is_told(
    database: AsyncEngine, settings: RecordSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    """With exit code 1: what is there is not whole."""
    await record(database, RUN)
    async with database.begin() as connection:
        await connection.execute(delete(EVENTS).where(EVENTS.c.seq == 2))
    code, _, err = await replayed(settings, capsys)
    assert code == 1
    assert "event 2 in the record is missing, and Kafka cannot be asked" in err


async def test_a_row_that_its_events_do_not_make_is_told(
    database: AsyncEngine, settings: RecordSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    """That needs no Kafka."""
    await record(database, RUN)
    async with database.begin() as connection:
        await connection.execute(update(STEPS).values(status="failed"))
    code, _, err = await replayed(settings, capsys)
    assert (code, "the rows in steps" in err) == (1, True)


async def test_a_run_that_is_nowhere_else_cannot_be_rebuilt(
    database: AsyncEngine, settings: RecordSettings, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Exit code 3: whether there is such a run is not known; without a record likewise."""
    for each in (settings, settings.model_copy(update={"database_url": ""})):
        code, _, err = await replayed(each, capsys)
        assert code == 3
        assert "no broker of" in err
