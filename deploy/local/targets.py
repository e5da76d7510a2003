"""Where the services of a stack answer `/metrics`, as Prometheus reads it (`file_sd_config`)."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import orjson

TARGETS: Final = "targets.json"


class Target(Protocol):
    """One process."""

    name: str
    role: str

    @property
    def url(self) -> str:
        """Where it serves `/metrics`."""


def targets_of(services: Iterable[Target]) -> list[dict[str, Any]]:
    """Return a group for each process: `instance` is its name in the stack, which it keeps when it is started again."""
    groups: list[dict[str, Any]] = []
    for service in services:
        url = urlsplit(service.url)
        labels = {"__scheme__": url.scheme, "instance": service.name, "role": service.role}
        groups.append({"targets": [url.netloc], "labels": labels})
    return groups


def write_targets(path: Path, services: Iterable[Target]) -> None:
    """Write the file in one go: Prometheus may read it at any moment."""
    beside = path.with_suffix(".tmp")
    beside.write_bytes(orjson.dumps(targets_of(services), option=orjson.OPT_INDENT_2))
    beside.replace(path)
