"""Structured logs: structlog, one line per fact; stdlib loggers (aiokafka, aiohttp) are routed through it."""

from typing import Any

from structlog.typing import FilteringBoundLogger

from anabranch.shared.runtime.settings import Settings


def configure_logging(service: str, settings: Settings) -> None:
    """Send every line of this process to stdout, from the settings' level on."""
    raise NotImplementedError


def get_logger(**bound: Any) -> FilteringBoundLogger:
    """Return a logger with values bound to each of its lines; filtered-out calls cost a method call."""
    raise NotImplementedError
