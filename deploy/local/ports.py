"""Ports on the loopback address."""

import random
import socket

HOST = "127.0.0.1"
# Below the range from which Linux (32768 up) and macOS (49152 up) draw the ports of outgoing connections. A client that
# retries a port of that range while nobody listens on it will one day connect to itself, and then the server cannot
# come back on its own port after a restart.
CHOICES = range(20_000, 32_000)


def is_free(port: int) -> bool:
    """Whether a server could listen on the port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def free_port(*, preferred: int | None = None, besides: frozenset[int] = frozenset()) -> int:
    """Return the preferred port when it is free, else a free one drawn at random (so that two callers rarely agree)."""
    if preferred is not None and preferred not in besides and is_free(preferred):
        return preferred
    for _ in range(1_000):
        port = random.choice(CHOICES)  # noqa: S311 - not a secret
        if port not in besides and is_free(port):
            return port
    raise OSError(f"no free port between {CHOICES.start} and {CHOICES.stop} on {HOST}")
