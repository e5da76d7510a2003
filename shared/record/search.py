"""Finds runs in the record: the newest first, page by page, each page from where the last one ended.

A page is read along the index that fits what is asked for (docs/record.md), never from the beginning: its place is the
time and id of the last run before it, so pages stay right while runs arrive. What no index has, words in an error, is
looked for among so many runs at a time; a page then may be empty and still have a next one.
"""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from sqlalchemy import ColumnElement, Select, func, literal, or_, select, tuple_, union_all
from sqlalchemy.ext.asyncio import AsyncEngine

from anabranch.shared.record.asking import Asking, is_possible
from anabranch.shared.record.tables import RUN_VALUES, RUNS

STATUSES: Final = ("running", "succeeded", "failed", "cancelled", "timed_out")
COUNTED: Final = 10_000
"""Counts stop here: nobody needs to know how many more there are, and each is looked at."""

_LOOKED_THROUGH: Final = 20_000  # runs in which words are looked for at a time
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


class RunSearch:
    """Asks the record for runs. Every question has its answer in time, or raises `RecordUnavailable`."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._asking = Asking(engine)

    async def page(self, tenant: str, wanted: Filter, *, most: int, behind: Place | None = None) -> Page:
        """Return the newest runs of the tenant behind a place. Raises `RecordUnavailable`."""
        if not wanted.is_possible or (behind is not None and not is_possible(behind.run_id)):
            return Page([], None)
        if wanted.text:
            return await self._page_with_text(tenant, wanted, most=most, behind=behind)
        found = await self._asking.ask(_page(tenant, wanted, most + 1, behind))
        return await self._filled(found[:most], _place_of(found[most - 1]) if len(found) > most else None)

    async def counts(self, tenant: str, wanted: Filter) -> dict[str, int]:
        """Return how many runs have which status, up to `COUNTED` of each. Raises `RecordUnavailable`."""
        if not wanted.is_possible:
            return {}
        statuses = [each for each in STATUSES if each in (wanted.statuses or STATUSES)]
        parts = []
        for status in statuses:
            some = _page(tenant, replace(wanted, statuses=(status,), text=None), COUNTED, None)
            rows = some.subquery()
            counted = select(literal(status).label("status"), func.count().label("runs")).select_from(rows)
            parts.append(counted.where(_has_text(rows.c, wanted.text)) if wanted.text else counted)
        found = await self._asking.ask(union_all(*parts)) if parts else ()
        return {row.status: row.runs for row in found if row.runs}

    async def _page_with_text(self, tenant: str, wanted: Filter, *, most: int, behind: Place | None) -> Page:
        assert wanted.text is not None
        looked = _page(tenant, replace(wanted, text=None), _LOOKED_THROUGH, behind).subquery()
        found = await self._asking.ask(
            select(looked)
            .where(_has_text(looked.c, wanted.text))
            .order_by(looked.c.created_at.desc(), looked.c.run_id.desc())
            .limit(most + 1)
        )
        if len(found) > most:
            return await self._filled(found[:most], _place_of(found[most - 1]))
        last = await self._asking.ask(
            select(looked.c.created_at, looked.c.run_id)
            .order_by(looked.c.created_at.desc(), looked.c.run_id.desc())
            .offset(_LOOKED_THROUGH - 1)
        )
        return await self._filled(found, _place_of(last[0]) if last else None)

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


def _page(tenant: str, wanted: Filter, most: int, behind: Place | None) -> Select[Any]:
    """Return the statement; that of several statuses takes so many of each, since an index has one in order."""
    if len(wanted.statuses) <= 1:
        return _along_an_index(tenant, wanted, behind).limit(most)
    parts = [
        select(_along_an_index(tenant, replace(wanted, statuses=(status,)), behind).limit(most).subquery())
        for status in dict.fromkeys(wanted.statuses)
    ]
    found = union_all(*parts).subquery()
    return select(found).order_by(found.c.created_at.desc(), found.c.run_id.desc()).limit(most)


def _along_an_index(tenant: str, wanted: Filter, behind: Place | None) -> Select[Any]:
    conditions = [RUNS.c.tenant == tenant, *_of_run(wanted)]
    if not wanted.values:
        statement = select(*_SHOWN).where(*_window(RUNS.c, wanted, behind), *conditions)
        return statement.order_by(RUNS.c.created_at.desc(), RUNS.c.run_id.desc())
    (name, value), *others = wanted.values
    of_value = RUN_VALUES.alias("of_value")
    return (
        select(*_SHOWN)
        .select_from(of_value.join(RUNS, RUNS.c.run_id == of_value.c.run_id))
        .where(
            of_value.c.tenant == tenant, of_value.c.name == name, of_value.c.value == value,
            *_window(of_value.c, wanted, behind), *conditions, *(_has_value(*other) for other in others),
        )
        .order_by(of_value.c.created_at.desc(), of_value.c.run_id.desc())
    )  # fmt: skip


def _has_value(name: str, value: str) -> ColumnElement[bool]:
    return (
        select(RUN_VALUES.c.run_id)
        .where(RUN_VALUES.c.run_id == RUNS.c.run_id, RUN_VALUES.c.name == name, RUN_VALUES.c.value == value)
        .exists()
    )


def _of_run(wanted: Filter) -> list[ColumnElement[bool]]:
    equal = {"pipeline": wanted.pipeline, "revision": wanted.revision, "error_type": wanted.error_type}
    conditions = [RUNS.c[name] == value for name, value in equal.items() if value is not None]
    return conditions + [RUNS.c.status == status for status in wanted.statuses]


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
