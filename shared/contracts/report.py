"""What is wrong with a submission, collected: so many problems are listed, the rest is counted.

Checking has a budget of estimated cost (`weights`), taken off before the work is done.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

from anabranch.shared.contracts.errors import AnabranchError
from anabranch.shared.contracts.limits import MAX_CHECKING_COST, MAX_PROBLEMS
from anabranch.shared.contracts.programs import suggestion
from anabranch.shared.contracts.source import Source, nearest_pointer
from anabranch.shared.contracts.urls import redacted

_MAX_COMPARISONS: Final = 10_000  # of names, for suggestions
_COMPARISON: Final = 300  # units of cost: two names of 60 characters
_PLACING: Final = 2  # units for each character of a body: the places of what is wrong are found in one go


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: where (JSON Pointer; line and column from 1), and what to do."""

    pointer: str
    message: str
    line: int | None = None
    column: int | None = None


class InvalidError(AnabranchError):
    """Something that is refused, with everything that is wrong with it: the first problems, and how many more."""

    def __init__(self, errors: list[Problem], more: int = 0) -> None:
        first = f"{errors[0].pointer}: {errors[0].message}"
        others = len(errors) - 1 + more
        super().__init__(f"{first} (and {others} more)" if others else first)
        self.errors = errors
        self.more = more

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.errors, self.more)


class InvalidPipeline(InvalidError):
    """A definition that is refused, with everything that is wrong with it."""


class InvalidInputs(InvalidError):
    """Inputs that do not fit a pipeline, with everything that is wrong with them."""


class TooCostly(InvalidPipeline, InvalidInputs):
    """A definition or inputs that may be right; to find out costs more than the budget."""


class Full(Exception):
    """So much is wrong already that nothing further is done that costs anything: caught where a check begins."""


class Budget:
    """Units of cost that may still be spent; every part of one body takes from it."""

    def __init__(self, units: int = MAX_CHECKING_COST) -> None:
        self.units = units
        self.left = units

    @property
    def is_whole(self) -> bool:
        """Whether it is all that a submission may take: what does not fit is refused."""
        return self.units >= MAX_CHECKING_COST


class Report:
    """The problems found so far: the first are kept, those that cost nothing to find are counted after that."""

    def __init__(self, source: Source, budget: Budget | None = None) -> None:
        self._source = source
        self._budget = Budget() if budget is None else budget
        self._comparisons = 0
        self._places_paid = False
        self.problems: dict[tuple[str, str], tuple[str, int] | None] = {}
        self.more = 0

    def add(self, pointer: str, message: str, text: str | None = None, offset: int = 0) -> None:
        """Note a problem; `text` and `offset` name a character in the string at the pointer."""
        if self.full:
            self.more += 1
            return
        self._pay_for_places()
        key = (nearest_pointer(self._source.base + pointer), redacted(message))
        self.problems.setdefault(key, None if text is None else (text, offset))

    @property
    def full(self) -> bool:
        """Whether further problems are only counted, and only where that costs nothing."""
        return len(self.problems) >= MAX_PROBLEMS

    def affords(self, units: int) -> bool:
        """Take the cost of a piece of work off the budget, where `spend` would; else say no."""
        if self.full or units > self._budget.left:
            return False
        self._budget.left -= units
        return True

    def spend(self, units: int, pointer: str, what: str) -> None:
        """Take the cost of a piece of work off the budget. Raises `TooCostly`; `Full` when it is not worth it."""
        if self.full:
            raise Full
        if units > self._budget.left:  # what is not done costs nothing: what comes after it may still fit
            place = nearest_pointer(self._source.base + pointer)
            message = (
                f"{what} costs too much to check: {units} units, of {self._budget.units} that one submission may take"
            )
            raise TooCostly([Problem(place, message)])
        self._budget.left -= units

    def suggest(self, name: str, known: Collection[str]) -> str:
        """Return `; did you mean 'x'?` or nothing. Gives up after so many comparisons in all."""
        self._comparisons += len(known)
        if self.full or self._comparisons > _MAX_COMPARISONS:
            return ""
        self.spend(_COMPARISON * len(known), "", "naming what may have been meant")
        return suggestion(name[:100], list(known))

    def sorted(self) -> list[Problem]:
        """Return the problems in the order of the text."""
        places = self._source.positions(pointer for pointer, _ in self.problems)
        found = []
        for (pointer, message), within in self.problems.items():
            place = places[pointer] if within is None else self._source.within(places[pointer], *within)
            found.append(Problem(pointer, message, *(place or (None, None))))
        return sorted(found, key=lambda p: (p.line or 0, p.column or 0, p.pointer, p.message))

    def _pay_for_places(self) -> None:
        if not self._places_paid:
            self._places_paid = True
            self.spend(_PLACING * len(self._source.text), "", "finding the places of what is wrong")
