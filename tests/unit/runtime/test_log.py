"""Logs: one JSON line per fact, from libraries too."""

import logging
from typing import Any

import orjson
import pytest

from anabranch.shared.runtime.complaints import Complaints
from anabranch.shared.runtime.log import MAX_VALUE_CHARS, REPEAT_AFTER_S, configure_logging, get_logger, switch_level
from anabranch.shared.runtime.settings import Settings


def lines(capfdbinary: pytest.CaptureFixture[bytes]) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in capfdbinary.readouterr().out.splitlines()]


def test_line_carries_its_fact_and_who_says_it(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    configure_logging("gateway", Settings(instance="g-1"))
    get_logger(tenant="a").info("accepted", run_id="r")
    (line,) = lines(capfdbinary)
    assert line.pop("at").endswith("Z")
    assert line == {
        "event": "accepted", "run_id": "r", "tenant": "a", "level": "info", "service": "gateway", "instance": "g-1",
    }  # fmt: skip


def test_line_below_the_level_is_not_written(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    configure_logging("gateway", Settings(log_level="warning"))
    get_logger().info("accepted")
    assert lines(capfdbinary) == []


def test_level_is_switched_while_it_runs(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """For loggers that are there already, too; libraries' lines come from warnings on whatever is asked for."""
    configure_logging("gateway", Settings(log_level="error"))
    log = get_logger().bind(a=1)

    def said() -> list[str]:
        for write in (log.debug, log.info, log.warning, log.error, logging.getLogger("aiokafka").info):
            write("here")
        log.log(logging.DEBUG, "here")
        logging.getLogger("aiokafka").warning("theirs %d", len(switched))
        return [f"{line['level']} {line['event']}" for line in lines(capfdbinary)]

    switched: list[str] = []
    assert said() == ["error here"]
    switched.append(switch_level())
    assert said() == ["debug here", "info here", "warning here", "error here", "debug here", "warning theirs 1"]
    switched.append(switch_level())
    assert said() == ["error here"]
    assert switched == ["debug", "error"]


def test_warnings_of_libraries_are_lines_too_and_their_chatter_is_not(
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    configure_logging("gateway", Settings())
    logging.getLogger("aiokafka.client").info("chatter")
    logging.getLogger("aiokafka.client").warning("Got error %s", "x")
    assert [(line["logger"], line["event"], line["level"]) for line in lines(capfdbinary)] == [
        ("aiokafka.client", "Got error x", "warning")
    ]


def test_library_that_repeats_itself_is_quoted_once_in_a_while(
    capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("time.time", lambda: now)
    configure_logging("gateway", Settings())
    for now in (1000.0, 1001.0, 1002.0, 1000.0 + REPEAT_AFTER_S):
        logging.getLogger("aiohttp").error("No answer of %s", int(now))
    assert [(line["event"], line.get("repeated")) for line in lines(capfdbinary)] == [
        ("No answer of 1000", None),
        ("No answer of 1010", 2),
    ]


def test_an_outage_of_kafka_is_one_warning_and_a_line_when_it_is_over(
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    """However many sentences its client has for it."""
    configure_logging("gateway", Settings())
    for number in range(1_000):
        logging.getLogger("aiokafka.cluster").error("Unable to update metadata from %s", number)
        logging.getLogger("aiokafka.conn").warning("Unable connect to node with id %s", number)
    written = lines(capfdbinary)
    assert [(line["event"], line["level"]) for line in written] == [
        ("Unable to update metadata from 0", "error"),
        ("Unable connect to node with id 0", "info"),
    ]


def test_complaints_are_over_when_there_was_none_for_long_enough() -> None:
    """The next one begins another outage, and is written as it is."""
    told: list[tuple[int, float]] = []
    complaints = Complaints(lambda count, seconds: told.append((count, seconds)), quiet_s=1_000)

    def level_at(now: float) -> int | None:
        record = logging.LogRecord("aiokafka", logging.ERROR, "", 0, "away", (), None)
        record.created = now
        return complaints.level_of(record)

    assert [level_at(now) for now in (0.0, 10.0, 900.0)] == [logging.ERROR, None, None]
    complaints.look(1_899.0)
    assert told == []
    complaints.look(1_900.0)
    assert told == [(3, 900.0)]
    assert level_at(2_000.0) == logging.ERROR
    complaints.close()


def test_exception_is_part_of_its_line(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    configure_logging("gateway", Settings())
    get_logger().error("failed", exc_info=ValueError("why"))
    (line,) = lines(capfdbinary)
    assert "ValueError: why" in line["exception"]


def test_console_is_for_people(capfd: pytest.CaptureFixture[str]) -> None:
    configure_logging("gateway", Settings(log_format="console"))
    get_logger().info("accepted", run_id="r")
    assert "accepted" in capfd.readouterr().out


class _Unshowable:
    def __repr__(self) -> str:
        raise RuntimeError("no")


def _fails(depth: int) -> None:
    secret = "redis://:pass" + "word@redis"
    if depth and secret:
        _fails(depth - 1)
    raise ValueError("why " + "x" * 3 * MAX_VALUE_CHARS)


@pytest.mark.parametrize("log_format", ["json", "console"])
@pytest.mark.parametrize("of_library", [True, False])
def test_no_line_has_locals_and_every_line_is_bounded(
    capfdbinary: pytest.CaptureFixture[bytes], log_format: str, of_library: bool
) -> None:
    """Of a traceback neither, whoever logs it: locals hold settings with passwords, bodies and keys."""
    configure_logging("gateway", Settings(log_format=log_format))
    try:
        _fails(100)
    except ValueError:
        if of_library:
            logging.getLogger("aiohttp.server").exception("Error handling request")
        else:
            get_logger().error("failed", exc_info=True)
    written = capfdbinary.readouterr().out
    assert b"password" not in written
    assert b"ValueError: why" in written or b" characters " in written
    assert len(written) < 2 * MAX_VALUE_CHARS


@pytest.mark.parametrize("log_format", ["json", "console"])
@pytest.mark.parametrize(
    "value",
    [
        "x" * 10_000_000, ["x" * 1000] * 1000, {"a": "x" * 10_000_000}, "caf\udce9", ["caf\udce9"], {"caf\udce9": 1},
        {1: 2}, 2**200, _Unshowable(), [_Unshowable()], b"\xff", {1, 2}, float("nan"), object,
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_any_value_can_be_logged(capfdbinary: pytest.CaptureFixture[bytes], log_format: str, value: Any) -> None:
    """Long ones are cut, and what cannot be written is shown otherwise: a line never fails."""
    configure_logging("gateway", Settings(log_format=log_format))
    get_logger().info("here", value=value)
    logging.getLogger("aiokafka").warning("here %s", "x" * 10_000_000)
    logging.getLogger("aiokafka").warning("takes %d", "one text")
    written = capfdbinary.readouterr().out
    assert written.count(b"here") == 2
    assert b"takes" in written
    assert len(written) < 4 * MAX_VALUE_CHARS
