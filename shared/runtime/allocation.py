"""How the process's memory is given back to the system: glibc keeps much of what large values took."""

import ctypes
from typing import Final

from anabranch.shared.contracts.limits import KIB, MIB

# From malloc.h. What is larger than the threshold is a mapping of its own, which goes back when it is freed; setting it
# stops glibc from raising it to 32 MiB after the first large value. Free memory at the end of the heap goes back too.
_TRIM_THRESHOLD: Final = -1, 4 * MIB
_MMAP_THRESHOLD: Final = -3, 256 * KIB
_ARENA_MAX: Final = -8, 2  # heaps of threads: each keeps what it has, and eight for each core would be allowed


def give_memory_back() -> None:
    """Have what large values took go back to the system when they are freed; nothing where the C library is another."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in (_MMAP_THRESHOLD, _TRIM_THRESHOLD, _ARENA_MAX):
            mallopt(option, value)
