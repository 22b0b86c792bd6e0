"""Memory that large arrays leave is kept for the next ones, instead of being returned to the system."""

import ctypes
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # parameters of mallopt, malloc.h of glibc
LARGEST = 2**30
"""Bytes up to which memory is kept: larger arrays are the tables of a program, not those of a step."""


def keep_freed_memory() -> bool:
    """Let the C library of this process keep what is freed, on Linux with glibc; nothing elsewhere.

    By default glibc asks the system for every array above 32 MB, and gives it back. The system then fills
    each page with zeros when it is first touched, which can take longer than to compute on it
    (``benchmarks/train_step.py``).

    Returns
    -------
    Whether the library was told so.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return False
    return bool(mallopt(MMAP_THRESHOLD, LARGEST)) and bool(mallopt(TRIM_THRESHOLD, -1))
