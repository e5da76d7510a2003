"""How much of an exception there is to render: of few causes and members that are shared, there may be very many."""

from collections.abc import Iterator
from itertools import islice
from typing import Final

MAX_RENDERED: Final = 32  # causes and members of groups; beyond it an exception stands alone


def is_modest(error: BaseException) -> bool:
    """Whether rendering an exception with its causes and members costs little.

    `traceback` renders a cause once, and a member each time it is met: a group of twice the same group of twice the
    same… has 2ⁿ of them.
    """
    return len(list(islice(_rendered(error), MAX_RENDERED + 1))) <= MAX_RENDERED


def leaves_of(error: BaseException) -> list[BaseException]:
    """Return what is in the groups, the first of them; of groups without end, the exception itself."""
    waiting, found = [error], list[BaseException]()
    for _ in range(2 * MAX_RENDERED):
        if not waiting or len(found) == MAX_RENDERED:
            break
        one = waiting.pop()
        if isinstance(one, BaseExceptionGroup):
            waiting += reversed(one.exceptions[:MAX_RENDERED])
        else:
            found.append(one)
    return found or [error]


def _rendered(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception as often as it is rendered, until the caller has enough."""
    waiting, causes = [error], {id(error): error}
    while waiting:
        one = waiting.pop()
        yield one
        for cause in (one.__cause__, one.__context__):
            if cause is not None and id(cause) not in causes:
                causes[id(cause)] = cause
                waiting.append(cause)
        if isinstance(one, BaseExceptionGroup):
            waiting += one.exceptions[: MAX_RENDERED + 1]
