"""A process that had large values is as small as before when it has them no more."""

import platform
import subprocess
import sys
from typing import Final

import pytest

# Values of a megabyte, each followed by a small one that stays: what is free lies between them.
PROGRAM: Final = """
import sys
from anabranch.shared.runtime.allocation import give_memory_back
if sys.argv[1] == "told":
    give_memory_back()
first = bytearray(30_000_000)
del first
large, small = [], []
for number in range(200):
    large.append(bytearray(1_000_000))
    large[-1][:] = bytes(1_000_000)
    small.append(bytearray(100_000))
del large
print(next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS")) // 1024)
"""


def mebibytes_left(how: str) -> int:
    """Return what a process still holds that had 200 MB."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], check=True, capture_output=True, text=True, timeout=60)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")
def test_what_large_values_took_goes_back() -> None:
    """While small ones that were made between them stay. Without being told glibc keeps nearly all."""
    assert mebibytes_left("told") < 100
    assert mebibytes_left("not told") > 200
