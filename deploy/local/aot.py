"""The JVM's ahead-of-time cache (JEP 483, 514): classes of Kafka loaded, linked and profiled once, mapped afterwards.

A first run records, its graceful stop turns the recording into the cache, later runs map it. The JVM checks little of
what it maps: one changed byte in a cache is a SIGSEGV at start. So the file's name carries the hash of its content,
and everything the JVM compares, or forgets to compare, is in the key.
"""

import hashlib
import platform
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# What the JVM prints when it goes on without a cache that it was given.
REJECTED = "An error has occurred while processing the AOT cache"


@dataclass(frozen=True, slots=True)
class AotCache:
    """The cache of one (jars, Java, flags) in a directory that several stacks share."""

    folder: Path
    key: str

    @classmethod
    def of(cls, folder: Path, jars: Sequence[Path], java_home: Path, flags: Sequence[str]) -> "AotCache":
        """Name the cache of these jars (path, size and time of change), this Java and these flags."""
        parts = [platform.machine(), str(java_home), (java_home / "release").read_text(), *flags]
        for jar in jars:
            stat = jar.stat()
            parts.append(f"{jar} {stat.st_size} {stat.st_mtime_ns}")
        return cls(folder, hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16])

    def find(self) -> Path | None:
        """Return the cache if there is a whole one; a damaged one is deleted (0.05 s for 70 MB)."""
        for path in sorted(self.folder.glob(f"{self.key}-*.aot")):
            if path.name == self._name(path):
                return path
            path.unlink(missing_ok=True)
        return None

    def draft(self) -> Path:
        """A path for the JVM to write a new cache to, in the same directory."""
        return self.folder / f"{self.key}.{uuid.uuid4().hex}.draft"

    def publish(self, draft: Path) -> Path:
        """Give a finished draft its name; other processes see all of it or nothing."""
        return draft.replace(self.folder / self._name(draft))

    def discard(self) -> None:
        """Forget the cache, so that the next run records again."""
        for path in self.folder.glob(f"{self.key}-*.aot"):
            path.unlink(missing_ok=True)

    def _name(self, path: Path) -> str:
        with path.open("rb") as file:
            return f"{self.key}-{hashlib.file_digest(file, 'sha256').hexdigest()[:32]}.aot"
