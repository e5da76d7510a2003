"""The jars of Apache Kafka: named and hashed in a lock file, fetched once per user by jgo's pure-Python Maven client.

`kafka-jars.lock` holds one line per jar, `group:artifact:version sha256`. Nothing is resolved at run time: the lock is
complete, so no POM is read and no Maven or Java is needed. jgo's environment builder is not used: it would fetch a
second JDK to sort jars into `jars` and `modules`, and Kafka wants all of them on the class path.

    python -m anabranch.deploy.local.jars fetch     download what is missing (the stack does it by itself)
    python -m anabranch.deploy.local.jars lock VERSION     write the lock anew, for another version of Kafka
"""

import argparse
import fcntl
import hashlib
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

LOCK = Path(__file__).with_name("kafka-jars.lock")
LOGGING = (
    "org.apache.logging.log4j:log4j-slf4j-impl"  # Kafka's own log goes nowhere without it; versioned as log4j-core
)
DOWNLOADS_AT_ONCE = 8
ATTEMPTS = 3
READ_TIMEOUT_S = 30


class JarMismatchError(RuntimeError):
    """A jar is not the one that the lock names."""


@dataclass(frozen=True, slots=True)
class Jar:
    """One line of the lock."""

    group: str
    artifact: str
    version: str
    sha256: str

    @property
    def file_name(self) -> str:
        return f"{self.artifact}-{self.version}.jar"

    def __str__(self) -> str:
        return f"{self.group}:{self.artifact}:{self.version}"


def read_lock(lock: Path = LOCK) -> tuple[Jar, ...]:
    """Return the jars that the lock names, in class path order."""
    lines = (line.split("#")[0].split() for line in lock.read_text().splitlines())
    return tuple(_jar(*line) for line in lines if line)


def _jar(coordinate: str, sha256: str) -> Jar:
    group, artifact, version = coordinate.split(":")
    return Jar(group, artifact, version, sha256)


def cache_root() -> Path:
    """The directory shared by all stacks of this user: ANABRANCH_CACHE, or `anabranch` in the XDG cache directory."""
    if chosen := os.environ.get("ANABRANCH_CACHE"):
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "anabranch"


def jar_dir(cache: Path, lock: Path = LOCK) -> Path:
    """Where the jars of this lock are kept; another lock has another directory."""
    return cache / "kafka" / hashlib.sha256(lock.read_bytes()).hexdigest()[:16]


def fetched(cache: Path, lock: Path = LOCK) -> bool:
    """Whether the jars of the lock are in the cache (unverified)."""
    return jar_dir(cache, lock).is_dir()


def verified(cache: Path, lock: Path = LOCK) -> tuple[Path, ...]:
    """Return the cached jars after comparing each with its hash (0.1 s); raise JarMismatchError when one differs."""
    folder = jar_dir(cache, lock)
    jars = read_lock(lock)
    for jar in jars:
        _verify(folder / jar.file_name, jar)
    return tuple(folder / jar.file_name for jar in jars)


def fetch(cache: Path, lock: Path = LOCK) -> tuple[Path, ...]:
    """Download what the lock names unless the cache has it, verify every jar, and return their paths.

    The directory appears under its name complete or not at all; of several processes one downloads.
    """
    final = jar_dir(cache, lock)
    final.parent.mkdir(parents=True, exist_ok=True)
    with _one_at_a_time(final.with_suffix(".lock")):
        if not final.is_dir():
            staging = final.with_suffix(".partial")
            shutil.rmtree(staging, ignore_errors=True)  # of a process that was killed here
            _download(read_lock(lock), staging)
            (staging / "jars").rename(final)
            shutil.rmtree(staging)
    return verified(cache, lock)


def _download(jars: Sequence[Jar], staging: Path) -> None:
    context = _maven(staging / "m2")
    (staging / "jars").mkdir(parents=True)

    def download(jar: Jar) -> None:
        source = _download_one(context, jar)
        source.rename(staging / "jars" / jar.file_name)

    with ThreadPoolExecutor(DOWNLOADS_AT_ONCE) as pool:
        list(pool.map(download, jars))


def _download_one(context: Any, jar: Jar) -> Path:
    import requests  # noqa: PLC0415 - comes with jgo, and only a first start needs either

    artifact = context.project(jar.group, jar.artifact).at_version(jar.version).artifact()
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _verify(artifact.resolve(), jar)
            break
        except (requests.RequestException, JarMismatchError):  # a cut connection also shows as a wrong hash
            artifact.cached_path.unlink(missing_ok=True)
            if attempt == ATTEMPTS:
                raise
    return Path(artifact.cached_path)


def _maven(repo_cache: Path) -> Any:
    """jgo's Maven context, with Maven Central and what the user's jgo settings add or put in its place (a mirror)."""
    from jgo.config import GlobalSettings  # noqa: PLC0415
    from jgo.constants import MAVEN_CENTRAL_URL  # noqa: PLC0415
    from jgo.maven import MavenContext, PythonResolver  # noqa: PLC0415

    repositories = {"central": MAVEN_CENTRAL_URL, **GlobalSettings.load().repositories}
    return MavenContext(PythonResolver(), repo_cache, remote_repos=repositories, timeout=READ_TIMEOUT_S)


def _verify(path: Path, jar: Jar) -> None:
    if not path.is_file():
        raise JarMismatchError(f"{path} is missing; delete {path.parent} to fetch it again")
    actual = _sha256(path)
    if actual != jar.sha256:
        raise JarMismatchError(
            f"{jar} is not the file that the lock names: sha256 {actual} instead of {jar.sha256}.\n"
            f"If {path} was damaged, delete {path.parent} to fetch it again."
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def make_lock(kafka_version: str, repo_cache: Path) -> str:
    """Resolve a version of Kafka and return the text of its lock."""
    context = _maven(repo_cache)
    # Kafka alone: jgo reads the dependency management of every root, and log4j's would turn kafka-clients into 3.9.
    roots, below = context.resolver.resolve([context.create_dependency(f"org.apache.kafka:kafka_2.13:{kafka_version}")])
    artifacts = [d.artifact for d in (*roots, *below) if d.scope in (None, "compile", "runtime")]
    log4j = next(a.version for a in artifacts if a.artifactId == "log4j-core")
    artifacts.append(context.create_dependency(f"{LOGGING}:{log4j}").artifact)
    with ThreadPoolExecutor(DOWNLOADS_AT_ONCE) as pool:
        paths = list(pool.map(lambda artifact: artifact.resolve(), artifacts))
    lines = [
        f"{a.groupId}:{a.artifactId}:{a.version} {_sha256(path)}" for a, path in zip(artifacts, paths, strict=True)
    ]
    head = "# Apache Kafka and what it needs to run. Made by `python -m anabranch.deploy.local.jars lock VERSION`.\n"
    return head + "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetch the jars, or write the lock anew."""
    parser = argparse.ArgumentParser(prog="python -m anabranch.deploy.local.jars")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("fetch", help="download Kafka's jars into the cache unless they are there")
    commands.add_parser("lock", help="write kafka-jars.lock anew").add_argument("version")
    chosen = parser.parse_args(arguments)
    if chosen.command == "lock":
        scratch = Path(mkdtemp(prefix="anabranch-lock-"))
        LOCK.write_text(make_lock(chosen.version, scratch))
        shutil.rmtree(scratch)
        return 0
    return _fetch_and_tell()


def _fetch_and_tell() -> int:
    cache = cache_root()
    if not fetched(cache):
        print(f"fetching Apache Kafka {kafka_version()} into {cache}, once", flush=True)
    started = time.monotonic()
    try:
        paths = fetch(cache)
    except JarMismatchError as error:
        print(error, file=sys.stderr)
        return 1
    size_mb = sum(path.stat().st_size for path in paths) / 1e6
    print(f"Apache Kafka {kafka_version()}: {len(paths)} jars, {size_mb:.0f} MB, {time.monotonic() - started:.1f} s")
    return 0


def kafka_version(lock: Path = LOCK) -> str:
    """The version of Kafka that the lock names."""
    return next(jar.version for jar in read_lock(lock) if jar.artifact == "kafka_2.13")


if __name__ == "__main__":
    sys.exit(main())
