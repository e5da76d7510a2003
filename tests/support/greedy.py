"""What a process that reads bodies must survive: work that takes more than it may."""

import os
import resource
import time
from typing import Any

from anabranch.services.gateway import apart
from anabranch.shared.contracts.limits import MIB


def takes_memory(*_: Any) -> bytearray:
    """Ask for more memory than there is."""
    apart._set_limits()
    return bytearray(1024 * MIB)


def takes_time(*_: Any) -> None:
    """Never end; the processor time is cut to one second more, so that the test is short."""
    apart._set_limits()
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + 1, hard))
    while True:
        pass


def ends(*_: Any) -> None:
    """End the process."""
    os._exit(3)
