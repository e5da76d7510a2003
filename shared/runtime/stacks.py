"""What every task of a process waits for, and what its threads do: written when an operator asks (`SIGUSR2`)."""

import asyncio
import faulthandler
import traceback
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any, Final, TextIO

_MAX_STACKS: Final = 200  # different ones; a thousand requests that wait for the same are one
_NAMES: Final = 5


def write_stacks(tasks: Iterable["asyncio.Task[Any]"], to: TextIO) -> int:
    """Write the stacks of tasks, each with how many have it, the most frequent first, then those of all threads.

    Return the number of tasks. Shows files, lines and names; no values.
    """
    alike: dict[str, list[str]] = {}
    for task in tasks:
        alike.setdefault("".join(traceback.format_list(_summary(task))), []).append(task.get_name())
    ordered = sorted(alike.items(), key=lambda one: len(one[1]), reverse=True)
    count = sum(map(len, alike.values()))
    to.write(f"{count} tasks, {len(alike)} different stacks\n")
    for stack, names in ordered[:_MAX_STACKS]:
        shown = ", ".join(sorted(set(names))[:_NAMES])
        to.write(f"\n{len(names)} times {shown}\n{stack or '  (it runs now, or has not begun)'}\n")
    if len(ordered) > _MAX_STACKS:
        to.write(f"\nand {len(ordered) - _MAX_STACKS} more\n")
    to.write("\nthreads:\n")
    to.flush()
    faulthandler.dump_traceback(to, all_threads=True)
    return count


def _summary(task: "asyncio.Task[Any]") -> traceback.StackSummary:
    frames = ((frame, frame.f_lineno) for frame in _frames(task.get_coro()))
    return traceback.StackSummary.extract(frames, lookup_lines=True)


def _frames(awaited: Any) -> Iterator[FrameType]:
    """Yield the frame of a coroutine, and of what it awaits, down to the future that nobody has answered yet.

    CPython 3.11 does not tell which asynchronous generator is awaited: its frames are missing.
    """
    while awaited is not None:
        for kind in ("cr", "gi", "ag"):
            frame = getattr(awaited, f"{kind}_frame", None)
            if frame is not None:
                yield frame
                awaited = getattr(awaited, "gi_yieldfrom" if kind == "gi" else f"{kind}_await", None)
                break
        else:
            return
