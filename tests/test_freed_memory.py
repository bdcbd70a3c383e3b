"""What a process does with memory that it has freed."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
import numpy as np
from vlvm_jax import memory

if sys.argv[1] == "kept":
    memory.keep_freed()

def allocate(pieces=8, size=16 << 20):
    return [np.ones(size, np.uint8) for _ in range(pieces)]

allocate()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    allocate()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    """Pages that were mapped for what had been allocated and freed before."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_kept_pages_are_not_mapped_again():
    returned, kept = faults("returned"), faults("kept")
    assert returned > 10_000 and kept < returned / 100
