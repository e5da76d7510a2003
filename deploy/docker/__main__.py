"""Runs what the image is told: a service by its name, or a command of `anabranch`.

    python -m anabranch.deploy.docker gateway
    python -m anabranch.deploy.docker db upgrade

The service takes this process over, so that it has pid 1 in a container and every signal reaches it. The kernel ignores
a signal that pid 1 has no handler for: until the service has its own, SIGTERM and SIGINT end the process here.
"""

import runpy
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

from anabranch.deploy.local.services import ENGINE, STEP_TYPES


def module_of(service: str) -> str | None:
    """Return the module of a service, None for what is no service."""
    if service in ENGINE:
        return f"anabranch.services.{service}"
    return f"anabranch.services.steps.{service}" if service in STEP_TYPES else None


def main(arguments: Sequence[str]) -> None:
    """Become the service or the command that the arguments name."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _nothing_begun)
    module = module_of(arguments[0]) if len(arguments) == 1 else None
    if module is None:
        sys.argv = ["anabranch", *arguments]
        from anabranch.client.cli import main as command  # noqa: PLC0415 - a service does without it

        command()
    else:
        sys.argv = [module]
        runpy.run_module(module, run_name="__main__", alter_sys=True)


def _nothing_begun(_: int, __: FrameType | None) -> NoReturn:
    sys.exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
