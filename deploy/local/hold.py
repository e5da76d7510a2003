"""One holder at a time: a lock file with the holder's pid in it, which the kernel frees when the holder dies."""

import fcntl
import os
from pathlib import Path


class HeldError(RuntimeError):
    """Somebody else holds it; the message names the pid."""


class Hold:
    """The exclusive use of something, from `take` to `release`."""

    def __init__(self, path: Path, what: str) -> None:
        self._path = path
        self._what = what
        self._file: int | None = None

    def take(self) -> None:
        """Take it; raise HeldError naming the pid that has it. Taking what one has already changes nothing."""
        if self._file is not None:
            return
        file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)  # not inherited by children (PEP 446)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.read(file, 32).decode().strip() or "unknown"
            os.close(file)
            raise HeldError(f"{self._what} is in use by another process (pid {pid})") from None
        os.truncate(file, 0)
        os.write(file, f"{os.getpid()}\n".encode())
        self._file = file

    def release(self) -> None:
        """Let it go."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
