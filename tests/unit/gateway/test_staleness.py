"""How stale reads are: what a projection has not reached of what stood in Kafka a while ago."""

import pytest
from prometheus_client import CollectorRegistry

from anabranch.services.gateway.metrics import GatewayMetrics
from anabranch.services.gateway.reads import Source
from anabranch.services.gateway.staleness import Projection, Staleness
from anabranch.shared.contracts.ids import new_run_id
from anabranch.shared.contracts.partitioner import partition_of
from anabranch.shared.runtime.snapshots import fields_of
from tests.unit.history.fakes import run_ended, run_started

from .fakes import Bench

RUN = "01a2160d-9ce2-71ab-b50c-f8ce0bbd3296"
PARTITION = partition_of(RUN.encode(), 12)
HEADER = "Anabranch-Stale"


def test_a_projection_is_behind_since_the_look_that_saw_what_it_has_not_reached() -> None:
    """It is not while it follows, however much is on its way; what came later does not make it older."""
    projection = Projection()
    for second in range(5):
        projection.looked({0: 100 * second}, {0: 100 * second - 50}, second)  # each time half a second's events
        assert projection.behind_s(0) == 0
    projection.looked({0: 500}, {0: 370}, 5)
    assert projection.behind_s(0) == 1  # it has not reached the 400 of the look before
    for second in range(6, 2_000):
        projection.looked({0: 100 * second}, {0: 399}, second)
    assert projection.behind_s(0) == 1_999 - 4
    projection.looked({0: 200_000}, {0: 450}, 2_000)
    assert projection.behind_s(0) == 2_000 - 5
    projection.looked({0: 200_000}, {0: 200_000}, 2_001)
    assert (projection.behind_s(0), projection.worst_s) == (0, 0)


def test_an_idle_partition_is_not_behind_and_of_an_unknown_one_nothing_is_known() -> None:
    """Redis may have been emptied."""
    projection = Projection()
    for second in range(5):
        projection.looked({0: 7, 1: 0, 2: 9}, {0: 7, 1: 0}, second)
    assert [projection.behind_s(partition) for partition in range(3)] == [0, 0, None]


@pytest.mark.parametrize(
    ("snapshots", "record", "expected"),
    [
        (0, 0, {"redis": None, "sql": None, "accepted": None}),
        (9, 0, {"redis": None, "sql": None, "accepted": "9"}),
        (0, 9, {"redis": None, "sql": "9", "accepted": "9"}),
        (9, 5, {"redis": "5", "sql": "5", "accepted": "9"}),
        (None, 5, {"redis": "5", "sql": "5", "accepted": "5"}),
        (9, None, {"redis": "9", "sql": None, "accepted": "9"}),
        (1, 1, {"redis": None, "sql": None, "accepted": None}),
    ],
)
def test_a_read_is_as_stale_as_what_it_was_read_from(
    snapshots: int | None, record: int | None, expected: dict[str, str | None]
) -> None:
    """What Redis shows was compared with the record; what neither knows may be in what either has not read."""
    staleness = Staleness(12, GatewayMetrics(CollectorRegistry()))
    for second in range(10):
        ends = {PARTITION: 100 + second}

        def reached(behind: int | None, end: int = 100 + second) -> dict[int, int]:
            return {} if behind is None else {PARTITION: min(end, 100 + 8 - behind) if behind else end}

        staleness.looked(ends, reached(snapshots), reached(record), second)
    found = {source.value: staleness.headers(RUN, source).get(HEADER) for source in Source if source is not Source.NONE}
    assert found == expected
    assert staleness.headers_of_list().get(HEADER) == (str(record) if record and record > 1 else None)


async def test_a_stale_read_says_so_unless_the_run_has_ended(gateway: Bench) -> None:
    """Read, unchanged and accepted; runs of another partition are not stale, and neither is what is final."""
    live, ended = new_run_id(), new_run_id()
    for run_id, events in ((live, [run_started(live)]), (ended, [run_started(ended), run_ended(2, ended)])):
        fields = gateway.redis.hashes.setdefault(gateway.keys.run(run_id), {})
        for event in events:
            fields |= fields_of(event) | {b"seq": str(event.seq).encode()}
    accepted = (await (await gateway.submit()).json())["id"]
    partitions = {partition_of(each.encode(), gateway.settings.run_partitions) for each in (live, ended, accepted)}
    for second in (0, 7):
        gateway.staleness.looked(dict.fromkeys(partitions, 9), dict.fromkeys(partitions, 1), {}, second)
    answer = await gateway.client.get(f"/v1/runs/{live}")
    assert answer.headers[HEADER] == "7"
    unchanged = await gateway.client.get(f"/v1/runs/{live}", headers={"If-None-Match": answer.headers["ETag"]})
    assert (unchanged.status, unchanged.headers[HEADER]) == (304, "7")
    assert (await gateway.client.get(f"/v1/runs/{accepted}")).headers[HEADER] == "7"
    assert HEADER not in (await gateway.client.get(f"/v1/runs/{ended}")).headers
    assert gateway.count("projection_behind_seconds", projection="snapshots") == 7
