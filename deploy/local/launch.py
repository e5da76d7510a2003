"""Become another program that the kernel kills when the process that started it dies.

`python -I -S launch.py PARENT_PID PROGRAM ARG...` asks Linux for SIGKILL on the death of its parent and then turns into
the program: same pid, same command line as if it had been started directly. A file of its own rather than
`preexec_fn`, which may deadlock when the parent has threads. Elsewhere than on Linux it only becomes the program.

The kernel watches the *thread* that forked, so start programs from a thread that lives as long as they should: the one
that runs the event loop.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def main() -> None:
    """Ask for the signal, check that the parent is still there, become the program."""
    parent_pid, program = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent_pid:  # it died before the line above; nobody would send the signal
            sys.exit(1)
    os.execv(program[0], program)  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    main()
