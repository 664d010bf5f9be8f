"""Memory that training frees stays with the process."""

from __future__ import annotations

import subprocess
import sys

import pytest

COUNT = """
import resource, torch
from unmask.training.freed import keep_freed_memory
if {keep}:
    keep_freed_memory()
def touched(size):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(size)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
touched(2**24)
print(touched(2**23))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_a_tensor_takes_the_pages_of_one_that_was_freed() -> None:
    fresh, kept = (
        int(subprocess.run([sys.executable, "-c", COUNT.format(keep=keep)], capture_output=True, check=True).stdout)
        for keep in (False, True)
    )
    assert kept < 100
    assert fresh > 10 * kept
