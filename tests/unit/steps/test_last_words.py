"""What is known of how a worker ended, and that telling it holds nobody up."""

import socket
import time

import pytest
from pydantic import ValidationError

from anabranch.services.steps.last_words import ending_of, instance_of, predecessor_of, say_last_words
from anabranch.shared.runtime.settings import Settings


@pytest.mark.parametrize(
    ("exit_status", "words"),
    [
        (9, "its process ended with exit code 9"),
        (0, "its process ended with exit code 0"),
        (-11, "its process was ended by SIGSEGV (11)"),
        (-9, "its process was ended by SIGKILL (9)"),
        (-99, "its process was ended by signal 99"),
    ],
)
def test_exit_status_is_said_in_words(exit_status: int, words: str) -> None:
    """Signals by name, where they have one."""
    assert ending_of(exit_status) == words
    assert predecessor_of(Settings(predecessor=f"vm-17 {exit_status}")) == ("vm-17", words)


def test_first_process_in_its_place_has_no_predecessor() -> None:
    """Nobody told it of one."""
    assert predecessor_of(Settings()) is None


@pytest.mark.parametrize("told", ["vm-17", "vm-17 ", "vm 17 9", "vm-17 nine", "vm-17 9\n", " 9"])
def test_predecessor_that_cannot_be_understood_is_refused(told: str) -> None:
    """As any other setting."""
    with pytest.raises(ValidationError):
        Settings(predecessor=told)


def test_worker_is_of_its_instance() -> None:
    """Whatever dashes the instance's name has."""
    assert instance_of("my-host-17-0a1b2c") == "my-host-17"


def test_last_words_to_a_redis_that_says_nothing_take_no_longer_than_they_may() -> None:
    """The process has to be gone within a second."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        settings = Settings(redis_url=f"redis://127.0.0.1:{mute.getsockname()[1]}/0")
        began = time.monotonic()
        say_last_words(settings, "vm-17-0a1b2c", "caf\udce9")
        assert time.monotonic() - began < 60  # 0.3 measured; without a limit it hangs
