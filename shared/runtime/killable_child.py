"""The other side of `killable`: one process that takes one request after the other from its standard input.

Nothing is imported here that the work does not need: the process is to start fast and to be small.
"""

import ctypes
import os
import resource
import signal
import struct
import sys
from importlib import import_module
from typing import Any, BinaryIO, Final

import orjson

HEADER: Final = struct.Struct(">IB")  # bytes that follow, and what they are
READY, RESULT, REFUSED, FAILED, IS_WORN = 0, 1, 2, 4, 8  # a worn process is not to be asked again

_NICE: Final = 10  # whoever waits for a whole answer gives way to those that answer thousands
_PR_SET_PDEATHSIG: Final = 1  # prctl(2)
_WORN_BYTES: Final = 64 * 1024 * 1024  # of memory kept beyond what it began with: less would be left for the next


class Refused(Exception):
    """Raised by the work: what was asked for is refused, and would be again. Becomes a `TerminalError`."""

    def __init__(self, message: str, error_type: str, details: Any = None) -> None:
        super().__init__(message)
        self.error_type = error_type
        self.details = details


def main() -> None:
    """Serve `module:function`, with limits of memory and of processor time for each request, until the input ends."""
    name, memory_bytes, cpu_s, parent = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    _end_with(parent)
    os.nice(_NICE)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints, prints beside the answers
    for number in (signal.SIGINT, signal.SIGTERM):  # of the whole group: the service finishes first, then ends us
        signal.signal(number, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    module, _, function = name.partition(":")
    work = getattr(import_module(module), function)
    prepare = getattr(sys.modules[module], "prepare", _nothing)  # what the next request would else wait for
    prepare()
    at_start = _held_bytes()
    _write(answers, READY, b"")
    while (request := _read(sys.stdin.buffer)) is not None:
        _allow(cpu_s)
        kind, answer = _answer(work, request)
        _write(answers, kind | (IS_WORN if _held_bytes() - at_start > _WORN_BYTES else 0), answer)
        prepare()
    os._exit(0)


def _nothing() -> None:
    """Prepare nothing."""


def _answer(work: Any, request: bytes) -> tuple[int, bytes]:
    try:
        return RESULT, work(orjson.loads(request))
    except Refused as refused:
        return REFUSED, _encoded(str(refused), refused.error_type, refused.details)
    except MemoryError:
        return FAILED | IS_WORN, _encoded("MemoryError", "MemoryError", None)
    except Exception as error:  # noqa: BLE001  # whatever it is, the process goes on and the attempt is answered
        return FAILED, _encoded(str(error), type(error).__name__, None)


def _encoded(message: str, error_type: str, details: Any) -> bytes:
    text = message.encode(errors="backslashreplace").decode()[:4096]
    return orjson.dumps({"message": text, "type": error_type, "details": details})


def _end_with(parent: int) -> None:
    """Have the kernel end this process with its parent, also in the middle of a request (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before we could ask
        os._exit(0)


def _allow(cpu_s: int) -> None:
    """Allow so many more seconds of processor time; 0 is no limit. Beyond it SIGXCPU ends the process."""
    if cpu_s:
        used = resource.getrusage(resource.RUSAGE_SELF)
        soft = int(used.ru_utime + used.ru_stime) + 1 + cpu_s
        resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _held_bytes() -> int:
    """Return what `RLIMIT_DATA` counts, or elsewhere than on Linux the most that was resident."""
    try:
        with open("/proc/self/statm", "rb") as file:  # noqa: PTH123  # pathlib costs an import
            return int(file.read().split()[5]) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _read(requests: BinaryIO) -> bytes | None:
    header = requests.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    size, _ = HEADER.unpack(header)
    request = requests.read(size)
    return request if len(request) == size else None


def _write(answers: BinaryIO, kind: int, answer: bytes) -> None:
    answers.write(HEADER.pack(len(answer), kind) + answer)
    answers.flush()
