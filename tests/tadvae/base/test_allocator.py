"""Memory that large arrays leave, in processes of their own: what is set stays set."""

import subprocess
import sys

import pytest

CODE = """
import resource, sys
import numpy as np
from tadvae.base.allocator import keep_freed_memory

if sys.argv[1] == "kept":
    assert keep_freed_memory()
for _ in range(2):
    np.ones(10_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    np.ones(10_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc is told")
def test_pages_are_used_again():
    """80 MB at a time: pages that the system gives once, or every time."""
    faults = {}
    for what in ("kept", "returned"):
        done = subprocess.run([sys.executable, "-c", CODE, what], check=True, capture_output=True, text=True)
        faults[what] = int(done.stdout)
    assert faults["kept"] < 100 < faults["returned"]
