"""A process takes the descriptors that it may have."""

import subprocess
import sys

import pytest

_LIMITED = """
import resource
from anabranch.shared.runtime.descriptors import allow_descriptors
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 512))
print(allow_descriptors({wanted}), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


@pytest.mark.parametrize(("wanted", "found"), [(32, "64 64"), (300, "300 300"), (15_000, "512 512")])
def test_the_soft_limit_is_raised_as_far_as_it_may_be(wanted: int, found: str) -> None:
    """Never lowered, and not beyond the hard one."""
    command = [sys.executable, "-c", _LIMITED.format(wanted=wanted)]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert said.stdout.split() == found.split()
