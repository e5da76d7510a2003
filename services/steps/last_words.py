"""How a worker ended, for whoever takes up what it had in hand: by its own words, and as its supervisor saw it.

A worker that ends by a way of its own writes why before it is gone. One that is killed, or crashes, cannot: its
supervisor tells its successor (`ANABRANCH_PREDECESSOR`), which writes it down before it takes a command. Both are best
effort.
"""

import signal
import threading
from typing import Final

from anabranch.shared.contracts.limits import MAX_ERROR_MESSAGE_CHARS
from anabranch.shared.contracts.text import writable
from anabranch.shared.contracts.urls import redacted
from anabranch.shared.runtime.log import hidden_from_logs
from anabranch.shared.runtime.redis import BlockingRedis, RedisError, RedisKeys, redis_arguments
from anabranch.shared.runtime.settings import Settings

_WITHIN_S: Final = 0.3  # of a process that has to be gone within a second
RETENTION_S: Final = 3600  # as that of the memory that names the worker
_CHARS: Final = MAX_ERROR_MESSAGE_CHARS // 4  # of a message that says more


def instance_of(worker: str) -> str:
    """Return the process that a worker was in."""
    return worker.rpartition("-")[0]


def ending_of(exit_status: int) -> str:
    """Return what an exit status says; a negative one is a signal's."""
    if exit_status >= 0:
        return f"its process ended with exit code {exit_status}"
    try:
        return f"its process was ended by {signal.Signals(-exit_status).name} ({-exit_status})"
    except ValueError:
        return f"its process was ended by signal {-exit_status}"


def predecessor_of(settings: Settings) -> tuple[str, str] | None:
    """Return the process before this one and how it ended, if we were told."""
    instance, _, exit_status = settings.predecessor.partition(" ")
    return (instance, ending_of(int(exit_status))) if instance else None


def say_last_words(settings: Settings, worker: str, why: str) -> None:
    """Write why a worker ends, from a process whose event loop cannot be relied on. It takes no longer than it may."""
    words = writable(redacted(hidden_from_logs(why)))[:_CHARS]
    writing = threading.Thread(target=_write, args=(settings, worker, words), name="last words", daemon=True)
    writing.start()
    writing.join(_WITHIN_S)


def _write(settings: Settings, worker: str, words: str) -> None:
    try:
        with BlockingRedis.from_url(
            settings.redis_url, socket_timeout=_WITHIN_S, socket_connect_timeout=_WITHIN_S, **redis_arguments(settings)
        ) as redis:
            redis.set(RedisKeys(settings.topic_prefix).worker_end(worker), f"it said {words}".encode(), ex=RETENTION_S)
    except (RedisError, OSError):  # the log has them
        return
