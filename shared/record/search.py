"""Finds runs in the record: the newest first, page by page, each page from where the last one ended.

A *way* is the part of a filter that one index answers alone, newest first: a label or an input, the pipeline with its
statuses, the error's type, the statuses, or the age. What is asked for beyond it is looked for among `LOOKED_THROUGH`
runs at a time, along the way that has the fewest; such a page may be short, or empty, and still have a next one. So a
page costs the same whatever is asked for and however many runs there are. Its place is the time and id of the last run
that was looked at, which stays right while runs arrive.
"""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    CompoundSelect,
    Integer,
    Select,
    Subquery,
    and_,
    bindparam,
    func,
    literal,
    or_,
    select,
    true,
    tuple_,
    union_all,
)
from sqlalchemy.ext.asyncio import AsyncEngine

from anabranch.shared.record.asking import Asking, is_possible
from anabranch.shared.record.tables import RUN_VALUES, RUNS

STATUSES: Final = ("running", "succeeded", "failed", "cancelled", "timed_out")
COUNTED: Final = 10_000
"""Counts of a status stop here: nobody needs to know how many more there are, and each is looked at."""

LOOKED_THROUGH: Final = 5_000
"""Runs that are looked at for what no index has: 10 to 30 ms of either database."""

_PLACE: Final = re.compile(r"([0-9]{1,15}) ([!-~]{1,1020})")


class UnreadableCursor(ValueError):
    """A cursor that no page had."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a page ended: the next one begins behind it."""

    created_at: int
    run_id: str

    def cursor(self) -> str:
        """Return it as clients send it back."""
        return base64.urlsafe_b64encode(f"{self.created_at} {self.run_id}".encode()).decode().rstrip("=")

    @classmethod
    def of(cls, cursor: str) -> "Place":
        """Return the place of a cursor. Raises `UnreadableCursor`."""
        try:
            text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
        except ValueError as error:
            raise UnreadableCursor from error
        found = _PLACE.fullmatch(text)
        if found is None:
            raise UnreadableCursor
        return cls(int(found[1]), found[2])


@dataclass(frozen=True, slots=True)
class Filter:
    """Which runs; times in milliseconds since the epoch, `until_ms` exclusive. What is empty or none asks nothing.

    `values` are names of `run_values` with their values: `label:team`, `input:n`. `text` is looked for in the name of
    the pipeline, the beginning of the id and the beginning of the error's message, whatever its case.
    """

    statuses: tuple[str, ...] = ()
    pipeline: str | None = None
    revision: int | None = None
    since_ms: int | None = None
    until_ms: int | None = None
    values: tuple[tuple[str, str], ...] = ()
    error_type: str | None = None
    text: str | None = None

    @property
    def is_possible(self) -> bool:
        """Whether the record can have such texts."""
        texts = [
            *self.statuses,
            self.pipeline,
            self.error_type,
            self.text,
            *(part for each in self.values for part in each),
        ]
        return all(is_possible(text) for text in texts if text is not None)


@dataclass(frozen=True, slots=True)
class FoundRun:
    """A run as a list shows it; times in milliseconds since the epoch."""

    run_id: str
    pipeline: str
    revision: int | None
    status: str
    created_at: int
    started_at: int | None
    finished_at: int | None
    error_type: str | None
    labels: dict[str, str]


@dataclass(frozen=True, slots=True)
class Page:
    """So many runs, and where the next page begins; none when there is no more."""

    runs: list[FoundRun]
    next: Place | None


@dataclass(frozen=True, slots=True)
class Counts:
    """How many runs have which status, those without left out; `are_all` unless there may be more."""

    by_status: dict[str, int]
    are_all: bool


class RunSearch:
    """Asks the record for runs. Every question has its answer in time, or raises `RecordUnavailable`."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._asking = Asking(engine)

    async def page(self, tenant: str, wanted: Filter, *, most: int, behind: Place | None = None) -> Page:
        """Return the newest runs of the tenant behind a place. Raises `RecordUnavailable`."""
        if not wanted.is_possible or (behind is not None and not is_possible(behind.run_id)):
            return Page([], None)
        way = await self._narrowest_way(tenant, wanted, behind)
        if way == wanted:
            found = await self._asking.ask(_runs(_places(tenant, way, behind, most + 1)))
            return await self._filled(found[:most], _place_of(found[most - 1]) if len(found) > most else None)
        looked_at = _places(tenant, way, behind, LOOKED_THROUGH)
        found = await self._asking.ask(_runs(looked_at).where(*_beyond(way, wanted)).limit(_so_many(most + 1)))
        if len(found) > most:
            return await self._filled(found[:most], _place_of(found[most - 1]))
        last = await self._asking.ask(select(looked_at).offset(_so_many(LOOKED_THROUGH - 1)))
        return await self._filled(found, _place_of(last[0]) if last else None)

    async def counts(self, tenant: str, wanted: Filter) -> Counts:
        """Return how many runs have which status: `COUNTED` of each at most where an index has them, else of those
        that are looked through. Raises `RecordUnavailable`.
        """
        if not wanted.is_possible:
            return Counts({}, True)
        if replace(wanted, statuses=()) in (_only_time(wanted), replace(_only_time(wanted), pipeline=wanted.pipeline)):
            return await self._counted_along_indexes(tenant, wanted)
        way = await self._narrowest_way(tenant, wanted, None)
        looked_at = _places(tenant, way, None, LOOKED_THROUGH)
        looked = _runs(looked_at).add_columns(_is_wanted(_beyond(way, wanted)).label("is_wanted")).subquery()
        found = await self._asking.ask(
            select(looked.c.status, looked.c.is_wanted, func.count().label("runs")).group_by(
                looked.c.status, looked.c.is_wanted
            )
        )
        by_status = {row.status: row.runs for row in found if row.is_wanted}
        return Counts(by_status, sum(row.runs for row in found) < LOOKED_THROUGH)

    async def _narrowest_way(self, tenant: str, wanted: Filter, behind: Place | None) -> Filter:
        """Return the way with the fewest runs, each counted no further than is looked through."""
        ways = _ways(wanted)
        if len(ways) == 1 or ways[0] == wanted:
            return ways[0]
        counted = union_all(
            *(
                select(literal(number).label("way"), func.count().label("runs")).select_from(
                    _places(tenant, way, behind, LOOKED_THROUGH)
                )
                for number, way in enumerate(ways)
            )
        )
        runs = {row.way: row.runs for row in await self._asking.ask(counted)}
        return ways[min(range(len(ways)), key=lambda number: (runs[number], number))]

    async def _counted_along_indexes(self, tenant: str, wanted: Filter) -> Counts:
        statuses = [each for each in STATUSES if each in (wanted.statuses or STATUSES)]
        if not statuses:
            return Counts({}, True)
        counted = union_all(
            *(
                select(literal(status).label("status"), func.count().label("runs")).select_from(
                    _places(tenant, replace(wanted, statuses=(status,)), None, COUNTED)
                )
                for status in statuses
            )
        )
        by_status = {row.status: row.runs for row in await self._asking.ask(counted) if row.runs}
        return Counts(by_status, all(runs < COUNTED for runs in by_status.values()))

    async def _filled(self, rows: Sequence[Any], behind: Place | None) -> Page:
        labels: dict[str, dict[str, str]] = {row.run_id: {} for row in rows}
        if labels:
            of_runs = RUN_VALUES.c.run_id.in_(list(labels)) & RUN_VALUES.c.name.startswith(_LABEL)
            for row in await self._asking.ask(
                select(RUN_VALUES.c.run_id, RUN_VALUES.c.name, RUN_VALUES.c.value).where(of_runs)
            ):
                labels[row.run_id][row.name.removeprefix(_LABEL)] = row.value
        runs = [
            FoundRun(
                row.run_id, row.pipeline, row.revision, row.status, row.created_at, row.started_at, row.finished_at,
                row.error_type, dict(sorted(labels[row.run_id].items())),
            )
            for row in rows
        ]  # fmt: skip
        return Page(runs, behind)


_LABEL: Final = "label:"
_SHOWN: Final = (
    RUNS.c.run_id, RUNS.c.pipeline, RUNS.c.revision, RUNS.c.status, RUNS.c.created_at, RUNS.c.started_at,
    RUNS.c.finished_at, RUNS.c.error_type, RUNS.c.error_text,
)  # fmt: skip


def _only_time(wanted: Filter) -> Filter:
    return Filter(since_ms=wanted.since_ms, until_ms=wanted.until_ms)


def _ways(wanted: Filter) -> list[Filter]:
    """Return the parts of the filter that an index answers alone: what is usually the fewest runs comes first."""
    time = _only_time(wanted)
    ways = [replace(time, values=(value,)) for value in wanted.values]
    if wanted.error_type is not None:
        ways.append(replace(time, error_type=wanted.error_type))
    if wanted.pipeline is not None:
        ways.append(replace(time, pipeline=wanted.pipeline, statuses=wanted.statuses))
    elif wanted.statuses:
        ways.append(replace(time, statuses=wanted.statuses))
    return ways or [time]


def _places(tenant: str, way: Filter, behind: Place | None, most: int) -> Subquery:
    """Return the statement of the newest places along a way: `created_at` and `run_id`, newest first."""
    columns = (RUN_VALUES if way.values else RUNS).c
    conditions = [columns.tenant == tenant, *_window(columns, way, behind)]
    if way.values:
        ((name, value),) = way.values
        return _newest([[*conditions, columns.name == name, columns.value == value]], columns, most)
    if way.error_type is not None:
        return _newest([[*conditions, columns.error_type == way.error_type]], columns, most)
    statuses = way.statuses
    if way.pipeline is not None:
        conditions.append(columns.pipeline == way.pipeline)
        statuses = way.statuses or STATUSES
    return _newest([[*conditions, columns.status == each] for each in statuses] or [conditions], columns, most)


def _newest(alternatives: Sequence[Sequence[ColumnElement[bool]]], columns: Any, most: int) -> Subquery:
    """Return the newest places that fit one of the alternatives, of which an index has each in order."""
    parts = [
        select(columns.created_at, columns.run_id)
        .where(*conditions)
        .order_by(columns.created_at.desc(), columns.run_id.desc())
        .limit(_so_many(most))
        for conditions in alternatives
    ]
    if len(parts) == 1:
        return parts[0].subquery("places")
    found: CompoundSelect[Any] = union_all(*(select(part.subquery()) for part in parts))
    rows = found.subquery("parts")
    return (
        select(rows).order_by(rows.c.created_at.desc(), rows.c.run_id.desc()).limit(_so_many(most)).subquery("places")
    )


def _so_many(count: int) -> ColumnElement[int]:
    """Return a limit that stands in the text: PostgreSQL plans for a tenth of all rows where it is a parameter."""
    return bindparam("count", count, type_=Integer, unique=True, literal_execute=True)


def _runs(places: Subquery) -> Select[Any]:
    """Return the statement of the runs at these places."""
    return (
        select(*_SHOWN)
        .select_from(places.join(RUNS, RUNS.c.run_id == places.c.run_id))
        .order_by(places.c.created_at.desc(), places.c.run_id.desc())
    )


def _beyond(way: Filter, wanted: Filter) -> list[ColumnElement[bool]]:
    """Return what is asked for of a run that the way does not say already."""
    conditions: list[ColumnElement[bool]] = []
    for name in ("pipeline", "revision", "error_type"):
        value = getattr(wanted, name)
        if value is not None and value != getattr(way, name):
            conditions.append(RUNS.c[name] == value)
    if wanted.statuses and wanted.statuses != way.statuses:
        conditions.append(RUNS.c.status.in_(wanted.statuses))
    conditions += [_has_value(*value) for value in wanted.values if value not in way.values]
    if wanted.text:
        conditions.append(_has_text(RUNS.c, wanted.text))
    return conditions


def _is_wanted(conditions: Sequence[ColumnElement[bool]]) -> ColumnElement[bool]:
    return func.coalesce(and_(true(), *conditions), False)


def _has_value(name: str, value: str) -> ColumnElement[bool]:
    # Not EXISTS, which PostgreSQL would answer for all runs that have the value before it looks at these.
    of_run = select(RUN_VALUES.c.value).where(RUN_VALUES.c.run_id == RUNS.c.run_id, RUN_VALUES.c.name == name)
    return of_run.scalar_subquery() == value


def _window(columns: Any, wanted: Filter, behind: Place | None) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if wanted.since_ms is not None:
        conditions.append(columns.created_at >= wanted.since_ms)
    if wanted.until_ms is not None:
        conditions.append(columns.created_at < wanted.until_ms)
    if behind is not None:
        place = tuple_(literal(behind.created_at), literal(behind.run_id))
        conditions.append(tuple_(columns.created_at, columns.run_id) < place)
    return conditions


def _has_text(columns: Any, text: str) -> ColumnElement[bool]:
    return or_(
        func.lower(columns.pipeline).contains(text.lower(), autoescape=True),
        func.lower(columns.error_text).contains(text.lower(), autoescape=True),
        columns.run_id.startswith(text.lower(), autoescape=True),
    )


def _place_of(row: Any) -> Place:
    return Place(row.created_at, row.run_id)
